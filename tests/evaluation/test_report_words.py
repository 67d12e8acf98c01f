"""What report, model card and console say of figures: what their intervals count, why one has none,
and what leaked images change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_run import change, plain_run, put
from html_page import Page

from medmambase import run_folder
from medmambase.config import RECIPES
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import OVERALL, Metrics
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.report.glossary import entries_for
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.report import write_report
from medmambase.evaluation.report.run_files import Config
from medmambase.evaluation.report.summary import about_means, about_patients, summary

LABELS = np.array([0] * 6 + [1] * 6)


def found(called: np.ndarray, patients: tuple[str, ...] = (), leaked: int = 0) -> Metrics:
    """The figures of a network that is sure of what it calls each image; the first are leaked."""
    names = tuple(map(str, range(len(LABELS))))
    return evaluate_with_intervals(
        Predictions(names, LABELS, np.eye(2)[called], ("a", "b"), patients, np.arange(12) < leaked)
    )


def pages(folder: Path, metrics: Metrics) -> tuple[str, str]:
    """The text of the report, and that of the model card."""
    run = plain_run(folder, metrics)
    page = Page(write_report(run)).text
    return " ".join(page.split()), (run / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_patients_of_all_images_but_one_are_known_and_counted(tmp_path: Path) -> None:
    owners = (*(f"p{row // 2}" for row in range(11)), "")
    page, card = pages(tmp_path, found(LABELS, owners))
    said = (
        "The patient is known for 11 of 12 test images: the intervals are over patients, and each image without one "
        "counts as a patient of its own."
    )
    assert said in page and said in card and about_patients(found(LABELS, owners)) == said
    assert "test images12patient known for 11" in page and "computed over patients, from a single" in page
    assert "Patients, not images, are counted" in page and "Each image is treated" not in page
    assert "The patient is known for 11 of 12 test images; others may share one." in page
    assert "computed over patients. The patient is known" in card


def test_where_no_patient_or_every_one_is_known_that_is_said(tmp_path: Path) -> None:
    page, card = pages(tmp_path / "none", found(LABELS))
    said = "No patients are known, so each image counts as a patient of its own"
    assert said in page and said in card and "computed over images" in card and "Each image is treated" in page
    page, card = pages(tmp_path / "all", found(LABELS, tuple(f"p{row // 2}" for row in range(12))))
    assert "test images12of 6 patients" in page and "counts as a patient" not in page + card
    assert "The patient of every test image is known (6 patients)." in page


@pytest.mark.parametrize("patients", [0, 12, 3])
def test_a_network_that_calls_every_image_the_same_is_told_first(tmp_path: Path, patients: int) -> None:
    owners = tuple(f"p{row % patients}" for row in range(12)) if patients else ()
    metrics = found(np.zeros(12, dtype=np.int64), owners)
    said = headline(metrics).sentence
    assert said.startswith("The network calls every image a. This cannot be told from guessing: the 95 % interval ")
    page, card = pages(tmp_path, metrics)
    assert said in page and said in card
    assert "mean of the ends of the classes' intervals" in page
    assert f"none: the figure is the same, or undefined, whichever {metrics.counted} are drawn" in page
    assert "every image" not in headline(found(LABELS)).sentence
    one_class = replace(metrics, confusion=((6, 0), (0, 0)), per_class=(metrics.per_class[0],) * 2)
    assert one_class.only_called == "a"


def test_a_figure_without_an_interval_has_a_reason_and_one_with_all_of_them_none(tmp_path: Path) -> None:
    why = "A figure has no interval where it is the same whichever images are drawn"
    page, _ = pages(tmp_path / "perfect", found(LABELS))
    assert why in page and "Better than guessing by 0.500" in page
    rough = np.random.default_rng(0).dirichlet((1, 1), 12)
    there = evaluate_with_intervals(Predictions(tuple(map(str, range(12))), LABELS, rough, ("a", "b")))
    assert why not in pages(tmp_path / "rough", there)[0]
    page, _ = pages(tmp_path / "one", found(LABELS, ("p",) * 12))
    assert "none: there are too few patients" in page and "fewer than two patients tell it" in page
    assert "too few test images of different patients for an interval" in page


@pytest.mark.parametrize(("wrong", "higher"), [(range(3), False), (range(4, 6), True)])
def test_figures_with_leaked_images_are_called_too_good_only_where_they_are_higher(
    tmp_path: Path, wrong: range, higher: bool
) -> None:
    metrics = found(np.where(np.isin(np.arange(12), wrong), 1 - LABELS, LABELS), leaked=4)
    assert metrics.without_leaked is not None
    page, _ = pages(tmp_path, metrics)
    told = f"With them the balanced accuracy is {metrics.balanced_accuracy:.3f}"
    assert told in page and (f"{told}, which may be too good" in page) == higher
    lines = summary(metrics).splitlines()
    assert lines[0].startswith("test, without 4 of 12 test images that have a duplicate")
    assert lines[0].count(f"balanced accuracy {metrics.without_leaked.balanced_accuracy:.3f}") == 1
    assert lines[1].startswith(f"test, with these images: accuracy {metrics.accuracy:.3f}")


def test_one_image_that_is_leaked_or_left_is_told_of_in_the_singular(tmp_path: Path) -> None:
    metrics = found(LABELS, leaked=1)
    page, card = pages(tmp_path / "one", metrics)
    for text in (page, card):
        assert "1 of 12 test images is left out" in text and "because it has a near-duplicate" in text
        assert "With it" in text and "With them" not in text
    first, second, *_ = summary(metrics).splitlines()
    assert first.startswith("test, without 1 of 12 test images that has a duplicate")
    assert second.startswith("test, with this image: ")
    page, _ = pages(tmp_path / "rest", found(LABELS, leaked=11))
    assert "on 1 test image that is not leaked" in page


def test_a_mean_that_leaves_out_a_class_is_said_to(tmp_path: Path) -> None:
    all_called_a = found(np.zeros(12, dtype=np.int64))  # so nothing is called b, and nothing is not called a
    said = "A class whose PPV or NPV is n/a is left out of the mean of that figure."
    page, card = pages(tmp_path, all_called_a)
    assert said in page and "left out of the mean" not in card + summary(all_called_a)  # where no PPV stands
    assert about_means(all_called_a) == said and about_means(found(LABELS)) == ""
    no_b = found(np.where(LABELS == 1, 0, LABELS))
    lost = replace(no_b, per_class=(no_b.per_class[0], replace(no_b.per_class[1], sensitivity=None)))
    assert summary(lost).endswith("\nA class whose sensitivity is n/a is left out of the mean of that figure.")


def test_the_glossary_has_the_words_of_its_page_and_no_others(tmp_path: Path) -> None:
    run = plain_run(tmp_path, found(LABELS))
    there = {one["id"] for _, one in Page(write_report(run)).tags if str(one.get("id")).startswith("word-")}
    assert {"word-auc", "word-kappa", "word-interval", "word-seed"} <= there
    assert there.isdisjoint({"word-fold", "word-leaked", "word-delta", "word-deletion", "word-temperature"})
    page = '<style>seed {}</style><img alt="epoch"><p>F1 scores, manifold, folder</p><a href="#word-se">x</a>'
    words = set(entries_for(page))
    assert words == {"f1", "se"}


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        (2, "it is not the error of the mean, and is that of two networks only."),
        (3, "because any two networks share up to about 50 % of their training images."),
        (5, "because any two networks share up to about 75 % of their training images."),
    ],
)
def test_how_many_training_images_networks_share_depends_on_how_many_they_are(
    tmp_path: Path, folds: int, said: str
) -> None:
    run = plain_run(tmp_path, found(LABELS))
    one = {"images": 3, "patients": 3, "temperature": 1.0, "best_epoch": 1, "figures": dict.fromkeys(OVERALL, 0.5)}
    rows = [one | {"name": f"fold-{number}"} for number in range(folds)]
    put(run / run_folder.FOLDS, {"together": False, "folds": rows, "mean": one["figures"], "spread": one["figures"]})
    text = " ".join(Page(write_report(run)).text.split())
    assert said in text and "share most" not in text
    assert ("run-to-run variation is not included" in text) == (folds == 2)


def test_epochs_that_could_not_be_chosen_are_told(tmp_path: Path) -> None:
    run = plain_run(tmp_path, found(LABELS))
    known = RECIPES["ultrasound"].to_dict() | {"select_after": 0.5, "epochs": 39}
    change(run / "config.json", best_epoch=27, best_score=0.817, selected_by="auc", training=known)
    page = Page(write_report(run)).text
    assert "Kept: epoch 27, chosen by validation AUC (0.817) among the epochs from 20 on." in page
    assert "Epoch 27, by validation AUC among the epochs from 20 on." in page
    assert "AUC among the epochs from 20 on." in (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    for after in (0, "0.5"):
        assert Config({}, known | {"select_after": after}, {}, (), best_epoch=27).among == ""
