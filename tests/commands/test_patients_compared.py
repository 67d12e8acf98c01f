"""``medmambase-evaluate`` and ``-compare`` on tables of patients with several images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from interval_coverage import Population
from medmambase.commands import compare, evaluate
from medmambase.evaluation import comparison
from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.predictions import Predictions, write_predictions

PATIENTS = Population(images=4, alike=0.5)


def tables(folder: Path) -> list[Predictions]:
    first, noise = PATIENTS.draw(30, seed=1), PATIENTS.draw(30, seed=1).probabilities[::-1]
    found = [first, replace(first, probabilities=(first.probabilities + noise) / 2)]
    for name, one in zip("ab", found, strict=True):
        write_predictions(folder / f"{name}.csv", one)
    return found


def test_networks_are_also_compared_over_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [of_patients(one) for one in tables(tmp_path)]
    one, other = (found.predictions for found in whole if found)
    words = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    out = ["--json", str(tmp_path / "x.json"), "-o", str(tmp_path / "page.html")]
    assert compare.main([*words, *out]) == 0
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["by_patient"]
    wanted = comparison.compare([one], [other], "runs")
    assert found["counted"] == 30 and found["left_out"] == 0 and found["figures"].keys() == wanted.keys()
    for name, figure in wanted.items():
        assert found["figures"][name]["first"] == figure.first and found["figures"][name]["p"] == figure.p
    called = comparison.mcnemar(one, other)
    assert found["pairs"][0]["mcnemar"] == {
        "only_first": called.only_first, "only_second": called.only_second, "p": called.p,
    }  # fmt: skip  # the file's content
    said = capsys.readouterr().out
    assert "counted in patients (30), by the mean of the calibrated probabilities of each one's images:" in said
    assert f"Counted in patients: {found['conclusion']}" in said and "on these patients" in found["conclusion"]
    assert "Counted in patients" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_patients_of_several_classes_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, patients, p = tuple("abcd"), ("p", "p", "q", "q"), np.array([[0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])
    for name, shift in (("a", 0.0), ("b", 0.05)):
        one = Predictions(names, np.array([0, 1, 0, 1]), p + np.array([shift, -shift]), ("x", "y"), patients)
        write_predictions(tmp_path / f"{name}.csv", one)
    assert evaluate.main([str(tmp_path / "a.csv")]) == 0
    assert compare.main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--json", str(tmp_path / "x.json")]) == 0
    told = "no figures counted in patients: 2 patients left out, whose images have different labels"
    assert capsys.readouterr().out.count(told) == 2
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["by_patient"] is None


def test_a_table_has_figures_of_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = tables(tmp_path)
    whole = of_patients(first)
    assert whole and evaluate.main([str(tmp_path / "a.csv"), "--json", str(tmp_path / "x.json")]) == 0
    share = np.mean(whole.predictions.predicted == whole.predictions.labels)
    said = capsys.readouterr().out
    assert f"counted in patients (30), by the mean probability of each one's images: accuracy {share:.3f} (" in said
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert found["by_patient"]["accuracy"] == pytest.approx(share) and found["by_patient"]["patients"] == 30
