"""Read what other networks say of the training images, to be learned from."""

from pathlib import Path

import torch

from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.predictions import read_predictions
from medmambase.files import as_written
from medmambase.plural import count_of


def soft_labels(table: Path, training: ImageSet, classes: tuple[str, ...]) -> torch.Tensor:
    """Return what the training images are learned by, torch.float32 (n, classes): half their class,
    half the probabilities that ``table`` gives them. Raises MetricsError for a damaged table, and
    DataError for one that lacks an image or has other classes."""
    found = read_predictions(table)
    if sorted(found.classes) != sorted(classes):
        raise DataError(
            f"{table}: has the classes {', '.join(found.classes)}, and the images {', '.join(classes)}; give the "
            f"probabilities of a network with the same classes"
        )
    row_of = {name: row for row, name in enumerate(found.names)}
    names = [as_written(sample.name) for sample in training.samples]
    missing = [name for name in names if name not in row_of]
    if missing:
        raise DataError(
            f"{table}: has no row for {count_of(len(missing), 'training image')}, such as {missing[0]}; give a table "
            f"with all of them"
        )
    columns = [found.classes.index(name) for name in classes]
    soft = torch.from_numpy(found.probabilities[[row_of[name] for name in names]][:, columns])
    hard = torch.eye(len(classes), dtype=torch.float64)[training.labels]
    return ((soft / soft.sum(1, keepdim=True) + hard) / 2).float()
