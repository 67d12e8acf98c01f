"""What the page of a cross-validation, and those of its networks, say of a distilled network; the
rest is tested with a real one, in ``training/test_crossval.py``."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from finished_run import change, plain_run, put
from html_page import Page

from medmambase import run_folder
from medmambase.evaluation.metrics import OVERALL, evaluate
from medmambase.evaluation.report import summary
from medmambase.evaluation.report.report import ReportError, write_report

FOLD = {"images": 3, "patients": 3, "temperature": 1.0, "best_epoch": 1, "figures": dict.fromkeys(OVERALL, 0.5)}
FOLDS = {"together": True, "folds": [FOLD | {"name": f"fold-{number}"} for number in range(2)],
         "mean": FOLD["figures"], "spread": FOLD["figures"]}  # fmt: skip  # a table
PAIR = {"networks": 0.75, "distilled": 0.5, "low": -0.375, "high": -0.125}
DISTILLED = {"on": "test", "images": 30, "loss": 0.25, "agreement": 0.5, "figures": {"balanced_accuracy": PAIR}}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    labels = np.array([0, 1, 1])
    return plain_run(tmp_path, evaluate(labels, np.eye(2)[labels], ["a", "b"]))


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """The same of a cross-validation with a distilled network."""
    folder = Path(shutil.copytree(plain, tmp_path / "scans-001"))
    put(folder / run_folder.FOLDS, FOLDS)
    put(folder / run_folder.LOSS, DISTILLED)
    (folder / run_folder.CROSSVAL).write_text("", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.375, -0.125, "It is worse than the networks together, more than chance explains"),
        (-0.5, 0.25, "It cannot be told from the networks together"),
        (0.125, 0.25, "It is better than the networks together, more than chance explains"),
    ],
)
def test_a_difference_has_its_sign_its_interval_and_a_sentence(
    folder: Path, low: float, high: float, said: str
) -> None:
    put(folder / run_folder.LOSS, DISTILLED | {"figures": {"balanced_accuracy": PAIR | {"low": low, "high": high}}})
    text = Page(write_report(folder)).text
    assert (
        f"{said}: its balanced accuracy differs by -0.250, with a 95 % interval of {low:+.3f} to {high:+.3f}." in text
    )
    assert f"0.7500.500-0.250{low:+.3f} to {high:+.3f}" in text and "puts 50.0 % of them into the same class" in text
    put(folder / run_folder.LOSS, DISTILLED | {"on": "val"})
    assert said not in Page(write_report(folder)).text  # figures that are too good decide nothing


@pytest.mark.parametrize("damage", [{"high": None}, {"low": None}, {"networks": None}, {"distilled": None}])
def test_an_interval_of_one_end_or_of_no_difference_is_named(folder: Path, damage: dict[str, None]) -> None:
    put(folder / run_folder.LOSS, DISTILLED | {"figures": {"balanced_accuracy": PAIR | damage}})
    with pytest.raises(ReportError, match=r"distilled\.json: distilled\.figures\.balanced_accuracy is .*; it must be"):
        write_report(folder)


def test_what_next_names_commands_for_a_run_and_for_a_cross_validation(folder: Path, plain: Path) -> None:
    of_run, of_folds = Page(write_report(plain)).text, Page(write_report(folder)).text
    for program in ("predict RUN images -o out.csv", "evaluate RUN other", "compare RUN OTHER"):
        assert f"medmambase-{program}" in of_run and f"medmambase-{program}" in of_folds
    assert "Padded to a square and resized to 128 px; RGB; 16-bit" in of_run
    assert "medmambase-explain RUN images" in of_run and "medmambase-explain RUN/fold-0 images" in of_folds
    assert "RUN/distilled" in of_folds and "RUN/distilled" not in of_run


def test_a_network_of_a_cross_validation_says_so_and_a_distilled_one_why_it_is_not_tested(folder: Path) -> None:
    fold, one = (Path(shutil.copytree(folder, folder / name)) for name in ("fold-0", "distilled"))
    for run in (fold, one):
        for name in (run_folder.FOLDS, run_folder.LOSS, run_folder.CROSSVAL):
            (run / name).unlink()
    shutil.rmtree(one / "test")
    change(one / "data_report.json", counts={"train": {"a": 3}, "val": {"a": 1}})
    said = "This is the network of one fold of a cross-validation"
    assert said in Page(write_report(fold)).text and said not in Page(write_report(folder)).text
    text = Page(write_report(one)).text
    assert "This one network is distilled from those of a cross-validation" in text
    assert text.count("it has learned from all images but those of its validation set") == 2
    assert "This one network is distilled" in (one / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_console_says_where_figures_are_too_good() -> None:
    said = summary.distilled(DISTILLED)
    assert "puts 50.0 % into the same class as they do" in said and "too good" not in said
    assert summary.distilled(DISTILLED | {"on": "val"}).endswith("learned from them, so all these figures are too good")


def test_the_first_column_keeps_its_words_and_headings_break_between_theirs(folder: Path) -> None:
    """Where eleven columns stand side by side, a browser would break both wherever it likes."""
    source = write_report(folder).read_text(encoding="utf-8")
    assert 'th[scope="row"] { min-width: 6.5rem; }' in source
    assert "thead .number { white-space: normal; overflow-wrap: normal; }" in source
