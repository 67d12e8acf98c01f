"""Runs that version 0.1.0 wrote, one finished and one interrupted in its second epoch, go on being
used: their files, their networks, and the checkpoint in ``last/``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import rows

from medmambase import Predictor, Run
from medmambase.commands import evaluate, explain, predict, train
from medmambase.evaluation.predictions import read_predictions

# What version 0.1.0 came to when it went on with the interrupted run, and in the whole one: the
# losses of training and validation after each epoch, and each test image's probability of "cyst".
LOSSES = [
    (0.6943458517392477, 0.6919739636342769),
    (0.6930430928866068, 0.689517291464916),
    (0.6829967300097147, 0.6879488607775409),
]
CYST = [
    0.5103352526833735, 0.5083380748443173, 0.5078466359930196, 0.5054520303102903, 0.5041874324682859,
    0.5054382066991385,
]  # fmt: skip  # six test images
CLOSE = 1e-5  # processors with vectors of another length round otherwise


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both runs and their images; their settings name the images by a relative path."""
    copied = tmp_path / "läufe von früher"
    shutil.copytree(Path(__file__).with_name("run_of_before"), copied)
    monkeypatch.chdir(copied)
    return copied


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_figures_that_it_would_have_had(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--resume", "cut-001"]) == 0
    assert "resuming from epoch 2, after step 3" in capsys.readouterr().out
    found = rows(before / "cut-001" / "metrics.csv")
    losses = [(float(row["train_loss"]), float(row["val_loss"])) for row in found]
    assert np.abs(np.array(losses) - np.array(LOSSES)).max() < CLOSE
    predictions = read_predictions(before / "cut-001" / "test" / "predictions.csv")
    assert np.abs(predictions.probabilities[:, 0] - CYST).max() < CLOSE
    assert (before / "cut-001" / "report.html").is_file()
    metrics = Run(before / "cut-001").metrics
    assert metrics is not None and metrics.accuracy == 0.5 and metrics.auc == 1.0


@pytest.mark.slow
def test_the_settings_of_before_are_compared_and_may_be_changed_as_before(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--resume", "cut-001", "--epochs", "4"]) == 2
    assert "--epochs is 4 and was 3" in capsys.readouterr().err
    (before / "images.csv").rename("moved.csv")
    assert train.main(["moved.csv", "--resume", "cut-001", "--save-every", "0"]) == 0


def test_a_finished_run_is_evaluated_to_what_is_recorded(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["whole-001"]) == 0
    assert "every metric matches the recorded one, " in capsys.readouterr().out
    assert "looked at once" in (before / "whole-001" / "report.html").read_text(encoding="utf-8")


def test_its_network_is_tried_on_other_images_and_its_access_log_goes_on_in_the_file_of_before(before: Path) -> None:
    assert evaluate.main(["whole-001", "images.csv", "--name", "again"]) == 0
    again = read_predictions(before / "whole-001" / "evaluations" / "again-001" / "predictions.csv")
    assert np.abs(again.probabilities[:, 0] - CYST).max() < CLOSE
    assert [row["images"] for row in rows(before / "whole-001" / "openings.csv")] == ["6", "6"]
    assert not (before / "whole-001" / "test_access_log.csv").exists()


def test_it_predicts_and_explains(before: Path) -> None:
    assert predict.main(["whole-001", "images", "-o", "out.csv", "--calibrated"]) == 0
    assert len(rows(before / "out.csv")) == 24 and not any(row["error"] for row in rows(before / "out.csv"))
    predictor = Predictor.load(Run("whole-001"), calibrated=False, device="cpu")
    found = list(predictor([before / "images" / f"{number}.png" for number in range(18, 24)]))
    assert np.abs(np.array([one.by_class["cyst"] for one in found]) - CYST).max() < CLOSE
    assert (
        Predictor.load("whole-001").temperature
        == json.loads((before / "whole-001" / "calibration.json").read_text(encoding="utf-8"))["temperature"]
    )
    assert explain.main(["whole-001", "images", "--most", "4"]) == 0
    assert (before / "whole-001" / "explanations" / "images-001" / "faithfulness.json").is_file()
