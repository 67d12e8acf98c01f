"""Find and decode the images of a pretraining: any that are there, whatever their classes, but
those of val and test where the data, or a table, name them."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import ImageSet, Progress, clips, decode
from medmambase.data.manifest.folders import DataError, Manifest, list_unlabelled
from medmambase.data.manifest.published import FETAL_PLANES
from medmambase.data.manifest.sources import read_images
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.data.reading.images import ImageError
from medmambase.plural import count_of
from medmambase.pretraining.settings import PretrainSettings

FEWEST = 3  # images: one is held out, and a batch has two


@dataclass(frozen=True)
class Decoded:
    """The images, how they were prepared, those that cannot be read, and one line for each
    note."""

    images: ImageSet
    preprocessing: Preprocessing
    bad: tuple[ImageError, ...]
    notes: tuple[str, ...]


def find(settings: PretrainSettings) -> Manifest:
    """Find the images to learn from; ``method`` says so where others are left out, as "" says that
    all are learned from. Raises DataError where there are none, or the table of ``splits`` is not
    one of them."""
    source, runs = Path(settings.data or ""), Path(settings.runs)
    splits = Path(settings.splits) if settings.splits else None
    if not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder; give a folder that holds images at any depth, without "
            f"classes, or any data that medmambase-train takes"
        )
    if source.is_dir() and splits is None and not (source / FETAL_PLANES).is_file():
        found = list_unlabelled(source, runs)
    else:
        found = read_images(source, runs=runs, splits=splits)
    train = found.split("train")
    left = Counter(sample.split for sample in found.samples if sample.split != "train")
    if not train:
        raise DataError(f"{source}: there are no images in train, only in {' and '.join(sorted(left))}; add some")
    notes, method = found.notes, ""
    if left:
        told = " and ".join(f"{count_of(count, 'image')} of {split}" for split, count in sorted(left.items()))
        method = f"left out, so that a training can be tested on them: {told}"
        notes += (method,)
    # Named as a training would name them, without folders above the data.
    return Pseudonyms(None).of_manifest(replace(found, samples=train, notes=notes, method=method))


def take_in(found: Manifest, settings: PretrainSettings, progress: Progress) -> Decoded:
    """Decode every image once, as large as the largest step wants it, and decide between grey and
    RGB. Raises DataError where memory does not suffice, where an image cannot be read and
    ``on_bad`` says to stop, or where too few are left."""
    preprocessing = Preprocessing(max(settings.image_size), 1 if settings.in_chans == "1" else 3)
    images, bad = decode(
        found.samples, preprocessing, lambda results, total: progress(results, total, "reading images")
    )
    every = (*found.unlisted, *bad)
    if every and settings.on_bad == "error":
        more = f", and {len(every) - 1} more" if len(every) > 1 else ""
        raise DataError(f"{every[0]}{more}; fix or remove unreadable files, or skip them with --on-bad skip")
    if len(images.labels) < FEWEST:
        reason = f"; {every[0]}" if every else ""
        raise DataError(
            f"{found.root}: {count_of(len(images.labels), 'image')} can be read{reason}; a pretraining needs at least "
            f"{FEWEST}, and is worth its time from some hundreds on"
        )
    if settings.in_chans == "auto" and images.is_grey():
        images, preprocessing = images.to_grey(), replace(preprocessing, channels=1)
    return Decoded(images, preprocessing, every, (*found.notes, *clips(images)))
