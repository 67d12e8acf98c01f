"""Record the epochs of a training, choose the best one, and decide when to stop."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import StrictFloat, StrictInt

from medmambase import run_folder
from medmambase.config import TrainConfig, first_counted


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.csv``; validation metrics are None where there are no validation
    images.

    ``seconds`` stays out of the file: the same training gives the same file, however long it took
    and however often it was resumed.
    """

    epoch: StrictInt
    lr: StrictFloat
    train_loss: StrictFloat
    train_accuracy: StrictFloat
    val_loss: StrictFloat | None
    val_accuracy: StrictFloat | None
    val_balanced_accuracy: StrictFloat | None
    val_auc: StrictFloat | None
    seconds: StrictFloat


@dataclass(frozen=True)
class Outcome:
    """All epochs, the one whose network is in ``best/``, its score, and the metric of that
    score."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    best_score: float | None
    selected_by: str | None


def outcome(epochs: Sequence[Epoch], config: TrainConfig) -> Outcome:
    """Choose the best of the epochs that ``config.select_after`` allows: the one with the highest
    selecting metric; among equals with the highest balanced accuracy, and then with the lowest
    loss, so that a figure that has reached its 1.0 does not hold on to the first epoch that did.
    Where nothing is validated, or may be chosen yet, it is the last epoch.

    A figure that is undefined (one class in validation, say) gives way to the next that is defined.
    """
    if not epochs:
        return Outcome((), 0, None, None)
    first = first_counted(config.select_after, config.epochs)
    choice = [epoch for epoch in epochs if epoch.epoch >= first] or epochs[-1:]
    selected_by = next(
        (
            name
            for name in (config.select, "balanced_accuracy", "accuracy")
            if getattr(epochs[-1], f"val_{name}") is not None
        ),
        None,
    )
    if selected_by is None:
        return Outcome(tuple(epochs), epochs[-1].epoch, None, None)

    def rank(epoch: Epoch) -> tuple[float, float, float]:
        return getattr(epoch, f"val_{selected_by}"), epoch.val_balanced_accuracy or 0.0, -(epoch.val_loss or 0.0)

    best = max(choice, key=rank)  # the first of several
    return Outcome(tuple(epochs), best.epoch, rank(best)[0], selected_by)


def kept(found: Outcome, config: TrainConfig) -> str:
    """Say which epoch is kept, and that earlier ones were not asked where there are such."""
    first = first_counted(config.select_after, config.epochs)
    chosen = found.selected_by and 1 < first <= found.best_epoch
    return f"best epoch: {found.best_epoch}{f', of the epochs from {first} on' if chosen else ''}"


def is_over(epochs: Sequence[Epoch], config: TrainConfig) -> bool:
    """Return whether the last epoch is done, or ``patience`` epochs have passed without
    improvement."""
    waited = len(epochs) - outcome(epochs, config).best_epoch
    return len(epochs) >= config.epochs or bool(config.patience and waited >= config.patience)


def line(epoch: Epoch) -> str:
    """Describe an epoch in one line."""
    return (
        f"epoch {epoch.epoch:3}  train loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.3f}   val loss "
        f"{_wide(epoch.val_loss)}  "
        f"accuracy {_wide(epoch.val_accuracy)}  balanced {_wide(epoch.val_balanced_accuracy)}  AUC "
        f"{_wide(epoch.val_auc)}   {epoch.seconds:.1f} s"
    )


def _wide(value: float | None) -> str:
    return "n/a  " if value is None else f"{value:.3f}"


def write(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write ``metrics.csv``: the column names, then one line per epoch."""
    rows = [{name: value for name, value in asdict(epoch).items() if name != "seconds"} for epoch in epochs]
    run_folder.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])
