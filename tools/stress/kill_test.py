"""End a small training again and again, resume it each time, and compare the result with an
undisturbed training.

    python tools/stress/kill_test.py --kills 40
    python tools/stress/kill_test.py --kills 40 --folds 3

A training ends in one of four ways, in turn. It is killed (SIGKILL), at a random moment or inside a
write, where half of a file is on the disk, or all of it but not yet in its place, or just moved
there; it is asked to end (SIGTERM; on Windows Ctrl-Break); it is asked twice; or its disk is full
from some write on. After each end the exit code must be that of its way, the folder must hold
nothing that cannot be read, and at last the weights and metrics.csv must have the bytes of the
undisturbed training. Exit code 1 where that is not so.

What is trained is the loop alone, on images in memory; with --folds it is one fold after the other
of a cross-validation, from files to the report, which goes on as ``--resume auto`` does.
"""

import argparse
import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from medmambase import MedMambaSE, ModelConfig, run_folder
from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import ImageSet, Progress
from medmambase.data.manifest.folders import Sample
from medmambase.data.reading.images import Facts
from medmambase.training import checkpoint, history, loop
from medmambase.training.interrupt import Terminated, termination_raises

COMPARED = ("metrics.csv", "best/model.safetensors", "best/config.json", "last/model.safetensors", "last/config.json")
# and of a fold also
COMPARED_OF_A_FOLD = ("splits.csv", "val/predictions.csv", "test/predictions.csv", "test/metrics.json")
FOLD = "fold"  # name of its run
CONFIG = TrainConfig(
    lr=1e-2, epochs=4, batch_size=4, image_size=16, warmup=1.0, ema=0.9, accumulate=2, balance="sampler", patience=0
)
MOMENTS = ("half written", "not moved yet", "just moved")
FULL = "the disk is full"
WAYS = ("SIGKILL", "SIGTERM", "SIGTERM twice", FULL)
_TERMINATED, _NO_SPACE = 128 + signal.SIGTERM, 4  # exit codes
_AGAIN = 0.6  # seconds between two signals; sooner it is the same request
_WRITES, _WRITES_OF_A_FOLD = 12, 40  # among which one is chosen


