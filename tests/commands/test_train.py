"""``medmambase-train``: from a folder to a report, and from bad input to a sentence."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows
from PIL import Image
from safetensors.torch import load_file
from upstream_checkpoint import as_upstream

from medmambase import MedMambaSE
from medmambase.commands import train
from medmambase.config import PRESETS
from medmambase.data import phantom
from medmambase.distributed import Ranks
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import evaluate
from medmambase.evaluation.predictions import read_predictions
from medmambase.evaluation.report.summary import summary
from medmambase.settings import resolve
from medmambase.training import run as training_run

QUICK = ["--model", "nano", "--image-size", "32", "--epochs", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run, started as a person would, on a console that knows only
    cp1252."""
    images = Path(shutil.copytree(images, tmp_path_factory.mktemp("damaged") / images.name))
    broken = images / "train" / phantom.CLASSES[0] / "truncated.jpg"
    Image.effect_noise((64, 64), 80).save(broken)
    broken.write_bytes(broken.read_bytes()[:-500])
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")]),
        "PYTHONIOENCODING": "cp1252:strict",
    }
    runs = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "medmambase.commands.train",
        str(images),
        "--runs",
        str(runs),
        "--name",
        "lauf/1",
        *QUICK,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("truncated.jpg") == 1
    shown = images.name.encode("cp1252", "replace").decode("cp1252")  # a question mark for what cp1252 has not
    assert "?" not in (done.stdout + done.stderr).replace(shown, "")
    return runs / "lauf-1-001"


@pytest.mark.slow
def test_a_run_leaves_everything_that_its_report_promises(finished: Path) -> None:
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    promised = {
        "config.json", "config.toml", "command.txt", "env.json", "splits.csv", "looks.csv", "data_report.json",
        "metrics.csv", "do_not_share.toml", "appearance.json", "unlike.safetensors", "conformal.json", "start.json",
        "train.log", "curves.png", "report.html", "best/model.safetensors", "best/config.json",
        "last/model.safetensors", "last/config.json", "last/state.safetensors", "last/images.csv", "MODEL_CARD.md",
        "test_access_log.csv", "calibration.json", "val/predictions.csv", "test/predictions.csv", "test/metrics.json",
        "test/calibrated.json", *(f"test/{name}.png" for name in ("confusion", "roc", "pr", "reliability",
        "mistakes", "answered")), "test/answering.json", "test/distances.csv",
        *(f"explain/se_stage{i}.png" for i in (1, 2, 3, 4)),
        *(f"explain/{name}" for name in ("sheet_01.png", "gates.png", "faithfulness.png", "faithfulness.json")),
    }  # fmt: skip  # folder by folder
    assert files - {"run.lock"} == promised  # the lock's file is there or not, as the system likes it


@pytest.mark.slow
def test_the_test_figures_can_be_recomputed_from_the_predictions(finished: Path) -> None:
    predictions = read_predictions(finished / "test" / "predictions.csv")
    assert evaluate_with_intervals(predictions).to_dict() == json.loads(
        (finished / "test" / "metrics.json").read_text(encoding="utf-8")
    )
    split_of = {row["path"]: (row["split"], row["label"]) for row in rows(finished / "splits.csv")}
    assert [split_of[name] for name in predictions.names] == [
        ("test", predictions.classes[label]) for label in predictions.labels
    ]


@pytest.mark.slow
def test_a_truncated_jpeg_costs_one_line_and_is_named_in_the_data_report(finished: Path) -> None:
    report = json.loads((finished / "data_report.json").read_text(encoding="utf-8"))
    assert [Path(one["path"]).name for one in report["skipped"]] == ["truncated.jpg"]
    assert (finished / "train.log").read_text(encoding="utf-8").count("skipped:") == 1


