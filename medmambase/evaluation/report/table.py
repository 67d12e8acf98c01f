"""A table of several networks, as Markdown, LaTeX and CSV: the accuracy on training, validation and
test images, with intervals, and whether the last network differs from each of the others."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which imports its parts when they are first used: they are slow to import

from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.calibration import Calibration
from medmambase.evaluation.comparison import Difference, compare, matched, mean_accuracy
from medmambase.evaluation.intervals import CONFIDENCE
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.recorded import Interval
from medmambase.evaluation.report.compare_page import p_value
from medmambase.plural import count_of
from medmambase.tables import table

SPLITS = ("train", "val", "test")
BY_PATIENT = "test, by patient"
_LATEX = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "<": "$<$"}


@dataclass(frozen=True)
class Entry:
    """What the runs of one network have found, one value each: the accuracy on the training images
    while it learned, the predictions of the validation images, () where there are none, and of the
    test images, and what each has ``learned`` on the validation images."""

    name: str
    parameters: int | None
    train: tuple[float, ...]
    val: tuple[Predictions, ...]
    test: tuple[Predictions, ...]
    learned: tuple[Calibration | None, ...]


@dataclass(frozen=True)
class Share:
    """An accuracy, the mean over the runs, with its interval where one can be known."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Row:
    """A line of the table. ``difference``: the test accuracy of the last network less that of this
    one; ``p``: of that difference, by Holm's method, since each line is a test of its own. Both are
    None in the last line. ``over_patients``: whether the intervals count patients. ``of_patients``:
    the test accuracy counted in patients, where one has several images; how many ``patients`` these
    are, and how many are ``left_out``."""

    name: str
    parameters: int | None
    runs: int
    train: Share
    val: Share | None
    test: Share
    difference: Difference | None
    p: float | None
    over_patients: bool
    of_patients: Share | None = None
    patients: int = 0
    left_out: int = 0


def rows_of(entries: Sequence[Entry]) -> tuple[list[Row], list[str]]:
    """Compute the lines of the table, and notes on the test images; the last network is compared
    with each of the others. Raises MetricsError where their images are not the same."""
    tests, notes = matched([entry.test for entry in entries])
    counted = [
        [one for pair in zip(test, entry.learned, strict=True) if (one := of_patients(*pair)) and one.predictions.names]
        for test, entry in zip(tests, entries, strict=True)
    ]
    differences = [compare(test, tests[-1]).get("accuracy") for test in tests[:-1]]
    known = [place for place, one in enumerate(differences) if one is not None and one.p is not None]
    adjusted = dict(zip(known, holm([_p(differences[place]) for place in known]), strict=True))
    rows = [
        Row(
            entry.name,
            entry.parameters,
            len(entry.test),
            _over_runs(entry.train),
            Share(*mean_accuracy(entry.val)) if entry.val else None,
            Share(*mean_accuracy(test)),
            differences[place] if place < len(differences) else None,
            adjusted.get(place),
            any(tests[0][0].patients),
            Share(*mean_accuracy([one.predictions for one in own])) if own else None,
            len(own[0].predictions.names) if own else 0,
            own[0].left_out if own else 0,
        )
        for place, (entry, test, own) in enumerate(zip(entries, tests, counted, strict=True))
    ]
    return rows, notes


