"""The page of ``medmambase-compare``: everything that the command prints, offline and escaped."""

from pathlib import Path

import pytest
from html_page import Page

from medmambase.evaluation.comparison import Difference
from medmambase.evaluation.recorded import Interval
from medmambase.evaluation.report.compare_page import Compared, p_value, write_compare_page

SHOWN = {"balanced_accuracy": "balanced accuracy", "auc": "AUC", "mcc": "MCC"}
FIGURES = {
    "balanced_accuracy": Difference(0.5, 0.75, Interval(0.1, 0.4, "bootstrap"), 0.00001, (0.5,), (0.75,)),
    "auc": Difference(0.9, 0.8, None, None, (0.9,), (0.8,)),
    "1/auc": Difference(0.111, 0.2, None, None, (0.111,), (0.2,)),
}
PAIR = {
    "mcnemar": {"only_first": 3, "only_second": 11, "p": 0.0574},
    "delong": {"<b>x</b>": [0.1, 0.05, 0.25], "nobody": [None, None, None]},
}


def test_the_page_holds_what_was_found_and_runs_nothing(tmp_path: Path) -> None:
    sides, notes = [["a-001"], ["b-001", "<i>"]], ["a <b>note</b>"]
    images = Compared(14, 0, FIGURES, [PAIR], "B is better.")
    page = Page(write_compare_page(tmp_path / "seite ü.html", sides, 7, notes, images, None, SHOWN))
    for words in (
        "B is better.", "a-001", "b-001, <i>", "14 images of 7 patients", "a <b>note</b>",
        "0.5000.750+0.250+0.100 to +0.400< 0.0001", "0.9000.800-0.100n/an/a",
        "correct only in A: 3; only in B: 11", "0.0574", "DeLong, <b>x</b>", "AUC +0.100 (standard error 0.050)",
    ):  # fmt: skip  # a list
        assert words in page.text, words
    assert "nobody" not in page.text and "0.111" not in page.text and "Counted in patients" not in page.text
    assert "Method of the intervals: bootstrap." in page.text
    assert not page.all("b") + page.all("i") + page.all("script") + page.all("img")
    assert all(not link["href"] or link["href"].startswith("data:") for link in page.all("link"))


def test_the_page_has_the_same_counted_in_patients(tmp_path: Path) -> None:
    figures = {"auc": Difference(0.6, 0.7, Interval(-0.2, 0.4, "bootstrap"), 0.5, (0.6,), (0.7,))}
    test = {"mcnemar": {"only_first": 1, "only_second": 2, "p": 0.75}, "delong": {"b": [0.1, 0.2, 0.625]}}
    images = Compared(14, 0, FIGURES, [PAIR], "B is better.")
    patients = Compared(5, 2, figures, [test], "It is chance.")
    page = Page(write_compare_page(tmp_path / "page.html", [["a"], ["b"]], 7, [], images, patients, SHOWN))
    for words in (
        "Counted in patients It is chance. 5 patients", "Left out: 2 patients whose images have different labels.",
        "0.6000.700+0.100-0.200 to +0.4000.5000", "only in A: 1; only in B: 2", "0.6250", "B is better.", "0.0574",
    ):  # fmt: skip  # a list
        assert words in page.text, words


@pytest.mark.parametrize(("p", "shown"), [(None, "n/a"), (float("nan"), "n/a"), (0.00009, "< 0.0001"), (0.5, "0.5000")])
def test_a_p_value_has_four_digits(p: float | None, shown: str) -> None:
    assert p_value(p) == shown
