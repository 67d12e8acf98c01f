"""``medmambase-doctor``: what it says of machines that are faked, one thing wrong on each, and of a
Python whose PyTorch does not load."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmambase.commands import doctor as command
from medmambase.commands import start
from medmambase.doctor import facts, findings
from medmambase.doctor.facts import Facts, Folder, Trial, read_trial
from medmambase.doctor.findings import Level, verdict
from medmambase.doctor.torch_build import Card

ROOT = Path(__file__).resolve().parents[2]
GPU = Trial(
    "2.13.0+cu130", "13.0", None, True, ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), (8, 9), "triton",
    "the tensors are on cuda", 2.5, 3e-7, 0.4,
)  # fmt: skip  # in the order of the fields
NO_GPU = replace(GPU, sees_gpu=False, capability=None, engine="cpu", reason="the tensors are on the CPU")
RTX = Facts(
    "Windows", "10.0.22631", "win-amd64", (3, 12, 4), "", "C:\\venv", True, None, "2.13.0+cu130",
    {"triton-windows": "3.7.1.post27"}, "0.50.0", (), (), Card((13, 0), (8, 9)), "NVIDIA GeForce RTX 4070", "581.15",
    Folder("C:\\Users\\ann\\Temp", True), Folder("C:\\Users\\ann\\.triton\\cache", True), True, 32 * 10**9,
    200 * 10**9, GPU,
)  # fmt: skip  # in the order of the fields
LINUX = replace(
    RTX, system="Linux", architecture="x86_64", compiler="/usr/bin/gcc", tritons={"triton": "3.7.1"}, long_paths=None
)
NOTHING = Trial()
CU130 = "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
CPU_TRIAL = replace(NO_GPU, torch="2.13.0+cpu", cuda=None, builds=())
LAPTOP = replace(RTX, card=None, card_name="", driver="", torch="2.13.0+cpu", trial=CPU_TRIAL)
FAILED = replace(GPU, kernel_s=None, error=None, scan_ms=None, failed="CalledProcessError: tcc.exe returned 1")

MACHINES = {
    "a workstation as it should be": (RTX, "READY (triton on NVIDIA GeForce RTX 4070)"),
    "a laptop without a card": (LAPTOP, "READY (cpu)"),
    "a Mac": (replace(LAPTOP, system="Darwin", architecture="arm64", tritons={}, long_paths=None), "READY (cpu)"),
    "torch for the CPU beside a card": (
        replace(RTX, torch="2.13.0", trial=CPU_TRIAL),
        f"READY (slower, this torch is a CPU build and leaves the card idle); to mend it: {CU130}",
    ),
    "no Visual C++ runtime": (
        replace(RTX, runtime_missing=("msvcp140.dll",), trial=Trial(failed="OSError: [WinError 126] c10.dll")),
        "NOT READY: the Visual C++ runtime is missing; winget install Microsoft.VCRedist.2015+.x64",
    ),
    "the embeddable Python": (
        replace(RTX, python_kind="embeddable", headers=False, trial=FAILED),
        "NOT READY: this Python has no Python.h, which the first launch on the GPU compiles with; install the full "
        "Python, not the embeddable one "
        "(winget install Python.Python.3.12), make a virtual environment with it, and install medmambase there",
    ),
    "two Tritons": (
        replace(RTX, tritons={"triton": "3.7.1", "triton-windows": "3.7.1.post27"}),
        "NOT READY: several packages called triton overwrite each other's files; "
        'pip uninstall -y triton triton-windows, then pip install "triton-windows==3.7.*"',
    ),
    "no Triton": (
        replace(RTX, tritons={}, trial=replace(GPU, engine="torch", reason="Triton is not installed")),
        'READY (slower, Triton is missing); to mend it: pip install "triton-windows==3.7.*"',
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
        "READY (slower, the driver is too old for this torch, which is built for CUDA 13.0); to mend it: "
        "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126",
    ),
    "a card of the Turing generation": (
        replace(
            RTX,
            card=Card((13, 0), (7, 5)),
            trial=replace(GPU, capability=(7, 5), engine="torch", reason="the card is old"),
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
        "NOT READY: PyTorch has no wheel for Windows on win-arm64; Use the 64-bit Windows installer (x64, also on "
        "ARM) from python.org.",
    ),
    "no PyTorch": (
        replace(LAPTOP, torch=None, trial=NOTHING),
        "NOT READY: PyTorch is not installed; pip install --force-reinstall torch==2.13.0",
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
    ({"tritons": {}}, "Triton", Level.SLOWER, "triton-windows==3.7"),
    ({"tritons": {"triton-windows": "3.5.1.post24"}}, "torch and Triton", Level.NOTE, "triton-windows==3.7"),
    ({"llvmlite": None}, "CPU engine", Level.NOTE, "pip install llvmlite"),
    ({"llvmlite": None, "card": None, "trial": CPU_TRIAL}, "CPU engine", Level.SLOWER, "pip install llvmlite"),
    ({"shadows": ("triton.py",)}, "this folder", Level.BROKEN, "rename triton.py"),
    ({"temp": Folder("C:\\Temp", False)}, "TEMP", Level.BROKEN, "cannot be written to"),
    ({"temp": Folder("C:\\Zoë", True)}, "TEMP", Level.NOTE, "another name"),
    ({"cache": Folder("C:\\c", False)}, "kernel cache", Level.BROKEN, "TRITON_CACHE_DIR"),
    ({"cache": Folder("C:\\肺", True)}, "kernel cache", Level.NOTE, "another name"),
    ({"cache": Folder("C:\\" + "x" * 220, True)}, "kernel cache", Level.NOTE, "shorter"),
    ({"long_paths": False}, "long paths", Level.NOTE, "LongPathsEnabled 1"),
    ({"memory": 2 * 10**9}, "memory", Level.NOTE, "--cache off"),
    ({"memory": None}, "memory", Level.OK, "not known"),
    ({"disk": 10**6}, "disk", Level.BROKEN, "free 1 GB"),
    ({"trial": replace(GPU, engine="torch", reason="because")}, "engine", Level.SLOWER, "because"),
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
def test_one_thing_wrong_is_found_and_mended(change: dict[str, Any], title: str, level: Level, words: str) -> None:
    fine = {finding.title: finding for finding in findings.findings(RTX)}
    found = {finding.title: finding for finding in findings.findings(replace(RTX, **change))}
    assert list(fine) == list(found), "the same lines on every machine"
    assert fine[title].level == Level.OK
    assert found[title].level == level
    assert words in f"{found[title].text} {found[title].mend} {found[title].why}"
    if level == Level.BROKEN:
        assert found[title].mend, "what does not work has something that mends it"
        assert found[title].why


def test_every_finding_has_a_test() -> None:
    titles = {finding.title for finding in findings.findings(RTX)}
    assert titles - {title for _, title, _, _ in ONE_THING} == {"kernels"}  # a card of the Turing generation, above


def test_this_machine_is_looked_at_and_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doctor.json"
    code = command.main(["--json", str(file)])
    printed = capsys.readouterr().out
    written = json.loads(file.read_text(encoding="utf-8"))
    assert code == 0
    assert printed.rstrip().splitlines()[-1] == written["verdict"]
    assert written["verdict"].startswith("READY (")
    assert written["facts"]["trial"]["error"] < 1e-5
    assert str(Path.home()) not in file.read_text(encoding="utf-8").replace("\\\\", "\\")
    assert len(printed.splitlines()) >= 22


def test_paths_and_the_user_stay_out_of_the_report_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "Zoë Smith")
    private = replace(
        RTX,
        python_folder="D:\\work\\Zoë Smith\\venv",
        temp=Folder("C:\\Users\\Zoë Smith\\AppData\\Local\\Temp", True),
        trial=Trial(
            failed="OSError: [WinError 126] Error loading 'C:\\Users\\Zoë Smith\\venv\\Lib\\c10.dll' or /home/zoë "
            "smith/venv/x.so, said zoë smith"
        ),
    )
    found = findings.findings(private)
    hidden = json.dumps(command.report(private, found, "", False), ensure_ascii=False)
    assert "smith" not in hidden.lower()
    assert "AppData" not in hidden
    assert "c10.dll" not in hidden or "<path>" in hidden
    assert "Zoë Smith" in json.dumps(command.report(private, found, "", True), ensure_ascii=False)


@given(
    st.text("abc肺 é-_", min_size=3).map(str.strip).filter(lambda name: len(name) > 2),
    st.sampled_from(["C:\\Users\\{}\\x", "/home/{}/x", "\\\\server\\{}\\x"]),
)
def test_no_name_of_a_user_comes_through(name: str, pattern: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("getpass.getuser", lambda: name)
        path = pattern.format(name)
        secret = replace(RTX, temp=Folder(path, True), trial=Trial(failed=f"cannot open '{path}'"))
        assert path not in json.dumps(
            command.report(secret, findings.findings(secret), "", False), ensure_ascii=False
        ).replace("\\\\", "\\")


def test_a_trial_that_ended_early_tells_how_far_it_came() -> None:
    trial = read_trial(
        'noise\n{"torch": "2.13.0", "capability": [8, 9], "sees_gpu": true}\n{"engine": "triton", "unknown": 1}\n',
        "exit code -11",
    )
    assert (trial.torch, trial.capability, trial.engine, trial.kernel_s, trial.failed) == (
        "2.13.0",
        (8, 9),
        "triton",
        None,
        "exit code -11",
    )


def test_a_file_that_hides_a_package_is_seen(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("", encoding="utf-8")
    (tmp_path / "torch").mkdir()
    assert facts._shadows(tmp_path) == ["triton.py"]
    (tmp_path / "torch" / "__init__.py").write_text("", encoding="utf-8")
    assert facts._shadows(tmp_path) == ["triton.py", "torch"]


def test_a_folder_that_cannot_be_made_or_written_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert facts._folder(tmp_path / "not" / "yet").writable
    assert not facts._folder(tmp_path / "file" / "below").writable


def test_a_python_whose_torch_does_not_load_hears_why_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise OSError(126, 'c10.dll or one of its dependencies is missing')\n", encoding="utf-8"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels"))),
        "PYTHONIOENCODING": "utf-8",
    }

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=False
        )

    done = run(
        "import sys; from medmambase.commands import start; sys.argv = ['medmambase-doctor']; sys.exit(start.doctor())"
    )
    assert done.returncode == 4
    assert (
        done.stdout.rstrip()
        .splitlines()[-1]
        .startswith("NOT READY: PyTorch does not load; pip install --force-reinstall torch")
    )
    assert "c10.dll" in done.stdout
    assert not done.stderr
    for name in ("train", "check", "bench"):
        done = run(f"import sys; from medmambase.commands import start; sys.exit(start.{name}())")
        assert done.returncode == 4
        assert done.stderr.count("\n") == 1
        assert f"medmambase-{name}: " in done.stderr
        assert "medmambase-doctor says how to mend that" in done.stderr


def test_every_console_command_begins_where_its_main_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(scripts) == {
        f"medmambase-{path.stem}"
        for path in (ROOT / "medmambase" / "commands").glob("*.py")
        if "def main(" in path.read_text("utf-8")
    } - {"medmambase-doctor_trial"}
    for name, target in scripts.items():
        command = name.removeprefix("medmambase-")
        module, _, function = target.partition(":")
        monkeypatch.setattr(f"medmambase.commands.{command}.main", lambda: 7)
        assert getattr(importlib.import_module(module), function)() == 7


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> Facts:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "look", interrupted)
    assert command.main([]) == 130
    monkeypatch.setattr(start, "import_module", interrupted)
    assert start.train() == 130
    assert capsys.readouterr().err == "\ninterrupted\n" * 2


def test_a_report_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "look", lambda: RTX)
    assert command.main(["--json", str(tmp_path / "none" / "x.json")]) == 2
    assert "--json" in capsys.readouterr().err
