"""Splits: no patient in two parts, every image in one, the same for the same names, and what is
written is read again."""

import random
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.manifest.splits import complete, overlap, write_splits

SPLITS = ("train", "val", "test")


def manifest(images: list[tuple[str, int, str]], classes: int | None = None) -> Manifest:
    """Of (patient, label, split)."""
    samples = [
        Sample(Path(f"{row}.png"), label, split, f"{row:04d}.png", patient)
        for row, (patient, label, split) in enumerate(images)
    ]
    count = classes or 1 + max(label for _, label, _ in images)
    return Manifest(Path("data"), tuple("abcdefgh"[:count]), tuple(samples), ())


def patients(count: int, images: int, classes: int = 3, seed: int = 0) -> Manifest:
    """Patients with up to so many images, each of one class or two."""
    chance = random.Random(seed)
    rows = [
        (f"p{p}", (p + (chance.random() < 0.2)) % classes, "train")
        for p in range(count)
        for _ in range(chance.randint(1, images))
    ]
    return manifest(rows, classes)


def parts(found: Manifest) -> dict[str, set[str]]:
    return {split: {sample.patient or sample.name for sample in found.split(split)} for split in SPLITS}


@given(st.integers(6, 60), st.integers(1, 6), st.integers(0, 10**6))
def test_no_patient_is_in_two_splits_and_every_image_is_in_one(count: int, images: int, seed: int) -> None:
    found = patients(count, images, classes=2, seed=seed)
    done = complete(found, seed)
    of = parts(done)
    assert not of["train"] & of["val"] and not of["train"] & of["test"] and not of["val"] & of["test"]
    assert all(of.values()) and [sample.name for sample in done.samples] == [sample.name for sample in found.samples]
    assert {sample.label for sample in done.split("train")} == {sample.label for sample in found.samples}
    assert overlap((sample.patient, sample.split) for sample in done.samples) == {}


@given(st.integers(2, 5), st.integers(8, 30), st.booleans(), st.integers(0, 10**6))
def test_the_test_parts_of_all_folds_are_all_images_and_each_is_in_one(
    folds: int, count: int, known: bool, seed: int
) -> None:
    found = patients(count, 4, classes=2, seed=seed)
    if not known:
        found = replace(found, samples=tuple(replace(sample, patient="") for sample in found.samples))
    runs = [complete(found, 3, folds=folds, fold=fold) for fold in range(folds)]
    tested = Counter(sample.name for run in runs for sample in run.split("test"))
    assert tested == Counter(sample.name for sample in found.samples)
    for run in runs:
        of = parts(run)
        assert not of["train"] & of["test"] and not of["train"] & of["val"] and not of["val"] & of["test"] and of["val"]


@given(st.integers(3, 12), st.integers(0, 40), st.integers(0, 10**6))
def test_with_val_in_turn_some_fold_learns_from_every_image(folds: int, more: int, seed: int) -> None:
    found = manifest([("", row % 2, "train") for row in range(2 * folds + more)])
    runs = [complete(found, seed, folds=folds, fold=fold, val_in_turn=True) for fold in range(folds)]
    one = complete(found, seed, folds=folds, fold=1)
    assert parts(one)["test"] == parts(runs[1])["test"] and len(one.split("val")) == len(runs[1].split("val"))
    assert set[str]().union(*(parts(run)["train"] for run in runs)) == {sample.name for sample in found.samples}
    held_back = [parts(run)["val"] for run in runs]
    if 3 <= folds <= 6 and not more:  # then the next part is enough for each
        assert all(val <= parts(after)["test"] for val, after in zip(held_back, runs[1:] + runs[:1], strict=True))


def test_shares_are_near_70_15_15_in_every_class() -> None:
    done = complete(patients(200, 5), 1)
    for label in range(3):
        counts = Counter(sample.split for sample in done.samples if sample.label == label)
        assert all(
            abs(counts[split] / counts.total() - share) < 0.05
            for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15))
        )
    assert done.method == "split 70/15/15 into train, val and test by patient, stratified, seed 1" and done.notes == ()


@pytest.mark.parametrize("known", [True, False], ids=["by patient", "by image"])
def test_the_split_depends_on_names_and_seed_not_on_the_order_of_the_images(known: bool) -> None:
    found = patients(40, 4)
    if not known:
        found = replace(found, samples=tuple(replace(sample, patient="") for sample in found.samples))
    shuffled = replace(found, samples=tuple(random.Random(1).sample(found.samples, len(found.samples))))

    def of(one: Manifest, seed: int) -> dict[str, str]:
        return {sample.name: sample.split for sample in complete(one, seed).samples}

    assert of(found, 0) == of(shuffled, 0) != of(found, 1)
    assert of(found, 2**63 - 1)  # any seed that is one


