"""Duplicates are kept together: no split or fold separates a group of them, or a patient in it."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.audit import audit
from medmambase.data.decoded.image_set import decode, no_progress
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.joined import joined
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.manifest.splits import complete, overlap
from medmambase.training import session

TRAINING = TrainConfig(image_size=32)


def drawn(images: int, seed: int, known: bool) -> tuple[Manifest, list[list[str]]]:
    """Images of two classes, some of known patients, and groups of duplicates among them."""
    chance = random.Random(seed)
    samples = tuple(
        Sample(Path(f"{row}"), row % 2, "train", f"{row:03}", f"p{row // 4}" if known and row % 3 else "")
        for row in range(images)
    )
    names = [sample.name for sample in samples]
    chance.shuffle(names)
    groups = [sorted(names[2 * start : 2 * start + 2]) for start in range(images // 8)]
    return Manifest(Path("data"), ("a", "b"), samples, ()), groups


def test_patients_are_joined_through_others_and_the_first_by_name_stands_for_all() -> None:
    patient_of = {"1": "d", "2": "c", "3": "c", "4": "b", "5": "b", "6": "a", "7": "e"}
    links = [["1", "2"], ["3", "4"], ["5", "6"]]
    for groups in (links, links[::-1]):
        assert joined(patient_of, groups) == dict.fromkeys("123456", "a") | {"7": "e"}
    assert joined(patient_of, []) == patient_of


@settings(max_examples=30)
@given(st.integers(48, 96), st.integers(0, 10**6), st.booleans(), st.sampled_from([0, 3]))
def test_no_group_and_no_patient_is_separated(images: int, seed: int, known: bool, folds: int) -> None:
    found, groups = drawn(images, seed, known)
    done = complete(found, seed, folds=folds, duplicates=lambda samples: groups)
    split_of = {sample.name: sample.split for sample in done.samples}
    assert all(len({split_of[name] for name in group}) == 1 for group in groups)
    assert overlap((sample.patient, sample.split) for sample in done.samples) == {}
    assert [replace(sample, split="train") for sample in done.samples] == list(found.samples)
    assert set(split_of.values()) == {"train", "val", "test"} and "by patient or group of duplicates," in done.method
    again = replace(found, samples=tuple(reversed(found.samples)))
    for other in (groups, groups[::-1]):
        told = complete(again, seed, folds=folds, duplicates=lambda samples, other=other: other)
        assert {sample.name: sample.split for sample in told.samples} == split_of


def test_what_is_kept_together_is_counted_and_without_duplicates_nothing_changes() -> None:
    found, _ = drawn(40, 1, known=True)
    done = complete(found, 5, duplicates=lambda samples: [["001", "002", "030"], ["004", "035"]])
    partly = "patients are known for 26 of 40 images only"
    assert done.notes[0] == (
        "2 groups of duplicates are kept together, with all images of the same patients (5 images; the largest group "
        "has 3, and at most 6 images stay together)"
    )
    assert [note.partition(":")[0] for note in done.notes[1:]] == [partly]
    plain, none = complete(found, 5), complete(found, 5, duplicates=lambda samples: [])
    assert none.samples == plain.samples and none.method == plain.method
    assert none.notes[0] == "there are no duplicates among the images to keep together"
    assert [note.partition(":")[0] for note in none.notes[1:]] == [partly]
    with pytest.raises(DataError, match="--folds is 9, but there is only 1 patient or group of duplicates; choose"):
        complete(found, folds=9, duplicates=lambda samples: [[sample.name for sample in samples]])


def test_splits_of_the_data_stay_and_that_is_said() -> None:
    found, _ = drawn(40, 1, known=False)
    asked: list[Sequence[Sample]] = []

    def duplicates(samples: Sequence[Sample]) -> list[list[str]]:
        asked.append(samples)
        return [["001", "039"]]

    own = tuple(replace(sample, split="val" if row < 8 else "train") for row, sample in enumerate(found.samples))
    given_val = complete(replace(found, samples=own), duplicates=duplicates)
    assert given_val.samples == own and not asked
    assert given_val.notes[0] == "the data has its own splits, so --keep-duplicates-together changes nothing"
    tested = tuple(replace(sample, split="test" if row >= 34 else "train") for row, sample in enumerate(found.samples))
    done = complete(replace(found, samples=tested), duplicates=lambda samples: duplicates(samples) and [["001", "002"]])
    assert [sample.name for sample in asked[0]] == [f"{row:03}" for row in range(34)]
    assert [sample.name for sample in done.samples if sample.split == "test"] == [f"{row:03}" for row in range(34, 40)]
    assert done.notes[0].endswith(
        "the largest group has 2, and at most 2 images stay together), the given test split left as it is"
    )


def test_the_duplicates_that_the_check_would_find_are_those_that_are_kept_together(
    images: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted((images / "train").rglob("*.png"))):
        for copy in range(1 + 2 * (number % 4 == 0)):
            target = tmp_path / "scans" / path.parent.name / f"{number:02}_{copy}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    find = partial(session.duplicates, config=TRAINING, in_chans="auto", cached=tmp_path, progress=no_progress)

    def across(seed: int, **given: object) -> int:
        found = read_manifest(tmp_path / "scans", seed=seed, **given)
        return len(audit(decode(found.samples, Preprocessing(32, 1))[0], found).across)

    assert any(across(seed) for seed in range(3)) and not any(across(seed, duplicates=find) for seed in range(3))
    groups = find(read_manifest(tmp_path / "scans", seed=0).samples)
    wanted = list((tmp_path / "scans").rglob("*_2.png"))
    assert len(groups) == len(wanted) == 5
    assert {tuple(group) for group in groups} == {
        tuple(f"{path.parent.name}/{path.name[:2]}_{copy}.png" for copy in range(3)) for path in wanted
    }
