"""The file of predictions: everything comes back to the last digit, and what is no such file is
named with its line."""

from pathlib import Path

import numpy as np
import pytest

from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.predictions import MetricsError, Predictions, read_predictions, write_predictions

NASTY = ["plain", "comma, quote \" and 'tick'", "Gebärmutter\nzwei Zeilen", "prob_", "=1+1", "名前", " space "]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_come_back_to_the_last_digit(tmp_path: Path, dtype: type) -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, len(NASTY), 50), rng.dirichlet(np.ones(len(NASTY)), 50).astype(dtype)
    images = tuple(f"test/{NASTY[label]}/Bild {index}, groß.png" for index, label in enumerate(labels))
    before = Predictions(
        images, labels, probabilities, tuple(NASTY), tuple(NASTY[label] for label in labels), labels > 3
    )
    path = tmp_path / "Vorhersagen ü.csv"
    write_predictions(path, before)
    back = read_predictions(path)
    assert (back.names, back.classes, back.patients) == (before.names, before.classes, before.patients)
    assert all(
        np.array_equal(getattr(back, name), getattr(before, name)) for name in ("labels", "probabilities", "leaked")
    )
    assert evaluate_with_intervals(back) == evaluate_with_intervals(before)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_file_holds_names_and_not_numbers(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(
        path, Predictions(("test/a/1.png",), np.array([0]), np.array([[0.25, 0.75]]), ("Fötus", "other"), ("p 7",))
    )
    text = path.read_bytes().decode("utf-8")
    assert (
        text == "path,label,predicted,patient,leaked,prob_Fötus,prob_other\ntest/a/1.png,Fötus,other,p 7,no,0.25,0.75\n"
    )


def test_an_empty_set_makes_a_file_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, Predictions((), np.array([], dtype=np.int64), np.zeros((0, 2)), ("a", "b")))
    back = read_predictions(path)
    assert (back.names, back.labels.shape, back.probabilities.shape, back.classes) == ((), (0,), (0, 2), ("a", "b"))


def test_a_file_name_that_is_no_unicode_does_not_cost_the_results(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, Predictions(("test/a/\udcfc.png",), np.array([0]), np.array([[1.0]]), ("a",)))
    assert read_predictions(path).names == ("test/a/\\udcfc.png",)


def test_a_spreadsheets_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes("path,label,predicted,prob_a\r\nx.png,a,a,1.0\r\n".encode("utf-8-sig"))
    back = read_predictions(path)
    assert (back.names, back.patients, back.clean) == (("x.png",), ("",), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "first line"),
        ("path,label,predicted\n", "first line"),
        ("path,label,prob_a\nx,a,1\n", "first line"),
        ("path,label,predicted,prob_a,auc\nx,a,a,1,1\n", "first line"),
        ("path,label,predicted,prob_a,prob_a\n", "each once"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,1.0\n", "line 2"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,1.0,0.0,0.0\n", "line 2"),
        ("path,label,predicted,prob_a,prob_b\nx,a\n", "line 2"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,1.0,0.0\nx,c,a,1.0,0.0\n", "line 3"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,1.0,zero\n", "line 2"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,0.1,0.9\n", "line 2: predicted is 'a', and the highest .* of 'b'"),
        ("path,label,predicted,prob_a,prob_b\nx,a,b,0.5,0.5\n", "of equal ones the first.* with more digits"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,0.6,0.1\n", "row 1"),
        ("path,label,predicted,prob_a,prob_b\nx,a,a,nan,1.0\n", "row 1"),
        ('path,label,predicted,prob_a\n"x,a,a,1.0\n', "end of"),
        ("path,label,predicted,patient,patient,prob_a\n", "first line"),
        ("path,label,predicted,leaked,prob_a\nx,a,a,perhaps,1.0\n", "leaked is 'perhaps'"),
        ("path,label,predicted,patient,prob_a\nx,a,a,1.0\n", "line 2"),
        (b"path,label,predicted,prob_\xfc\n", "codec"),
    ],
)
def test_a_bad_predictions_file_is_named_with_its_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MetricsError, match=words) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_a_missing_predictions_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match=r"nowhere\.csv"):
        read_predictions(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("names", "patients", "leaked", "words"),
    [("ab", (), [], "2 names"), ("a", ("p", "q"), [], "2 patients"), ("a", (), [True, False], "2 leaked")],
)
def test_parts_that_do_not_match_the_labels_are_refused(
    names: str, patients: tuple[str, ...], leaked: list[bool], words: str
) -> None:
    with pytest.raises(MetricsError, match=f"{words} for 1 labels"):
        Predictions(tuple(names), np.array([0]), np.array([[1.0]]), ("a",), patients, np.array(leaked, dtype=bool))


def test_images_of_nobody_known_stand_alone() -> None:
    p = Predictions(tuple("abcde"), np.zeros(5, dtype=np.int64), np.ones((5, 1)), ("a",), ("p", "", "p", "", "image 1"))
    assert len(set(p.clusters.tolist())) == 4 and p.clusters[0] == p.clusters[2]
