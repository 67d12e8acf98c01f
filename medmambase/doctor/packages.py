"""Judge the installed packages: medmambase and its kernels, torch, Triton, llvmlite. Pure functions
of Facts."""

from medmambase.doctor import torch_build
from medmambase.doctor.facts import Facts
from medmambase.doctor.finding import Finding, Level
from medmambase.doctor.fixes import (
    CAPABILITY_LEAST,
    PAIRS,
    dotted,
    install_medmambase,
    install_torch,
    minor,
    triton_requirement,
    wants_triton,
)


def medmambase(f: Facts) -> Finding:
    """Whether medmambase and medmambase-kernels are installed in the same version."""
    title, fix = "medmambase", install_medmambase()
    if f.medmambase is None:
        if f.kernels is None:
            return Finding(title, "not installed, runs from its folder")
        text = f"not installed, runs from its folder; medmambase-kernels {f.kernels} is installed"
        return Finding(title, text, Level.NOTE, fix)
    if f.kernels is None:
        text = f"{f.medmambase}, without medmambase-kernels"
        return Finding(title, text, Level.BROKEN, fix, "medmambase-kernels is not installed")
    if f.kernels != f.medmambase:
        text = f"{f.medmambase}, but medmambase-kernels {f.kernels}"
        return Finding(title, text, Level.BROKEN, fix, "medmambase and medmambase-kernels have different versions")
    return Finding(title, f"{f.medmambase}, medmambase-kernels too")


def torch(f: Facts) -> Finding:
    """Whether PyTorch is there, new enough, and loads."""
    fix = install_torch(f)
    if f.torch is None:
        return Finding("torch", "missing", Level.BROKEN, fix, "PyTorch is not installed")
    if not torch_build.new_enough(f.torch):
        return Finding("torch", f.torch, Level.BROKEN, fix, f"PyTorch {f.torch} is too old; 2.7 or newer is needed")
    if not f.trial.torch:
        text = f"{f.torch} does not load: {f.trial.failed}"
        return Finding("torch", text, Level.BROKEN, fix, "PyTorch does not load")
    return Finding("torch", f.trial.torch)


def build(f: Facts) -> Finding:
    """Whether this torch can use the card."""
    title, text = "torch's build", f"CUDA {f.trial.cuda}" if f.trial.cuda else "CPU"
    if f.card is None or not f.trial.torch:
        return Finding(title, text)
    if f.trial.cuda is None and f.trial.hip is None:
        why = "this torch is a CPU build and leaves the card idle"
        return Finding(title, "CPU, beside an NVIDIA card", Level.SLOWER, install_torch(f), why)
    text = f"CUDA {f.trial.cuda}"
    if not f.trial.sees_gpu:
        fix = "restart the machine, then update the driver"
        return Finding(title, f"{text}, sees no card", Level.SLOWER, fix, "torch does not see the card")
    capability = f.card.capability
    newest = max(
        (int(number) for name in f.trial.builds if (number := name.removeprefix("sm_")).isdigit()), default=None
    )
    if capability and newest and capability[0] > newest // 10:
        why = f"this torch has no code for compute capability {dotted(capability)}"
        return Finding(title, f"{text}, up to sm_{newest}", Level.BROKEN, install_torch(f), why)
    return Finding(title, text)


def capability(f: Facts) -> Finding:
    """Whether the card is new enough for the Triton kernels."""
    if not f.trial.sees_gpu:
        return Finding("kernels", "not needed without an NVIDIA card")
    if f.trial.capability is None or f.trial.hip:
        return Finding("kernels", "not tested on AMD cards")
    here = dotted(f.trial.capability)
    if f.trial.capability < CAPABILITY_LEAST:
        why = "the card is older than compute capability 8.0"
        return Finding("kernels", f"need compute capability 8.0; this card has {here}", Level.SLOWER, "", why)
    return Finding("kernels", f"need compute capability 8.0; this card has {here}")


def triton(f: Facts) -> Finding:
    """Whether there is one Triton, and not several in each other's place."""
    if len(f.tritons) > 1:
        fix = f"pip uninstall -y {' '.join(f.tritons)}, then pip install {triton_requirement(f)}"
        why = "several packages called triton overwrite each other's files"
        return Finding("Triton", " and ".join(f.tritons), Level.BROKEN, fix, why)
    if f.tritons:
        ((name, version),) = f.tritons.items()
        return Finding("Triton", f"{name} {version}")
    if wants_triton(f):
        return Finding("Triton", "missing", Level.SLOWER, f"pip install {triton_requirement(f)}", "Triton is missing")
    return Finding("Triton", "not needed without an NVIDIA card")


def pair(f: Facts) -> Finding:
    """Whether torch was tested with this Triton."""
    tested = PAIRS.get(minor(f.torch))
    if len(f.tritons) != 1 or tested is None:
        return Finding("torch and Triton", "nothing to compare")
    (version,) = f.tritons.values()
    if minor(version) != tested:
        text = f"torch {minor(f.torch)} is tested with Triton {tested}; {version} is installed"
        return Finding("torch and Triton", text, Level.NOTE, f"pip install {triton_requirement(f)}")
    return Finding("torch and Triton", "tested together")


def llvmlite(f: Facts) -> Finding:
    """Whether the CPU backend can compile its vector code."""
    if f.llvmlite:
        return Finding("CPU backend", f"llvmlite {f.llvmlite}")
    level = Level.NOTE if f.trial.sees_gpu else Level.SLOWER
    return Finding("CPU backend", "llvmlite is missing", level, "pip install llvmlite", "llvmlite is missing")


def shadow(f: Facts) -> Finding:
    """Whether a file in the current folder is imported in place of a package."""
    if f.shadows:
        names = " and ".join(f.shadows)
        why = f"{names} in this folder would be imported in place of the package"
        return Finding("this folder", f"contains {names}", Level.BROKEN, f"rename {names}", why)
    return Finding("this folder", "no file here shadows a package")
