"""check.py runs every step, tells each one's result, and says what it left out."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import check
import environment


class Calls(list[list[str]]):
    """Stands in for what starts programs: remembers the commands, in the order of the steps, and
    fails those that contain ``failing``."""

    failing, code = "nothing", 1

    def call(self, command: Sequence[str]) -> int:
        self.append(list(command))
        return self.code if any(self.failing in word for word in command) else 0

    def run(self, command: Sequence[str]) -> check.Outcome:
        return self.call(command), 1.0, f"what {Path(command[1]).name} says"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(environment, "prepare", lambda folder, test: Path("python"))
    monkeypatch.setattr(environment, "call", made.call)
    monkeypatch.setattr(check, "_run", made.run)
    monkeypatch.setattr(check, "cores", lambda: 1)
    return made


def test_every_step_runs_and_one_that_fails_is_named(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.failing = "--platform"
    assert check.main(["--", "-k", "house"]) == 1
    assert [command[command.index("-m") + 1] for command in calls] == ["ruff", "ruff", "mypy", "mypy", "pytest"]
    assert calls[-1][-2:] == ["-k", "house"]
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert ["FAILED" in line for line in lines] == [False, False, False, True, False]
    calls.failing = "nothing"
    assert check.main(["--only", "lint", "types", "--skip", "types"]) == 0
    assert calls[5:] == [["python", *check.STEPS["lint"]]]


def test_tests_run_in_as_many_processes_as_there_are_cores_and_in_one_without_xdist(calls: Calls) -> None:
    for jobs in ("1", "2", "16"):
        assert check.main(["--only", "tests", "--jobs", jobs, "--", "-x"]) == 0
    plain = ["python", *check.STEPS["tests"]]
    two, sixteen = ([*plain, "-n", jobs, "--dist", "worksteal", "-x"] for jobs in ("2", "16"))
    assert calls == [[*plain, "-x"], two, sixteen]


def test_the_fast_way_leaves_out_the_slow_tests_and_says_so(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--fast"]) == 0
    assert calls[-1] == ["python", *check.STEPS["tests"], "-m", "not slow"]
    assert capsys.readouterr().out.splitlines()[-1].endswith(check.LEFT_OUT)
    assert check.main([]) == 0
    assert calls[-1] == ["python", *check.STEPS["tests"]]
    assert check.LEFT_OUT not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "code", "told", "whole"),
    [
        ("windows", 0, "passed", 0),
        ("windows", 1, "FAILED (exit code 1)", 1),
        ("windows", 2, "NOT RUN", 0),
        ("wheels", 2, "FAILED (exit code 2)", 1),
    ],
)
def test_what_runs_after_the_steps_counts_and_a_machine_without_wine_is_said_loudly(
    calls: Calls, capsys: pytest.CaptureFixture[str], name: str, code: int, told: str, whole: int
) -> None:
    calls.failing, calls.code = check.MORE[name][0], code
    assert check.main(["--only", "lint", "--also", name]) == whole
    printed = capsys.readouterr().out
    assert f"what {Path(check.MORE[name][0]).name} says" in printed
    assert told in printed.splitlines()[-1]


def test_a_program_that_may_run_beside_others_keeps_its_output_and_reads_no_input() -> None:
    said = "import sys; print('ü', sys.stdin.read(), flush=True); print('err', file=sys.stderr); sys.exit(3)"
    code, seconds, printed = check._run([sys.executable, "-X", "utf8", "-c", said])
    assert (code, printed.split()) == (3, ["ü", "err"]) and seconds > 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told which cores it may use")
def test_only_the_cores_that_the_process_may_use_are_counted() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert check.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
