"""``medmambase-train`` from end to end: files of settings, other kinds of data, leaks, and runs
that were interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmambase import run_folder
from medmambase.commands import train
from medmambase.config import PRESETS, Preprocessing
from medmambase.data import phantom
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.intervals import judge
from medmambase.evaluation.metrics import Metrics
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report import figures
from medmambase.model.network import MedMambaSE

SMALL = 'model = "nano"\ndepths = [1, 1, 1, 1]\nimage_size = 32\nepochs = 3\nbatch_size = 8\nlr = 1e-3\n'
RESULTS = (
    "last/model.safetensors",
    "best/model.safetensors",
    "metrics.csv",
    "test/predictions.csv",
    "config.json",
    "splits.csv",
    "data_report.json",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_phantom(tmp_path_factory.mktemp("data") / "Daten ü 肺", images_per_class=5, size=32)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a small run is drawing, which other tests look at."""
    for name in ("curves", "confusion", "recalibration"):
        monkeypatch.setattr(figures, name, lambda *_: None)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Flags for a small network whose runs lie in tmp_path."""
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    return ["--config", str(tmp_path / "small.toml"), "--runs", str(tmp_path)]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while that step of the optimiser is computed."""
    original, calls = torch.optim.AdamW.step, iter(range(1, 10**6))

    def stepped(self, *args):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)


def same(first: Path, second: Path) -> list[str]:
    """The results that differ between two runs."""
    return [name for name in RESULTS if (first / name).read_bytes() != (second / name).read_bytes()]


