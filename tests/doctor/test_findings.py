"""What the doctor says of machines that are faked, one thing wrong on each."""

from dataclasses import replace
from typing import Any

import pytest
from fake_machines import CPU_TRIAL, CU130, FAILED, GPU, LAPTOP, LINUX, NO_GPU, NOTHING, RTX

from medmambase.doctor import findings
from medmambase.doctor.facts import Facts, Folder, Trial
from medmambase.doctor.finding import Level
from medmambase.doctor.findings import verdict
from medmambase.doctor.torch_build import Card

MACHINES = {
    "a workstation as it should be": (RTX, "READY (triton on NVIDIA GeForce RTX 4070)"),
    "a laptop without a card": (LAPTOP, "READY (cpu)"),
    "a Mac": (replace(LAPTOP, system="Darwin", architecture="arm64", tritons={}, long_paths=None), "READY (cpu)"),
    "torch for the CPU beside a card": (
        replace(RTX, torch="2.13.0", trial=CPU_TRIAL),
        f"READY (slower, this torch is a CPU build and leaves the card idle); to fix it: {CU130}",
    ),
    "no Visual C++ runtime": (
        replace(RTX, runtime_missing=("msvcp140.dll",), trial=Trial(failed="OSError: [WinError 126] c10.dll")),
        "NOT READY: the Visual C++ runtime is missing; winget install Microsoft.VCRedist.2015+.x64",
    ),
    "the embeddable Python": (
        replace(RTX, python_kind="embeddable", headers=False, trial=FAILED),
        "NOT READY: this Python has no Python.h, which Triton needs for its first launch on the GPU; install the full "
        "Python, not the embeddable one "
        "(winget install Python.Python.3.12), make a virtual environment with it, and install medmambase there",
    ),
    "two Tritons": (
        replace(RTX, tritons={"triton": "3.7.1", "triton-windows": "3.7.1.post27"}),
        "NOT READY: several packages called triton overwrite each other's files; "
        'pip uninstall -y triton triton-windows, then pip install "triton-windows==3.7.*"',
    ),
    "no Triton": (
        replace(RTX, tritons={}, trial=replace(GPU, backend="torch", reason="Triton is not installed")),
        'READY (slower, Triton is missing); to fix it: pip install "triton-windows==3.7.*"',
    ),
    "a card newer than its torch": (
        replace(
            RTX,
            card=Card((13, 0), (12, 0)),
            trial=replace(FAILED, cuda="12.6", builds=("sm_50", "sm_80", "sm_86", "sm_90"), capability=(12, 0)),
        ),
        f"NOT READY: this torch has no code for compute capability 12.0; {CU130}",
    ),
    "a driver older than its torch": (
        replace(RTX, card=Card((12, 4), (8, 9)), trial=NO_GPU),
        "READY (slower, the driver is too old for this torch, which is built for CUDA 13.0); to fix it: "
        "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126",
    ),
    "a card of the Turing generation": (
        replace(
            RTX,
            card=Card((13, 0), (7, 5)),
            trial=replace(GPU, capability=(7, 5), backend="torch", reason="the card is old"),
        ),
        "READY (slower, the card is older than compute capability 8.0)",
    ),
    "an account whose name is Chinese": (
        replace(RTX, temp=Folder("C:\\Users\\用户\\Temp", True), cache=Folder("C:\\Users\\用户\\.triton\\cache", True)),
        "READY (triton on NVIDIA GeForce RTX 4070)",
    ),
    "Linux without a compiler": (
        replace(LINUX, compiler=None, trial=FAILED),
        "NOT READY: Triton on Linux needs a C compiler; sudo apt install gcc",
    ),
    "Windows on ARM": (
        replace(LAPTOP, architecture="win-arm64", torch=None, trial=NOTHING),
        "NOT READY: PyTorch has no wheel for Windows on win-arm64; use the 64-bit Windows installer (x64, also on "
        "ARM) from python.org.",
    ),
    "no PyTorch": (
        replace(LAPTOP, torch=None, trial=NOTHING),
        "NOT READY: PyTorch is not installed; pip install --force-reinstall torch==2.13.0",
    ),
    "kernels that do not load": (
        replace(LAPTOP, trial=Trial("2.13.0+cpu", failed="ImportError: cannot import name 'selective_scan'")),
        "NOT READY: medmambase_kernels does not load; in the folder that medmambase was cloned to: "
        "pip install --force-reinstall --no-deps ./kernels .",
    ),
    "two versions": (
        replace(RTX, kernels="0.3.0"),
        "NOT READY: medmambase and medmambase-kernels have different versions; in the folder that medmambase was "
        "cloned to: pip install --force-reinstall --no-deps ./kernels .",
    ),
    "a wrong result": (replace(RTX, trial=replace(GPU, error=0.3)), "NOT READY: the scan is wrong on this machine; "),
}

