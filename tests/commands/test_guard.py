"""However a command fails, it ends with one line, and the same kind of failure has the same exit
code everywhere."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from medmambase.commands import bench, console, doctor, guard
from medmambase_kernels import BackendError


def fails(error: BaseException):
    def act(*_: object) -> int:
        raise error

    return act


@pytest.mark.parametrize("command", [bench, doctor])
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left", "x.json"), 4, "x.json: No space left; free some space there"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), 4, "x.json: Permission denied"),
        (guard.UsageError("give\nanother"), 2, "give another"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_same_failure_has_the_same_exit_code_in_every_command(
    command, error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "_bench" if command is bench else "_examine", fails(error))
    assert command.main([]) == code
    assert line in capsys.readouterr().err.replace("\nmed", "med")


def test_a_missing_backend_is_the_environments_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.guarded("x", fails(BackendError("no card"))) == 4
    assert capsys.readouterr().err == "x: no card\n"


def test_an_error_that_nobody_expects_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        guard.guarded("x", fails(ZeroDivisionError()))


def test_an_error_that_names_no_file_names_the_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.guarded("x", fails(OSError(errno.EIO, "I/O error"))) == 4
    assert capsys.readouterr().err == "x: this machine: I/O error\n"


@pytest.mark.parametrize("path", ["", "none/x.json"])
def test_a_file_that_cannot_be_made_is_usage(path: str, tmp_path: Path) -> None:
    guard.check_file("--json", tmp_path / "x.json")
    with pytest.raises(guard.UsageError, match=r"^--json .* cannot be written"):
        guard.check_file("--json", tmp_path / path)


def test_the_doctor_and_the_guard_need_nothing_but_python() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(('torch', 'numpy', 'tqdm')); import medmambase.commands.doctor"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
