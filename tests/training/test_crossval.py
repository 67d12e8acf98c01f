"""A cross-validation, from images to the report and to predictions with all networks: one is
trained, and all tests that only read it look at that."""

import json
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DRAWN, leave_out_pictures, rows
from PIL import Image
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, roc_auc_score
from small_crossval import PATIENTS, SMALL, here, write_scans, write_start

import medmambase
from medmambase import CrossvalRun, Predictor, Run, run_folder
from medmambase.commands import compare, evaluate, explain, predict
from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.sources import read_images
from medmambase.evaluation import pooling
from medmambase.evaluation.by_patient import evaluate_both
from medmambase.evaluation.predictions import read_predictions
from medmambase.run_folder import RunFolderError
from medmambase.settings import resolve
from medmambase.training.crossval import processes
from medmambase.training.crossval import run as crossvals
from medmambase.training.run import latest

BYTES = (
    "folds.csv", "folds.json", "config.json", "data_report.json", "appearance.json", "test/predictions.csv",
    "test/metrics.json",
)  # fmt: skip  # what does not tell when it was written


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("data") / "bilder ü")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def finished(scans: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CrossvalRun, list[str]]:
    """A cross-validation that nobody changes, and what it said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        patch.setattr(crossvals, "train_folds", here)
        runs = tmp_path_factory.mktemp("runs")
        run = medmambase.crossval(scans, weights=start, runs=runs, name="a", say=said.append, **SMALL)
    return run, said


@pytest.fixture
def copied(finished: tuple[CrossvalRun, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0].folder, tmp_path / "läufe 1"))


@pytest.mark.slow
def test_every_image_is_predicted_once_by_a_network_that_knows_neither_it_nor_its_patient(
    finished: tuple[CrossvalRun, list[str]], scans: Path
) -> None:
    run, said = finished
    found = rows(run.folder / "test" / "predictions.csv")
    readable = sorted(path.relative_to(scans).as_posix() for path in scans.rglob("*_?.png"))
    assert [row["path"] for row in found] == readable
    fold_of = {row["path"]: row["fold"] for row in rows(run.folder / "folds.csv")}
    assert set(fold_of) == {*readable, "cyst/0_broken.png"}
    for number, fold in enumerate(run.folds):
        learned = [row for row in rows(fold.folder / "splits.csv") if row["split"] != "test"]
        tested = [row for row in found if fold_of[row["path"]] == str(number)]
        assert tested and not {row["path"] for row in tested} & {row["path"] for row in learned}
        assert not {row["patient"] for row in tested} & {row["patient"] for row in learned}
        given = {row["path"]: row["split"] for row in rows(fold.folder / "fold_splits.csv")}
        assert given.pop("cyst/0_broken.png")
        assert given == {row["path"]: row["split"] for row in rows(fold.folder / "splits.csv")}
    text = "\n".join(said)
    for number in (0, 1):
        assert f"fold-{number}: 1" in text and "test images of 8 patients, balanced accuracy" in text
    assert "mean and standard deviation over 2 folds: accuracy" in text and "all folds: accuracy" in text
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    assert "fold-1: 1" in log and str(run.folder.parent) not in log


@pytest.mark.slow
def test_the_figures_are_those_that_scikit_learn_finds_in_the_predictions_of_the_folds(
    finished: tuple[CrossvalRun, list[str]],
) -> None:
    run, _ = finished
    labels, solid, patients, names = [], [], [], []
    for fold in run.folds:
        temperature = json.loads((fold.folder / "calibration.json").read_text(encoding="utf-8"))["temperature"]
        for row in rows(fold.folder / "test" / "predictions.csv"):
            one, other = (float(row[f"prob_{name}"]) ** (1 / temperature) for name in ("cyst", "solid"))
            labels.append(row["label"] == "solid")
            solid.append(other / (one + other))
            patients.append(row["patient"])
            names.append(row["path"])
    called = np.array(solid) > 0.5
    found = run.metrics
    assert found is not None and found.images == 4 * PATIENTS and found.patients == 2 * PATIENTS
    assert found.accuracy == pytest.approx(accuracy_score(labels, called))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, called))
    assert found.auc == pytest.approx(roc_auc_score(labels, solid))
    assert found.brier == pytest.approx(brier_score_loss(labels, solid))
    written = read_predictions(run.folder / "test" / "predictions.csv")
    assert written.patients == tuple(patients[names.index(name)] for name in written.names)
    assert found.to_dict() == evaluate_both(written).to_dict()
    assert "of patients" in found.intervals["balanced_accuracy"].method


@pytest.mark.slow
def test_the_report_has_a_row_for_each_fold_their_mean_and_all_images_together(
    finished: tuple[CrossvalRun, list[str]],
) -> None:
    run, _ = finished
    page = run.report.read_text(encoding="utf-8")
    told = json.loads((run.folder / "folds.json").read_text(encoding="utf-8"))
    for one in told["folds"]:
        assert f'<th scope="row">{one["name"]}</th>' in page and f"{one['figures']['auc']:.3f}" in page
        assert one["best_epoch"] == 1 and one["patients"] == PATIENTS
    assert f"{told['mean']['auc']:.3f}" in page and f"{told['spread']['auc']:.3f}" in page
    assert run.metrics is not None
    sure = run.metrics.intervals["balanced_accuracy"]
    assert f"{run.metrics.balanced_accuracy:.3f}" in page and f"{sure.low:.3f}\u2013{sure.high:.3f}" in page
    assert "of the networks together, which predict new images, nothing is measured here" in page
    assert "What it looks at" not in page
    card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "of all folds" in card and "mean over the folds" in card and "`Predictor.load`" in card
    assert all("Starting weights: " in text and "(SHA-256 " in text for text in (page, card))
    data = json.loads((run.folder / "data_report.json").read_text(encoding="utf-8"))
    assert {name: sum(row.values()) for name, row in data["counts"].items()} == {"fold-0": 16, "fold-1": 16}
    assert [one["path"] for one in data["skipped"]] == ["cyst/0_broken.png"]


@pytest.mark.slow
def test_all_networks_predict_together_and_images_that_any_has_learned_from_are_told_apart(
    copied: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    image = scans / "solid" / "9_0.png"
    folders = (copied, *run_folder.folds_of(copied))
    (together,), *others = (list(Predictor.load(folder, device="cpu")(image)) for folder in folders)
    each = [one for (one,) in others]
    assert together.probabilities is not None
    mean = np.mean([one.probabilities for one in each], axis=0)
    assert np.abs(together.probabilities - mean).max() < 1e-6
    assert (
        predict.main([str(copied), str(scans), "-o", str(tmp_path / "o.csv"), "--calibrated", "--device", "cpu"]) == 0
    )
    (own,) = [row for row in rows(tmp_path / "o.csv") if row["path"] == "solid/9_0.png"]
    assert float(own["prob_solid"]) == pytest.approx(together.by_class["solid"], abs=1e-6)
    other = tmp_path / "other"
    shutil.copytree(scans, other)
    Image.effect_noise((16, 16), 50).save(other / "solid" / "new_0.png")
    assert evaluate.main([str(copied), str(other), "--device", "cpu", "--name", "o"]) == 0
    found = read_predictions(copied / "evaluations" / "o-001" / "predictions.csv")
    assert len(found.names) == 33 and [n for n, seen in zip(found.names, found.leaked, strict=True) if not seen] == [
        "solid/new_0.png"
    ]
    capsys.readouterr()
    assert explain.main([str(copied), str(scans)]) == 3
    assert "has a network for each fold, and this takes one; give the folder of a fold" in capsys.readouterr().err
    assert evaluate.main([str(copied)]) == 0
    assert "every metric matches the recorded one, to the last digit" in capsys.readouterr().out
    assert compare.main([str(copied), str(shutil.copytree(copied, tmp_path / "again"))]) == 0
    said = capsys.readouterr().out
    assert "32 test images of 16 patients" in said and "differ in none of the settings" in said
    at = ["--at", "solid:sensitivity=0.9", "--device", "cpu"]
    assert predict.main([str(copied), str(scans), *at]) == 2
    assert "have none in common; give the folder of one of them, such as" in capsys.readouterr().err
    (copied / "test" / "predictions.csv").unlink()
    assert evaluate.main([str(copied)]) == 3
    assert "this cross-validation has not ended, and the results of all folds together" in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_of_a_cross_validation_is_no_run_and_its_folds_are(
    copied: Path, scans: Path, start: Path, finished: tuple[CrossvalRun, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"not a run folder: it has no config\.toml"):
        Run(copied)
    with pytest.raises(RunFolderError, match=r"fold-0: not a cross-validation: it has no crossval\.toml"):
        CrossvalRun(copied / "fold-0")
    first = CrossvalRun(copied).folds[0]
    assert first.report.is_file() and first.metrics is not None and first.network.classes == ("cyst", "solid")
    runs = finished[0].folder.parent
    given = {"data": str(scans), "weights": str(start), "runs": str(runs), "name": "a", **SMALL}
    assert latest(resolve(given)) is None and crossvals.latest(resolve(given)) == finished[0].folder
    assert crossvals.latest(resolve(given | {"epochs": 2})) is None
    kept = tomllib.loads((copied / "do_not_share.toml").read_text(encoding="utf-8"))
    text = (copied / "crossval.toml").read_text(encoding="utf-8") + (copied / "command.txt").read_text(encoding="utf-8")
    assert kept["data"] == str(scans) and str(scans.parent) not in text
    # Its pictures are no images of a class where somebody's runs lie among the data.
    data = Path(shutil.copytree(scans, tmp_path / "data"))
    shutil.copytree(copied, data / "old runs" / "a-001")
    Image.effect_noise((16, 16), 50).save(data / "old runs" / "a-001" / "test" / "roc.png")
    assert read_images(data).classes == ("cyst", "solid")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_one_that_is_interrupted_goes_on_by_the_same_call_to_the_same_bytes(
    finished: tuple[CrossvalRun, list[str]], scans: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the test of folds in processes of their own, which draw no pictures, to save time."""
    code = f"""
        import importlib
        for module, names in {DRAWN!r}.items():
            for name in names:
                setattr(importlib.import_module("medmambase.evaluation." + module), name, lambda *_, **__: None)
    """
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text("if True:" + code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    whole, runs = finished[0].folder, tmp_path / "runs"
    runs.mkdir()
    sleep = processes.time.sleep

    def stops(seconds: float) -> None:
        if any(runs.glob("a-001/fold-*/last/state.safetensors")):
            raise KeyboardInterrupt
        sleep(seconds)

    def call(**more: Any) -> CrossvalRun:
        return medmambase.crossval(scans, weights=start, runs=runs, name="a", jobs=2, **SMALL | more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processes, "time", SimpleNamespace(sleep=stops))
        call()
    run = CrossvalRun(runs / "a-001")
    assert run.metrics is None
    with pytest.raises(RunFolderError, match=r"not written yet: .* call crossval again, with the same settings"):
        assert run.report
    said: list[str] = []
    again = call(say=said.append)
    assert again == run and [path.name for path in runs.glob("a-*")] == ["a-001"]
    assert not [line for line in said if "failed" in line]
    names = [
        *BYTES,
        *(f"fold-{fold}/{name}" for fold in (0, 1) for name in ("metrics.csv", "last/model.safetensors")),
    ]
    assert [name for name in names if (run.folder / name).read_bytes() != (whole / name).read_bytes()] == []
    before = (run.folder / "test_access_log.csv").read_bytes()
    assert call().report == run.report and (run.folder / "test_access_log.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_one_network_is_distilled_from_what_each_has_said_of_images_that_it_has_not_learned_from(
    copied: Path, scans: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = copied, list[str]()
    monkeypatch.setattr(crossvals, "train_folds", here)
    settings = resolve({"data": str(scans), "weights": str(start), "runs": str(copied.parent), **SMALL})
    cut = crossvals._cut(settings, no_progress)
    begun = crossvals.Crossval(settings, folder, cut, torch.device("cpu"), resumes=True)
    crossvals.crossval_run(begun, "the command", 1, True, said.append)
    run = CrossvalRun(folder).distilled
    assert run is not None and run.metrics is None and run.report.is_file()
    split = {row["path"]: row["split"] for row in rows(run.folder / "splits.csv")}
    first = {row["path"] for row in rows(folder / "fold-0" / "splits.csv") if row["split"] == "val"}
    assert {name for name, one in split.items() if one == "val"} == first and set(split.values()) == {"train", "val"}
    assert len(split) == 32
    # What is learned of an image is what the network says that has not learned from it.
    soft = read_predictions(folder / "soft_labels.csv")
    wanted = read_predictions(folder / "test" / "predictions.csv")
    assert soft.names == wanted.names and np.array_equal(soft.probabilities, wanted.probabilities)
    told = json.loads((folder / "distilled.json").read_text(encoding="utf-8"))
    own = pooling.calibrated(run.folder, "val")
    theirs = wanted.rows([wanted.names.index(name) for name in own.names])
    loss = np.mean([entropy(p, q) for p, q in zip(theirs.probabilities, own.probabilities, strict=True)])
    assert (told["on"], told["images"]) == ("val", len(first)) and told["loss"] == pytest.approx(loss)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "One network distilled from all" in page and f"{told['loss']:.3f} nats" in page
    assert "its\nfigures are too good, and only say how near it is to the networks" in page
    assert f"its loss against the networks is {told['loss']:.3f} nats" in "\n".join(said)
    assert crossvals.is_done(folder, distil=True)
