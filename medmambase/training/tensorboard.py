"""Write the metrics of each epoch for TensorBoard, an optional dependency.

They are the numbers of ``metrics.csv``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from medmambase.config import ConfigError
from medmambase.training.history import Epoch


@contextmanager
def board(folder: Path, next_epoch: int) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that writes an epoch's metrics into ``folder``. Entries of an earlier
    session from ``next_epoch`` on are removed.

    Raises ConfigError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard is not installed; run pip install medmambase[tensorboard], or leave the setting out"
        ) from error
    writer = SummaryWriter(str(folder), purge_step=next_epoch)

    def write(epoch: Epoch) -> None:
        for name, value in asdict(epoch).items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