def test_the_config_of_a_run_repeats_it_and_flags_win_over_the_file(
    images: Path, small: list[str], tmp_path: Path
) -> None:
    assert train.main([str(images), *small, "--name", "a", "--epochs", "2", "--ema", "0.5"]) == 0
    assert len((tmp_path / "a-001" / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert train.main(["--config", str(tmp_path / "a-001" / "config.toml")]) == 0
    assert same(tmp_path / "a-001", tmp_path / "a-002") == []
    assert (tmp_path / "a-001" / "config.toml").read_bytes() == (tmp_path / "a-002" / "config.toml").read_bytes()
    assert train.main([str(images), "--config", str(tmp_path / "a-001" / "config.toml"), "--seed", "1"]) == 0
    assert "last/model.safetensors" in same(tmp_path / "a-001", tmp_path / "a-003")


def test_an_unknown_key_is_found_before_anything_is_made(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(f"{SMALL}ephocs = 3\n", encoding="utf-8")
    assert train.main([str(images), *small]) == 2
    assert "small.toml: there is no setting 'ephocs'; the nearest is 'epochs'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


@pytest.mark.parametrize("step", [1, 5, 6])  # of three an epoch
def test_after_ctrl_c_a_run_goes_on_to_the_same_bytes(
    step: int,
    images: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main([str(images), *small, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        assert train.main([str(images), *small, "--name", "cut"]) == 130
    run = tmp_path / "cut-001"
    said = capsys.readouterr().err.strip()
    assert said.startswith("interrupted: all is saved up to ") and said.endswith(
        f"go on with medmambase-train --resume {run}"
    )
    assert {1: "to step 2 of epoch 1;", 5: "to step 3 of epoch 2;", 6: "to epoch 2;"}[
        step
    ] in said  # the step after the one that had just ended is done, too
    assert train.main(["--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "goes on from epoch" in said and ("epoch   1  train" in said) == (
        step == 1
    )  # what was done is not done again
    assert same(tmp_path / "whole-001", run) == []
    assert (run / "command.txt").read_text(encoding="utf-8").splitlines()[1].startswith("medmambase-train --resume")
    assert (run / "report.html").exists()


def test_a_run_that_never_came_to_a_checkpoint_begins_again(
    images: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.main([str(images), *small, "--name", "whole"]) == 0

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.session, "take_in", killed)
        assert train.main([str(images), *small, "--name", "cut"]) == 130
    assert train.main(["--resume", str(tmp_path / "cut-001")]) == 0
    assert same(tmp_path / "whole-001", tmp_path / "cut-001") == []


def test_a_run_goes_on_without_the_weights_it_started_from(
    images: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = replace(PRESETS["nano"], depths=(1, 1, 1, 2), num_classes=6, in_chans=1)
    MedMambaSE(shape, preprocessing=Preprocessing(channels=1)).save(tmp_path / "start")
    (tmp_path / "small.toml").write_text(
        SMALL.replace('model = "nano"\ndepths = [1, 1, 1, 1]', f"weights = '{tmp_path / 'start'}'"), encoding="utf-8"
    )
    assert train.main([str(images), *small, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([str(images), *small, "--name", "cut"]) == 130
    shutil.rmtree(tmp_path / "start")
    assert train.main(["--resume", str(tmp_path / "cut-001")]) == 0
    assert same(tmp_path / "whole-001", tmp_path / "cut-001") == []
    assert MedMambaSE.load(tmp_path / "cut-001" / "best").config == shape


def change_pixels(data: Path) -> str:
    path = min((data / "train").rglob("*.png"))
    Image.effect_noise((32, 32), 50).save(path)
    return f"1 of other pixels ({path.relative_to(data).as_posix()})"


def add_image(data: Path) -> str:
    Image.effect_noise((32, 32), 50).save(data / "train" / "brain" / "zz.png")
    return "1 new (train/brain/zz.png)"


def relabel(data: Path) -> str:
    path = min((data / "val" / "brain").rglob("*.png"))
    path.rename(data / "val" / "femur" / path.name)
    return "1 gone (val/brain/"


@pytest.mark.parametrize("change", [change_pixels, add_image, relabel])
def test_a_run_does_not_go_on_with_other_data_or_settings(
    change: Callable[[Path], str],
    images: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(images, tmp_path / "data")
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([str(tmp_path / "data"), *small, "--name", "cut"]) == 130
    run = tmp_path / "cut-001"
    before = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix in (".csv", ".json", ".toml", ".safetensors")
    }
    assert train.main(["--resume", str(run), "--epochs", "9"]) == 2
    assert "--epochs is 9 and was 3" in capsys.readouterr().err
    difference = change(tmp_path / "data")
    assert train.main(["--resume", str(run)]) == 3
    assert difference in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before  # what it has done is still told as it was
    # Where the data lies now is no difference.
    shutil.copytree(images, tmp_path / "moved")
    assert train.main([str(tmp_path / "moved"), "--resume", str(run), "--cache", "disk", "--save-every", "1"]) == 0
    assert list((tmp_path / "cache").rglob("*.shard"))


@pytest.mark.skipif(
    sys.platform == "win32",
    reason="torchrun's meeting place needs a PyTorch built with libuv, which not every Windows wheel is",
)
def test_two_processes_make_one_run(images: Path, small: list[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")]),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "medmambase.commands.train",
    ]
    command = [*torchrun, str(images), *small, "--name", "two", "--epochs", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["two-001"]
    assert done.stdout.count("epoch   1") == done.stdout.count("test: accuracy") == done.stdout.count("report: ") == 1
    assert "and 1 more" in (tmp_path / "two-001" / "train.log").read_text(encoding="utf-8")


def test_a_run_that_another_process_holds_is_left_alone(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(images), *small, "--name", "a", "--epochs", "1"]) == 0
    with run_folder.held(tmp_path / "a-001"):
        assert train.main(["--resume", str(tmp_path / "a-001")]) == 4
    assert "a-001: another run (process" in capsys.readouterr().err


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

    monkeypatch.setattr(train, "read_manifest", reader)
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
        "--seed",
        "7",
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
    }
    assert asked == [Path("somewhere"), wanted]


def manifest(folder: Path, images: Path, patient_of: Callable[[str, Path], str]) -> Path:
    lines = ["path,label,patient,split"]
    for path in sorted(images.rglob("*.png")):
        split, label, _ = path.relative_to(images).parts
        lines.append(f"{path.as_posix()},{label},{patient_of(split, path)},{split}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.csv"


def test_a_csv_is_trained_on_and_its_patients_are_written_down(images: Path, small: list[str], tmp_path: Path) -> None:
    table = manifest(tmp_path, images, lambda split, path: path.name[:5])
    assert train.main([str(table), *small, "--epochs", "1"]) == 0
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
    original = train.session.decode

    def decode(*arguments, **named):
        found, bad = original(*arguments, **named)
        return replace(
            found, facts=tuple(replace(facts, patient=f"p{row % 7}") for row, facts in enumerate(found.facts))
        ), bad

    monkeypatch.setattr(train.session, "decode", decode)
    assert train.main([str(images), *small, "--name", "a"]) == 3
    said = capsys.readouterr().err
    assert "7 patients are in two splits, as the files themselves tell" in said and "--allow-leak" in said
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
    assert metrics.without_leaked == judge(predictions.rows(clean))
    said = capsys.readouterr().out
    assert "without 1 of 7 test images whose twin or patient is in train or val: accuracy" in said
    assert (
        "audit:     1 group of exact twins, 1 pair of twins in different splits" in said
        and "note: of 1 test images a twin, or" in said
    )
    assert (tmp_path / "data-001" / "audit" / "twins.png").is_file()
    assert (tmp_path / "data-001" / "audit" / "twins.png").is_file()
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
    assert "a.png: " in said and "and 1 more named in" in said and "--on-bad skip" in said
    run = tmp_path / "data-001"
    assert len(json.loads((run / "data_report.json").read_text(encoding="utf-8"))["skipped"]) == 2
    assert not (run / "metrics.csv").exists()


def test_data_that_vanishes_in_the_middle_costs_no_finished_epoch(
    images: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(images), *small, "--name", "whole"]) == 0
    shutil.copytree(images, tmp_path / "data")
    original = train.train_results.line

    def vanish(epoch):
        if epoch.epoch == 2:
            (tmp_path / "data").rename(tmp_path / "away")
        return original(epoch)

    with monkeypatch.context() as patch:
        patch.setattr(train.train_results, "line", vanish)
        assert train.main([str(tmp_path / "data"), *small, "--name", "cut", "--cache", "off"]) == 3
    run = tmp_path / "cut-001"
    assert capsys.readouterr().err.rstrip().endswith(f"; then go on with medmambase-train --resume {run}")
    assert train.main(["--resume", str(run)]) == 3
    assert f"data: the data of {run} is not there; say where it lies now" in capsys.readouterr().err
    (tmp_path / "away").rename(tmp_path / "data")
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "metrics.csv").read_bytes() == (tmp_path / "whole-001" / "metrics.csv").read_bytes()
