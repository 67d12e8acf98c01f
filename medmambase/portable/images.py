"""The images on which an exported network is compared: the run's own test images, or others."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medmambase.data.decoded.image_set import Progress, decode
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.sources import read_images
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.files import as_written
from medmambase.inference.held_out import rows_of
from medmambase.model.classifier import Classifier
from medmambase.run_folder import SPLITS, data_of, folds_of, setting_of

MOST = 500  # of a large test split so many are compared, evenly spread


def compared_images(
    run: Path, network: Classifier, given: Path | None, progress: Progress
) -> tuple[npt.NDArray[np.uint8], str]:
    """Return images as the network takes them, uint8 (n, size, size, channels), and which they are,
    in words. ``given``: a folder or table with others than the run's own test images.

    Raises DataError where there are none, or the run does not tell where its images lie.
    """
    folds = folds_of(run)
    source = given or data_of(folds[0] if folds else run)
    if given is None and (source is None or not source.exists()):
        where = "does not tell where its images lie" if source is None else f"was trained on {source}, not there now"
        raise DataError(f"{run}: {where}, so there is nothing to compare the file on; give images with --images")
    assert source is not None  # which is known by now
    own = folds[0] if folds else run
    names, frames = (None if given else setting_of(own, name) for name in ("class_names", "frames"))
    found = read_images(source, class_names=names, frames=frames)
    samples, which = (found.samples, f"images of {source.name}") if given else _tested(run, folds, found)
    if not samples:
        raise DataError(
            f"{run}: has no test images, so there is nothing to compare the file on; give some with --images"
        )
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(MOST, len(samples))).astype(int)]
    images, bad = decode(
        chosen, network.preprocessing, lambda results, total: progress(results, total, "reading images")
    )
    if not len(images.labels):
        raise DataError(f"{source}: no image could be read; {bad[0]}")
    few = f"{len(images.labels)} of {len(samples)} " if len(samples) > len(images.labels) else f"{len(samples)} "
    pixels = images.images[torch.arange(len(images.labels))]
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()), few + which


def _tested(run: Path, folds: tuple[Path, ...], found: Manifest) -> tuple[tuple[Sample, ...], str]:
    """The run's test images among those found; of a cross-validation, where every image is one,
    all."""
    if folds:
        return found.samples, "images of the cross-validation"
    called = Pseudonyms.of_run(run) or Pseudonyms.new()
    tests = rows_of(run / SPLITS, "path", {"split": "test"})
    names = called.of_manifest(found).samples
    return (
        tuple(one for one, named in zip(found.samples, names, strict=True) if as_written(named.name) in tests),
        "test images of the run",
    )
