"""Figures of merit from labels and probabilities, and the file that keeps both.

Before: the network's softmax. Next stop: ``figures.py`` draws a ``Metrics``, ``report.py`` prints it.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np

from medmambase.files import move

COLUMNS = ("path", "label", "predicted")
PREFIX = "prob_"


class MetricsError(ValueError):
    """Labels, probabilities or a predictions file that cannot be evaluated: the message says where and why."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all others, every figure in 0..1; None where it is undefined.

    ``support``: images whose truth is this class. ``sensitivity`` needs one of them, ``specificity`` one of another
    class, ``auc`` both, ``f1`` an image that is or was called this class.
    """

    name: str
    support: int
    sensitivity: float | None
    specificity: float | None
    f1: float | None
    auc: float | None


@dataclass(frozen=True)
class Metrics:
    """What a set of predictions is worth, every figure in 0..1; None where it is undefined.

    ``balanced_accuracy``: mean sensitivity of the classes that occur. ``auc``: mean one-vs-rest AUC of the classes that
    have one; with two classes the AUC of the second. ``confusion[truth][predicted]`` counts images. ``without_leaked``: the
    same without test images that have a twin in train or val; None where none has.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    auc: float | None
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    without_leaked: "Metrics | None" = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; undefined stays None and NaN cannot occur. ``without_leaked`` is left out where it is None."""
        values = asdict(self) | {"per_class": [asdict(one) for one in self.per_class], "confusion": [list(row) for row in self.confusion]}
        inner = {} if self.without_leaked is None else {"without_leaked": self.without_leaked.to_dict()}
        return {name: value for name, value in values.items() if name != "without_leaked"} | inner

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises MetricsError for any other shape."""
        try:
            per_class = tuple(ClassMetrics(**one) for one in values["per_class"])
            confusion = tuple(tuple(int(count) for count in row) for row in values["confusion"])
            inner = {} if values.get("without_leaked") is None else {"without_leaked": cls.from_dict(values["without_leaked"])}
            metrics = cls(**(values | {"per_class": per_class, "confusion": confusion} | inner))
        except (TypeError, ValueError, KeyError) as error:
            raise MetricsError(f"these are not metrics ({error}); wanted what Metrics.to_dict() gives") from error
        if not per_class or {len(row) for row in confusion} != {len(per_class)} or [sum(row) for row in confusion] != [one.support for one in per_class]:
            raise MetricsError(f"the confusion matrix does not fit {len(per_class)} classes and their support; wanted a row a class that sums to it")
        figures: list[Any] = [metrics.accuracy, metrics.balanced_accuracy, metrics.auc]
        figures += [figure for one in per_class for figure in (one.sensitivity, one.specificity, one.f1, one.auc)]
        if not all(figure is None or (isinstance(figure, int | float) and 0 <= figure <= 1) for figure in figures):
            raise MetricsError("some figure is neither a number from 0 to 1 nor null")
        return metrics


