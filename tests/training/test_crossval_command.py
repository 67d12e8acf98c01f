"""A cross-validation by its command: what fails, what is refused, and what the folds share."""

import json
import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rows
from small_crossval import PATIENTS, here, write_scans, write_start

import medmambase
from medmambase import MedMambaSE, run_folder
from medmambase.commands import crossval, evaluate
from medmambase.commands.crossval_flags import parse
from medmambase.config import ConfigError, ModelConfig, Preprocessing
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.splits import complete
from medmambase.data.pseudonyms import PSEUDONYM
from medmambase.data.reading.images import load
from medmambase.evaluation.pooling import Division, calibrated, of_fold
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report import of_a_crossval
from medmambase.model import starting
from medmambase.run_folder import RunFolderError
from medmambase.settings import Settings, of_crossval, resolve
from medmambase.training.crossval import run as crossvals


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("data") / "bilder ü")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_fold_that_fails_is_tried_again_and_all_are_tested_together_where_the_data_have_a_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = {"fold-0"}
    (tmp_path / "start").mkdir()
    data = write_scans(tmp_path / "scans" / "train").parent
    write_scans(data / "test", first=100)

    def some(folds: Sequence[Path], *others: Any) -> None:
        here([fold for fold in folds if fold.name not in fails], *others)
        for fold in folds:
            if fold.name in fails:
                others[-1](fold, "the reason")

    monkeypatch.setattr(crossvals, "train_folds", some)
    words = [str(data), "--weights", str(write_start(tmp_path / "start")), "--runs", str(tmp_path), "--name", "b"]
    words += ["--folds", "2", "--epochs", "1", "--batch-size", "4", "--image-size", "16", "--group-regex", r"(\d+)_"]
    words += ["--device", "cpu", "--backend", "torch"]
    assert crossval.main(words) == 1
    shown = capsys.readouterr()
    assert "fold-0: failed: the reason\n" in shown.out and "fold-1: 32 test images of 16 patients" in shown.out
    assert "b-001: 1 fold of 2 failed, for the reasons above" in shown.err and len(shown.err.splitlines()) == 1
    fails.clear()
    folder = tmp_path / "b-001"
    begun = (folder / "folds.csv").read_bytes()
    (folder / "folds.csv").write_bytes(begun.replace(b"cyst/1_0.png", b"cyst/1_9.png"))
    assert crossval.main(words) == 3
    said = capsys.readouterr().err
    assert "folds.csv: 2 images are not as when the cross-validation began, such as train/cyst/1_0.png; put" in said
    (folder / "folds.csv").write_bytes(begun)
    assert crossval.main([*words, "--cache", "disk"]) == 0  # which changes no result
    said = capsys.readouterr().out
    own = [line for line in said.splitlines() if "medmambase-predict" in line]
    assert len(own) == 1 and own[0].endswith("--calibrated") and "b-001" in own[0]
    assert said.index("fold-1: 32 test images") < said.index("fold-0: 32 test images")
    assert "all networks together: accuracy" in said and [path.name for path in tmp_path.glob("b-*")] == ["b-001"]

    found = read_predictions(folder / "test" / "predictions.csv")
    folds = run_folder.folds_of(folder)
    each = [of_fold(fold)[0] for fold in folds]
    assert found.names == each[0].names and len(found.names) == 32
    assert np.allclose(found.probabilities, (each[0].probabilities + each[1].probabilities) / 2, atol=1e-12)
    held_out = Counter(row["fold"] for row in rows(folder / "folds.csv"))
    assert sorted(held_out.values()) == [16, 17, 33] and held_out["test"] == 33
    assert "all tested on the same test images" in (folder / "report.html").read_text(encoding="utf-8")

    kept = [tomllib.loads((one / "do_not_share.toml").read_text(encoding="utf-8")) for one in (folder, *folds)]
    assert len({one["key"] for one in kept}) == 1
    assert all(map(PSEUDONYM.fullmatch, found.patients)) and len(set(found.patients)) == 2 * PATIENTS
    patients = [{row["patient"] for row in rows(fold / "splits.csv")} for fold in folds]
    assert patients[0] == patients[1] >= set(found.patients) and len(patients[0]) == 4 * PATIENTS

    assert evaluate.main([str(folder), str(data), "--device", "cpu", "--group-regex", r"(\d+)_"]) == 0
    assert "note: tested on its test split: 32 images\n" in capsys.readouterr().out
    again = read_predictions(folder / "evaluations" / "scans-001" / "predictions.csv")
    assert np.abs(again.probabilities - found.probabilities).max() < 1e-5 and not again.leaked.any()
    assert crossval.main(words) == 0
    assert "b-001 is finished: nothing is left to do; give another --name" in capsys.readouterr().out

    # One network distilled from both, beside them on test images that none has learned from.
    looked = (folder / "test_access_log.csv").read_bytes()
    assert crossval.main([*words, "--distil"]) == 0
    said = capsys.readouterr().out
    own = [line for line in said.splitlines() if "medmambase-predict" in line]
    assert len(own) == 2 and str(Path("b-001", "distilled")) in own[1] and own[1].endswith("--calibrated")
    assert "distilled:  on 32 test images its loss against the networks is" in said
    soft = read_predictions(folder / "soft_labels.csv")
    for fold in folds:
        kept_out = calibrated(fold, "val")
        rows_of = [soft.names.index(name) for name in kept_out.names]
        assert rows_of and np.array_equal(soft.probabilities[rows_of], kept_out.probabilities)
    own = calibrated(folder / "distilled", "test")
    told = json.loads((folder / "distilled.json").read_text(encoding="utf-8"))
    assert set(own.names) == set(found.names) and not set(own.names) & set(soft.names) and told["on"] == "test"
    assert told["agreement"] == pytest.approx(np.mean(own.predicted == found.predicted))
    split = rows(folder / "distilled" / "splits.csv")
    assert {row["path"] for row in split if row["split"] == "val"} == set(calibrated(folds[0], "val").names)
    assert "which no network has learned from" in (folder / "report.html").read_text(encoding="utf-8")
    assert crossval.main([*words, "--distil"]) == 0 and "b-001 is finished" in capsys.readouterr().out
    assert (folder / "test_access_log.csv").read_bytes() == looked


