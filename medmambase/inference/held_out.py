"""What a finished network is tried on: the test images of a source, or a stream of files of which
nobody knows the truth.

Stop before: ``commands/evaluate.py`` and ``commands/predict.py``. Next stop:
``evaluation/predictions.py``, or a table of rows.
"""

import csv
import difflib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.decoded.on_demand import THREADS
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.reading.images import ImageError, load, normalise
from medmambase.model.classifier import Classifier
from medmambase.model.network import MedMambaSE
from medmambase.training.checkpoint import IMAGES
from medmambase.training.loop import Progress


@dataclass(frozen=True)
class Examination:
    """Images to be tried, the names of those that the network has learned from or was chosen by (or
    their patient), and one line for each oddity."""

    images: ImageSet
    seen: frozenset[str]
    bad: tuple[ImageError, ...]
    notes: tuple[str, ...]


def examine(run: Path, network: MedMambaSE, found: Manifest, progress: Progress) -> Examination:
    """The test images of ``found``: those of its own test split; where it has none, those that were
    this run's test images; else all.

    Raises DataError for a class that the network does not know, and where there is nothing to try.
    """
    samples, which = found.samples, "all images of it"
    if any(sample.split == "test" for sample in samples):
        samples, which = found.split("test"), "its test split"
    elif tests := _rows(run / "splits.csv", "path", {"split": "test"}):
        own = tuple(sample for sample in samples if sample.name in tests)
        samples, which = (own, "what were this run's test images") if own else (samples, which)
    number = {name: index for index, name in enumerate(network.classes)}
    for name in {found.classes[sample.label] for sample in samples} - number.keys():
        near = difflib.get_close_matches(name, network.classes, n=1, cutoff=0)[0]
        raise DataError(
            f"{found.root}: class {name!r} is none that the network knows; the nearest of them is {near!r}: rename "
            f"the class, or leave it out"
        )
    samples = tuple(replace(sample, label=number[found.classes[sample.label]], split="test") for sample in samples)
    images, bad = decode(
        samples, network.preprocessing, lambda results, total: progress(results, total, "reading images")
    )
    if not len(images.labels):
        raise DataError(f"{found.root}: there is no image to try the network on{f'; {bad[0]}' if bad else ''}")
    pixels = _rows(run / "last" / IMAGES, "pixels", {"split": "train"}) | _rows(
        run / "last" / IMAGES, "pixels", {"split": "val"}
    )
    patients = (
        _rows(run / "splits.csv", "patient", {"split": "train"})
        | _rows(run / "splits.csv", "patient", {"split": "val"})
    ) - {""}
    seen = frozenset(
        sample.name
        for sample, facts in zip(images.samples, images.facts, strict=True)
        if facts.digest in pixels or (sample.patient or facts.patient) in patients
    )
    notes = [f"tried on {which}: {len(images.labels)} images", *found.notes]
    if seen:
        notes.append(
            f"of {len(seen)} of them the same pixels, or the patient, were in train or val: results will be told "
            f"with and without them"
        )
    return Examination(images, seen, tuple(bad), tuple(notes))


def _rows(path: Path, column: str, where: dict[str, str]) -> set[str]:
    """The values of a column in a file of a run, of the rows that are so; nothing where there is no
    such file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {
                row.get(column) or ""
                for row in csv.DictReader(file)
                if all(row.get(name) == value for name, value in where.items())
            }
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()


def predict_files(
    network: MedMambaSE, paths: Iterable[Path], batch_size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Path, np.ndarray | ImageError]]:
    """Each file with its probabilities, float64 (classes,), or with what is wrong with it, in the
    order given. Of a stream of any length only some batches are in memory: threads decode the next
    ones while the network is busy.
    """
    frozen = network.to(device).for_prediction()
    stream = iter(paths)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[Path, Future[Tensor | ImageError]]] = deque()

        def go_on() -> None:
            waiting.extend(
                (path, pool.submit(_read, path, frozen)) for path in islice(stream, 4 * batch_size - len(waiting))
            )

        go_on()
        while waiting:
            batch = [
                (path, image.result())
                for path, image in (waiting.popleft() for _ in range(min(batch_size, len(waiting))))
            ]
            go_on()
            probabilities = iter(
                _probabilities(frozen, [image for _, image in batch if isinstance(image, Tensor)], device, dtype)
            )
            for path, image in batch:
                yield path, image if isinstance(image, ImageError) else next(probabilities)


def _read(path: Path, network: Classifier) -> Tensor | ImageError:
    try:
        return load(path, network.preprocessing)[0]
    except ImageError as error:
        return ImageError(error.path, error.reason)  # a new one: this one's traceback holds the half-decoded image


@torch.inference_mode()
def _probabilities(network: Classifier, images: list[Tensor], device: torch.device, dtype: torch.dtype) -> np.ndarray:
    if not images:
        return np.zeros((0, network.config.num_classes))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = network(normalise(torch.stack(images).to(device), network.preprocessing))
    found: np.ndarray = F.softmax(logits.cpu().double(), 1).numpy()
    return found
