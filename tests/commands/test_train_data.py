"""``medmambase-train`` on a CSV or a MedMNIST file, and on data with patients, leaks and
unreadable images."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medmambase.commands import train
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import Metrics
from medmambase.evaluation.predictions import read_predictions
from medmambase.model.network import MedMambaSE
from medmambase.training import run as training_run
from medmambase.training import session

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_how_images_are_prepared_is_kept_with_the_network(images: Path, small: list[str], tmp_path: Path) -> None:
    flags = ["--high-depth", "range", "--in-chans", "3", "--resize", "stretch", "--image-size", "40", "--epochs", "1"]
    assert train.main([str(images), *small, "--name", "a", *flags]) == 0
    kept = MedMambaSE.load(tmp_path / "a-001" / "best").preprocessing
    assert (kept.high_depth, kept.channels, kept.resize, kept.size) == ("range", 3, "stretch", 40)


def test_every_setting_about_the_data_reaches_its_reader(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def reader(source: Path, **settings: object) -> None:
        asked.extend([source, settings])
        raise DataError("enough")

    monkeypatch.setattr(training_run, "read_manifest", reader)
    flags = [
        "--group-regex",
        "(p)",
        "--group-column",
        "who",
        "--folds",
        "4",
        "--fold",
        "3",
        "--allow-leak",
        "--split-seed",
        "7",
        "--class-names",
        "0=ill",
    ]
    assert train.main(["somewhere", *small, *flags]) == 3
    wanted = {
        "seed": 7,
        "runs": tmp_path,
        "group_regex": "(p)",
        "group_column": "who",
        "folds": 4,
        "fold": 3,
        "allow_leak": True,
        "splits": None,
        "class_names": "0=ill",
        "labels": None,
        "frames": None,
        "duplicates": None,
    }
    assert asked == [Path("somewhere"), wanted]
    assert train.main(["somewhere", *small, "--seed", "3", "--splits", "table.csv"]) == 3
    assert train.main(["somewhere", *small, "--keep-duplicates-together"]) == 3
    assert asked[5]["duplicates"].func is session.duplicates
    assert asked[3] == dict.fromkeys(wanted) | {
        "seed": 3, "runs": tmp_path, "splits": Path("table.csv"), "folds": 0, "fold": 0, "allow_leak": False,
    }  # fmt: skip  # one table


def manifest(folder: Path, images: Path, patient_of: Callable[[str, Path], str]) -> Path:
    lines = ["path,label,patient,split"]
    for path in sorted(images.rglob("*.png")):
        split, label, _ = path.relative_to(images).parts
        lines.append(f"{path.as_posix()},{label},{patient_of(split, path)},{split}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.csv"


def test_a_csv_is_trained_on_and_its_patients_are_written_down(images: Path, small: list[str], tmp_path: Path) -> None:
    table = manifest(tmp_path, images, lambda split, path: path.name[:5])
    assert train.main([str(table), *small, "--epochs", "1", "--plain-patients"]) == 0
    lines = (tmp_path / "list-001" / "splits.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,label,patient,split" and len(lines) == 31
    assert all(",p00" in line for line in lines[1:])


def test_a_patient_in_two_splits_is_refused_unless_it_is_allowed(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = manifest(tmp_path, images, lambda split, path: "p1043" if path.name.endswith("_00.png") else split)
    assert train.main([str(table), *small, "--epochs", "1"]) == 3
    said = capsys.readouterr().err
    assert "p1043" in said and "--allow-leak" in said
    assert not (tmp_path / "list-001").exists()
    assert train.main([str(table), *small, "--epochs", "1", "--allow-leak"]) == 0


def test_patients_that_only_the_files_know_are_kept_apart_too(
    images: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = session.decode

    def decode(*arguments, **named):
        found, bad = original(*arguments, **named)
        return replace(
            found, facts=tuple(replace(facts, patient=f"p{row % 7}") for row, facts in enumerate(found.facts))
        ), bad

    monkeypatch.setattr(session, "decode", decode)
    assert train.main([str(images), *small, "--name", "a"]) == 3
    said = capsys.readouterr().err
    assert "7 patients are in two splits, according to the image files" in said and "--allow-leak" in said
    assert not (tmp_path / "a-001" / "metrics.csv").exists()
    assert train.main([str(images), *small, "--name", "a", "--allow-leak", "--epochs", "1"]) == 0


def test_a_group_in_the_names_is_never_split(tmp_path: Path, images: Path, small: list[str]) -> None:
    for path in images.rglob("*.png"):
        target = tmp_path / "flat" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert train.main([str(tmp_path / "flat"), *small, "--epochs", "1", "--group-regex", r"(p\d{4})_"]) == 0
    rows = [
        line.split(",") for line in (tmp_path / "flat-001" / "splits.csv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    splits = {patient: {split for *_, other, split in rows if other == patient} for *_, patient, _ in rows}
    assert len(splits) == 5 and all(len(found) == 1 for found in splits.values())


def test_a_medmnist_file_is_trained_on_and_judged_as_its_evaluator_does(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.metrics import accuracy_score, roc_auc_score

    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("val", 8), ("test", 12)):
        labels = np.arange(count) % 2
        arrays[f"{split}_images"] = (rng.integers(0, 200, (count, 28, 28)) + labels[:, None, None] * 30).astype(
            np.uint8
        )
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(tmp_path / "tinymnist.npz", **arrays)
    assert train.main([str(tmp_path / "tinymnist.npz"), *small, "--epochs", "2"]) == 0
    test = tmp_path / "tinymnist-001" / "test"
    predictions = read_predictions(test / "predictions.csv")
    labels, probabilities = predictions.labels, predictions.probabilities
    assert labels.tolist() == arrays["test_labels"][:, 0].tolist()
    found = json.loads((test / "medmnist.json").read_text(encoding="utf-8"))
    assert found == {
        "ACC": accuracy_score(labels, probabilities[:, -1] > 0.5),
        "AUC": roc_auc_score(labels, probabilities[:, -1]),
    }
    assert (
        f"as MedMNIST's evaluator computes them: ACC {found['ACC']:.3f}, AUC {found['AUC']:.3f}"
        in capsys.readouterr().out
    )


def test_results_are_told_with_and_without_test_images_that_were_trained_on(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "data")
    twin = min((tmp_path / "data" / "train" / "brain").iterdir())
    shutil.copy(twin, tmp_path / "data" / "test" / "brain" / "twin.png")
    assert train.main([str(tmp_path / "data"), *small, "--epochs", "1"]) == 0
    test = tmp_path / "data-001" / "test"
    predictions = read_predictions(test / "predictions.csv")
    clean = [row for row, name in enumerate(predictions.names) if name != "test/brain/twin.png"]
    metrics = Metrics.from_dict(json.loads((test / "metrics.json").read_text(encoding="utf-8")))
    assert len(clean) == len(predictions.names) - 1
    assert metrics.without_leaked == evaluate_with_intervals(predictions.rows(clean))
    said = capsys.readouterr().out
    assert (
        "without 1 of 7 test images that has a duplicate, or images of the same patient, in train or val: accuracy"
        in said
    )
    assert "note: the learning rate rises over 0.2 epochs, not over 3: at most a fifth of all epochs is warm-up" in said
    assert re.search(r"each class, without this image:\nclass .*\n(.*\n)*brain +1 ", said)
    assert (
        "checked:   1 group of exact duplicates, 1 pair of duplicates in different splits" in said
        and "note: 1 test image has a duplicate, or" in said
    )
    assert (tmp_path / "data-001" / "audit" / "duplicates.png").is_file()
    assert (tmp_path / "data-001" / "audit" / "duplicates.png").is_file()
    assert "twin.png" in json.dumps(
        json.loads((tmp_path / "data-001" / "data_report.json").read_text(encoding="utf-8"))["audit"]
    )


def test_an_image_that_cannot_be_read_can_cost_the_run_before_it_begins(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "data")
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / "val" / "brain" / name).write_bytes(b"no picture")
    assert train.main([str(tmp_path / "data"), *small, "--on-bad", "error"]) == 3
    said = capsys.readouterr().err
    assert "a.png: " in said and "and 1 more listed in" in said and "--on-bad skip" in said
    run = tmp_path / "data-001"
    assert len(json.loads((run / "data_report.json").read_text(encoding="utf-8"))["skipped"]) == 2
    assert not (run / "metrics.csv").exists()