def test_a_seed_gives_the_splits_that_it_gave_before() -> None:
    """An interrupted run divides its images anew when it goes on."""
    images = complete(manifest([("", row % 2, "train") for row in range(24)]), 7)
    patients = complete(manifest([(f"p{row // 3}", row // 3 % 2, "train") for row in range(72)]), 7)
    found = [sorted(parts(done)[split]) for done in (images, patients) for split in ("val", "test")]
    assert found == [
        ["0013.png", "0016.png", "0017.png", "0020.png"], ["0005.png", "0006.png", "0010.png", "0019.png"],
        ["p1", "p15", "p16", "p22"], ["p4", "p6", "p9"],
    ]  # fmt: skip  # val and test


def test_the_only_patient_of_a_class_is_learned_from_and_a_note_says_what_is_missing() -> None:
    rows = [(f"p{p}", p % 2, "train") for p in range(20) for _ in range(2)] + [("alone", 2, "train")] * 5
    done = complete(manifest(rows))
    assert {sample.split for sample in done.samples if sample.patient == "alone"} == {"train"}
    assert (
        "val has no images of c: its results say nothing about them" in done.notes
        and "test has no images of c: its results say nothing about them" in done.notes
    )
    assert all({sample.label for sample in done.split(split)} >= {0, 1} for split in SPLITS)


def test_a_class_of_three_patients_is_in_every_split() -> None:
    rows = [(f"p{p}", 0, "train") for p in range(40) for _ in range(3)] + [(f"q{p}", 1, "train") for p in range(3)]
    for seed in range(5):
        done = complete(manifest(rows), seed)
        assert all({sample.label for sample in done.split(split)} == {0, 1} for split in SPLITS), seed


def test_images_without_a_patient_are_patients_of_their_own() -> None:
    rows = [("p", 0, "train")] * 10 + [("", label, "train") for label in (0, 1) for _ in range(20)]
    done = complete(manifest(rows))
    assert len({sample.split for sample in done.samples if sample.patient == "p"}) == 1
    assert len({sample.split for sample in done.samples if not sample.patient}) == 3
    assert done.method.endswith("; patients are known for 10 of 50 images")
    assert [note for note in done.notes if "name all patients with --group-regex" in note]
    assert "known for" not in complete(manifest([("p", 0, "train"), ("q", 0, "val"), ("", 0, "test")])).method


def test_a_patient_in_two_given_splits_is_refused_with_counts_unless_it_is_allowed() -> None:
    rows = (
        [("1043", 0, "train")] * 5
        + [("1043", 0, "test")] * 2
        + [("7", 1, "train"), ("8", 1, "val"), ("9", 0, "val"), ("9", 1, "test")]
    )
    said = (
        r"data: patient 1043 is in train \(5 images\) and test \(2 images\); 9 is in val \(1 image\) and test "
        r"\(1 image\): test results .*--allow-leak"
    )
    with pytest.raises(DataError, match=said):
        complete(manifest(rows))
    done = complete(manifest(rows), allow_leak=True)
    assert "patient 1043 is in train (5 images)" in done.notes[0] and "--allow-leak" in done.notes[0]
    assert [sample.split for sample in done.samples] == [split for *_, split in rows]
    many = [(f"p{p}", 0, split) for p in range(9) for split in ("train", "test")]
    with pytest.raises(DataError, match=r"p4 is in .*; and 4 more: test"):
        complete(manifest(many))


def test_an_official_test_split_is_never_touched() -> None:
    rows = [(f"p{p}", p % 2, "test" if p < 6 else "train") for p in range(40) for _ in range(2)]
    official = {f"p{p}" for p in range(6)}
    done = complete(manifest(rows))
    assert (
        parts(done)["test"] == official
        and "the test set is the one in the data" in done.method
        and "85/15" in done.method
    )
    folded = [complete(manifest(rows), folds=4, fold=fold) for fold in range(4)]
    assert (
        all(parts(run)["test"] == official for run in folded) and "this fold is the validation set" in folded[0].method
    )
    assert Counter(patient for run in folded for patient in parts(run)["val"]) == Counter(
        {f"p{p}" for p in range(6, 40)}
    )


def test_folds_share_out_a_given_val_split_and_say_so() -> None:
    done = complete(manifest([("", row % 2, "val" if row < 10 else "train") for row in range(60)]), folds=3, fold=1)
    assert Counter(sample.split for sample in done.samples)["test"] == 20
    assert (
        "the images of the given val split are distributed over the folds, together with those of train" in done.notes
    )


@pytest.mark.parametrize(
    ("found", "settings", "said"),
    [
        (patients(4, 2, 2), {"folds": 5}, "--folds is 5, but there are only 4 patients; choose fewer folds"),
        (
            manifest([("", row % 2, "train") for row in range(6)]),
            {"folds": 4},
            "--folds is 4, but no class has more than 3 images; choose fewer folds",
        ),
        (
            manifest([("p", 0, "train")] * 4 + [("q", 1, "train")] * 4),
            {},
            "there are few patients, too few to set some aside for validation: p, q in 8 images; .* correct --group-re",
        ),
        (
            manifest([("", 0, "train"), ("", 1, "train")]),
            {},
            "no class has more than 2 images, too few to set some aside",
        ),
        (
            manifest([(f"p{p}", 0, "train") for p in range(10)] + [("q", 1, "train")] * 3),
            {"folds": 3},
            "no images of b are left for train, because too few patients have any; add some, or choose fewer --folds$",
        ),
        (
            manifest([(f"p{p}", 0, "train") for p in range(30)] + [("", 1, "test")]),
            {},
            "no images of b are left for train, because too few patients have any; add some$",
        ),
        (
            manifest([("", 0, "train"), ("", 1, "val"), ("", 1, "test")]),
            {},
            "the given train split has no images of b; put some into it$",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_said(found: Manifest, settings: dict[str, int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        for fold in range(settings.get("folds", 1)):
            complete(found, **{**settings, "fold": fold})


def test_what_is_written_is_a_manifest_that_gives_the_same_again(tmp_path: Path) -> None:
    quoted = 'c "d".png' if sys.platform != "win32" else "c 'd'.png"  # which forbids the double quote in names
    names = ["a,b.png", quoted, "sub/é 肺.png", "x;y.png", *(f"{row}.png" for row in range(30))]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    samples = tuple(
        Sample(tmp_path / name, row % 2, "train", name, f"p {row % 11}" if row % 11 else "")
        for row, name in enumerate(sorted(names))
    )
    done = complete(Manifest(tmp_path, ("ill, very", "well"), samples, ()), 4)
    write_splits(tmp_path / "splits.csv", done)
    again = read_manifest(tmp_path / "splits.csv", seed=9)
    assert again.classes == done.classes and again.samples == tuple(
        sorted(done.samples, key=lambda sample: sample.name)
    )
    assert again.method == "using the train/val/test split found in the data"
    assert not list(tmp_path.glob("*.new"))


def test_a_name_that_is_no_unicode_costs_no_splits(tmp_path: Path) -> None:
    write_splits(tmp_path / "splits.csv", manifest([("p\udcff", 0, "train"), ("", 1, "val")]))
    assert (tmp_path / "splits.csv").read_text(encoding="utf-8").splitlines()[1] == "0000.png,a,p\\udcff,train"


@pytest.mark.parametrize("source", ["folder", "csv"])
def test_the_patient_is_found_in_the_name(tmp_path: Path, source: str) -> None:
    lines = ["path,label"]
    for patient in range(12):
        for image in range(3):
            path = tmp_path / "ab"[patient % 2] / f"pat{patient:02d}_{image}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(path)
            lines.append(f"{path.relative_to(tmp_path).as_posix()},{path.parent.name}")
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    place = tmp_path if source == "folder" else tmp_path / "list.csv"
    for pattern, first in ((r"(pat\d+)_", "pat00"), (r"pat\d+", "pat00"), (r"pat(\d+)", "00")):
        done = read_manifest(place, seed=0, group_regex=pattern)
        of: defaultdict[str, set[str]] = defaultdict(set)
        for sample in done.samples:
            of[sample.patient].add(sample.split)
        assert len(of) == 12 and all(len(found) == 1 for found in of.values()) and first in of
    with pytest.raises(
        DataError, match=r"--group-regex 'subject' finds nothing in any of 36 names, such as a/pat00_0.png"
    ):
        read_manifest(place, seed=0, group_regex="subject")
    note = read_manifest(place, seed=0, group_regex=r"pat0\d").notes[0]
    assert "finds no patient in 6 names, such as" in note and "counts as a patient of its own" in note
    with pytest.raises(DataError, match="patients are found by only one of them"):
        read_manifest(place, seed=0, group_regex="(p)", group_column="who")
