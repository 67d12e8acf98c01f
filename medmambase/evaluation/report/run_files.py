"""What the report and the model card take from the files of a run folder, and in which shape.

A file may hold more than is named here; what is named must be there, and of its type.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import StrictFloat, StrictInt, with_config

from medmambase.config import first_counted
from medmambase.data.audit import KINDS, counted
from medmambase.validation import PART, check

Number = StrictFloat | None
T = TypeVar("T")


class ReportError(Exception):
    """A run folder that cannot be reported: the message names the file and what is wrong with
    it."""


@with_config(PART)
@dataclass(frozen=True)
class Config:
    """``config.json``: the settings, and what became of the training; None where it has not
    ended."""

    model: dict[str, Any]
    training: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]
    device: str | None = None
    engine: str | None = None
    precision: str | None = None
    parameters: StrictInt | None = None
    best_epoch: StrictInt | None = None
    best_score: Number = None
    selected_by: str | None = None
    start: str | None = None

    @property
    def among(self) -> str:
        """Of which epochs the best was chosen, in words; "" where of all."""
        after, epochs = self.training.get("select_after"), self.training.get("epochs")
        if not (isinstance(after, int | float) and 0 < after < 1 and isinstance(epochs, int) and 0 < epochs < 1e9):
            return ""
        first = first_counted(after, epochs)
        return f" among the epochs from {first} on" if 1 < first <= (self.best_epoch or first) else ""


@dataclass(frozen=True)
class Skipped:
    path: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """``findings`` are lines for a person, and not all of them; the others are the findings."""

    findings: tuple[str, ...]
    exact: tuple[Any, ...] = ()
    near: tuple[Any, ...] = ()
    across: tuple[Any, ...] = ()
    conflicts: tuple[Any, ...] = ()
    patients: dict[str, Any] = field(default_factory=dict)
    seen: tuple[Any, ...] = ()

    @property
    def counted(self) -> str:
        """How many there are of each kind, in words; "" where there are none."""
        found = counted({kind: getattr(self, kind) for kind in KINDS})
        return found or ("something" if self.findings else "")


@with_config(PART)
@dataclass(frozen=True)
class DataReport:
    """``data_report.json``: ``counts`` of images by split and class, and what was noticed."""

    counts: dict[str, dict[str, StrictInt]]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    audit: Audit
    root: str | None = None
    method: str | None = None
    images: dict[str, StrictInt] = field(default_factory=dict)

    def size(self, split: str) -> int:
        """How many images a split has, of which each may have several classes."""
        return self.images.get(split, sum(self.counts[split].values()))

    @property
    def classes(self) -> list[str]:
        """Every class that has a count in any split, in order."""
        return list(dict.fromkeys(name for row in self.counts.values() for name in row))


@with_config(PART)
@dataclass(frozen=True)
class Examined:
    """``data_report.json`` of an evaluation on other images: where they are from, and what was
    noticed."""

    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    root: str | None = None


@dataclass(frozen=True)
class Figure:
    figure: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Confidence:
    brier: Figure
    ece: Figure


@dataclass(frozen=True)
class PointFigures:
    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    npv: Figure


@dataclass(frozen=True)
class Point:
    name: str
    rule: str
    threshold: Number
    test: PointFigures


@with_config(PART)
@dataclass(frozen=True)
class Calibrated:
    """``test/calibrated.json``: the test figures with the calibration that was learned on val;
    ``by_patient``: operating points of patients."""

    temperature: Number
    before: Confidence
    after: Confidence
    points: tuple[Point, ...]
    by_patient: tuple[Point, ...] = ()
    thresholds: dict[str, StrictFloat] = field(default_factory=dict)


@dataclass(frozen=True)
class Unlike:
    """Test images that are unlike the training images: how many, their share, the share promised,
    and the accuracy of these and of the others."""

    images: StrictInt
    share: Figure
    promised: Number
    accuracy: Figure | None
    accuracy_of_others: Figure | None


@dataclass(frozen=True)
class InSets:
    """Sets of classes of the test images: how many hold the true class, how many classes they have,
    and ``sizes``: how many sets have one class, two, and so on. ``short``: why less is promised
    than was wanted."""

    wanted: StrictFloat
    promised: StrictFloat
    counted: str
    units: StrictInt
    short: str
    coverage: Figure
    size: StrictFloat
    sizes: tuple[StrictInt, ...]


@dataclass(frozen=True)
class Answered:
    share: StrictFloat
    images: StrictInt
    confidence: StrictFloat
    accuracy: Figure


@with_config(PART)
@dataclass(frozen=True)
class Answering:
    """``test/answering.json``: what comes of not answering."""

    unlike: Unlike | None
    sets: InSets | None
    curve: tuple[Answered, ...] | None


@with_config(PART)
@dataclass(frozen=True)
class Benchmark:
    """``test/medmnist.json``: the figures of the MedMNIST benchmark's evaluator."""

    ACC: Number
    AUC: Number


@dataclass(frozen=True)
class Curves:
    deletion: Number
    insertion: Number


@with_config(PART)
@dataclass(frozen=True)
class Faithfulness:
    """``explain/faithfulness.json``: the maps beside a random order."""

    cam: Curves
    random: Curves
    verdict: str


@dataclass(frozen=True)
class Fold:
    """What the network of one fold is worth; ``figures`` by their names in ``Metrics``."""

    name: str
    images: StrictInt
    patients: StrictInt | None
    temperature: Number
    best_epoch: StrictInt | None
    figures: dict[str, Number]


@with_config(PART)
@dataclass(frozen=True)
class Folds:
    """``folds.json`` of a cross-validation: each figure's mean and standard deviation over the
    folds. ``together``: all are tested on the same images."""

    together: bool
    folds: tuple[Fold, ...]
    mean: dict[str, Number]
    spread: dict[str, Number]


@dataclass(frozen=True)
class Pair:
    networks: Number
    distilled: Number
    low: Number
    high: Number

    def __post_init__(self) -> None:
        ends = (self.low is None) + (self.high is None)
        if ends == 1 or (ends == 0 and None in (self.networks, self.distilled)):
            raise ValueError("two figures with both ends of the interval of their difference, or without it")


@with_config(PART)
@dataclass(frozen=True)
class Distilled:
    """``distilled.json``: what a distilled network is worth beside those that it has learned from,
    on their test images or on its own validation images."""

    on: Literal["test", "val"]
    images: StrictInt
    loss: StrictFloat
    agreement: StrictFloat
    figures: dict[str, Pair]


def read(path: Path, shape: type[T]) -> T | None:
    """A JSON file as a dataclass of this module; None where there is no such file. Raises
    ReportError for damaged JSON and for another shape."""
    values = read_object(path)
    return None if values is None else check(f"{path}: {path.stem}", values, shape, ReportError)


def read_network(path: Path) -> Config | None:
    """``config.json`` in the folder of a run, or of a network alone, which knows no training."""
    values = read_object(path)
    return None if values is None else check(f"{path}: {path.stem}", {"training": {}} | values, Config, ReportError)


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file. Raises ReportError."""
    if not path.exists():
        return None
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, and of too many brackets
        raise ReportError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} holds a {type(values).__name__}; wanted an object with named values")
    return values


def read_text(path: Path) -> str:
    """Stripped; "" if there is no such file. Raises ReportError."""
    try:
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
