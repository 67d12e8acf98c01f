"""Notice images that are unlike those that a network was trained on, whose prediction says nothing.

Two distances of Mahalanobis are measured from the training images, each with its own mean and
covariance (shrunk: Ledoit and Wolf, 2004, since images may be fewer than numbers): that of the
features before the head (Lee et al., NeurIPS 2018, with one mean for all classes), which know what
the network makes of an image, and that of the picture's grey levels, texture and edges, which the
features may not notice, above all those of a network that has learned for a short time. An image is
unlike where one of them is larger than its threshold. The thresholds are learned on validation
images (``conformal.py``), each with half of the rate of false alarms that is wanted.

Few patients cannot promise that rate: images of new ones exceed whatever was met too often. Then
the threshold is that which the next patient's largest distance is expected to keep to, with its
logarithm taken for normal (a prediction limit by Student's t). This is no guarantee, as that of
``conformal.py`` is. docs/evaluation.md tells what was measured, and what other methods gave.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self, cast

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import
import torch
from pydantic import Field, StrictInt, with_config

from medmambase.data.manifest.folders import DataError
from medmambase.inference.conformal import Bound, Floats, Share, units_of
from medmambase.inference.watch import NUMBERS, Seen
from medmambase.model import tensor_file
from medmambase.validation import OBJECT, check

FALSE_ALARMS = 0.05  # share of images like those trained on that may be called unlike
FEWEST = 10  # training images from which it is known how they differ
MOST = 2000  # training images that are looked at: they take a few seconds
_ENTRY = "unlike"
_FLOOR = 0.01  # of the mean spread: the least that a number's spread counts
_LEAST = 1e-4  # variance along any direction
_ROUNDED = 1.001  # a frozen network, or another device, rounds features otherwise


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Points around a mean: what is x @ ``weight`` - ``mean`` has for the points a covariance of
    one. ``weight`` (d, d) and ``mean`` (d,), float32."""

    weight: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def of(cls, points: Floats) -> Self:
        """Fit it to ``points`` (n, d)."""
        from sklearn.covariance import ledoit_wolf  # slow to import

        spread = points.std(axis=0)
        floor = _FLOOR * float(np.sqrt((spread**2).mean()))
        spread = np.maximum(spread, floor or 1.0)
        mean = points.mean(axis=0)
        covariance, _ = ledoit_wolf((points - mean) / spread, assume_centered=True)
        covariance += _LEAST * np.eye(len(covariance))  # where nothing varies at all
        weight = np.linalg.inv(np.linalg.cholesky(covariance)).T / spread[:, None]
        return cls(torch.from_numpy(weight).float(), torch.from_numpy(mean @ weight).float())

    def distance(self, points: Floats) -> Floats:
        """Return how far each of ``points`` (n, d) is from the mean: (n,)."""
        away = points @ self.weight.double().numpy() - self.mean.double().numpy()
        return cast(Floats, np.linalg.norm(away, axis=1))


@with_config(OBJECT)
@dataclass(frozen=True)
class Thresholds:
    """From which distance on an image is unlike: of ``features`` and of the ``picture``.
    ``false_alarms``: the share of images that were to exceed one of them; ``images``: how many
    training images the distances are measured from."""

    false_alarms: Share
    images: Annotated[StrictInt, Field(ge=FEWEST)]
    features: Bound
    picture: Bound

    @property
    def promised(self) -> float:
        """The share of false alarms that so many validation images can promise."""
        return min(2 - self.features.level - self.picture.level, 1.0)


@dataclass(frozen=True, eq=False)
class Detector:
    """Tells which images are unlike the training images of one network."""

    features: Gaussian
    picture: Gaussian
    thresholds: Thresholds

    @classmethod
    def of(
        cls, training: Seen, validation: Seen, patients: tuple[str, ...], false_alarms: float = FALSE_ALARMS
    ) -> Self | None:
        """Learn it from what was seen of training images, and of validation images of ``patients``
        ("" where nobody knows); None with fewer than FEWEST of the first, or none of the latter."""
        if len(training.pictures) < FEWEST or not len(validation.pictures):
            return None
        features, picture = Gaussian.of(training.features[0]), Gaussian.of(training.pictures)
        bounds = [
            bound_of(distances, patients, 1 - false_alarms / 2)
            for distances in (features.distance(validation.features[0]), picture.distance(validation.pictures))
        ]
        return cls(features, picture, Thresholds(false_alarms, len(training.pictures), *bounds))

    def distance(self, features: Floats, pictures: Floats) -> Floats:
        """Return the larger of both distances of n images, as a share of its threshold: (n,); above
        1 an image is unlike."""
        pairs = ((self.features, self.thresholds.features, features), (self.picture, self.thresholds.picture, pictures))
        shares = [one.distance(points) / max(bound.threshold * _ROUNDED, 1e-6) for one, bound, points in pairs]
        return cast(Floats, np.maximum(*shares))

    def to_bytes(self) -> bytes:
        """Return the content of a file that ``read`` reads."""
        tensors = {
            f"{name}.{part}": getattr(one, part)
            for name, one in (("features", self.features), ("picture", self.picture))
            for part in ("weight", "mean")
        }
        return tensor_file.as_bytes(tensors, _ENTRY, {"thresholds": asdict(self.thresholds)})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what ``to_bytes`` gave; None where there is no such file, or one of a version that
        describes a picture by other numbers. Raises DataError."""
        from safetensors import SafetensorError

        try:
            content = tensor_file.read_bytes(path)
            tensors = tensor_file.from_bytes(content, _ENTRY)
            words = json.loads(tensor_file.words_of(content)[_ENTRY])["thresholds"]
            thresholds = check("thresholds", words, Thresholds, ValueError)
            found = [_gaussian(tensors, name) for name in ("features", "picture")]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); restore it, or delete it: then nothing is said of images that are "
                f"unlike the training images"
            ) from error
        return cls(found[0], found[1], thresholds) if len(found[1].mean) == NUMBERS else None


def bound_of(distances: Floats, patients: tuple[str, ...], wanted: float) -> Bound:
    """Learn the threshold of ``distances`` (n,) of validation images, to which the share ``wanted``
    of images to come is to keep."""
    found = Bound.of(distances, patients, wanted)
    if not found.falls_short(wanted) or found.units == 1:  # of one nobody knows how much they differ
        return found
    largest = np.zeros(found.units)
    np.maximum.at(largest, units_of(patients), distances)
    logarithms = np.log(np.maximum(largest, 1e-6))
    away = scipy.stats.t.ppf(wanted, found.units - 1) * np.sqrt(1 + 1 / found.units)
    limit = float(np.exp(logarithms.mean() + away * logarithms.std(ddof=1)))
    return replace(found, threshold=max(found.threshold, limit))


def _gaussian(tensors: dict[str, Any], name: str) -> Gaussian:
    weight, mean = tensors[f"{name}.weight"], tensors[f"{name}.mean"]
    if weight.shape != (len(mean), len(mean)) or tensor_file.not_finite(weight) or tensor_file.not_finite(mean):
        raise ValueError(f"{name}.weight has shape {tuple(weight.shape)}, or holds NaN or infinity")
    return Gaussian(weight, mean)
