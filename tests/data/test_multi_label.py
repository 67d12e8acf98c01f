"""Tables and files in which an image may have several classes: how they are told, read, divided and
refused."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.audit import audit
from medmambase.data.decoded.image_set import decode
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.labels import NONE_OF_THEM, classes_in, in_words
from medmambase.data.manifest.multi_label import strata
from medmambase.data.manifest.sources import read_images, read_manifest
from medmambase.data.manifest.splits import write_splits


def table(folder: Path, text: str, images: int = 4) -> Path:
    for number in range(images):
        pixels = np.full((8, 8), 40 * number % 250, np.uint8)
        pixels[number % 8] = 250
        Image.fromarray(pixels).save(folder / f"{number}.png")
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


PLAIN = "path,cyst,stone\n0.png,1,0\n1.png,1,1\n2.png,0,0\n3.png,0,1\n"


def test_columns_of_0_and_1_are_classes_that_an_image_may_have_together(tmp_path: Path) -> None:
    found = read_images(table(tmp_path, PLAIN))
    assert found.multi_label and found.classes == ("cyst", "stone")
    assert [sample.label for sample in found.samples] == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert found.notes[0] == "multi-label: each image may have several of 2 classes, or none: cyst, stone"
    assert [in_words(found.classes, sample.label) for sample in found.samples] == [
        "cyst", "cyst; stone", NONE_OF_THEM, "stone",
    ]  # fmt: skip  # one list
    assert (classes_in(3), classes_in((0, 1, 1))) == ((3,), (1, 2))
    images, bad = decode(found.samples, Preprocessing(size=8, channels=1))
    assert not bad and images.labels.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    assert images.rows([]).labels.shape == (0, 2) and decode([], Preprocessing())[0].labels.shape == (0,)
    (tmp_path / "0.png").write_bytes(b"")
    assert decode(found.samples[:1], Preprocessing(size=8, channels=1))[0].labels.shape == (0, 2)


def test_columns_that_are_named_are_classes_in_that_order_whatever_else_the_table_has(tmp_path: Path) -> None:
    text = "path,label,stone,age,cyst,case,split\n0.png,x,0,61,1.0,p1,train\n1.png,y,1,55,0.0,p2,train\n"
    found = read_images(table(tmp_path, text, 2), labels="cyst,stone")
    assert found.classes == ("cyst", "stone") and [sample.label for sample in found.samples] == [(1, 0), (0, 1)]
    assert [sample.patient for sample in found.samples] == ["p1", "p2"]
    assert found.notes[0].endswith("; columns that are not used: label, age")
    text = "path,case,stone\n0.png,1,0\n1.png,0,1\n"  # a class may be called as a column of patients is
    assert read_images(table(tmp_path, text, 2), labels="case,stone").samples[0].label == (1, 0)


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        (PLAIN.replace("cyst", "cyst,age").replace("g,", "g,7,"), None, r"'cyst' has '7' in line 2; .*give --labels"),
        ("path,a,b\n0.png,1,0\n1.png,0,1\n", None, "each image has exactly one of a,b; if they exclude each other"),
        ("path,a\n0.png,1\n1.png,0\n", None, "there is no column 'label'"),
        (PLAIN, "cyst,stones", "--labels is 'cyst,stones', and there is no column 'stones'; its columns are path,"),
        (PLAIN, "cyst", "at least two columns"),
        (PLAIN, "cyst,cyst", "at least two columns, each once"),
        (PLAIN.replace("3.png,0,1", "3.png,0,-1"), "cyst,stone", "line 5: stone is '-1'; .* 0 or 1"),
        (PLAIN.replace("3.png,0,1", "3.png,,1"), "cyst,stone", "line 5: cyst is ''; .* fill it in"),
        (PLAIN.replace(",1\n", ",0\n"), "cyst,stone", "of 4 training images none has 'stone', so it cannot be learned"),
        (PLAIN.replace(",0\n", ",1\n"), None, "of 4 training images every one has 'stone'"),
        ("label,cyst,stone\nx,0,1\n", "cyst,stone", "there is no column 'path'"),
    ],
)  # fmt: skip  # a table
def test_what_is_not_clear_is_refused_with_what_to_do(
    tmp_path: Path, text: str, labels: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_images(table(tmp_path, text), labels=labels)


def test_columns_of_a_file_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--labels names columns of a CSV, and this is not a CSV"):
        read_images(tmp_path, labels="a,b")


def arrays(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    return {f"{split}_images": pixels[: len(one)] for split, one in labels.items()} | {
        f"{split}_labels": one for split, one in labels.items()
    }


def test_a_file_with_several_answers_an_image_is_chestmnist_or_has_numbered_classes(tmp_path: Path) -> None:
    labels = (np.arange(12 * 14).reshape(12, 14) % 3 == 0).astype(np.uint8)
    given = {"train": labels, "val": labels[:6], "test": labels[6:]}
    for name, first in (("chestmnist_64.npz", "atelectasis"), ("other.npz", "0")):
        np.savez(tmp_path / name, **arrays(given))
        found = read_manifest(tmp_path / name, seed=0)
        assert found.multi_label and found.classes[0] == first and len(found.classes) == 14
        assert [sample.label for sample in found.split("test")] == [*map(tuple, labels[6:].tolist())]
        assert any(note.startswith("multi-label: ") for note in found.notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (np.full((12, 14), 2, np.uint8), "train_labels has 14 answers for each image, and holds 2; wanted 0 or 1"),
        (np.zeros((12, 14), np.uint8), "of 12 training images none has '0'"),
        (np.zeros((12, 3), np.uint8), "val_labels has shape .*; wanted a class for each image, or in each split"),
        (np.zeros((12, 14)), "train_labels is float64"),
    ],
)
def test_answers_that_are_none_are_refused(tmp_path: Path, changed: np.ndarray, message: str) -> None:
    labels = (np.arange(12 * 14).reshape(12, 14) % 3 == 0).astype(np.uint8)
    np.savez(tmp_path / "a.npz", **arrays({"train": changed, "val": labels[:6], "test": labels[6:]}))
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "a.npz")


def many(tmp_path: Path, patients: int = 0) -> Path:
    rng = np.random.default_rng(1)
    there = rng.random((400, 4)) < (0.5, 0.3, 0.1, 0.05)
    rows = [f"{n}.png,{','.join(map(str, one.astype(int)))},{f'p{n % patients}' if patients else ''}\n"
            for n, one in enumerate(there)]  # fmt: skip  # one sentence
    return table(tmp_path, "path,a,b,c,d,patient\n" + "".join(rows), 400)


def test_each_part_has_its_share_of_each_class_and_of_frequent_combinations(tmp_path: Path) -> None:
    found = read_manifest(many(tmp_path), seed=3)
    combined = Counter(sample.label for sample in found.samples)
    for split in ("val", "test"):
        part = found.split(split)
        assert len(part) == pytest.approx(60, abs=2)
        for number in range(4):
            share = sum(number in classes_in(sample.label) for sample in part) / sum(
                number in classes_in(sample.label) for sample in found.samples
            )
            assert share == pytest.approx(0.15, abs=0.06), number
        counts = Counter(sample.label for sample in part)
        for label, total in combined.items():
            if total >= 20:
                assert counts[label] == round(0.15 * total)
    assert "split 70/15/15 into train, val and test by image, stratified" in found.method


def test_images_of_a_patient_stay_together_and_parts_are_alike_in_classes(tmp_path: Path) -> None:
    found = read_manifest(many(tmp_path, patients=80), seed=0)
    of_patient = {(sample.patient, sample.split) for sample in found.samples}
    assert len(of_patient) == 80
    for split in ("train", "val", "test"):
        part = found.split(split)
        assert sum(sample.label[0] for sample in part) / len(part) == pytest.approx(0.5, abs=0.12)  # type: ignore[index]  # they are tuples
    folds = [read_manifest(tmp_path / "labels.csv", seed=0, folds=4, fold=fold).split("test") for fold in range(4)]
    assert sorted(sample.name for fold in folds for sample in fold) == sorted(s.name for s in found.samples)


def test_a_rare_combination_is_divided_with_its_rarest_class(tmp_path: Path) -> None:
    found = read_images(many(tmp_path))
    kinds, combined = strata(found.samples), Counter(sample.label for sample in found.samples)
    of = {sample.name: sample for sample in found.samples}
    rare = next(s for s in found.samples if combined[s.label] < 20 and s.label[3] and sum(s.label) > 1)  # type: ignore[index,arg-type]  # they are tuples
    alike = {of[name].label for name, kind in kinds.items() if kind == kinds[rare.name]}
    assert all(label[3] for label in alike) and len(alike) > 1  # type: ignore[index]  # they are tuples


def test_the_splits_that_are_written_are_a_table_that_gives_them_again(tmp_path: Path) -> None:
    found = read_manifest(many(tmp_path), seed=3)
    write_splits(tmp_path / "splits.csv", found)
    assert (tmp_path / "splits.csv").read_text(encoding="utf-8").startswith("path,a,b,c,d,patient,split\n")
    again = read_manifest(tmp_path / "splits.csv", seed=99)
    assert [(s.name, s.label, s.split) for s in again.samples] == [(s.name, s.label, s.split) for s in found.samples]


def test_duplicates_with_other_classes_are_conflicts_that_name_them_all(tmp_path: Path) -> None:
    path = table(tmp_path, PLAIN)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    found = read_images(path)
    images, _ = decode(found.samples, Preprocessing(size=8, channels=1))
    conflicts = audit(images, found).conflicts
    assert [pair.classes for pair in conflicts] == [("cyst", "cyst; stone")]
    assert re.search(r"0.png \(train, cyst\) and 1.png \(train, cyst; stone\)", conflicts[0].line())
