"""The page of ``medmambase-compare``: everything that the command prints, offline and escaped."""

from pathlib import Path

import pytest
from html_page import Page

from medmambase.evaluation.comparison import Difference
from medmambase.evaluation.metrics import Interval
from medmambase.evaluation.report.compare_page import p_value, write_compare_page

ROWS = (
    ("balanced accuracy", Difference(0.5, 0.75, Interval(0.1, 0.4, "bootstrap"), 0.00001, (0.5,), (0.75,))),
    ("AUC", Difference(0.9, 0.8, None, None, (0.9,), (0.8,))),
)
PAIR = {
    "mcnemar": {"only_first": 3, "only_second": 11, "p": 0.0574},
    "delong": {"<b>x</b>": [0.1, 0.05, 0.25], "nobody": [None, None, None]},
}


def test_the_page_holds_what_was_found_and_runs_nothing(tmp_path: Path) -> None:
    sides, notes = [["a-001"], ["b-001", "<i>"]], ["a <b>note</b>"]
    path = write_compare_page(tmp_path / "seite ü.html", sides, (14, 7), notes, ROWS, [PAIR], "B is better.")
    page = Page(path)
    for words in (
        "B is better.", "a-001", "b-001, <i>", "14 images of 7 patients", "a <b>note</b>",
        "0.5000.750+0.250+0.100 to +0.400< 0.0001", "0.9000.800-0.100n/an/a",
        "correct only in A: 3; only in B: 11", "0.0574", "DeLong, <b>x</b>", "AUC +0.100 (standard error 0.050)",
    ):  # fmt: skip  # a list
        assert words in page.text, words
    assert "nobody" not in page.text and "Method of the intervals: bootstrap." in page.text
    assert not page.all("b") + page.all("i") + page.all("script") + page.all("img")
    assert all(not link["href"] or link["href"].startswith("data:") for link in page.all("link"))


@pytest.mark.parametrize(("p", "shown"), [(None, "n/a"), (float("nan"), "n/a"), (0.00009, "< 0.0001"), (0.5, "0.5000")])
def test_a_p_value_has_four_digits(p: float | None, shown: str) -> None:
    assert p_value(p) == shown
