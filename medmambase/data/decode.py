"""Files to tensors in memory, each decoded once.

Stop before: ``data/folders.py``. Each file is read by ``data/images.py``. Stop after: ``training/loop.py``.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from medmambase.config import Preprocessing
from medmambase.data.folders import DataError, Manifest, Sample
from medmambase.data.images import ImageError, load


@dataclass(frozen=True)
class ImageSet:
    """Decoded images: torch.uint8 (n, c, s, s), torch.int64 (n,), and the samples they came from, in the same order."""

    images: torch.Tensor
    labels: torch.Tensor
    samples: tuple[Sample, ...]

    def split(self, name: str) -> "ImageSet":
        """The part of "train", "val" or "test" (a copy; n may be 0)."""
        return self.rows([row for row, sample in enumerate(self.samples) if sample.split == name])

    def rows(self, rows: Sequence[int]) -> "ImageSet":
        """These images, in this order (a copy)."""
        rows = list(rows)
        return ImageSet(self.images[rows], self.labels[rows], tuple(self.samples[row] for row in rows))

    def is_grey(self) -> bool:
        """Whether every pixel of every image has equal channels."""
        return all(torch.equal(image[:1].expand_as(image), image) for image in self.images)

    def to_grey(self) -> "ImageSet":
        """The first channel alone (n, 1, s, s). Read colour, ask ``is_grey``, drop to grey: so each file is read once."""
        return replace(self, images=self.images[:, :1].clone())


def decode(
    samples: Sequence[Sample], preprocessing: Preprocessing, progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None
) -> tuple[ImageSet, list[ImageError]]:
    """Read every file once, in threads (Pillow frees the interpreter while it decodes), and keep the order.

    ``progress(results, total)`` may wrap the iteration, as tqdm does. Returns the images that could be read and one error for
    each that could not. Raises DataError where memory does not suffice.
    """

    def read(sample: Sample) -> torch.Tensor | ImageError:
        try:
            return load(sample.path, preprocessing)
        except ImageError as error:
            return ImageError(error.path, error.reason)  # a new one: this one's traceback holds the half-decoded image

    shape = (len(samples), preprocessing.channels, preprocessing.size, preprocessing.size)
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        need = f"{len(samples)} images of {preprocessing.size} px need {math.prod(shape) / 1e9:.1f} GB of memory"
        raise DataError(f"{need}, more than there is; use a smaller image size") from error
    kept: list[Sample] = []
    errors: list[ImageError] = []
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="decode")
    try:
        results: Iterable[torch.Tensor | ImageError] = pool.map(read, samples)
        for sample, result in zip(samples, progress(results, len(samples)) if progress else results, strict=True):
            if isinstance(result, ImageError):
                errors.append(result)
            else:
                images[len(kept)] = result
                kept.append(sample)
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C waits for the few files in work, not for the whole queue
    labels = torch.tensor([sample.label for sample in kept], dtype=torch.int64)
    return ImageSet(images[: len(kept)], labels, tuple(kept)), errors


def lost(manifest: Manifest, read: Sequence[Sample]) -> tuple[str, ...]:
    """One note for each split, or class of it, that had images of which none could be ``read``. Training images are not asked about."""
    before, after = (Counter((sample.split, sample.label) for sample in samples) for samples in (manifest.samples, read))
    notes = []
    for split, consequence in (("val", "the last epoch is kept as the best, chosen by no figure"), ("test", "there will be no test results")):
        had = [label for label in range(len(manifest.classes)) if before[split, label]]
        gone = [label for label in had if not after[split, label]]
        if gone and gone == had:
            notes.append(f"none of the {len(manifest.split(split))} images of {split} can be read: {consequence}")
        elif gone:
            notes.append(f"{split} has no images of {', '.join(manifest.classes[label] for label in gone)} that can be read: its results leave these out")
    return tuple(notes)
