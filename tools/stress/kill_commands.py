"""End a small cross-validation or pretraining again and again, start it by the same command line
again, and compare the result with an undisturbed one.

    python tools/stress/kill_commands.py crossval --kills 40
    python tools/stress/kill_commands.py pretrain --kills 40

The four ways to end are those of ``kill_test.py``, in turn; they meet the command's own process,
not those that it starts, which have to end with it. Figures are not painted, since that takes most
of the time. After each end the exit code must be that of its way, nothing may have ended in a
traceback, and what lies in the folder must be readable. Exit code 1 where that is not so, or where
at last a file has other bytes than the undisturbed one.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from safetensors.torch import load

import kill_folds
from kill_test import FULL, MOMENTS, WAYS, Kill, ask, differing, expected, readable
from medmambase import run_folder
from medmambase.training.crossval import processes

_NAME = "small"  # of the run
_AGAIN = 0.6  # seconds between two signals; sooner it is the same request
_SHOWN = 6000  # letters of what a command said at the end, where that was wrong


@dataclass(frozen=True)
class _Small:
    """A command that takes seconds: its ``words`` beside the run's folder, the files to
    ``compare``, and among how many ``writes`` of its own process one is chosen."""

    words: tuple[str, ...]
    compared: tuple[str, ...]
    writes: int


_OF_A_FOLD = (
    "fold_splits.csv", "splits.csv", "metrics.csv", "best/model.safetensors", "last/model.safetensors",
    "test/predictions.csv",
)  # fmt: skip  # from the images to the figures
COMMANDS = {
    "crossval": _Small(
        (
            "images", "--start", "start", "--folds", "2", "--jobs", "2", "--epochs", "2", "--batch-size", "4",
            "--image-size", "16", "--group-regex", r"(\d+)_", "--plain-patients", "--save-every", "2",
            "--device", "cpu",
        ),
        (
            "folds.csv", "folds.json", "config.json", "test/predictions.csv", "test/metrics.json",
            *(f"fold-{fold}/{name}" for fold in (0, 1) for name in _OF_A_FOLD),
        ),
        20,
    ),
    "pretrain": _Small(
        (
            "--drawn", "--start", "start", "--steps", "24", "--batch-size", "4", "--image-size", "32",
            "--held-out", "6", "--workers", "1", "--save-every", "3", "--device", "cpu", "--resume", "auto",
        ),
        ("weights.safetensors", "metrics.csv", "pretraining.json", "config.json"),
        30,
    ),
}  # fmt: skip  # flags with their values


def start(command: str, folder: Path, runs: Path, kill: Kill | None = None) -> subprocess.Popen[str]:
    """Start the command in a process of its own; returns when its imports are done and it
    begins."""
    words = [sys.executable, str(Path(__file__).resolve()), command, "--child", str(runs)]
    words += ["--write", str(kill.write), "--moment", kill.moment] if kill else []
    # A group of its own is what Windows sends Ctrl-Break to.
    group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    process = subprocess.Popen(
        words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", creationflags=group,
        # One thread, since their number decides last digits, and is what is fast at the moment.
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip  # what, where, and what becomes of its words
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        assert line, f"{command} cannot begin"
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end. Returns the exit code and what was printed."""
    said, _ = process.communicate()
    return process.returncode, said


def _ended(
    process: subprocess.Popen[str], way: str, kill: Kill | None, chance: random.Random, seconds: float
) -> tuple[int, str]:
    """End the process in one of WAYS: by ``kill``, or from outside within so many seconds."""
    if kill is None:
        time.sleep(chance.uniform(0, seconds))
        if process.poll() is None:
            if way == "SIGKILL":
                process.kill()
            else:
                ask(process)
    if way == "SIGTERM twice":
        time.sleep(_AGAIN)
        if process.poll() is None:
            ask(process)
    return finish(process)


