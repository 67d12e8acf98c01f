"""Choose the images of each step, as a function of the seed and the epoch alone.

So a training can go on from any step.
"""

import math

import numpy as np
import torch
from torch import Tensor

from medmambase.config import AnyConfig, ConfigError, TrainConfig
from medmambase.model.network import last_map


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on each of the numbers, and on nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def batches_per_epoch(images: int, batch_size: int, ranks: int = 1) -> int:
    """Return the number of batches of nearly equal size in an epoch. A batch holds at most
    ``batch_size`` images for each of the ``ranks`` processes, but never one alone where two were
    asked for, and never fewer than there are processes.

    In a batch of one image BatchNorm sees that image alone, and nothing at all where its map is
    1x1. So 5 images in batches of 2 become 3 and 2.
    """
    together = batch_size * ranks
    return max(1, min(math.ceil(images / together), images // max(min(together, 2), ranks)))


def check_batches(
    images: int, size: int, batch_size: int, model: AnyConfig, ranks: int = 1, mixup: float = 0.0
) -> None:
    """Refuse batches that cannot be trained on. Raises ConfigError where a batch of one image meets
    maps of 1x1, in which BatchNorm has no variance to measure, or ``mixup``, for which it has no
    second image, or where a process has no image."""
    if images < ranks:
        raise ConfigError(
            f"{images} training images cannot be shared by {ranks} processes; start at most {images} of them with "
            f"torchrun --nproc-per-node"
        )
    smallest = images // batches_per_epoch(images, batch_size, ranks)
    if mixup and smallest // ranks == 1:
        each = "" if ranks == 1 else f" in each of {ranks} processes"
        raise ConfigError(
            f"--mixup is {mixup:g}, and mixes the images of a batch with each other, but some batch has only 1{each}; "
            f"use a larger --batch-size, or leave --mixup out"
        )
    if smallest == 1 and last_map(model, size) == 1:
        why = "there is 1 training image" if images == 1 else f"batch_size is {batch_size}"
        what = "add training images" if images == 1 else "use --batch-size 2 or more"
        raise ConfigError(
            f"{why}, and images of {size} px shrink to maps of 1x1, where BatchNorm needs two; {what}, or a larger "
            f"--image-size"
        )


def steps_of(labels: Tensor, config: TrainConfig, epoch: int, ranks: int = 1) -> list[list[Tensor]]:
    """Return the steps of an epoch: each is one batch or, with ``accumulate``, several, each
    torch.int64 (b,).

    A number is the image's row in the training set; what ``balance="sampler"`` draws for the second
    time is the row plus the number of images, for the third time plus twice that, so that every
    copy can be varied in its own way.
    """
    generator = torch.Generator().manual_seed(seed_of(config.seed, epoch))
    images = len(labels)
    order = _balanced(labels, generator) if config.balance == "sampler" else torch.randperm(images, generator=generator)
    batches = order.tensor_split(batches_per_epoch(images, config.batch_size, ranks))
    return [list(batches[first : first + config.accumulate]) for first in range(0, len(batches), config.accumulate)]


def _balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many images as there are, equally many of each class: part of a large class; of a
    small one, each image as often as any other, or once more."""
    images = len(labels)
    classes = [rows for rows in ((labels == label).nonzero()[:, 0] for label in labels.unique()) if len(rows)]
    share, left = divmod(images, len(classes))
    larger = set(torch.randperm(len(classes), generator=generator)[:left].tolist())
    drawn = []
    for place, rows in enumerate(classes):
        wanted = share + (place in larger)
        rounds = [
            rows[torch.randperm(len(rows), generator=generator)] + images * turn
            for turn in range(math.ceil(wanted / len(rows)))
        ]
        drawn.append(torch.cat(rounds)[:wanted])
    together = torch.cat(drawn)
    return together[torch.randperm(len(together), generator=generator)]
