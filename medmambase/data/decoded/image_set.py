"""Decode image files into tensors, each file once."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch

from medmambase.config import Preprocessing
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.on_demand import OnDemand, threads
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.labels import classes_in
from medmambase.data.manifest.published import forget, pixels_of, room_of
from medmambase.data.reading.clip import load_frames
from medmambase.data.reading.images import Facts, ImageError, load
from medmambase.plural import count_of

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # items, their number, and what is done with them


def no_progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show no progress."""
    return items


@dataclass(frozen=True)
class ImageSet:
    """Decoded images: torch.uint8 (n, c, s, s), torch.int64 (n,) or, where an image may have
    several classes, (n, classes), the samples they came from, and what each file was; all in the
    same order.

    ``images`` that do not lie in memory are indexed in the same way along their first axis, which
    decodes them.
    """

    images: torch.Tensor | OnDemand
    labels: torch.Tensor
    samples: tuple[Sample, ...]
    facts: tuple[Facts, ...]

    def split(self, name: str) -> "ImageSet":
        """The part of "train", "val" or "test" (n may be 0)."""
        return self.rows([row for row, sample in enumerate(self.samples) if sample.split == name])

    def rows(self, rows: Sequence[int]) -> "ImageSet":
        """These images, in this order. Rows that follow each other share this set's memory, so
        neither may be changed in place."""
        rows = list(rows)
        if isinstance(self.images, OnDemand):
            images: torch.Tensor | OnDemand = self.images.rows(rows)
        elif rows and rows == list(range(rows[0], rows[0] + len(rows))):
            images = self.images[rows[0] : rows[0] + len(rows)]
        else:
            images = self.images[rows]
        return ImageSet(
            images, self.labels[rows], tuple(self.samples[row] for row in rows), tuple(self.facts[row] for row in rows)
        )

    def expect(self, order: torch.Tensor) -> None:
        """Announce the rows that will be asked for next, torch.int64 (k,): images that are not in
        memory are then decoded while the network is busy."""
        if isinstance(self.images, OnDemand):
            self.images.expect(order)

    def is_grey(self) -> bool:
        """Return whether every pixel of every image has equal channels."""
        return self.images.grey if isinstance(self.images, OnDemand) else all(map(_is_grey, self.images))

    def to_grey(self) -> "ImageSet":
        """Return the first channel alone (n, 1, s, s). Read colour, ask ``is_grey``, drop to grey:
        so each file is read once."""
        return replace(
            self, images=self.images.to_grey() if isinstance(self.images, OnDemand) else self.images[:, :1].clone()
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash names, labels, splits and pixels (at full size) in order: 32 hex digits that change
        when the data does."""
        digest = hashlib.blake2b(digest_size=16)
        for sample, facts in zip(self.samples, self.facts, strict=True):
            digest.update(f"{(sample.name, sample.label, sample.split, facts.digest)!a}\n".encode("ascii"))
        return digest.hexdigest()


def decode(
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    cache: Cache | None = None,
    *,
    keep: bool = True,
) -> tuple[ImageSet, list[ImageError]]:
    """Read every file once, in threads (Pillow frees the interpreter while it decodes), and keep
    the order.

    ``progress(results, total)`` may wrap the iteration, as tqdm does. With a ``cache`` what an
    earlier run decoded is not decoded again; where that fails, ``cache.notes`` say so and the
    result is the same. Without ``keep`` memory is spared: each image is decoded once here, to know
    what can be read, and again whenever it is asked for. Returns the images that could be read and
    one error for each that could not.
    Raises DataError where memory does not suffice.
    """
    images = _room(len(samples) if keep else 0, preprocessing)
    grey = True
    kept: list[Sample] = []
    facts: list[Facts] = []
    errors: list[ImageError] = []
    with cache.shelf(preprocessing, len(samples)) if cache else nullcontext() as shelf:

        def read(unit: Sequence[Sample]) -> list[tuple[torch.Tensor, Facts] | ImageError]:
            first = unit[0]
            if first.frame is None:
                return [read_one(first)]
            frames = [sample.frame or 0 for sample in unit]
            if shelf is None:
                return list(load_frames(first.path, preprocessing, frames))
            return shelf.fetch_frames(first.path, frames, lambda asked: load_frames(first.path, preprocessing, asked))

        def read_one(sample: Sample) -> tuple[torch.Tensor, Facts] | ImageError:
            try:
                with room_of(sample):
                    pixels = None if sample.row is None else pixels_of(sample)
                    if shelf is None:
                        return load(sample.path, preprocessing, pixels)
                    return shelf.fetch(sample.path, pixels, lambda: load(sample.path, preprocessing, pixels))
            except ImageError as error:
                return ImageError(
                    error.path, error.reason
                )  # a new one: this one's traceback holds the half-decoded image

        pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")
        try:
            # The frames of a file follow each other, and it is decoded once.
            each = pool.map(read, _units(samples))
            results: Iterable[tuple[torch.Tensor, Facts] | ImageError] = chain.from_iterable(each)
            for sample, result in zip(samples, progress(results, len(samples)) if progress else results, strict=True):
                if isinstance(result, ImageError):
                    errors.append(result)
                else:
                    image, fact = result
                    if keep:
                        images[len(kept)] = image
                    else:
                        grey = grey and _is_grey(image)
                    kept.append(sample)
                    facts.append(fact)
        finally:
            pool.shutdown(
                cancel_futures=True
            )  # so that Ctrl-C waits for the few files in work, not for the whole queue
            forget()
    labels = torch.tensor([sample.label for sample in kept], dtype=torch.int64)
    if samples and isinstance(several := samples[0].label, tuple):
        labels = labels.reshape(len(kept), len(several))  # also where no image could be read
    found = images[: len(kept)] if keep else OnDemand(kept, facts, preprocessing, preprocessing.channels, grey)
    return ImageSet(found, labels, tuple(kept), tuple(facts)), errors


def _units(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples that are decoded together: rising frames of one file that follow each other."""
    units: list[list[Sample]] = []
    for sample in samples:
        before = units[-1][-1] if units else None
        together = before is not None and before.path == sample.path and None not in (before.frame, sample.frame)
        if together and before is not None and (before.frame or 0) < (sample.frame or 0):
            units[-1].append(sample)
        else:
            units.append([sample])
    return units


def _room(count: int, preprocessing: Preprocessing) -> torch.Tensor:
    shape = (count, preprocessing.channels, preprocessing.size, preprocessing.size)
    try:
        return torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        need = f"{count} images of {preprocessing.size} px need {math.prod(shape) / 1e9:.1f} GB of memory"
        raise DataError(
            f"{need}, more than there is; use a smaller image size, or keep no decoded images with --cache off"
        ) from error


def _is_grey(image: torch.Tensor) -> bool:
    return torch.equal(image[:1].expand_as(image), image)


def lost(manifest: Manifest, read: Sequence[Sample]) -> tuple[str, ...]:
    """Write a note for each split, or class of a split, of which no image could be ``read``.
    Training images are not asked about."""
    before, after = (
        Counter((sample.split, number) for sample in samples for number in classes_in(sample.label))
        for samples in (manifest.samples, read)
    )
    notes = []
    for split, consequence in (
        ("val", "the last epoch is kept as the best, chosen by no figure"),
        ("test", "there will be no test results"),
    ):
        had = [label for label in range(len(manifest.classes)) if before[split, label]]
        gone = [label for label in had if not after[split, label]]
        if gone and gone == had:
            notes.append(f"none of the {len(manifest.split(split))} images of {split} can be read: {consequence}")
        elif gone:
            notes.append(
                f"{split} has no images of {', '.join(manifest.classes[label] for label in gone)} that can be read: "
                f"its results say nothing about them"
            )
    return tuple(notes)


def modalities(images: ImageSet) -> tuple[str, ...]:
    """Write a note where DICOM files are of several modalities, such as ultrasound and CT."""
    first: dict[str, str] = {}
    for sample, facts in zip(images.samples, images.facts, strict=True):
        if facts.modality:
            first.setdefault(facts.modality, sample.name)
    if len(first) < 2:
        return ()
    every = Counter(facts.modality for facts in images.facts if facts.modality).most_common()
    listed = ", ".join(f"{name} ({count_of(count, 'image')}, such as {first[name]})" for name, count in every)
    return (f"the DICOM files are of several modalities: {listed}; remove the images that do not belong to this task",)


def clips(images: ImageSet) -> tuple[str, ...]:
    """Write a note where files have several frames, and nobody chose which: the first is read."""
    pairs = zip(images.samples, images.facts, strict=True)
    clips = [(facts.frames, s.name) for s, facts in pairs if facts.frames > 1 and s.frame is None]
    if not clips:
        return ()
    most, name = max(clips, key=lambda clip: clip[0])
    return (
        f"{count_of(len(clips), 'file has', 'files have')} several frames ({name}: {most}): only the first "
        f"frame of each is read; --frames all, middle or a number takes others",
    )