def test_the_saved_network_gives_the_predictions_again(finished: Path, images: Path) -> None:
    from medmambase.data.reading.images import load, normalise

    predictions = read_predictions(finished / "test" / "predictions.csv")
    network = MedMambaSE.load(finished / "best")
    assert network.classes == predictions.classes
    assert network.config.in_chans == 1  # every phantom image is grey
    batch = torch.stack([load(images / name, network.preprocessing)[0] for name in predictions.names[:4]])
    with torch.no_grad():
        again = network(normalise(batch, network.preprocessing)).double().softmax(1)
    assert np.abs(again.numpy() - predictions.probabilities[:4]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_the_same_seed_gives_the_same_bytes(images: Path, trained: Path, tmp_path: Path) -> None:
    arguments = [str(images), "--runs", str(tmp_path), "--name", "a", *QUICK, "--epochs", "1", "--seed", "1"]
    assert train.main(arguments) == 0
    again, first, other = (
        (run / "last" / "model.safetensors").read_bytes()
        for run in (tmp_path / "a-001", trained / "se-002", trained / "se-001")
    )
    assert again == first
    assert again != other


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_checkpoint_of_medmamba_can_be_the_start(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = MedMambaSE(replace(PRESETS["nano"], block="medmamba", num_classes=9))
    torch.save(as_upstream(start), tmp_path / "start.pth")
    assert (
        train.main(
            [
                str(images),
                "--weights",
                str(tmp_path / "start.pth"),
                "--runs",
                str(tmp_path),
                "--name",
                "w",
                *QUICK[2:],
                "--lr",
                "1e-12",
            ]
        )
        == 0
    )
    assert "skipped: head.weight" in capsys.readouterr().out
    moved = load_file(tmp_path / "w-001" / "best" / "model.safetensors")["stages.3.blocks.0.ssm_branch.out_proj.weight"]
    assert torch.allclose(moved, start.state_dict()["stages.3.blocks.0.ssm_branch.out_proj.weight"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_without_validation_or_test_images_a_run_still_ends_in_a_report(images: Path, tmp_path: Path) -> None:
    data = phantom.write_phantom(tmp_path / "data", images_per_class=5, size=32)
    shutil.rmtree(data / "test")
    assert train.main([str(data), "--runs", str(tmp_path), "--name", "n", *QUICK]) == 0
    assert (tmp_path / "n-001" / "report.html").exists()
    assert not (tmp_path / "n-001" / "test").exists()


def test_a_run_on_the_splits_of_another_is_called_like_its_data(tmp_path: Path) -> None:
    (tmp_path / "x-001").mkdir()
    splits = str(tmp_path / "x-001" / "splits.csv")
    assert training_run.name_of(resolve({"data": splits})) == "splits.csv"  # a folder of that name
    (tmp_path / "x-001" / "config.toml").write_text("data = 'my scans'\n", encoding="utf-8", newline="\n")
    assert training_run.name_of(resolve({"data": splits})) == "my scans"
    assert training_run.name_of(resolve({"data": splits, "name": "y"})) == "y"
    # Data that are gone, and those of a run that was copied from another system.
    for gone in ("/home/ann/busi.csv", r"C:\Users\Ann\busi.NPZ", r"C:\Users\Ann\busi"):
        (tmp_path / "x-001" / "config.toml").write_text(f"data = '{gone}'\n", encoding="utf-8", newline="\n")
        assert training_run.name_of(resolve({"data": splits})) == "busi"


def test_a_run_that_was_called_splits_goes_on(tmp_path: Path) -> None:
    for name in ("x-001", "splits-001", "splits-002"):
        (tmp_path / name).mkdir()
    (tmp_path / "x-001" / "config.toml").write_text("data = 'busi'\n", encoding="utf-8", newline="\n")
    settings = resolve({"data": str(tmp_path / "x-001" / "splits.csv"), "runs": str(tmp_path)})
    assert training_run.latest(settings) is None
    (tmp_path / "splits-001" / "config.toml").write_text(settings.to_toml(), encoding="utf-8", newline="\n")
    assert training_run.latest(settings) == tmp_path / "splits-001"
    other = settings.changed("seed", 1)
    (tmp_path / "splits-001" / "config.toml").write_text(other.to_toml(), encoding="utf-8", newline="\n")
    assert training_run.latest(settings) is None


def test_the_demo_of_another_seed_has_the_same_images_where_the_seed_of_splits_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    monkeypatch.setattr(phantom, "write_phantom", lambda folder, images_per_class, seed: seeds.append(seed))
    monkeypatch.setattr(training_run, "read_manifest", lambda *_, **__: None)
    for given in ({"seed": 3}, {"seed": 3, "split_seed": 1}):
        training_run._demo(tmp_path, resolve({"demo": True, **given}), Ranks(), lambda line: None)
    assert seeds == [3, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_network_of_ours_can_be_the_start(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(images),
        "--weights",
        str(finished / "best"),
        "--runs",
        str(tmp_path),
        "--name",
        "w",
        *QUICK[2:],
        "--epochs",
        "1",
        "--lr",
        "1e-12",
    ]
    assert train.main(arguments) == 0
    assert ", 0 skipped, 0 new" in capsys.readouterr().out
    start, moved = MedMambaSE.load(finished / "best"), MedMambaSE.load(tmp_path / "w-001" / "last")
    assert moved.config == start.config
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(start.parameters(), moved.parameters(), strict=True))


def test_two_classes_have_an_auc_and_more_have_its_mean() -> None:
    two, three = (evaluate(np.arange(n), np.eye(n), [str(i) for i in range(n)]) for n in (2, 3))
    assert ", AUC 1.000" in summary(two) and ", macro AUC 1.000" in summary(three)