@dataclass
class Kill:
    """Strike at the write of this number, counted from 0, and at one of MOMENTS: ``die`` does not
    return. With FULL the disk has no space from this write on."""

    write: int
    moment: str
    die: Callable[[], object]

    def arm(self) -> None:
        """Wait in ``os.fsync`` and ``os.replace``, through which every file of a run goes."""
        fsync, replace = os.fsync, os.replace
        synced, moved = iter(range(1_000_000)), iter(range(1_000_000))

        def fsync_or_die(file: int) -> None:
            number = next(synced)
            if number >= self.write and self.moment == FULL:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if number == self.write and self.moment == "half written":
                os.ftruncate(file, os.fstat(file).st_size // 2)
                self.die()
            fsync(file)

        def replace_or_die(source: Path, target: Path) -> None:
            number = next(moved)
            if number == self.write and self.moment == "not moved yet":
                self.die()
            replace(source, target)
            if number == self.write and self.moment == "just moved":
                self.die()

        os.fsync, os.replace = fsync_or_die, replace_or_die  # type: ignore[assignment]  # narrower than the library's


def image_set(count: int, split: str, size: int = 16) -> ImageSet:
    """Draw noise whose brightness is its class; the first class has most images."""
    labels = torch.tensor([max(0, i % 5 - 2) for i in range(count)])
    noise = torch.randint(0, 100, (count, 1, size, size), generator=torch.Generator().manual_seed(count))
    samples = tuple(
        Sample(Path(f"{i}.png"), label, split, f"{split}/{i}.png") for i, label in enumerate(labels.tolist())
    )
    images = (noise + 70 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageSet(images, labels, samples, tuple(Facts(f"{split}{i}", size, size, "L", 1) for i in range(count)))


def train(run: Path, config: TrainConfig, progress: Progress = lambda items, total, text: items) -> history.Outcome:
    """Run the small training, from wherever it stands in ``run``."""
    torch.manual_seed(config.seed)
    model = ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(8, 16), drop_path=0.2, drop_rate=0.1)
    network = MedMambaSE(model, preprocessing=Preprocessing(size=16, channels=1))
    run.mkdir(parents=True, exist_ok=True)
    with run_folder.held(run):
        return loop.train(
            network,
            image_set(29, "train"),
            image_set(11, "val"),
            config,
            run,
            torch.float32,
            progress,
            lambda epoch: None,
            resume=True,
        )


def at_step(number: int, act: Callable[[], object]) -> Progress:
    """Make a progress bar that acts just before this step, counted from the process's start."""
    steps = iter(range(1_000_000))

    def progress(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
        for item in items:
            if next(steps) == number:
                act()
            yield item

    return progress


def readable(run: Path) -> str | None:
    """Say what is wrong with the folder; None if everything in it can be read."""
    try:
        for name in ("best", "last"):
            if (run / name / "model.safetensors").exists() and (run / name / "config.json").exists():
                MedMambaSE.load(run / name)
        if (run / "last" / run_folder.STATE).exists():
            load((run / "last" / run_folder.STATE).read_bytes())
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"
    return None


def differing(run: Path, reference: Path, names: Sequence[str] = COMPARED) -> list[str]:
    """List the files whose bytes differ from the undisturbed training's."""
    return [name for name in names if (run / name).read_bytes() != (reference / name).read_bytes()]


def start(
    run: Path, save_every: int, kill: Kill | None = None, hold: int | None = None, pause: float | None = None,
    fold: tuple[int, int] | None = None,
) -> subprocess.Popen[str]:  # fmt: skip  # what; how it ends; what is trained
    """Start the small training in a process of its own; returns when its imports are done and it
    begins. ``pause``: seconds that a step lasts at least. ``fold``: train this one of so many,
    below ``run``."""
    words = [sys.executable, str(Path(__file__).resolve()), "--child", str(run), "--save-every", str(save_every)]
    words += ["--fold", str(fold[0]), "--folds", str(fold[1])] if fold else []
    words += ["--write", str(kill.write), "--moment", kill.moment] if kill else []
    words += ["--hold", str(hold)] if hold is not None else []
    words += ["--pause", str(pause)] if pause is not None else []
    # A group of its own is what Windows sends Ctrl-Break to.
    group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", creationflags=group
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n", "the small training cannot begin"
    return process


def at_work(process: subprocess.Popen[str]) -> None:
    """Wait until the small training stands before the step of ``hold``, where it stays until
    ``finish`` closes its input or a signal ends it."""
    assert process.stdout is not None and process.stdout.readline() == "held\n", "the small training ended too early"


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for the end. Returns the exit code."""
    process.communicate()
    return process.returncode


def ask(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, as a cluster does."""
    process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def end_once(
    run: Path, save_every: int, fold: tuple[int, int] | None, way: str, kill: Kill | None, chance: random.Random,
    seconds: float,
) -> int | None:  # fmt: skip  # what; how it ends
    """Resume the training in ``run`` and end it in one of WAYS: by ``kill``, or from outside within
    so many seconds. Returns the exit code; None if it was done before that."""
    twice = way == "SIGTERM twice"
    process = start(run, save_every, kill, pause=3 * _AGAIN if twice else None, fold=fold)
    if kill is None:
        time.sleep(chance.uniform(0, 3 * seconds if twice and not fold else seconds))
        if way == "SIGKILL":
            process.kill()
        else:
            ask(process)
    if twice:
        time.sleep(_AGAIN)
        ask(process)
    code = finish(process)
    done = checkpoint.position(_written(run, fold) / "last") == (CONFIG.epochs + 1, 0)
    return None if code == 0 or (done and code == -signal.SIGTERM) else code


def _written(run: Path, fold: tuple[int, int] | None) -> Path:
    """Return the folder that a training in ``run`` writes to."""
    return next(iter(run_folder.existing(run, FOLD)), run) if fold else run


def expected(way: str, code: int) -> bool:
    """Return whether a training that ended in this way may end with this exit code. A second
    SIGTERM may come when Python itself is ending after the first one."""
    if way == "SIGKILL":
        return code != 0
    if way == FULL:
        return code == _NO_SPACE
    return code == _TERMINATED or (way == "SIGTERM twice" and code == -signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 if every training ended with the bytes of the
    undisturbed one, and no folder was ever unreadable."""
    parser = argparse.ArgumentParser(
        description="End a small training again and again, in four ways, and compare what comes out with an "
        "undisturbed one.",
        allow_abbrev=False,
    )
    parser.add_argument("--kills", type=int, default=40, help="at least so many (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--folds", type=int, default=0, help="train the folds of a cross-validation, from files to the report"
    )
    parser.add_argument("--fold", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save-every", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--moment", choices=(*MOMENTS, FULL), help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, default=0.05, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        if options.moment:
            Kill(
                options.write, options.moment, lambda: os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            ).arm()
        progress = partial(_slowly, options.pause) if options.hold is None else at_step(options.hold, _hold)
        run, config = options.child, changed(CONFIG, save_every=options.save_every)
        act: Callable[[], object] = partial(train, run, config, progress)
        if options.folds:
            import kill_folds  # much that a training without files and report does not need

            act = partial(kill_folds.train, run, FOLD, config, (options.fold, options.folds), progress)
        try:
            with termination_raises():
                print("ready", flush=True)
                act()
        except Terminated as end:
            return 128 + end.number
        except run_folder.RunFolderError:
            return _NO_SPACE
        return 0
    with tempfile.TemporaryDirectory(prefix="kill test ü ") as folder:
        return _kill_often(Path(folder), options.kills, options.folds, random.Random(options.seed))


def _kill_often(folder: Path, wanted: int, folds: int, chance: random.Random) -> int:
    if folds:
        import kill_folds  # as above

        kill_folds.prepare(folder)
    parts: list[tuple[int, int] | None] = [(number, folds) for number in range(folds)] or [None]
    whole, seconds = [folder / f"undisturbed {number}" for number in range(len(parts))], 0.0
    for fold, run in zip(parts, whole, strict=True):
        process, began = start(run, 0, fold=fold), time.perf_counter()
        if finish(process):
            print("the undisturbed training failed")
            return 1
        seconds = time.perf_counter() - began
        print(f"the undisturbed training takes {seconds:.1f} s", flush=True)
    names = (*COMPARED, *COMPARED_OF_A_FOLD) if folds else COMPARED
    ends: Counter[str] = Counter()
    failures = turn = 0
    inside = itertools.cycle((False, True))
    while min(ends[way] for way in WAYS) * len(WAYS) < wanted:
        turn += 1
        run, save_every = folder / f"run {turn}", turn % 2
        fold, reference = parts[turn % len(parts)], whole[turn % len(parts)]
        for _ in range(5):
            way = min(WAYS, key=lambda way: ends[way])  # the first of those that are behind
            moment = FULL if way == FULL else chance.choice(MOMENTS)
            strikes = way == FULL or (way == "SIGKILL" and next(inside))
            kill = Kill(chance.randrange(_WRITES_OF_A_FOLD if folds else _WRITES), moment, int) if strikes else None
            code = end_once(run, save_every, fold, way, kill, chance, seconds)
            if code is None:
                break
            ends[way] += 1
            wrong, place = readable(_written(run, fold)), checkpoint.position(_written(run, fold) / "last")
            if not expected(way, code):
                wrong = f"exit code {code}"
            failures += wrong is not None
            where = f", write {kill.write}{'' if way == FULL else f' {kill.moment}'}" if kill else ""
            told = f"resumes from {place or 'the beginning'}{f'; WRONG: {wrong}' if wrong else ''}"
            print(f"run {turn}, {way}{where}: {told}", flush=True)
        code = finish(start(run, save_every, fold=fold))
        ended = _written(run, fold), _written(reference, fold)
        different = ["it failed"] if code else differing(*ended, names)
        failures += bool(different)
        print(
            f"run {turn}, saved {'after each step' if save_every else 'after each epoch'}: "
            f"{', '.join(different) if different else 'ends with the same bytes'}",
            flush=True,
        )
    counts = ", ".join(f"{ends[way]} {way}" for way in WAYS)
    print(f"{sum(ends.values())} ends ({counts}) in {turn} trainings: {failures} failures")
    return int(failures > 0)


def _hold() -> None:
    """Say that the step has come, and wait until the input ends."""
    print("held", flush=True)
    sys.stdin.read()


def _slowly(pause: float, items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    """Make steps last long enough to be killed in."""
    for item in items:
        time.sleep(pause if text.startswith("epoch") else 0)
        yield item


if __name__ == "__main__":
    sys.exit(main())
