"""Learn on validation images what holds for images to come, with a guarantee for finite numbers of
them (split conformal prediction; Vovk, Gammerman and Shafer, 2005).

A score that is high where an image is strange gets a threshold: the next image exceeds it with a
probability of at most 1 - level, whatever the network and the images are, if the next image is
drawn as the validation images were. The guarantee is marginal: it holds on average over images and
validation sets, not for each class, patient or hospital.

Images of one patient resemble each other, so where patients are known it is patients that are
drawn: each has the same weight, shared by its images, and the guarantee is for an image, chosen by
chance, of a new patient (Dunn, Wasserman and Ramdas, 2023; Lee, Barber and Willett, 2023, on
hierarchical data). n patients, or images, can promise a level of n / (n + 1) at most: where more is
wanted, the threshold is the highest score, and the level is that which n can promise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field, StrictFloat, StrictInt, with_config

from medmambase.data.manifest.folders import DataError
from medmambase.files import read_json
from medmambase.model.task import SINGLE_LABEL
from medmambase.plural import count_of
from medmambase.validation import OBJECT, check

COVERAGE = 0.95  # share of images whose set of classes holds the true one
Floats = npt.NDArray[np.float64]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Bound:
    """A ``threshold`` that images to come do not exceed with a probability of at least ``level``,
    learned on ``units`` patients or images, as ``counted`` says."""

    threshold: StrictFloat
    level: Share
    units: Annotated[StrictInt, Field(ge=1)]
    counted: Literal["patients", "images"]

    @classmethod
    def of(cls, scores: Floats, patients: Sequence[str], wanted: float) -> Self:
        """Learn the bound of ``scores`` (n,), at least one, of images of these ``patients``, ""
        where nobody knows: such an image stands alone."""
        places = units_of(patients)
        units = int(places.max()) + 1
        order = np.argsort(scores, kind="stable")
        # The patient to come has the same weight as each of these, and may score higher than any.
        weights = 1 / np.bincount(places)[places] / (units + 1)
        row = int(np.searchsorted(np.cumsum(weights[order]), wanted - 1e-9))  # of sums that rounding may lower
        threshold = float(scores[order[min(row, len(order) - 1)]])
        return cls(threshold, min(wanted, units / (units + 1)), units, "patients" if any(patients) else "images")

    def falls_short(self, wanted: float) -> str:
        """Say in a clause that so few cannot promise what is ``wanted``, and how many could; ""
        where they do."""
        if self.level >= wanted - 1e-9:
            return ""
        one = {"patients": "patient", "images": "image"}[self.counted]
        least = int(np.ceil(wanted / (1 - wanted) - 1e-6))
        return (
            f"{count_of(self.units, f'validation {one}', f'validation {self.counted}')} can promise {self.level:.1%} "
            f"at most, not {wanted:.1%}: that takes {least}"
        )


def units_of(patients: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number the patients of images, "" where nobody knows: such an image stands alone. (n,)"""
    own = [patient or (row,) for row, patient in enumerate(patients)]
    number = {one: place for place, one in enumerate(dict.fromkeys(own))}
    return np.array([number[one] for one in own], dtype=np.int64)


@with_config(OBJECT)
@dataclass(frozen=True)
class Sets:
    """Which classes an image may be of: each whose probability, calibrated with ``temperature``, is
    at least 1 - ``bound.threshold``, and the most probable one (LAC: Sadinle, Lei and Wasserman,
    2019; of all sets with their coverage they have the fewest classes)."""

    temperature: Annotated[StrictFloat, Field(gt=0)]
    wanted: Share
    bound: Bound

    @classmethod
    def of(
        cls, probabilities: Floats, labels: npt.NDArray[np.int64], patients: Sequence[str], temperature: float,
        wanted: float = COVERAGE,
    ) -> Self:  # fmt: skip  # one argument list
        """Learn them from ``probabilities`` (n, classes) of validation images, at least one, that
        are not calibrated yet, and their ``labels`` (n,)."""
        scores = 1 - SINGLE_LABEL.apply_temperature(probabilities, temperature)[np.arange(len(labels)), labels]
        return cls(temperature, wanted, Bound.of(scores, patients, wanted))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what ``to_dict`` was written to; None where there is no such file. Raises
        DataError."""
        try:
            values = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); medmambase-evaluate {path.parent} writes it again"
            ) from error
        return cast(Self, check(f"{path}: sets", values, cls, DataError))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values."""
        return asdict(self)

    def holds(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        """Return which classes are in the sets of images with these ``probabilities`` (n, classes),
        which are not calibrated yet: bool (n, classes)."""
        found = 1 - SINGLE_LABEL.apply_temperature(probabilities, self.temperature) <= self.bound.threshold
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found
