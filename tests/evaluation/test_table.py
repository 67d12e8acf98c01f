"""The table of several networks: its figures, and the three forms that it is written in."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from medmambase.evaluation.calibration import Calibration
from medmambase.evaluation.comparison import compare, mean_accuracy
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.evaluation.report.table import Entry, Row, as_csv, as_latex, as_markdown, holm, rows_of

IMAGES = 60


def predictions(right: float, seed: int) -> Predictions:
    """Sixty images of thirty patients, of which about so large a share is called right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(IMAGES) // 2 % 2
    called = np.where(rng.random(IMAGES) < right, labels, 1 - labels)
    names = tuple(f"{row}.png" for row in range(IMAGES))
    return Predictions(names, labels, 0.1 + 0.8 * np.eye(2)[called], ("a", "b"), tuple(f"p{n // 2}" for n in range(60)))


def entry(name: str, right: float, seed: int, runs: int = 2) -> Entry:
    test = tuple(predictions(right, seed + run) for run in range(runs))
    return Entry(name, 1_234_567, tuple(0.9 + 0.02 * run for run in range(runs)), test, test, (None,) * runs)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found, notes = rows_of([entry("swin_tiny", 0.6, 0), entry("medmamba", 0.9, 10), entry("medmambase", 0.9, 20)])
    assert notes == []
    return found


def test_p_values_of_several_tests_are_adjusted_as_holm_says() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_the_accuracy_of_several_seeds_is_their_mean_and_its_interval_counts_both() -> None:
    runs = [predictions(0.8, seed) for seed in range(3)]
    each = [float((one.predicted == one.labels).mean()) for one in runs]
    accuracy, interval = mean_accuracy(runs)
    assert accuracy == pytest.approx(np.mean(each)) and interval is not None
    assert interval.low < accuracy < interval.high and "the variance between seeds" in interval.method
    assert interval.method == "bootstrap, and the variance between seeds"  # here is no side A or B
    alone = mean_accuracy(runs[:1])
    assert alone == (pytest.approx(each[0]), evaluate_with_intervals(runs[0]).intervals["accuracy"])
    alike, sure = mean_accuracy([runs[0]] * 3)
    assert alike == pytest.approx(each[0]) and sure is not None and sure.low < alike < sure.high
    perfect = replace(runs[0], probabilities=np.eye(2)[runs[0].labels])
    accuracy, interval = mean_accuracy([perfect, perfect])
    assert accuracy == 1.0 and interval is not None and interval.low < 1.0 == interval.high
    with pytest.raises(MetricsError, match="the test images differ"):
        mean_accuracy([runs[0], runs[1].rows(range(50))])


def test_the_last_network_is_compared_with_each_of_the_others(rows: list[Row]) -> None:
    assert [row.name for row in rows] == ["swin_tiny", "medmamba", "medmambase"]
    worse, like, last = rows
    assert last.difference is None and last.p is None
    sides = [[predictions(right, seed + run) for run in range(2)] for right, seed in ((0.6, 0), (0.9, 20))]
    wanted = compare(*sides)["accuracy"]
    assert worse.difference == wanted and wanted.p is not None and wanted.p < 0.5
    assert like.difference is not None and like.difference.p is not None and like.difference.p > wanted.p
    assert worse.p == pytest.approx(min(1.0, 2 * wanted.p)) and like.p is not None and like.p >= like.difference.p
    assert worse.train.value == pytest.approx(0.91) and worse.train.interval is not None
    reach = 0.01 * stats.t.ppf(0.975, 1)
    assert worse.train.interval.low == pytest.approx(0.91 - reach) and worse.train.interval.high == 1.0
    assert worse.val == worse.test and worse.over_patients