def holm(values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests (Holm, Scandinavian Journal of Statistics 1979): where
    no networks differ, any of them is below 0.05 in at most one of twenty tables."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def as_markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The table as Markdown, and below it what stands in it."""
    header = ["network", "parameters", *_shares_of(rows), f"{rows[-1].name} - network", "p"]
    marks = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, marks, *(_cells(row, "-", len(header)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{note(rows, notes)}\n"


def as_latex(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The table as a tabular of LaTeX that needs no package, and above it, as comments, what stands
    in it."""
    header = ["network", "parameters", *_shares_of(rows), f"{_escaped(rows[-1].name)} $-$ network", "$p$"]
    lines = [header, *([_escaped(cell) for cell in _cells(row, "--", len(header))] for row in rows)]
    body = [" & ".join(cells) + r" \\" for cells in lines]
    comments = [f"% {line}" for line in note(rows, notes).splitlines()]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join([*comments, begin, r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}", ""])


def as_csv(rows: Sequence[Row]) -> str:
    """The table as CSV, every figure to its last digit; what is not known is an empty cell."""
    ends = [f"{name}{end}" for name in (*SPLITS, "test_by_patient", "difference") for end in ("", "_low", "_high")]
    return table(["network", "runs", "parameters", *ends, "p"], map(_numbers, rows))


def note(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """What a reader has to know of the table, a sentence a line, and then the ``notes`` on its
    images; of p only where networks are compared."""
    runs, over = rows[-1].runs, "patients" if rows[-1].over_patients else "images"
    seeds = f" and over {runs} seeds" if runs > 1 else "; one seed says nothing of another"
    tests = count_of(len(rows) - 1, "comparison")
    patients, left_out = rows[-1].patients, count_of(rows[-1].left_out, "patient")
    without = f", without {left_out} whose images have different labels" if rows[-1].left_out else ""
    between = f", with the variance between {runs} seeds" if runs > 1 else ""
    return "\n".join([
        f"Accuracy: the mean of {count_of(runs, 'run')}, with its 95 % interval.",
        f"val and test: the kept network; intervals over {over}{seeds}.",
        "train: while the network still learned, on augmented images where the recipe augments them; intervals over "
        "seeds alone.",
        *[
            f"{BY_PATIENT}: {count_of(patients, 'patient')}{without}, each by the mean of the calibrated probabilities "
            f"of its images; intervals over patients{seeds}."
        ] * bool(patients),
        *[
            f"p: of test, paired, by a bootstrap over {over}{between}, adjusted for {tests} by Holm's method."
        ] * (len(rows) > 1),
        *(f"{words[:1].upper()}{words[1:]}." for words in notes),
    ])  # fmt: skip  # a sentence a line


def _p(difference: Difference | None) -> float:
    return 1.0 if difference is None or difference.p is None else difference.p


def _over_runs(values: Sequence[float]) -> Share:
    """The mean, with Student's interval over the runs."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Share(mean, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Share(mean, Interval(max(0.0, mean - reach), min(1.0, mean + reach), "Student, of seeds"))


def _shares_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns of accuracies: that of patients only where there is one."""
    return (*SPLITS, BY_PATIENT) if any(row.of_patients for row in rows) else SPLITS


def _cells(row: Row, to: str, columns: int) -> list[str]:
    """The words of a line; ``to`` stands between the ends of an interval."""
    shares = [_share(one, to) for one in (row.train, row.val, row.test, row.of_patients)[: columns - 4]]
    size = "n/a" if row.parameters is None else f"{row.parameters / 1e6:.2f} M"
    if row.difference is None:
        return [row.name, size, *shares, "", ""]
    one = row.difference
    between = f" ({one.interval.low:+.3f} to {one.interval.high:+.3f})" if one.interval else ""
    return [row.name, size, *shares, f"{one.difference:+.3f}{between}", p_value(row.p)]


def _share(share: Share | None, to: str) -> str:
    if share is None:
        return "n/a"
    ends = share.interval
    return f"{share.value:.3f}{f' ({ends.low:.3f}{to}{ends.high:.3f})' if ends else ''}"


def _numbers(row: Row) -> list[object]:
    found: list[object] = [row.name, row.runs, row.parameters]
    for share in (row.train, row.val, row.test, row.of_patients):
        found += [share and share.value, *_ends(share.interval if share else None)]
    one = row.difference
    return [*found, one and one.difference, *_ends(one.interval if one else None), row.p]


def _ends(interval: Interval | None) -> list[float | None]:
    return [interval.low, interval.high] if interval else [None, None]


def _escaped(text: str) -> str:
    return re.sub(r"[_%&#${}<]", lambda found: _LATEX[found[0]], text)
