"""Compared runs: in which settings the sides differ, and what is one training twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medmambase.commands import compare
from medmambase.commands.compared_runs import (
    calibrated_alone,
    differences,
    in_words,
    refuse_twice,
    same_across,
    same_training,
    vary_in,
)
from medmambase.config import ConfigError
from medmambase.evaluation.predictions import Predictions, write_predictions
from medmambase.settings import resolve


def run_of(folder: Path, called: int = 0, **settings: object) -> Path:
    """A run of these settings that calls both images alike."""
    (folder / "test").mkdir(parents=True)
    file = "crossval.toml" if "folds" in settings else "config.toml"
    given = {} if "start" in settings else {"start": "none", "model": "tiny"}
    (folder / file).write_text(resolve(given | settings).to_toml(), encoding="utf-8", newline="\n")
    write_predictions(folder / "test" / "predictions.csv", predicted(called))
    return folder


def predicted(called: int) -> Predictions:
    return Predictions(("x", "y"), np.array([0, 1]), np.eye(2)[[called, called]], ("a", "b"))


def test_a_cross_validation_beside_a_run_is_said_to_be_calibrated(tmp_path: Path) -> None:
    one, other, whole = run_of(tmp_path / "a"), run_of(tmp_path / "b"), run_of(tmp_path / "c", folds=3)
    for sides in (([one], [whole]), ([whole / "test" / "predictions.csv"], [one, other])):
        (note,) = calibrated_alone(sides)
        assert note.startswith("the probabilities of c, a cross-validation, are calibrated, and those of a single run")
    assert calibrated_alone(([one], [other])) == calibrated_alone(([whole], [whole])) == []


def test_each_setting_in_which_the_sides_differ_is_told_with_both_values(tmp_path: Path) -> None:
    first = [run_of(tmp_path / f"a{seed}", data="scans", seed=seed) for seed in (0, 2, 10)]
    second = [run_of(tmp_path / f"b{seed}", data="/old/scans", seed=seed, lr=0.001, model="nano") for seed in (0, 2)]
    other = {"name": "x", "runs": "elsewhere", "save_every": 7}
    assert (
        in_words(differences((first, second)))
        == "A and B differ in: model tiny / nano; lr 0.0005 / 0.001; seed 0, 2, 10 / 0, 2"
    )
    # A table that lies in its run is the run; files and folders are no difference.
    same = run_of(tmp_path / "c", data="scans", **other) / "test" / "predictions.csv"
    assert (
        in_words(differences(([first[0]], [same]))) == "A and B differ in none of the settings that their folders tell"
    )
    (tmp_path / "loose.csv").write_text("", encoding="utf-8")
    assert "is not known" in in_words(differences(([first[0]], [tmp_path / "loose.csv"])))
    folds = [run_of(tmp_path / f"f{count}", data="scans", folds=count) for count in (2, 5)]
    assert differences((folds[:1], folds[1:])) == {"folds": (["2"], ["5"])}


def test_no_folder_above_the_data_is_told_and_weights_that_a_run_keeps_apart_are_no_difference(tmp_path: Path) -> None:
    one = run_of(tmp_path / "a", data="/home/anna/scans", start="/home/anna/w")
    other = run_of(tmp_path / "b", data="/home/anna/new", start="/home/anna/v")
    assert in_words(differences(([one], [other]))) == "A and B differ in: data scans / new; start w / v"
    text = (other / "config.toml").read_text(encoding="utf-8")
    hidden = "\n".join(line for line in text.splitlines() if not line.startswith(("data", "start")))
    (other / "config.toml").write_text(hidden, encoding="utf-8", newline="\n")
    found = differences(([one], [other]))
    assert found is not None and not {"data", "start", "model"} & found.keys()


def test_images_that_were_drawn_and_the_same_in_a_folder_are_no_difference(tmp_path: Path) -> None:
    drawn, folder = run_of(tmp_path / "a", demo=True), run_of(tmp_path / "b", data="phantom", lr=0.001)
    before = differences(([drawn], [folder]))
    assert before is not None and before["demo"] == (["yes"], ["no"])
    for run in (drawn, folder):
        (run / "last").mkdir()
        (run / "last" / "images.csv").write_text("split,name,label,pixels\ntrain,x,0,ab\nval,y,1,cd\n", "utf-8")
    rest = {name: values for name, values in before.items() if name not in ("data", "demo")}
    assert differences(([drawn], [folder])) == rest and "lr" in rest
    for text in ("split,name,label,pixels\ntrain,x,0,ab\nval,y,1,ce\n", "split,name,label,pixels\n", "split\n\udcff"):
        (folder / "last" / "images.csv").write_text(text, "utf-8", "surrogateescape")
        assert differences(([drawn], [folder])) == before
    for run in (drawn, folder):  # without validation images
        (run / "last" / "images.csv").write_text("split,name,label,pixels\ntrain,x,0,ab\n", "utf-8")
    assert differences(([drawn], [folder])) == rest


def test_runs_of_a_side_vary_in_their_seeds_only_where_no_two_have_the_same(tmp_path: Path) -> None:
    zero, one = (run_of(tmp_path / f"s{seed}", data="scans", seed=seed) for seed in (0, 1))
    other = run_of(tmp_path / "o", data="scans", seed=0, lr=0.001)
    assert vary_in(([zero, one], [other])) == "seeds"
    assert vary_in(([zero, other], [one])) == vary_in(([one], [zero, other])) == "runs"
    (tmp_path / "loose.csv").write_text("", encoding="utf-8")
    assert vary_in(([zero, tmp_path / "loose.csv"], [one])) == "runs"


def test_a_run_that_is_given_twice_is_refused_by_name_also_as_its_table(tmp_path: Path) -> None:
    one, other = (run_of(tmp_path / name, data="scans") for name in "ab")
    refuse_twice(([one], [other]))
    for sides in (([one, one], [other]), ([one], [other, one / "test" / "predictions.csv"])):
        with pytest.raises(ConfigError, match="is given twice, and would count as two trainings"):
            refuse_twice(sides)


def test_runs_of_one_side_that_are_one_training_are_told(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, data="scans", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    unlike, alike = [predicted(0), predicted(1)], [predicted(0), predicted(0)]
    (told,) = same_training([runs[:2], runs[2:]], [unlike, [predicted(0)]])
    assert told.startswith("a and b have the same seed and settings: they are one training and count as two")
    assert same_training([runs[1:], runs[:1]], [unlike, [predicted(0)]]) == []
    (told,) = same_training([runs[1:], runs[:1]], [alike, [predicted(0)]])
    assert told.startswith("b and c have the same predictions, to the last digit: if they are one training, it counts")
    # Tables of one name in two folders are shown alike, and divide the images in two ways.
    runs = [run_of(tmp_path / f"of {x}", data="scans", splits=f"/{x}/splits.csv") for x in "uv"]
    assert same_training([runs, runs[:1]], [unlike, [predicted(0)]]) == []


def test_two_seeds_of_the_same_settings_are_told_as_such_and_not_trained_again(tmp_path: Path) -> None:
    one = run_of(tmp_path / "a", data="scans", seed=1)
    again = run_of(tmp_path / "b", data="scans", seed=2, split_seed=1)
    found = differences(([one], [again]))
    assert in_words(found) == "A and B are seeds of the same settings, as far as their folders tell: seed 1 / 2"
    ((step, line),) = compare._steps([one], [again], found)
    assert step == "see all metrics of one of them" and "train" not in line
    other = run_of(tmp_path / "c", data="scans", seed=2, model="nano")
    steps = compare._steps([one], [other], differences(([one], [other])))
    assert [step[:7] for step, _ in steps] == ["train A", "train B"]
    apart = run_of(tmp_path / "d", data="scans", seed=1, split_seed=3)  # other splits, so other test images
    assert "split_seed default / 3" in in_words(differences(([one], [apart])))


def test_one_training_on_both_sides_is_told(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, data="scans", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    (told,) = same_across([runs[:1], runs[1:2]], [[predicted(0)], [predicted(1)]])
    assert (
        told
        == "a of A and b of B have the same seed and settings: they are one training, and are compared with each other"
    )
    (told,) = same_across([runs[:1], runs[2:]], [[predicted(0)], [predicted(0)]])
    assert told == "a of A and c of B have the same predictions, to the last digit: they seem to be one network"
    assert same_across([runs[:1], runs[2:]], [[predicted(0)], [predicted(1)]]) == []


def test_a_fold_beside_its_cross_validation_is_told_of_and_a_run_beside_it_is_none(tmp_path: Path) -> None:
    whole, fold = run_of(tmp_path / "c", folds=3), run_of(tmp_path / "c" / "fold-0", data="scans")
    other = run_of(tmp_path / "a", data="scans", seed=1)
    for sides, told in (
        (([whole], [fold / "test" / "predictions.csv"]), "fold-0 of B is part of the cross-validation c of A: what is"),
        (([fold], [other, whole]), "fold-0 of A is part of the cross-validation c of B: what is found"),
    ):
        (note,) = same_across(sides, [[predicted(0)], [predicted(1)] * len(sides[1])])
        assert note.startswith(told)
    assert same_across(([fold], [other]), [[predicted(0)], [predicted(1)]]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ("x", "z")}, "the test images differ: 'y' is in {one} only and 'z' is in {other} only;"),
        ({"names": ("x", "x")}, "2 rows of {other} have the path 'x', so it is not known"),
        ({"labels": np.array([0, 0])}, "the true class of 'y' is 'b' in {one} and 'a' in {other};"),
        ({"classes": ("a", "c")}, "the classes are 'a', 'b' in {one}, and 'a', 'c' in {other}; only"),
        ({"patients": ("p", "q")}, "'y' is of 'r' in {one} and of 'q' in {other}, and 'x' of 'r' and 'p'"),
        (
            {"labels": np.eye(2, dtype=np.int64)},
            "in {other} an image may have several classes, and in {one} it has one;",
        ),
    ],
)
def test_an_error_of_two_tables_names_both(
    change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    whole = replace(predicted(0), patients=("r", "r"))
    write_predictions(one, whole)
    write_predictions(other, replace(whole, **change))
    assert compare.main([str(one), str(other)]) == 3
    error = capsys.readouterr().err
    assert said.format(one=one, other=other) in error and len(error.splitlines()) == 1