def test_the_table_is_written_as_markdown_latex_and_csv(rows: list[Row]) -> None:
    marked = as_markdown(rows)
    lines = marked.splitlines()
    assert lines[0] == "| network | parameters | train | val | test | test, by patient | medmambase - network | p |"
    assert lines[2].startswith(f"| swin_tiny | 1.23 M | 0.910 (0.783-1.000) | {rows[0].test.value:.3f} (")
    assert lines[4].endswith(" |  |  |") and "over patients and over 2 seeds" in marked
    compared = "p: of test, paired, by a bootstrap over patients, with the variance between 2 seeds, adjusted for 2"
    assert f"{compared} comparisons by Holm's method" in marked and "Holm" not in as_markdown(rows[-1:])
    assert as_markdown(rows, ["included: 1 leaked image"]) == f"{marked}Included: 1 leaked image.\n"
    assert "\n% Included: 1 leaked image.\n" in as_latex(rows, ["included: 1 leaked image"])
    latex = as_latex(rows)
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 4 and all(line.count(" & ") == 7 for line in body)
    assert body[1].startswith(r"swin\_tiny & 1.23 M & 0.910 (0.783--1.000) & ")
    assert "_tiny" not in latex.replace(r"\_", "")
    assert latex.count(r"\hline") == 3 and r"\begin{tabular}{lrrrrrrr}" in latex
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["network"] for row in read] == [row.name for row in rows]
    for row, shown in zip(rows, read, strict=True):
        assert float(shown["test"]) == row.test.value and int(shown["runs"]) == 2
        ends = row.test.interval
        assert ends is not None and (float(shown["test_low"]), float(shown["test_high"])) == (ends.low, ends.high)
    assert read[2]["difference"] == read[2]["p"] == "" and float(read[0]["p"]) == rows[0].p


def test_patients_count_once_each_by_the_mean_of_calibrated_probabilities() -> None:
    first, warm = entry("nano", 0.7, 3), Calibration(3.0, ())
    patients, labels = tuple(f"p{row // 3}" for row in range(IMAGES)), np.arange(IMAGES) // 3 % 2
    labels[:2] = 0, 1
    sure = np.where(np.arange(IMAGES)[:, None] % 3, 0.8, 0.999)  # one sure image against two: temperature decides
    test = tuple(
        replace(
            one, labels=labels, patients=patients,
            probabilities=np.where(np.eye(2)[one.predicted] == 1, sure, 1 - sure),
        )
        for one in first.test
    )  # fmt: skip  # one table each
    (row,), _ = rows_of([replace(first, test=test, learned=(warm, None))])
    shares = []
    for one, temperature in zip(test, (3.0, 1.0), strict=True):
        odds = one.probabilities ** (1 / temperature)
        means = (odds / odds.sum(1, keepdims=True)).reshape(20, 3, 2).mean(axis=1)[1:]
        shares.append((means.argmax(1) == labels[3::3]).mean())
    cold = rows_of([replace(first, test=test)])[0][0].of_patients
    assert cold is not None and row.of_patients != cold
    assert row.of_patients is not None and row.of_patients.value == pytest.approx(np.mean(shares), abs=1e-12)
    assert row.of_patients.interval is not None and (row.patients, row.left_out) == (19, 1)
    cell = f"{row.of_patients.value:.3f} ({row.of_patients.interval.low:.3f}-{row.of_patients.interval.high:.3f})"
    marked, (read,) = as_markdown([row]), csv.DictReader(io.StringIO(as_csv([row])))
    assert f"| {cell} |" in marked and cell.replace("-", "--") in as_latex([row])
    assert "test, by patient: 19 patients, without 1 patient whose images have different labels, each by" in marked
    assert float(read["test_by_patient"]) == row.of_patients.value
    assert float(read["test_by_patient_low"]) == row.of_patients.interval.low
    (unknown,), _ = rows_of([replace(first, test=tuple(replace(one, patients=()) for one in test))])
    assert unknown.of_patients is None and "by patient" not in as_markdown([unknown]) + as_latex([unknown])
    assert next(csv.DictReader(io.StringIO(as_csv([unknown]))))["test_by_patient"] == ""


def test_what_is_not_known_is_left_out() -> None:
    (row,), notes = rows_of([replace(entry("nano", 0.8, 3, runs=1), val=(), parameters=None)])
    assert row.val is None and row.train.interval is None and row.difference is None and notes == []
    assert "| nano | n/a | 0.900 | n/a | " in as_markdown([row])
    assert "one seed says nothing of another" in as_markdown([row])
    assert as_csv([row]).splitlines()[1].startswith("nano,1,,0.9,,,,,,")


def test_networks_that_were_tested_on_other_images_are_refused() -> None:
    one, other = entry("a", 0.8, 0), entry("b", 0.8, 5)
    other = replace(other, test=tuple(replace(each, names=("x.png", *each.names[1:])) for each in other.test))
    with pytest.raises(MetricsError, match="the test images differ"):
        rows_of([one, other])
