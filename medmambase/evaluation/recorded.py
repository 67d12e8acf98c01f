"""What figures of merit consist of, of images with one class and with several: the figures of a
class, intervals, and one way to name them all, to write them out and to read them again."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, StrictFloat, StrictInt

from medmambase.evaluation.predictions import MetricsError
from medmambase.validation import check

ONE_CLASS = ("sensitivity", "specificity", "ppv", "npv", "f1", "auc", "ap")
LEAST = {"mcc": -1.0, "kappa": -1.0}  # the others begin at 0
MOST = {"brier": 2.0}  # the others end at 1

Count = Annotated[StrictInt, Field(ge=0)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)] | None


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, and the method that gave it."""

    low: StrictFloat
    high: StrictFloat
    method: str


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all others, every figure in 0..1; None where it is undefined.

    ``support``: images whose truth is this class. ``sensitivity`` needs one of them,
    ``specificity`` one of another class, ``auc`` both and ``ap`` (average precision) one of it;
    ``ppv`` an image that was called this class, ``npv`` one that was not, ``f1`` one that is or was
    called it.
    """

    name: str
    support: Count
    sensitivity: Share
    specificity: Share
    ppv: Share
    npv: Share
    f1: Share
    auc: Share
    ap: Share


class Figures(ABC):
    """What the figures of images with one class, ``Metrics``, and with several,
    ``MultiLabelMetrics``, have in common: their names, and how they are written out and read again.

    ``overall``: the names of those of all classes together; ``most``: the greatest values of those
    that may be above 1. The others are explained by ``Metrics``.
    """

    overall: ClassVar[tuple[str, ...]]
    most: ClassVar[Mapping[str, float]] = {}
    macro: dict[str, Share]
    weighted: dict[str, Share]
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[Any, ...], ...]
    intervals: dict[str, Interval]
    patients: Count | None
    patient_known: Count | None
    without_leaked: Self | None
    by_patient: Self | None

    @property
    def clean(self) -> Self:
        """The figures without leaked images, which come first in the report."""
        return self if self.without_leaked is None else self.without_leaked

    @property
    def counted(self) -> str:
        """What the intervals count: "patients", where any is known, or "images"."""
        return "patients" if self.patients or self.patient_known else "images"

    def flat(self) -> dict[str, float | None]:
        """Return every figure under a name of its own: "accuracy", "macro/f1", and of class 0
        "0/auc"."""
        of_classes = {
            f"{index}/{name}": getattr(one, name) for index, one in enumerate(self.per_class) for name in ONE_CLASS
        }
        means = {f"{mean}/{name}": getattr(self, mean)[name] for mean in ("macro", "weighted") for name in ONE_CLASS}
        return {name: getattr(self, name) for name in self.overall} | means | of_classes

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values; undefined stays None and NaN cannot occur. Intervals, all
        about patients and ``without_leaked`` are left out where they are empty."""
        counts, inner = ("patients", "patient_known", "patients_left_out"), ("by_patient", "without_leaked")
        optional = ("intervals", *counts, *inner)
        names = (one.name for one in fields(self) if one.name not in optional)  # type: ignore[arg-type]  # both are dataclasses
        values: dict[str, Any] = {name: getattr(self, name) for name in names} | {
            "per_class": [asdict(one) for one in self.per_class],
            "confusion": np.array(self.confusion).tolist(),
        }
        if self.intervals:
            values["intervals"] = {name: asdict(one) for name, one in self.intervals.items()}
        values |= {name: value for name in counts if (value := getattr(self, name)) is not None}
        return values | {name: one.to_dict() for name in inner if (one := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises MetricsError for any other shape."""
        metrics: Self = check("metrics", values, cls, MetricsError)
        metrics._check_whole()
        return metrics

    def _check_whole(self) -> None:
        """Raises MetricsError where one part does not fit another."""
        if any(mean.keys() != {*ONE_CLASS} for mean in (self.macro, self.weighted)):
            raise MetricsError(f"macro or weighted has other figures than {', '.join(ONE_CLASS)}")
        self._check_confusion()
        for name, interval in self.intervals.items():
            least, most = LEAST.get(name, 0.0), self.most.get(name, 1.0)
            for end in (interval.low, interval.high):
                if not least <= end <= most:
                    raise MetricsError(f"intervals.{name} ends at {end!r}; wanted a number from {least:g} to {most:g}")
        for inner in (self.by_patient, self.without_leaked):
            if inner is not None:
                inner._check_whole()

    @abstractmethod
    def _check_confusion(self) -> None:
        """Raises MetricsError where it does not fit the classes."""


def range_of(name: str) -> tuple[float, float]:
    """Return the least and the greatest value that a figure can have."""
    return LEAST.get(name, 0.0), MOST.get(name, 1.0)