# What is wrong on a machine that is else as it should be: the finding's title, its level, words of
# what is said.
ONE_THING: list[tuple[dict[str, Any], str, Level, str]] = [
    ({"architecture": "win32"}, "system", Level.BROKEN, "64-bit"),
    ({"python": (3, 15, 0), "torch": None, "trial": NOTHING}, "Python", Level.BROKEN, "3.11 to 3.14"),
    ({"python": (3, 15, 0)}, "Python", Level.NOTE, "3.11 to 3.14"),
    ({"headers": False}, "Python.h", Level.BROKEN, "winget install Python"),
    ({"runtime_missing": ("msvcp140.dll",)}, "C++ runtime", Level.BROKEN, "winget install Microsoft.VCRedist"),
    ({"card": None}, "card", Level.OK, "no NVIDIA card"),
    ({"card": Card((12, 8), (12, 0)), "trial": NO_GPU}, "driver", Level.SLOWER, "update the driver"),
    ({"torch": "2.6.1+cu124"}, "torch", Level.BROKEN, "2.7 or newer"),
    ({"trial": Trial(failed="ImportError: no c10")}, "torch", Level.BROKEN, "ImportError: no c10"),
    ({"trial": replace(NO_GPU, cuda="12.6")}, "torch's build", Level.SLOWER, "restart"),
    ({"kernels": "0.1.0"}, "medmambase", Level.BROKEN, "--no-deps ./kernels ."),
    ({"kernels": None}, "medmambase", Level.BROKEN, "medmambase-kernels is not installed"),
    ({"medmambase": None}, "medmambase", Level.NOTE, "pip install"),
    ({"medmambase": None, "kernels": None}, "medmambase", Level.OK, "not installed"),
    ({"tritons": {}}, "Triton", Level.SLOWER, "triton-windows==3.7"),
    ({"tritons": {"triton-windows": "3.5.1.post24"}}, "torch and Triton", Level.NOTE, "triton-windows==3.7"),
    ({"llvmlite": None}, "CPU backend", Level.NOTE, "pip install llvmlite"),
    ({"llvmlite": None, "card": None, "trial": CPU_TRIAL}, "CPU backend", Level.SLOWER, "pip install llvmlite"),
    ({"shadows": ("triton.py",)}, "this folder", Level.BROKEN, "rename triton.py"),
    ({"temp": Folder("C:\\Temp", False)}, "TEMP", Level.BROKEN, "is not writable"),
    ({"temp": Folder("C:\\Zoë", True)}, "TEMP", Level.NOTE, "another name"),
    ({"cache": Folder("C:\\c", False)}, "kernel cache", Level.BROKEN, "TRITON_CACHE_DIR"),
    ({"cache": Folder("C:\\肺", True)}, "kernel cache", Level.NOTE, "another name"),
    ({"cache": Folder("C:\\" + "x" * 220, True)}, "kernel cache", Level.NOTE, "shorter"),
    ({"long_paths": False}, "long paths", Level.NOTE, "LongPathsEnabled 1"),
    ({"memory": 2 * 10**9}, "memory", Level.NOTE, "--cache off"),
    ({"memory": None}, "memory", Level.OK, "unknown"),
    ({"disk": 10**6}, "disk", Level.BROKEN, "free 1 GB"),
    ({"trial": replace(GPU, backend="torch", reason="because")}, "backend", Level.SLOWER, "because"),
    (
        {"trial": replace(FAILED, backend="", failed="ImportError: no describe_backend")},
        "backend",
        Level.BROKEN,
        "ImportError: no describe_backend",
    ),
    ({"trial": FAILED}, "a small kernel", Level.BROKEN, "tcc.exe returned 1"),
    ({"trial": replace(GPU, error=None, scan_ms=None, failed="exit code 5")}, "the scan", Level.BROKEN, "exit code 5"),
    ({"trial": replace(GPU, error=float("nan"))}, "the scan", Level.BROKEN, "nan"),
    (
        {"trial": replace(GPU, scan_ms=None, failed="exit code 5")},
        "its speed",
        Level.BROKEN,
        "MEDMAMBASE_BACKEND=torch",
    ),
]


@pytest.mark.parametrize(("machine", "last"), MACHINES.values(), ids=MACHINES)
def test_the_last_line_tells_what_the_machine_is_good_for(machine: Facts, last: str) -> None:
    _, said = verdict(machine, findings.findings(machine))
    assert said.startswith(last)
    assert said == last or last.endswith("; ")


@pytest.mark.parametrize(
    ("change", "title", "level", "words"), ONE_THING, ids=[f"{title}-{words}" for _, title, _, words in ONE_THING]
)
def test_one_thing_wrong_is_found_and_fixed(change: dict[str, Any], title: str, level: Level, words: str) -> None:
    fine = {finding.title: finding for finding in findings.findings(RTX)}
    found = {finding.title: finding for finding in findings.findings(replace(RTX, **change))}
    assert list(fine) == list(found), "the same lines on every machine"
    assert fine[title].level == Level.OK
    assert found[title].level == level
    assert words in f"{found[title].text} {found[title].fix} {found[title].why}"
    if level == Level.BROKEN:
        assert found[title].fix, "what does not work has something that fixes it"
        assert found[title].why


def test_every_finding_has_a_test() -> None:
    titles = {finding.title for finding in findings.findings(RTX)}
    assert titles - {title for _, title, _, _ in ONE_THING} == {"kernels"}  # a card of the Turing generation, above
