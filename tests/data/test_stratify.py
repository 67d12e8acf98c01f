"""Patients in parts: those that scikit-learn finds, in a fraction of the work."""

import sys
from types import FrameType

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from medmambase.data.manifest.stratify import stratified_parts


def by_scikit_learn(labels: list[int], patients: list[str], parts: int, seed: int) -> list[int]:
    # It wants as many images of a class as there are parts: repeated, there are.
    cut = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    part_of = np.zeros(len(labels), dtype=int)
    for part, (_, rows) in enumerate(cut.split(labels * parts, labels * parts, patients * parts)):
        part_of[rows[rows < len(labels)]] = part
    return part_of.tolist()


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 12])
@pytest.mark.parametrize("parts", [2, 5, 7, 9])
def test_the_parts_are_those_of_scikit_learn(classes: int, parts: int) -> None:
    rng = np.random.default_rng(100 * classes + parts)
    for most in (1, 5):
        owners = np.repeat(np.arange(30), rng.integers(1, most + 1, 30))
        patients = [f"p{owner}" for owner in owners]
        labels = rng.integers(0, classes, len(owners)) if most > 1 else rng.integers(0, classes, 30)[owners]
        seed = int(rng.integers(0, 2**32))
        found = stratified_parts(labels.tolist(), patients, parts, seed)
        assert found == by_scikit_learn(labels.tolist(), patients, parts, seed)


def calls(count: int) -> int:
    """How many functions of Python and of C are called to cut so many patients into seven parts."""
    made = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    labels, patients = [row % 3 for row in range(count)], [f"p{row}" for row in range(count)]
    stratified_parts(labels, patients, 7, 0)  # what is imported or kept at the first call
    sys.setprofile(counted)
    try:
        stratified_parts(labels, patients, 7, 0)
    finally:
        sys.setprofile(None)
    return made


def test_a_patient_costs_some_dozens_of_calls() -> None:
    # with NumPy's standard deviation for each part it is some thousands
    assert calls(600) - calls(300) < 300 * 70
