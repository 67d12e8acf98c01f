"""Pretrain a network: the loop over steps, with checkpoints and rounds of measuring.

A step gets a batch from its task, and the sum of the losses of all targets is made smaller. Twenty
times in all the network is measured on pictures that are held out, and a line of ``metrics.csv``
and the state in ``last/`` are written. What is measured and kept is the moving average of the
weights, where there is one.

Every random number is a function of the seed and of the step, so a pretraining that was stopped at
any step goes on as if it had not been.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, StrictFloat, StrictInt, with_config
from torch import Tensor

from medmambase import run_folder
from medmambase.data.decoded.image_set import Progress as Shown
from medmambase.distributed import ALONE
from medmambase.model import tensor_file
from medmambase.model.layers import lay_out
from medmambase.plural import count_of
from medmambase.pretraining.measure import Measured, measure
from medmambase.pretraining.network import Pretrained, predict
from medmambase.pretraining.settings import MOST_STEPS, STEPS, PretrainSettings
from medmambase.pretraining.tasks import Batch, DrawnPictures, Task, losses, weighted
from medmambase.run_folder import HISTORY, LAST, STATE
from medmambase.training import checkpoint
from medmambase.training.batches import seed_of
from medmambase.training.checkpoint import Learning, Progress
from medmambase.training.dry_run import Rehearsal, clock, rehearse
from medmambase.training.interrupt import first_interrupt_waits, of_signal
from medmambase.training.loop import TrainingError, repeatable
from medmambase.training.nonfinite import first_bad_tensor, first_nonfinite
from medmambase.training.optimise import MOMENTS, Average, learning_rate, make_optimizer, set_rate
from medmambase.training.step import update
from medmambase.training.threads import crew_of
from medmambase.validation import OBJECT

ROUNDS = 20
_DROP = 4  # which random numbers of a step


@with_config(OBJECT)
@dataclass(frozen=True)
class Round:
    """One line of ``metrics.csv``: losses by target, of training the means since the last round;
    ``auc`` is the mean of the structures, None where they are not asked for. ``seconds`` stay out
    of the file, as those of an epoch do."""

    step: StrictInt
    lr: StrictFloat
    train: dict[str, StrictFloat]
    held_out: dict[str, StrictFloat]
    auc: StrictFloat | None
    seconds: StrictFloat

    def line(self) -> str:
        """Describe the round in one line."""
        told = "   ".join(
            f"{name} {self.train[name]:.4f} (held out {self.held_out[name]:.4f})" for name in self.held_out
        )
        auc = "" if self.auc is None else f"   mean AUC {self.auc:.3f}"
        return f"step {self.step:6}  {told}{auc}   {self.seconds:.0f} s"

    def row(self) -> dict[str, float | None]:
        """Return it as a row of ``metrics.csv``."""
        parts = (("train", self.train), ("held_out", self.held_out))
        each: dict[str, float | None] = {f"{part}_{name}": v for part, values in parts for name, v in values.items()}
        return {"step": self.step, "lr": self.lr} | each | {"auc": self.auc}


@with_config(OBJECT)
@dataclass(frozen=True)
class Hundredth:
    """The first hundredth of all steps, by which a pretraining that is made again is known after
    ``steps`` of them: the mean losses of training over these by target, and the SHA-256 of the
    weights that would be kept then (``tensor_file.fingerprint``)."""

    steps: StrictInt
    losses: dict[str, StrictFloat]
    sha256: str


@with_config(OBJECT)
@dataclass
class Course(Progress):
    """Progress of a pretraining: ``step`` of ``steps`` are done. ``sums`` are those of the losses
    since the last of ``rounds``, over ``since`` steps. ``seconds``: what the steps took so far.
    ``threads``: how many compute them; 0: not chosen yet. ``hundredth``: None before it is done,
    and of a pretraining that an earlier version began."""

    steps: Annotated[StrictInt, Field(ge=0, le=MOST_STEPS)] = 0
    step: Annotated[StrictInt, Field(ge=0)] = 0
    sums: tuple[StrictFloat, ...] = ()
    since: Annotated[StrictInt, Field(ge=0)] = 0
    seconds: StrictFloat = 0.0
    rounds: list[Round] = field(default_factory=list)
    threads: Annotated[StrictInt, Field(ge=0)] = 0
    hundredth: Hundredth | None = None

    def check(self) -> None:
        """Raise ValueError where its numbers contradict each other."""
        done = self.rounds[-1].step if self.rounds else 0
        if self.step > self.steps or done + self.since != self.step:
            raise ValueError(f"step {self.step} of {self.steps} does not follow round {done} and {self.since} steps")
        names = self.rounds[0].train.keys() if self.rounds else ()
        if any(one.train.keys() != names or one.held_out.keys() != names for one in self.rounds):
            raise ValueError("its rounds have losses of different names")
        if bool(self.sums) != bool(self.since) or (self.rounds and self.sums and len(self.sums) != len(names)):
            raise ValueError(f"{len(self.sums)} losses of {self.since} steps do not follow those of its rounds")

    def means(self, targets: Sequence[str]) -> dict[str, float]:
        """Return the mean losses of these ``targets`` since the last round."""
        return {name: total / self.since for name, total in zip(targets, self.sums, strict=True)}

    def check_targets(self, path: Path, targets: Sequence[str], steps: int | None) -> None:
        """Raise CheckpointError where the state in ``path`` is not of losses of these ``targets``,
        or not of so many ``steps``; None: of any number."""
        named = set(self.rounds[0].train) if self.rounds else set(targets)
        if (
            named != set(targets)
            or len(self.sums) not in (0, len(targets))
            or self.steps not in (0, steps or self.steps)
        ):
            raise checkpoint.CheckpointError(
                f"{path}: damaged: it has {self.steps} steps and losses of {', '.join(sorted(named))}; delete it to "
                f"begin anew, or start a new run"
            )


@dataclass(frozen=True)
class Outcome:
    """What a pretraining has come to: the network that is kept, how many steps there were, the
    first of them, all rounds, and what the last measuring found, with the pictures that it was done
    on."""

    network: Pretrained
    steps: int
    hundredth: Hundredth | None
    rounds: tuple[Round, ...]
    measured: Measured
    held_out: list[Batch]


def pretrain(
    network: Pretrained,
    task: Task,
    settings: PretrainSettings,
    run: Path,
    dtype: torch.dtype,
    progress: Shown,
    tell: Callable[[Round], object],
    *,
    resume: bool = False,
    say: Callable[[str], object] = lambda line: None,
    begins: Callable[[], object] = lambda: None,
) -> Outcome:
    """Pretrain ``network`` in place, and write ``metrics.csv`` and the state in ``last/`` into
    ``run``. ``resume`` goes on from that state, or begins where there is none yet. ``tell`` hears
    of each round, ``say`` gets lines for a person. ``begins`` is called once nothing is refused any
    more.

    Raises ConfigError or DataError where the resumed pretraining had other settings or images,
    CheckpointError where its state cannot be read, RunFolderError where ``run`` cannot be written,
    DrawingError where a process that draws has ended, TrainingError if the loss or the gradients
    are no longer numbers, and KeyboardInterrupt after Ctrl-C (Terminated after SIGTERM or SIGHUP),
    when all is saved.
    """
    lay_out(network)
    device = next(network.parameters()).device
    average = Average(network, settings.ema) if settings.ema else None
    learning = Learning(network, make_optimizer(network, settings.optimisation(1)), average)
    description = {
        **settings.deciding(), "model": network.backbone.config.to_dict(), "structures": list(task.structures),
        "arithmetic": str(dtype).removeprefix("torch."),
    }  # fmt: skip  # what decides the result
    keep = partial(checkpoint.save, run / LAST, learning, description=description, images=task.images)
    found = checkpoint.load_progress(Course, run / LAST, learning, description, task.images) if resume else None
    course = found or Course()
    course.check_targets(run / LAST / STATE, task.targets, None if settings.minutes else settings.steps or STEPS)
    begins()
    if resume:
        begun = f"after step {course.step} of {course.steps}"
        say(f"resuming {begun}" if course.step else f"{run / LAST} has no checkpoint yet: starting from the beginning")
    step = _Step(learning, task.targets, dtype, settings)
    held_out = task.held_out()
    with first_interrupt_waits() as interrupted, crew_of(device, ALONE) as crew, repeatable():
        if not course.steps or course.step < course.steps:
            network.train()
            some, drawing = clock(device, lambda: task.some(2))
            rehearsed = crew.begin(course.threads, partial(step.rehearsed, some))
            course.steps = course.steps or _steps(settings, rehearsed, drawing / len(some), task)
            for line in (_dry_run(rehearsed, course.steps - course.step), *crew.told()):
                say(line)
        course.threads = crew.count
        config = settings.optimisation(course.steps)
        every = -(-course.steps // ROUNDS)
        to_do = range(course.step, course.steps)
        began = time.perf_counter() - course.seconds
        with closing(task.batches(course.step, course.steps)) as batches:  # which ends the processes that draw
            for number, batch in zip(progress(to_do, len(to_do), "pretraining"), batches, strict=False):
                network.train()
                rate = learning_rate(config, number)
                set_rate(learning.optimizer, rate)
                *each, loss, norm = step.take(batch, number)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    what = f"the norm of the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
                    where = first_bad_tensor(network, partial(step.gradients, batch, number))
                    raise TrainingError(
                        f"{what} at step {number + 1} of {course.steps} (first bad tensor: {where}) with learning rate "
                        f"{rate:.2g}; {_kept(run)}; try a smaller "
                        f"--lr{'' if dtype == torch.float32 else ' or --precision float32'}"
                    )
                if average:
                    average.follow(number)
                before = course.sums or (0.0,) * len(each)
                course.sums = tuple(one + other for one, other in zip(before, each, strict=True))
                course.step, course.since = number + 1, course.since + 1
                course.seconds = time.perf_counter() - began
                if course.step == hundredth_of(course.steps):
                    course.hundredth = Hundredth(course.step, course.means(task.targets), _fingerprint(learning.judged))
                stop = interrupted()
                if course.step % every == 0 or course.step == course.steps:
                    _check(network, course.step, run)
                    means = course.means(task.targets)
                    measured = measure(learning.judged, task, held_out, dtype)
                    if not all(map(math.isfinite, measured.losses.values())):
                        raise TrainingError(
                            f"a loss on pictures held out is non-finite after step {course.step}; {_kept(run)}; try a "
                            f"smaller --lr"
                        )
                    course.seconds = time.perf_counter() - began
                    course.rounds.append(Round(course.step, rate, means, measured.losses, measured.auc, course.seconds))
                    course.sums, course.since = (), 0
                    if course.step < course.steps:
                        network.train()
                        crew.again()
                    course.threads = crew.count
                    _write(run / HISTORY, course.rounds)
                    keep(course)
                    tell(course.rounds[-1])
                elif stop or (settings.save_every and course.step % settings.save_every == 0):
                    _check(network, course.step, run)
                    keep(course)
                if stop:
                    raise of_signal(stop)
    judged = learning.judged
    measured = measure(judged, task, held_out, dtype)
    return Outcome(judged, course.steps, course.hundredth, tuple(course.rounds), measured, held_out)


def hundredth_of(steps: int) -> int:
    """Return how many steps the first hundredth of ``steps`` are, one at least."""
    return max(1, steps // 100)


@dataclass(frozen=True)
class _Step:
    """Everything that stays the same from step to step."""

    learning: Learning[Pretrained]
    targets: tuple[str, ...]
    dtype: torch.dtype
    settings: PretrainSettings

    def gradients(self, batch: Batch, number: int) -> Tensor:
        """Add the gradients of a batch. Returns the loss of each target, and their weighted sum."""
        torch.manual_seed(seed_of(self.settings.seed, number, _DROP))
        there = batch.to(next(self.learning.network.parameters()).device)
        each = losses(predict(self.learning.network, there.inputs, self.dtype), there, self.targets)
        loss = weighted(each, self.targets)
        loss.backward()
        return torch.cat([each.detach(), loss.detach()[None]])

    def take(self, batch: Batch, number: int) -> list[float]:
        """Take a step. Returns what ``gradients`` returns, and the norm of the gradients."""
        found = self.gradients(batch, number)
        learning = self.learning
        return update(learning.network, learning.optimizer, self.settings.clip_norm, found).tolist()

    def rehearsed(self, some: list[Batch]) -> Rehearsal:
        """Try some batches, after which everything is what it was."""
        places = [torch.tensor(place) for place in range(len(some))]

        def learn(place: Tensor) -> float:
            return self.gradients(some[int(place)], int(place))[-1].item()

        return rehearse(self.learning.network, learn, places, MOMENTS["adamw"])


def _fingerprint(network: Pretrained) -> str:
    return tensor_file.fingerprint(network.backbone.state_dict())


def _check(network: Pretrained, step: int, run: Path) -> None:
    """Raise TrainingError for a network that must not take the place of a good one: no loss has
    judged its last step yet."""
    if bad := first_nonfinite(network):
        raise TrainingError(f"{bad} is non-finite after step {step}; {_kept(run)}; try a smaller --lr")


def _kept(run: Path) -> str:
    """Say where the state of before lies, if anywhere."""
    return (
        f"the last state that was saved is {path}"
        if (path := run / LAST / STATE).is_file()
        else "no state was saved yet"
    )


def _steps(settings: PretrainSettings, rehearsed: Rehearsal, drawing: float, task: Task) -> int:
    """How many steps there will be; ``drawing``: the seconds that it takes to make a batch."""
    if not settings.minutes:
        return settings.steps or STEPS
    workers = task.workers if isinstance(task, DrawnPictures) else 0
    seconds = max(rehearsed.seconds, drawing / workers) if workers else rehearsed.seconds + drawing
    return max(1, int(min(MOST_STEPS, 60 * settings.minutes / seconds)))


def _dry_run(rehearsed: Rehearsal, steps: int) -> str:
    minutes, seconds = divmod(round(rehearsed.seconds * steps), 60)
    lasts = f"{minutes} min {seconds} s" if minutes else f"{max(seconds, 1)} s"
    return (
        f"dry run: first loss {rehearsed.loss:.3f}; a step needs about {rehearsed.bytes / 1e9:.2f} GB; "
        f"{count_of(steps, 'step')} and no waiting for pictures would take about {lasts}"
    )


def _write(path: Path, rounds: Iterable[Round]) -> None:
    """Write ``metrics.csv``: the column names, then one line per round."""
    rows: list[dict[str, Any]] = [one.row() for one in rounds]
    run_folder.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])
