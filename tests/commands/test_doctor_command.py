"""What ``medmambase-doctor`` prints and writes, and what every command says where PyTorch does not
load."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from fake_machines import RTX
from hypothesis import given
from hypothesis import strategies as st

from medmambase.commands import doctor as command
from medmambase.commands import start
from medmambase.doctor import findings
from medmambase.doctor.facts import Facts, Folder, Trial

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_this_machine_is_looked_at_and_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doctor.json"
    code = command.main(["--json", str(file)])
    printed = capsys.readouterr().out
    written = json.loads(file.read_text(encoding="utf-8"))
    assert code == 0
    said, _, after = printed.partition("\n\nnext: ")
    assert said.splitlines()[-1] == written["verdict"] and after.endswith("  medmambase-train --demo\n")
    assert written["verdict"].startswith("READY (")
    assert written["facts"]["trial"]["error"] < 1e-5
    assert str(Path.home()) not in file.read_text(encoding="utf-8").replace("\\\\", "\\")
    assert len(printed.splitlines()) >= 23


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
        data = {"bench": []}.get(name, ["data"])
        done = run(
            f"import sys; from medmambase.commands import start; sys.argv[1:] = {data}; sys.exit(start.{name}())"
        )
        assert done.returncode == 4
        assert done.stderr.count("\n") == 1
        assert f"medmambase-{name}: " in done.stderr
        assert "medmambase-doctor says how to fix this" in done.stderr


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
        monkeypatch.setattr(f"medmambase.commands.{command}_flags.parse", lambda words: None)
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
