"""Hold, write and read predictions: the network's probabilities for each image beside its truth.
Every figure can be computed from this file again."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from medmambase.data.manifest.labels import in_words
from medmambase.data.pseudonyms import PSEUDONYM
from medmambase.files import write_text
from medmambase.model.task import SINGLE_LABEL, Task, task_of_labels
from medmambase.tables import of_cell, table

COLUMNS = ("path", "label", "predicted")
ABOUT = ("patient", "leaked")  # may be missing, as in files of other programs
PREFIX = "prob_"
TRUE, CALLED = "true_", "called_"  # of images that may have several classes


class MetricsError(ValueError):
    """Labels, probabilities or a predictions file that cannot be evaluated: the message says where
    and why."""


@dataclass(frozen=True)
class Predictions:
    """n images: ``names``, ``labels`` (n,) int64, ``probabilities`` (n, classes) float64 whose rows
    sum to 1, and the names of the ``classes``.

    ``patients``: whose each image is, "" where nobody knows. ``leaked`` (n,) bool: images that have
    a duplicate, or images of their patient, in train or val.
    Both may be left out. ``source``: the file that they were read from, "" where there is none.
    Where an image may have several classes, ``labels`` are (n, classes) of 0 and 1, and so are
    ``calls``, what the network says at the thresholds of the classes: without them at a half.
    Raises MetricsError where the parts do not fit each other.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    patients: tuple[str, ...] = ()
    leaked: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    calls: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        labels, probabilities = checked(self.labels, self.probabilities, self.classes)
        count, task = len(labels), task_of_labels(labels)
        calls = task.called(probabilities) if task.multi_label and not self.calls.size else self.calls
        if calls.size and calls.shape != labels.shape:
            raise MetricsError(f"there are calls {calls.shape} for labels {labels.shape}; wanted one each")
        patients = self.patients or ("",) * count
        leaked = np.asarray(self.leaked if len(self.leaked) else np.zeros(count), dtype=bool)
        for what, found in (("names", len(self.names)), ("patients", len(patients)), ("leaked", len(leaked))):
            if found != count:
                raise MetricsError(f"there are {found} {what} for {count} labels; wanted one each")
        for name, value in (
            ("labels", labels),
            ("probabilities", probabilities),
            ("patients", patients),
            ("leaked", leaked),
            ("calls", calls),
        ):
            object.__setattr__(self, name, value)

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return task_of_labels(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """(n,) int64: the most probable class, the first of equals; of several classes an image (n,
        classes), 1 where a class is called."""
        return self.calls if self.task.multi_label else self.task.called(self.probabilities)

    def is_of(self, column: int) -> np.ndarray:
        """(n,) bool: the images whose truth is, or has, a class."""
        return self.task.is_of(self.labels, column)

    def is_called(self, column: int) -> np.ndarray:
        """(n,) bool: the images that are called a class."""
        return self.task.is_of(self.predicted, column)

    @property
    def right(self) -> np.ndarray:
        """(n,) bool: the images of which everything is called right."""
        right: np.ndarray = (self.predicted == self.labels).reshape(len(self.labels), -1).all(axis=1)
        return right

    def in_words(self, rows: np.ndarray, row: int) -> str:
        """What an image has, of ``labels`` or of ``predicted``."""
        return in_words(self.classes, tuple(rows[row].tolist()) if rows.ndim == 2 else int(rows[row]))

    @property
    def clusters(self) -> np.ndarray:
        """(n,) int64, from 0: which images belong together. An image of nobody known stands
        alone."""
        own = [f"patient {patient}" if patient else f"image {row}" for row, patient in enumerate(self.patients)]
        if any(map(PSEUDONYM.fullmatch, self.patients)):
            # The order of pseudonyms is chance; that of images is not, and intervals depend on it.
            order = sorted(range(len(own)), key=self.names.__getitem__)
            number = {one: place for place, one in enumerate(dict.fromkeys(own[row] for row in order))}
            return np.array([number[one] for one in own], dtype=np.int64)
        return np.unique(np.array(own, dtype=object), return_inverse=True)[1].astype(np.int64)

    def rows(self, rows: Sequence[int] | np.ndarray) -> Self:
        """These images, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return replace(
            self, names=tuple(self.names[row] for row in chosen), labels=self.labels[chosen],
            probabilities=self.probabilities[chosen], patients=tuple(self.patients[row] for row in chosen),
            leaked=self.leaked[chosen], calls=self.calls[chosen] if self.task.multi_label else self.calls,
        )  # fmt: skip  # one part a line would say no more

    @property
    def clean(self) -> Self | None:
        """The images that are not leaked, be it none; None where that is all of them."""
        return self.rows(np.flatnonzero(~self.leaked)) if self.leaked.any() else None


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write ``path,label,predicted,patient,leaked,prob_<class>...``, one row an image, every
    probability to the last digit; of images that may have several classes
    ``path,patient,leaked,true_<class>...,called_<class>...,prob_<class>...``. Raises OSError."""
    classes, p = predictions.classes, predictions
    if p.task.multi_label:
        answers = zip(p.labels.tolist(), p.predicted.tolist(), p.probabilities.tolist(), strict=True)
        several = (
            (name, patient, "yes" if leaked else "no", *truth, *called, *row)
            for name, patient, leaked, (truth, called, row) in zip(
                p.names, p.patients, p.leaked.tolist(), answers, strict=True
            )
        )
        columns = (prefix + name for prefix in (TRUE, CALLED, PREFIX) for name in classes)
        write_text(path, table((COLUMNS[0], *ABOUT, *columns), several))
        return
    rows = (
        (name, classes[label], classes[called], patient, "yes" if leaked else "no", *row)
        for name, label, called, patient, leaked, row in zip(
            p.names,
            p.labels.tolist(),
            p.predicted.tolist(),
            p.patients,
            p.leaked.tolist(),
            p.probabilities.tolist(),
            strict=True,
        )
    )
    write_text(path, table((*COLUMNS, *ABOUT, *(PREFIX + name for name in classes)), rows))


def read_predictions(path: Path) -> Predictions:
    """Read exactly what was written; the columns ``patient`` and ``leaked`` may be missing. Raises
    MetricsError naming the file and, where it can, the line."""
    names: list[str] = []
    labels: list[int] = []
    rows: list[list[float]] = []
    about: dict[str, list[str]] = {name: [] for name in ABOUT}
    try:
        # utf-8-sig: a spreadsheet that saved the file may have put a byte order mark in front
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if any(column.startswith(TRUE) for column in header) and COLUMNS[1] not in header:
                return replace(_of_several(reader, header), source=str(path))
            known, classes = _columns(header)
            number = {name: index for index, name in enumerate(classes)}
            for cells in reader:
                try:
                    name, label, predicted, *rest = map(of_cell, cells)
                    row = [float(cell) for cell in rest[len(known) :]]
                    if len(row) != len(classes):
                        raise ValueError
                    called = int(SINGLE_LABEL.called(np.array(row)))
                    if number[predicted] != called:
                        raise MetricsError(
                            f"line {reader.line_num}: predicted is {predicted!r}, and the highest probability (of "
                            f"equal ones the first) is that of {classes[called]!r}; correct it, or give "
                            f"probabilities with more digits"
                        )
                    names.append(name)
                    labels.append(number[label])
                    rows.append(row)
                    for column, cell in zip(known, rest, strict=False):
                        about[column].append(cell)
                except MetricsError:
                    raise
                except (ValueError, KeyError) as error:
                    raise MetricsError(
                        f"line {reader.line_num} is not a prediction; wanted a path, a true class, the most probable "
                        f"class and {len(classes)} probabilities"
                    ) from error
        strange = sorted(set(about["leaked"]) - {"yes", "no"})
        if strange:
            raise MetricsError(f"leaked is {strange[0]!r} in some line; wanted yes or no")
        return Predictions(
            tuple(names), np.array(labels, dtype=np.int64), np.array(rows, dtype=np.float64).reshape(-1, len(classes)),
            tuple(classes), tuple(about["patient"]), np.array([cell == "yes" for cell in about["leaked"]], dtype=bool),
            source=str(path),
        )  # fmt: skip  # one part a line would say no more
    except (OSError, UnicodeDecodeError, csv.Error, MetricsError) as error:
        raise MetricsError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _of_several(reader: Any, header: list[str]) -> Predictions:
    """The rows of images that may have several classes. Raises MetricsError."""
    classes = [column.removeprefix(TRUE) for column in header if column.startswith(TRUE)]
    known = [column for column in header[1:] if column in ABOUT]
    wanted = [COLUMNS[0], *known, *(prefix + name for prefix in (TRUE, CALLED, PREFIX) for name in classes)]
    if header != wanted or len(set(known)) < len(known):
        raise MetricsError(
            f"the first line is {','.join(header)[:80]!r}; wanted {','.join((COLUMNS[0], *ABOUT))},{TRUE}<class>,...,"
            f"{CALLED}<class>,...,{PREFIX}<class>,..., with the same classes each time"
        )
    count, first = len(classes), 1 + len(known)
    names: list[str] = []
    about: dict[str, list[str]] = {name: [] for name in ABOUT}
    answers: list[list[int]] = []
    rows: list[list[float]] = []
    for cells in reader:
        try:
            if len(cells) != len(header) or not {*cells[first : first + 2 * count]} <= {"0", "1"}:
                raise ValueError
            rows.append([float(cell) for cell in cells[first + 2 * count :]])
        except ValueError as error:
            raise MetricsError(
                f"line {reader.line_num} is not a prediction; wanted a path, 0 or 1 for what is true and what is "
                f"called of {count} classes, and {count} probabilities"
            ) from error
        names.append(of_cell(cells[0]))
        answers.append([int(cell) for cell in cells[first : first + 2 * count]])
        for column, cell in zip(known, cells[1:first], strict=True):
            about[column].append(of_cell(cell))
    if strange := sorted(set(about["leaked"]) - {"yes", "no"}):
        raise MetricsError(f"leaked is {strange[0]!r} in some line; wanted yes or no")
    given = np.array(answers, dtype=np.int64).reshape(-1, 2 * count)
    found = Predictions(
        tuple(names), given[:, :count], np.array(rows, dtype=np.float64).reshape(-1, count), tuple(classes),
        tuple(about["patient"]), np.array([cell == "yes" for cell in about["leaked"]], dtype=bool), given[:, count:],
    )  # fmt: skip  # one part a line would say no more
    for place, name in enumerate(classes):
        called, scores = found.is_called(place), found.probabilities[:, place]
        if scores[called].min(initial=np.inf) < scores[~called].max(initial=-np.inf):
            raise MetricsError(
                f"{name!r} is called at a probability of {scores[called].min()!r} and is not at "
                f"{scores[~called].max()!r}; no threshold does that: correct the column {CALLED}{name}"
            )
    return found


def _columns(header: list[str]) -> tuple[list[str], list[str]]:
    """Which of ABOUT there are, in their order, and the classes."""
    rest = header[len(COLUMNS) :]
    known = [column for column in rest if column in ABOUT]
    columns = rest[len(known) :]
    if (
        tuple(header[: len(COLUMNS)]) != COLUMNS
        or len(set(known)) < len(known)
        or not columns
        or not all(column.startswith(PREFIX) for column in columns)
    ):
        raise MetricsError(
            f"the first line is {','.join(header)[:80]!r}; wanted {','.join((*COLUMNS, *ABOUT))},{PREFIX}<class>,..."
        )
    return known, [column.removeprefix(PREFIX) for column in columns]


def checked(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 and probabilities as float64. Raises MetricsError where they do not
    fit."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if not classes or len(set(classes)) != len(classes):
        raise MetricsError(f"classes is {list(classes)}; wanted at least one name, each once")
    several = labels.ndim == 2 and labels.shape == probabilities.shape
    if not (labels.ndim == 1 or several) or probabilities.shape != (len(labels), len(classes)):
        raise MetricsError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not fit; wanted (n,) and (n, "
            f"{len(classes)})"
        )
    highest = 1 if several else len(classes) - 1
    if len(labels) and labels.dtype.kind not in "iu":
        raise MetricsError(f"labels are {labels.dtype}; wanted integers 0 to {highest}")
    labels = labels.astype(np.int64)  # a uint8 label would overflow
    if len(labels) and not (0 <= labels.min() and labels.max() <= highest):
        raise MetricsError(f"labels run from {labels.min()} to {labels.max()}; wanted 0 to {highest}")
    task = task_of_labels(labels)
    good = task.well_formed(probabilities)
    if not good.all():
        first = int(good.argmin())
        raise MetricsError(
            f"row {first + 1} of the probabilities is {probabilities[first].tolist()}; wanted {task.wanted}"
        )
    return labels, probabilities
