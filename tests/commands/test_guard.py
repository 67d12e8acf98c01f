"""However a command fails, it ends with one line, and the same kind of failure has the same exit
code everywhere."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

from medmambase.commands import bench, console, doctor, guard
from medmambase.training.interrupt import Terminated
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
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (Terminated(15), 143, "\ninterrupted by SIGTERM\n"),
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


def test_a_line_is_one_and_short_and_commands_no_console(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.guarded("x", fails(guard.UsageError("a\x1b[2J\u2028b\nc"))) == 2
    assert capsys.readouterr().err == "x: a [2J b c\n"
    guard.guarded("x", fails(guard.UsageError(f"a.csv: {'x' * 100_000}; delete it")))
    line = capsys.readouterr().err
    assert len(line) < 2100 and line.startswith("x: a.csv: xx") and line.endswith("xx; delete it\n")


def test_a_machine_without_memory_is_the_environments_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.guarded("x", fails(MemoryError())) == 4
    assert capsys.readouterr().err.startswith("x: not enough memory (no more is available); halve --batch-size")


def test_an_error_that_nobody_expects_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        guard.guarded("x", fails(ZeroDivisionError()))


def test_an_error_that_names_no_file_names_the_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.guarded("x", fails(OSError(errno.EIO, "I/O error"))) == 4
    assert capsys.readouterr().err == "x: this machine: I/O error\n"


@pytest.mark.parametrize("line", ["short", "x" * 100_000])  # which a buffer holds, and which it does not
def test_where_nobody_reads_the_output_a_command_ends_quietly(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert guard.guarded("x", lambda: min(0, stream.write(line))) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
    error = BrokenPipeError(errno.EPIPE, "Broken pipe")  # of a pipe to another process: the output is read
    assert guard.guarded("x", fails(error)) == 4 and "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", "none/x.json"])
def test_a_file_that_cannot_be_made_is_usage(path: str, tmp_path: Path) -> None:
    guard.check_file("--json", tmp_path / "x.json")
    with pytest.raises(guard.UsageError, match=r"^--json .* cannot be written"):
        guard.check_file("--json", tmp_path / path)


def test_a_command_that_the_system_ends_says_so_in_one_line(
    end: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> int:
        assert signal.getsignal(end) is not signal.SIG_DFL  # which would end all tests
        signal.raise_signal(end)
        return 0

    assert guard.guarded("x", act, interrupted=lambda: "interrupted: all is saved") == 128 + end
    assert capsys.readouterr().err == f"\ninterrupted by {end.name}: all is saved\n"
    assert signal.getsignal(end) is signal.SIG_DFL


@pytest.mark.usefixtures("ctrl_c")
def test_a_further_ctrl_c_while_a_command_says_what_is_saved_ends_it_without_a_traceback() -> None:
    before, heard = signal.getsignal(signal.SIGINT), []

    def act() -> int:
        raise KeyboardInterrupt

    def last_line() -> str:
        heard.append(signal.getsignal(signal.SIGINT))
        return "interrupted"

    assert guard.guarded("x", act, interrupted=last_line) == 130
    assert heard == [signal.SIG_DFL] and signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="there a terminal that closes is a console's event")
def test_a_command_whose_terminal_closes_ends_without_an_error_of_its_own(tmp_path: Path) -> None:
    code = """if True:
        import fcntl, sys, termios, time
        from pathlib import Path
        from medmambase.commands import guard

        def act():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            print("ready", flush=True)
            while True:
                time.sleep(0.01)

        def last_line():
            Path(sys.argv[1]).write_text("told", encoding="utf-8")
            return "interrupted"

        sys.exit(guard.guarded("x", act, interrupted=last_line))"""
    terminal, end_of_it = os.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "told")],
            cwd=Path(__file__).resolve().parents[2],
            stdin=end_of_it,
            stdout=end_of_it,
            stderr=end_of_it,
            start_new_session=True,
        )
        os.close(end_of_it)
        assert os.read(terminal, 7).startswith(b"ready")
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(terminal)
    assert process.wait(PATIENCE) == 129
    assert (tmp_path / "told").read_text(encoding="utf-8") == "told"


def test_the_doctor_and_the_guard_need_nothing_but_python() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(('torch', 'numpy', 'tqdm')); import medmambase.commands.doctor"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