def evaluate(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Every figure of one set of predictions; the predicted class is the most probable one, the first of equals.

    labels (n,) integers; probabilities (n, classes), rows that sum to 1; n may be 0. Raises MetricsError for other input.
    """
    labels, probabilities = _checked(labels, probabilities, classes)
    count = len(classes)
    pairs = labels * count + probabilities.argmax(axis=1)
    confusion = np.bincount(pairs, minlength=count * count).reshape(count, count)
    per_class = tuple(_one_vs_rest(index, name, confusion, labels, probabilities[:, index]) for index, name in enumerate(classes))
    sensitivities = [one.sensitivity for one in per_class if one.sensitivity is not None]
    areas = [one.auc for one in per_class if one.auc is not None]
    if count == 2:  # both columns tell the same story; the second is by custom the disease
        areas = areas[1:]
    return Metrics(
        accuracy=_ratio(confusion.trace(), len(labels)),
        balanced_accuracy=fmean(sensitivities) if sensitivities else None,
        auc=fmean(areas) if areas else None,
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def as_medmnist(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """ACC and AUC as the evaluator of the MedMNIST benchmark computes them, arguments as ``evaluate``'s; None where a class has no image.

    Of two classes the second is predicted above 0.5; of more, the AUC is the plain mean of every class's against all others.
    """
    classes = probabilities.shape[1]
    if len(np.unique(labels)) != classes:
        return {"ACC": None, "AUC": None}
    from sklearn.metrics import accuracy_score, roc_auc_score  # slow to import, and importing this package must stay cheap

    predicted = probabilities[:, 1] > 0.5 if classes == 2 else probabilities.argmax(axis=1)
    counted = [1] if classes == 2 else range(classes)
    areas = [float(roc_auc_score(labels == label, probabilities[:, label])) for label in counted]
    return {"ACC": float(accuracy_score(labels, predicted)), "AUC": fmean(areas)}


def write_predictions(path: Path, names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> None:
    """Writes ``path,label,predicted,prob_<class>...``, one row an image, every probability to the last digit.

    Written beside and moved into place. Raises MetricsError for what ``evaluate`` would refuse.
    """
    labels, probabilities = _checked(labels, probabilities, classes)
    if len(names) != len(labels):
        raise MetricsError(f"there are {len(names)} names for {len(labels)} labels; wanted one each")
    part = path.with_name(path.name + ".part")
    # A file name that is no valid Unicode (old archives hold such) is written with escapes: it must not cost the run its results.
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(PREFIX + name for name in classes)])
        for name, label, row in zip(names, labels.tolist(), probabilities, strict=True):
            writer.writerow([name, classes[label], classes[int(row.argmax())], *map(repr, row.tolist())])
    move(part, path)


def read_predictions(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """Names, labels (n,) int64, probabilities (n, classes) float64 and classes, exactly as they were written.

    Raises MetricsError naming the file and, where it can, the line.
    """
    names: list[str] = []
    labels: list[int] = []
    rows: list[list[float]] = []
    try:
        # utf-8-sig: a spreadsheet that saved the file may have put a byte order mark in front
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            classes = _classes(next(reader, []))
            number = {name: index for index, name in enumerate(classes)}
            for cells in reader:
                try:
                    name, label, predicted, *row = cells
                    names.append(name)
                    labels.append(number[label])
                    rows.append([float(cell) for cell in row])
                    if len(row) != len(classes) or number[predicted] != int(np.argmax(rows[-1])):
                        raise ValueError
                except (ValueError, KeyError) as error:
                    raise MetricsError(
                        f"line {reader.line_num} is not a prediction; wanted a path, a true class, the most probable class and {len(classes)} probabilities"
                    ) from error
        checked = _checked(np.array(labels, dtype=np.int64), np.array(rows, dtype=np.float64).reshape(-1, len(classes)), classes)
    except (OSError, UnicodeDecodeError, csv.Error, MetricsError) as error:
        raise MetricsError(f"{path}: {error}") from error
    return names, *checked, classes


def _classes(header: list[str]) -> list[str]:
    columns = header[len(COLUMNS) :]
    if tuple(header[: len(COLUMNS)]) != COLUMNS or not columns or not all(column.startswith(PREFIX) for column in columns):
        raise MetricsError(f"the first line is {','.join(header)[:80]!r}; wanted {','.join(COLUMNS)},{PREFIX}<class>,...")
    return [column.removeprefix(PREFIX) for column in columns]


def _checked(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64 and probabilities as float64, or MetricsError."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if not classes or len(set(classes)) != len(classes):
        raise MetricsError(f"classes is {list(classes)}; wanted at least one name, each once")
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)):
        raise MetricsError(f"labels {labels.shape} and probabilities {probabilities.shape} do not fit; wanted (n,) and (n, {len(classes)})")
    if len(labels) and labels.dtype.kind not in "iu":
        raise MetricsError(f"labels are {labels.dtype}; wanted integers 0 to {len(classes) - 1}")
    labels = labels.astype(np.int64)  # a uint8 label would overflow below
    if len(labels) and not (0 <= labels.min() and labels.max() < len(classes)):
        raise MetricsError(f"labels run from {labels.min()} to {labels.max()}; wanted 0 to {len(classes) - 1}")
    # A hundredth of room: a softmax in bfloat16 misses 1 by some thousandths.
    with np.errstate(invalid="ignore"):  # infinities may cancel to NaN, which is no better than 0.01 either
        good = (probabilities >= 0).all(axis=1) & (abs(probabilities.sum(axis=1) - 1) <= 0.01)
    if not good.all():
        first = int(good.argmin())
        raise MetricsError(f"row {first + 1} of the probabilities is {probabilities[first].tolist()}; wanted values from 0 that sum to 1 (a softmax)")
    return labels, probabilities


def _ratio(part: int, whole: int) -> float | None:
    return int(part) / int(whole) if whole else None


def _one_vs_rest(index: int, name: str, confusion: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> ClassMetrics:
    hits, support, called = confusion[index, index], confusion[index].sum(), confusion[:, index].sum()
    others = confusion.sum() - support
    auc = None
    if support and others:
        from sklearn.metrics import roc_auc_score  # slow to import, and importing this package must stay cheap

        auc = float(roc_auc_score(labels == index, scores))
    return ClassMetrics(
        name=name,
        support=int(support),
        sensitivity=_ratio(hits, support),
        specificity=_ratio(others - (called - hits), others),
        f1=_ratio(2 * hits, support + called),
        auc=auc,
    )
