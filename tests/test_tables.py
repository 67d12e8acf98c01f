"""Cells of CSV files: no spreadsheet runs them, and what was written is what is read."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medmambase.data.manifest.sources import read_manifest
from medmambase.data.manifest.splits import write_splits
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.predictions import Predictions, read_predictions, write_predictions
from medmambase.tables import as_cell, of_cell, table

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run_begins_with_an_apostrophe(text: str) -> None:
    assert as_cell(text) == f"'{text}" and as_cell(f"'{text}") == f"''{text}"


@pytest.mark.parametrize("text", ["", "a=1", "'", "'a", "p-1", "7", "ä", " =1"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert as_cell(text) == of_cell(text) == text


@given(st.text(st.sampled_from("'=+-@\t\r\na1, \""), max_size=6))
def test_every_text_comes_back(text: str) -> None:
    cell = as_cell(text)
    assert of_cell(cell) == text and cell[:1] not in tuple("=+-@\t\r\n")
    (row,) = csv.reader(io.StringIO(table([text, 0.25, None, -3], ()), newline=""))
    assert row == [cell, "0.25", "", "-3"]


def test_predictions_of_dangerous_names_give_the_same_digits_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"{FORMULAS[row % 7]}{row}.png" for row in range(40))
    patients = tuple(f"{FORMULAS[row % 5]}{row // 4}" for row in range(40))
    before = Predictions(names, rng.integers(0, 3, 40), rng.dirichlet((1, 1, 1), 40), ("=a", "@b", "'=a"), patients)
    write_predictions(tmp_path / "predictions.csv", before)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert not any(cell[:1] in tuple("=+-@\t\r\n") for row in csv.reader(file) for cell in row)
    back = read_predictions(tmp_path / "predictions.csv")
    assert (back.names, back.classes, back.patients) == (before.names, before.classes, before.patients)
    assert evaluate_with_intervals(back) == evaluate_with_intervals(before)


def test_splits_of_dangerous_names_are_a_manifest_again(tmp_path: Path) -> None:
    lines = ["path,label,patient,split"]
    for row in range(12):
        name = f"{'=+-@'[row % 4]}{row}.png"
        Image.new("L", (8, 8), 9 * row).save(tmp_path / name)
        lines.append(f"{name},{'=x' if row % 2 else '@y'},+{row},{('train', 'val', 'test')[row // 4]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")  # as a person writes it
    found = read_manifest(tmp_path / "list.csv", seed=0)
    assert {sample.patient for sample in found.samples} == {f"+{row}" for row in range(12)}
    write_splits(tmp_path / "splits.csv", found)
    text = (tmp_path / "splits.csv").read_text(encoding="utf-8")
    assert "'=0.png,'@y,'+0,train" in text.splitlines()
    assert read_manifest(tmp_path / "splits.csv", seed=0) == found