def _newest(runs: Path) -> Path:
    """Return the folder that is gone on with. One that was ended before it had its settings is
    left, and another one made."""
    return next(iter(run_folder.existing(runs, _NAME)), runs)


def _unreadable(run: Path) -> str | None:
    """Say what is wrong with the folder; None if everything in it can be read."""
    for part in (run, *run.glob("fold-*")):
        if wrong := readable(part):
            return f"{part.name}: {wrong}"
    for path in run.glob("weights.safetensors"):
        try:
            load(path.read_bytes())
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
            return f"{path.name}: {type(error).__name__}: {error}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 if every one ended with the bytes of the
    undisturbed one, and no folder was ever unreadable."""
    parser = argparse.ArgumentParser(
        description="End a small cross-validation or pretraining again and again, in four ways, and compare what comes "
        "out with an undisturbed one.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=40, help="at least so many (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--moment", choices=(*MOMENTS, FULL), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        act = import_module(f"medmambase.commands.{options.command}").main
        kill_folds.leave_unpainted()
        processes.FOLD = kill_folds.__name__
        if options.moment:
            deadly = getattr(signal, "SIGKILL", signal.SIGTERM)
            Kill(options.write, options.moment, lambda: os.kill(os.getpid(), deadly)).arm()
        print("ready", flush=True)
        words = COMMANDS[options.command].words
        return int(act([*words, "--runs", str(options.child), "--name", _NAME]))
    with tempfile.TemporaryDirectory(prefix="kill commands ü ") as folder:
        return _end_often(options.command, Path(folder), options.kills, random.Random(options.seed))


def _end_often(command: str, folder: Path, wanted: int, chance: random.Random) -> int:
    kill_folds.prepare(folder)
    began = time.perf_counter()
    code, said = finish(start(command, folder, folder / "undisturbed"))
    if code:
        print(f"the undisturbed {command} failed: {said}")
        return 1
    seconds, small = time.perf_counter() - began, COMMANDS[command]
    reference = folder / "undisturbed" / f"{_NAME}-001"
    print(f"the undisturbed {command} takes {seconds:.1f} s", flush=True)
    ends: Counter[str] = Counter()
    failures = turn = struck = 0
    while min(ends[way] for way in WAYS) * len(WAYS) < wanted:
        turn += 1
        runs = folder / f"runs {turn}"
        for _ in range(4):
            way = min(WAYS, key=lambda way: ends[way])  # the first of those that are behind
            struck += way == "SIGKILL"
            strikes = way == FULL or (way == "SIGKILL" and struck % 2 == 0)
            moment = FULL if way == FULL else chance.choice(MOMENTS)
            kill = Kill(chance.randrange(small.writes), moment, int) if strikes else None
            code, said = _ended(start(command, folder, runs, kill), way, kill, chance, seconds)
            done = (_newest(runs) / run_folder.REPORT).is_file()
            if code == 0 or (done and code == -signal.SIGTERM):
                break
            ends[way] += 1
            wrong = _unreadable(_newest(runs)) if expected(way, code) else f"exit code {code}: {said[-400:]}"
            wrong = "a traceback" if "Traceback" in said else wrong
            failures += wrong is not None
            where = f", write {kill.write}{'' if way == FULL else f' {kill.moment}'}" if kill else ""
            print(f"{command} {turn}, {way}{where}{f': WRONG: {wrong}' if wrong else ''}", flush=True)
            if wrong:
                print(textwrap.indent(said[-_SHOWN:], "    "), flush=True)
        code, said = finish(start(command, folder, runs))
        different = (
            [f"exit code {code}: {said[-400:]}"] if code else differing(_newest(runs), reference, small.compared)
        )
        failures += bool(different)
        print(f"{command} {turn}: {', '.join(different) if different else 'ends with the same bytes'}", flush=True)
    counts = ", ".join(f"{ends[way]} {way}" for way in WAYS)
    print(f"{sum(ends.values())} ends ({counts}) of {turn} times {command}: {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
