"""Judge the machine and its Python: system, C++ runtime, card, driver, folders, memory, disk. Pure
functions of Facts."""

from medmambase.doctor import torch_build
from medmambase.doctor.facts import Facts
from medmambase.doctor.finding import Finding, Level
from medmambase.doctor.fixes import PYTHON, REDIST, dotted, install_torch, machine_of, numbers, wants_triton
from medmambase.doctor.torch_build import SetupError

GB = 1e9
LONG = 200  # characters of a cache folder, from which on its files come near to Windows' 260


def system(f: Facts) -> Finding:
    """Whether PyTorch has a wheel for this system."""
    text = f"{f.system} {f.release}, {f.architecture}"
    if f.architecture in torch_build.ARCHITECTURES.get(f.system, ()):
        return Finding("system", text)
    try:
        torch_build.choose_torch(machine_of(f), None)
    except SetupError as error:
        fix = str(error).splitlines()[0].partition(". ")[2].replace("Use ", "use ", 1)
        return Finding("system", text, Level.BROKEN, fix, f"PyTorch has no wheel for {f.system} on {f.architecture}")
    return Finding("system", text)


def python(f: Facts) -> Finding:
    """Whether PyTorch has a wheel for this Python."""
    text = f"{'.'.join(map(str, f.python))}{f', {f.python_kind}' if f.python_kind else ''}"
    if f.python[:2] > torch_build.PYTHON_NEWEST:
        fix = f"use Python 3.11 to {dotted(torch_build.PYTHON_NEWEST)}"
        level = Level.NOTE if f.torch else Level.BROKEN
        return Finding("Python", text, level, fix, "PyTorch has no wheel for this Python")
    return Finding("Python", text)


def headers(f: Facts) -> Finding:
    """Whether the first launch of a Triton kernel can compile its small module: Windows has a
    compiler in triton-windows, Linux needs one."""
    title = "Python.h"
    if not wants_triton(f):
        return Finding(title, "not needed without an NVIDIA card")
    if not f.headers:
        fix = "sudo apt install python3-dev"
        if f.system == "Windows":
            fix = (
                f"install the full Python, not the embeddable one ({PYTHON}), make a virtual environment with it, and "
                f"install medmambase there"
            )
        why = "this Python has no Python.h, which Triton needs for its first launch on the GPU"
        return Finding(title, "missing", Level.BROKEN, fix, why)
    if f.system == "Linux" and not f.compiler:
        why = "Triton on Linux needs a C compiler"
        return Finding(title, "found, but no C compiler", Level.BROKEN, "sudo apt install gcc", why)
    return Finding(title, f"found{f', and {f.compiler}' if f.system == 'Linux' else ''}")


def runtime(f: Facts) -> Finding:
    """Whether Windows has the C++ runtime that PyTorch's libraries need."""
    if f.system != "Windows":
        return Finding("C++ runtime", "needed on Windows only")
    if f.runtime_missing:
        text = f"Windows cannot find {', '.join(f.runtime_missing)}"
        return Finding("C++ runtime", text, Level.BROKEN, REDIST, "the Visual C++ runtime is missing")
    return Finding("C++ runtime", "Visual C++ 2015-2022")


def card(f: Facts) -> Finding:
    """Which NVIDIA card there is."""
    if f.card is None:
        return Finding("card", "no NVIDIA card, or none with a driver")
    return Finding("card", f"{f.card_name or 'NVIDIA'}, compute capability {dotted(f.card.capability)}")


def driver(f: Facts) -> Finding:
    """Whether the driver is new enough for this torch, which sees no card otherwise."""
    if f.card is None:
        return Finding("driver", "not needed without an NVIDIA card")
    text = f"{f.driver}, up to CUDA {dotted(f.card.cuda)}"
    built = numbers(f.trial.cuda)
    if f.card.cuda and built and built[0] > f.card.cuda[0] and not f.trial.sees_gpu:
        blackwell = (f.card.capability or (0, 0)) >= (10, 0)
        fix = "update the driver from https://www.nvidia.com/drivers" if blackwell else install_torch(f)
        why = f"the driver is too old for this torch, which is built for CUDA {f.trial.cuda}"
        return Finding("driver", text, Level.SLOWER, fix, why)
    return Finding("driver", text)


def temp(f: Facts) -> Finding:
    """Whether Triton's compilers can write to the folder for temporary files."""
    if not f.temp.writable:
        fix = "free space there, or set TEMP to a folder of your own"
        return Finding("TEMP", f"{f.temp.path} is not writable", Level.BROKEN, fix, "TEMP is not writable")
    if f.system == "Windows" and not f.temp.path.isascii():
        return Finding("TEMP", f"{f.temp.path}: medmambase gives Triton's compilers another name for it", Level.NOTE)
    return Finding("TEMP", f.temp.path)


def cache(f: Facts) -> Finding:
    """Whether compiled kernels can be kept."""
    title = "kernel cache"
    if not f.cache.writable:
        fix = "free space there, or set TRITON_CACHE_DIR to a folder of your own"
        level = Level.BROKEN if wants_triton(f) else Level.NOTE
        return Finding(title, f"{f.cache.path} is not writable", level, fix, "the kernel cache is not writable")
    if f.system == "Windows" and not f.cache.path.isascii():
        return Finding(title, f"{f.cache.path}: medmambase gives Triton another name for it", Level.NOTE)
    if f.system == "Windows" and len(f.cache.path) > LONG:
        text = f"{f.cache.path}: {len(f.cache.path)} characters"
        return Finding(title, text, Level.NOTE, "set TRITON_CACHE_DIR to a shorter folder")
    return Finding(title, f.cache.path)


def long_paths(f: Facts) -> Finding:
    """Whether Windows takes paths of more than 260 characters."""
    if f.long_paths is False:
        key = r"HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem"
        fix = f"as administrator, in PowerShell: Set-ItemProperty {key} LongPathsEnabled 1"
        text = "off: images and caches in deep folders fail at 260 characters"
        return Finding("long paths", text, Level.NOTE, fix)
    return Finding("long paths", "on" if f.long_paths else "no limit on this system")


def memory(f: Facts) -> Finding:
    """Whether a training with the default settings fits into memory."""
    if f.memory is None:
        return Finding("memory", "unknown")
    text = f"{f.memory / GB:.0f} GB"
    if f.memory < 4 * GB:
        return Finding("memory", text, Level.NOTE, "train with --cache off --batch-size 8")
    return Finding("memory", text)


def disk(f: Facts) -> Finding:
    """Whether a run's folder fits onto this disk."""
    if f.disk < GB:
        text = f"{f.disk / GB:.1f} GB free here"
        return Finding("disk", text, Level.BROKEN, "free 1 GB, or work on another disk", "this disk is full")
    return Finding("disk", f"{f.disk / GB:.0f} GB free here")
