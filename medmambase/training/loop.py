"""Train a network: the loop over batches, steps and epochs, with checkpoints.

Decoded images are varied by ``data/augment.py`` and go through the network to the loss and a step;
after each epoch the validation split is evaluated, and a line of ``metrics.csv``, the network in
``last/`` and, if it is better, ``best/`` are written.

Every random number is a function of the seed and of where it is used: the order of (seed, epoch),
augmentation of (seed, epoch, image), dropped paths of (seed, epoch, step). So a training that was
stopped at any step goes on as if it had not been.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medmambase import run_folder
from medmambase.config import TrainConfig
from medmambase.data.decoded.image_set import ImageSet, Progress
from medmambase.distributed import ALONE, Ranks
from medmambase.evaluation.judged import AnyMetrics, evaluate
from medmambase.evaluation.predictions import Predictions
from medmambase.inference.probabilities import InferenceError, predict
from medmambase.model.classifier import Trainable
from medmambase.model.layers import lay_out
from medmambase.model.network import MedMambaSE
from medmambase.run_folder import BEST, HISTORY, LAST, TENSORBOARD
from medmambase.training import checkpoint, history
from medmambase.training.batches import check_batches, seed_of, steps_of
from medmambase.training.checkpoint import Learning, State
from medmambase.training.dry_run import rehearse
from medmambase.training.graph import Graphs, capture_steps
from medmambase.training.history import Epoch, Outcome
from medmambase.training.interrupt import first_interrupt_waits, of_signal
from medmambase.training.nonfinite import first_bad_tensor, first_nonfinite
from medmambase.training.optimise import (
    MOMENTS,
    Average,
    freeze,
    learning_rate,
    make_optimizer,
    set_rate,
    set_training,
)
from medmambase.training.step import Step
from medmambase.training.tensorboard import board
from medmambase.training.threads import crew_of


class TrainingError(Exception):
    """Training cannot continue; the message says at which step, why, and what to try."""


def train(
    network: Trainable,
    training: ImageSet,
    validation: ImageSet,
    config: TrainConfig,
    run: Path,
    dtype: torch.dtype,
    progress: Progress,
    tell: Callable[[Epoch], object],
    *,
    resume: bool = False,
    say: Callable[[str], object] = lambda line: None,
    ranks: Ranks = ALONE,
    soft: torch.Tensor | None = None,
    begins: Callable[[], object] = lambda: None,
) -> Outcome:
    """Train ``network`` in place, and write ``metrics.csv``, ``best/`` and ``last/`` into ``run``
    after each epoch.

    ``last/`` also holds the state of the training, every ``config.save_every`` steps if that is
    set; ``resume`` goes on from it, or begins where there is none yet. ``tell`` hears of each
    epoch, ``say`` gets lines for a person; both on the first of several ``ranks`` only. Which epoch
    is ``best/`` is chosen by ``history.outcome``. With ``config.ema`` both folders hold the average
    of the weights, and it is what validation judges. ``soft``: as ``Step`` has it.
    ``begins`` is called once nothing is refused any more, on the first rank only.

    Raises ConfigError where a batch of one image cannot be normalised or the resumed training had
    other settings, DataError where it had other images, CheckpointError where its state cannot be
    read, RunFolderError where ``run`` cannot be written, TrainingError if the loss, the gradients
    or the network's outputs are no longer numbers, and KeyboardInterrupt after Ctrl-C (Terminated
    after SIGTERM or SIGHUP), when all is saved; what lay in ``run`` is then still good.
    """
    check_batches(
        len(training.labels), training.images.shape[-1], config.batch_size, network.config, ranks.count, config.mixup
    )
    if isinstance(network, MedMambaSE):  # the maps of others do not lie channels last
        lay_out(network)
    network.recompute = config.recompute
    frozen = freeze(network, config)
    learner = ranks.learner(network)
    learning = Learning(network, make_optimizer(network, config), Average(network, config.ema) if config.ema else None)
    average, judged = learning.average, learning.judged
    balanced = config.balance == "weights"
    weights = network.task.class_weights(training.labels, network.config.num_classes, balanced)
    course = Step(learning, learner, training, config, dtype, weights, ranks, soft)
    graphs = Graphs(course, {})
    images, description = (
        {"train": training, "val": validation},
        checkpoint.describe(config, network, dtype, ranks.count, soft),
    )
    state = (checkpoint.load(run / LAST, learning, description, images) if resume else None) or State()
    if ranks.first:
        begins()
    if resume and ranks.first:
        begun = state.step or state.epochs
        say(
            f"resuming from epoch {state.epoch}, after step {state.step}"
            if begun
            else f"{run / 'last'} has no checkpoint yet: starting from the beginning"
        )
    with (
        first_interrupt_waits() as interrupted,
        crew_of(course.device, ranks) as crew,
        repeatable(),
        board(run / TENSORBOARD, state.epoch)
        if config.tensorboard and ranks.first
        else nullcontext(lambda epoch: None) as show,
    ):
        if not history.is_over(state.epochs, config):
            set_training(network, frozen)
            batches = [rows for step in steps_of(training.labels, config, state.epoch, ranks.count) for rows in step]
            rehearsed = crew.begin(
                state.threads, partial(rehearse, network, course.rehearse, batches, MOMENTS[config.optimizer])
            )
            state.threads = crew.count
            graphs = capture_steps(course, batches)
            if ranks.first:
                dry_run = graphs.rehearsed(rehearsed).line(
                    network.task.guessing(network.config.num_classes), len(batches)
                )
                for line in (f"dry run: {dry_run}", *graphs.told(), *crew.told()):
                    say(line)
        while not history.is_over(state.epochs, config):
            number, began = state.epoch, time.perf_counter() - state.seconds
            set_training(network, frozen)
            steps = steps_of(training.labels, config, number, ranks.count)
            rates = [learning_rate(config, number - 1 + step / len(steps)) for step in range(len(steps))]
            to_do = range(state.step, len(steps))
            training.expect(
                torch.cat([ranks.share(rows) for step in steps[state.step :] for rows in step] or [torch.arange(0)])
                % len(training.labels)
            )
            for step in progress(to_do, len(to_do), f"epoch {number}/{config.epochs}") if ranks.first else to_do:
                set_rate(learning.optimizer, rates[step])
                torch.manual_seed(seed_of(config.seed, number, step, ranks.rank))
                whole = sum(map(course.weight_of, steps[step]))
                lost, hit, stop, length = graphs.take(steps[step], number, whole, interrupted)
                if not (math.isfinite(lost) and math.isfinite(length)):
                    what = (
                        f"the norm of the gradient is {length}"
                        if math.isfinite(lost)
                        else f"the loss is {lost / whole}"
                    )
                    what += f" at epoch {number}, step {step + 1} of {len(steps)}"
                    where = first_bad_tensor(network, partial(course.again, steps[step], number, step, whole))
                    raise _diverged(f"{what} (first bad tensor: {where})", rates[step], dtype, run, state.epochs)
                if average:
                    average.follow((number - 1) * len(steps) + step)
                state.step, state.sums = step + 1, (state.sums[0] + lost, state.sums[1] + hit, state.sums[2] + whole)
                state.seconds = time.perf_counter() - began
                if stop or (config.save_every and state.step % config.save_every == 0 and state.step < len(steps)):
                    # No loss has judged this step yet, so the network is asked, before it takes the
                    # place of a good one.
                    if bad := first_nonfinite(network):
                        raise _diverged(
                            f"{bad} is non-finite after epoch {number}, step {state.step}",
                            rates[step],
                            dtype,
                            run,
                            state.epochs,
                        )
                    ranks.write(partial(checkpoint.save, run / LAST, learning, state, description, images))
                if stop:
                    raise of_signal(interrupted())
            try:
                shown = (
                    validation
                    if len(validation.labels)
                    else training.rows((steps[-1][-1] % len(training.labels)).tolist())
                )
                probabilities = predict(judged, shown, config.batch_size, dtype, ranks)
                if bad := first_nonfinite(network):
                    raise TrainingError(f"{bad} is non-finite")
            except (InferenceError, TrainingError) as error:
                raise _diverged(f"{error} after epoch {number}", rates[-1], dtype, run, state.epochs) from None
            metrics, val_loss = _figures(validation, probabilities[: len(validation.labels)], network.classes)
            train_loss, train_accuracy = state.sums[0] / state.sums[2], state.sums[1] / len(training.labels)
            epoch = Epoch(
                number, rates[-1], train_loss, train_accuracy, val_loss, metrics.accuracy, metrics.balanced_accuracy,
                metrics.auc, time.perf_counter() - began
            )  # fmt: skip  # one line of the file
            state = State(number + 1, epochs=[*state.epochs, epoch])
            if not history.is_over(state.epochs, config):
                set_training(network, frozen)
                crew.again()
            state.threads = crew.count
            ranks.write(partial(_keep, judged, run, state.epochs, config))
            # The state comes last: what it tells of is then there, and a kill before it only means
            # that the end of this epoch is done again.
            ranks.write(partial(checkpoint.save, run / LAST, learning, state, description, images))
            if ranks.first:
                show(epoch)
                tell(epoch)
                for line in crew.told():
                    say(line)
            if ranks.sum(torch.tensor([float(interrupted())])).item():
                raise of_signal(interrupted())
    return history.outcome(state.epochs, config)


def _keep(network: Trainable, run: Path, epochs: Sequence[Epoch], config: TrainConfig) -> None:
    """Save the results of an epoch: its line of ``metrics.csv``, and its network."""
    try:
        if history.outcome(epochs, config).best_epoch == epochs[-1].epoch:
            network.save(run / BEST)
        network.save(run / LAST)
    except OSError as error:
        # Of a move, which has two names, the second is the one that the user knows.
        raise run_folder.failed(Path(error.filename2 or error.filename or run / LAST), error) from error
    history.write(run / HISTORY, epochs)


def _diverged(what: str, rate: float, dtype: torch.dtype, run: Path, epochs: Sequence[Epoch]) -> TrainingError:
    kept = f"the last good network is in {run / 'last'}" if epochs else "no epoch was finished, so no network was saved"
    return TrainingError(
        f"{what} with learning rate {rate:.2g}; {kept}; try a smaller "
        f"--lr{'' if dtype == torch.float32 else ' or --precision float32'}"
    )


def _figures(
    validation: ImageSet, probabilities: npt.NDArray[np.float64], classes: Sequence[str]
) -> tuple[AnyMetrics, float | None]:
    names = tuple(sample.name for sample in validation.samples)
    predictions = Predictions(names, validation.labels.numpy(), probabilities, tuple(classes))
    loss = float(predictions.task.nll(probabilities, predictions.labels).mean()) if names else None
    return evaluate(predictions), loss


@contextmanager
def repeatable() -> Iterator[None]:
    """Make cuDNN use deterministic algorithms; the kernels of this project always are
    deterministic."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