def test_what_cannot_be_cross_validated_is_one_line(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo.toml").write_text("demo = true\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for words, code, said in (
        ([], 2, "give a folder of images, or a CSV"),
        (["nowhere"], 3, "nowhere: there is no such file or folder"),
        ([str(scans), "--folds", "0"], 2, "--folds is 0; a cross-validation has at least 2"),
        ([str(scans), "--folds", "1"], 2, "--folds is 1; a cross-validation has at least 2"),
        ([str(scans), "--folds", "99"], 3, "--folds is 99, but no class has more than 17 images"),
        ([str(scans), "--group-regex", "(cyst|solid)"], 3, "--folds is 5, but there are only 2 patients"),
        (["--config", "demo.toml"], 2, "--demo makes its own images, with a test split of their own"),
        ([str(scans), "--device", "toaster"], 2, "--device toaster cannot be used"),
    ):
        assert crossval.main(words) == code
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert crossval.main([str(scans)]) == 2 and "its own processes, see --jobs" in capsys.readouterr().err
    for given, message in (({"fold": 1}, "--fold is 1, and"), ({"jobs": 0}, "jobs is 0"), ({"demo": True}, "--demo")):
        with pytest.raises(ConfigError, match=message):
            medmambase.crossval(scans, **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.toml"]


def test_weights_that_have_learned_from_an_image_are_refused_before_the_first_fold(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = load(scans / "solid" / "12_1.png", Preprocessing(16, 1))[1].digest
    config = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1, state=2)
    start, network = tmp_path / "start.safetensors", MedMambaSE(config, features_only=True)
    starting.write(start, network.state_dict(), config, [], [digest])
    words = ["--start", str(start), "--runs", str(tmp_path / "runs"), "--folds", "2", "--batch-size", "4"]
    words += ["--image-size", "16", "--device", "cpu", "--backend", "torch"]
    assert crossval.main([str(scans), *words]) == 3
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and not (tmp_path / "runs").exists()
    assert (
        "have learned from 1 image of val or test (solid/12_1.png), so results would be too good; for a cross" in error
    )


def test_a_call_without_folds_takes_those_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = tmp_path / "crossval.toml", []
    file.write_text('data = "scans"\nfolds = 3\n', encoding="utf-8")

    def latest(settings: Settings) -> Path:
        asked.append(settings.folds)
        return tmp_path

    monkeypatch.setattr(crossvals, "latest", latest)
    monkeypatch.setattr(crossvals, "is_done", lambda folder, distil: True)
    for given in ({"config": file}, {"config": file, "folds": 4}, {"data": "scans"}):
        assert medmambase.crossval(**given).folder == tmp_path
    assert asked == [3, 4, 5]


def test_without_the_key_of_its_pseudonyms_none_goes_on(tmp_path: Path) -> None:
    begun = crossvals.Crossval(resolve({"data": "x", "folds": 2}), tmp_path, (), torch.device("cpu"), resumes=True)
    with pytest.raises(RunFolderError, match=r"do_not_share\.toml: is not there, and the pseudonyms of all folds"):
        crossvals.crossval_run(begun, "", None, False, lambda line: None)


def test_a_report_that_does_not_know_the_distilled_network_yet_is_written_again(tmp_path: Path) -> None:
    report, loss = tmp_path / "report.html", tmp_path / "distilled.json"
    done = [crossvals.is_done(tmp_path, False)]
    for path, written in ((report, 5), (loss, 6), (report, 7)):
        path.touch()
        os.utime(path, (written, written))
        done += [crossvals.is_done(tmp_path, distil) for distil in (False, True)]
    assert done == [False, True, False, True, False, True, True]


def test_a_damaged_list_of_the_folds_is_named(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_bytes(b"path,label,patient,fold\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"folds\.csv: cannot be read .*; restore it, or start anew with another"):
        crossvals._write_parts(tmp_path / "folds.csv", Division((), "", {}), ())


def test_what_is_to_be_known_of_the_division_stands_in_the_report_of_all_folds(tmp_path: Path) -> None:
    people = ("p", "p", *[""] * 10)
    samples = tuple(Sample(Path(f"{n}.png"), n % 2, "train", f"{n}.png", p) for n, p in enumerate(people))
    found = Manifest(tmp_path, ("cyst", "solid"), samples, ())
    cut = tuple(complete(found, folds=2, fold=fold, val_in_turn=True) for fold in (0, 1))
    divided = crossvals._divided(of_crossval({"data": "x", "folds": 2}), cut)
    for fold in (0, 1):
        told = {"counts": {}, "skipped": [], "notes": ["of all", f"of {fold}"], "audit": {"findings": []}}
        run_folder.write_json(tmp_path / f"fold-{fold}" / "data_report.json", told)
    runs = [tmp_path / "fold-0", tmp_path / "fold-1"]
    partly, *others = of_a_crossval._data_report(runs, divided)["notes"]
    assert partly.startswith("patients are known for 2 of 12 images only: if a patient whose name")
    assert others == ["of all", "fold-0: of 0", "fold-1: of 1"]


def test_an_image_whose_name_is_no_text_is_named_as_the_files_of_the_folds_have_it(tmp_path: Path) -> None:
    samples = tuple(Sample(Path(f"{n}"), n % 2, "train", f"\udcfc{n}") for n in range(8))
    found = Manifest(tmp_path, ("cyst", "solid"), samples, ())
    cut = tuple(complete(found, folds=2, fold=fold) for fold in (0, 1))
    divided = crossvals._divided(of_crossval({"data": "x", "folds": 2}), cut)
    for _ in range(2):  # as when it begins, and as when it goes on
        crossvals._write_parts(tmp_path / "folds.csv", divided, found.classes)
    assert divided.fold_of.keys() == {f"\\udcfc{n}" for n in range(8)}


def test_the_flags_are_those_of_a_training_and_how_many_folds_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.toml"
    file.write_text("fold = 2\nfolds = 3\nepochs = 7\n", encoding="utf-8")
    given, read, jobs, distil = parse(["scans", "--jobs", "3", "--batch-size", "4", "--config", str(file)])
    assert (given, read, jobs, distil) == ({"data": "scans", "batch_size": 4}, file, 3, False)
    assert parse(["scans", "--distil"]) == ({"data": "scans"}, None, None, True)
    settings = of_crossval(given, read)
    assert (settings.folds, settings.fold, settings.training.epochs) == (3, 0, 7)
    assert of_crossval({"data": "scans"}).folds == 5 and of_crossval({"data": "x", "folds": 4}, file).folds == 4
    file.write_text("folds = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"toml: folds is 1; it must be at least 2"):
        of_crossval({"data": "x"}, file)
    for words, said in (
        (["x", "--fold", "1"], "there is no flag --fold; the nearest is --folds"),
        (["x", "--jobs", "0"], "--jobs: '0' is not a whole number of at least 1"),
        (["x", "y"], "give one DATA only; 'y' is a second one"),
    ):
        with pytest.raises(SystemExit):
            parse(words)
        assert said in capsys.readouterr().err
