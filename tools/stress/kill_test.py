"""Kill a small training again and again, resume it each time, and compare the result with an
undisturbed training.

    python tools/stress/kill_test.py --kills 40

Some kills come from outside at a random moment; the others strike inside a write: half of a file is
on the disk, or all of it but not yet in its place, or just moved there. After each kill the folder
must hold nothing that cannot be read, and at the end the weights and metrics.csv must have the
bytes of the undisturbed training. Exit code 1 where they have not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
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

COMPARED = ("metrics.csv", "best/model.safetensors", "best/config.json", "last/model.safetensors", "last/config.json")
CONFIG = TrainConfig(
    lr=1e-2, epochs=4, batch_size=4, image_size=16, warmup=1.0, ema=0.9, accumulate=2, balance="sampler", patience=0
)
MOMENTS = ("half written", "not moved yet", "just moved")


@dataclass
class Kill:
    """Strike at the write of this number, counted from 0, and at one of MOMENTS. ``die`` does not
    return."""

    write: int
    moment: str
    die: Callable[[], object]

    def arm(self) -> None:
        """Wait in ``os.fsync`` and ``os.replace``, through which every file of a run goes."""
        fsync, replace = os.fsync, os.replace
        synced, moved = iter(range(1_000_000)), iter(range(1_000_000))

        def fsync_or_die(file: int) -> None:
            if next(synced) == self.write and self.moment == "half written":
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


def differing(run: Path, reference: Path) -> list[str]:
    """List the files whose bytes differ from the undisturbed training's."""
    return [name for name in COMPARED if (run / name).read_bytes() != (reference / name).read_bytes()]


def start(run: Path, save_every: int, kill: Kill | None = None, hold: int | None = None) -> subprocess.Popen[str]:
    """Start the small training in a process of its own; returns when its imports are done and it
    begins."""
    words = [sys.executable, str(Path(__file__).resolve()), "--child", str(run), "--save-every", str(save_every)]
    words += ["--write", str(kill.write), "--moment", kill.moment] if kill else []
    words += ["--hold", str(hold)] if hold is not None else []
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
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


def kill_once(run: Path, save_every: int, kill: Kill | None, chance: random.Random, seconds: float) -> bool:
    """Resume the training in ``run`` and kill it: by ``kill``, or from outside within so many
    seconds. Returns False if it ended before that."""
    process = start(run, save_every, kill)
    if kill is None:
        time.sleep(chance.uniform(0, seconds))
        process.kill()
    return finish(process) != 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 if every training ended with the bytes of the
    undisturbed one, and no folder was ever unreadable."""
    parser = argparse.ArgumentParser(
        description="Kill a small training again and again, and compare what comes out with an undisturbed one.",
        allow_abbrev=False,
    )
    parser.add_argument("--kills", type=int, default=40, help="at least so many (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save-every", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--moment", choices=MOMENTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        if options.moment:
            Kill(
                options.write, options.moment, lambda: os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            ).arm()
        print("ready", flush=True)
        progress = _slowly if options.hold is None else at_step(options.hold, _hold)
        train(options.child, changed(CONFIG, save_every=options.save_every), progress)
        return 0
    with tempfile.TemporaryDirectory(prefix="kill test ü ") as folder:
        return _kill_often(Path(folder), options.kills, random.Random(options.seed))


def _kill_often(folder: Path, wanted: int, chance: random.Random) -> int:
    process, began = start(folder / "undisturbed", 0), time.perf_counter()
    if finish(process):
        print("the undisturbed training failed")
        return 1
    seconds = time.perf_counter() - began
    print(f"the undisturbed training takes {seconds:.1f} s")
    kills = inside = failures = turn = 0
    while kills < wanted:
        turn += 1
        run, save_every = folder / f"run {turn}", turn % 2
        for attempt in range(5):
            kill = Kill(chance.randrange(12), chance.choice(MOMENTS), int) if attempt % 2 else None
            if not kill_once(run, save_every, kill, chance, seconds):
                break
            kills, inside = kills + 1, inside + (kill is not None)
            wrong, place = readable(run), checkpoint.position(run / "last")
            failures += wrong is not None
            moment = f"write {kill.write} {kill.moment}" if kill else "any moment"
            print(
                f"run {turn}, {moment}: resumes from "
                f"{place or 'the beginning'}{f'; UNREADABLE: {wrong}' if wrong else ''}"
            )
        code = finish(start(run, save_every))
        different = ["it failed"] if code else differing(run, folder / "undisturbed")
        failures += bool(different)
        print(
            f"run {turn}, saved {'after each step' if save_every else 'after each epoch'}: "
            f"{', '.join(different) if different else 'ends with the same bytes'}"
        )
    print(f"{kills} kills, {inside} of them inside a write, in {turn} trainings: {failures} failures")
    return int(failures > 0)


def _hold() -> None:
    """Say that the step has come, and wait until the input ends."""
    print("held", flush=True)
    sys.stdin.read()


def _slowly(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    """Make steps last long enough to be killed in."""
    for item in items:
        time.sleep(0.05)
        yield item


if __name__ == "__main__":
    sys.exit(main())
