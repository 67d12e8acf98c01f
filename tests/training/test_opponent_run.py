"""A training of another network: from images to the report, resumed to the same bytes, and beside
one of ours."""

import json
from pathlib import Path

import pytest
import torch

import medmambase
from medmambase import Run
from medmambase.commands import compare, evaluate
from medmambase.config import OpponentConfig
from medmambase.model import opponents
from medmambase.model.opponents import OpponentNetwork, PublishedWeights
from medmambase.model.starting import Origin


class EndedError(Exception):
    """Ends a training after an epoch."""


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_opponent_is_trained_resumed_evaluated_and_compared_as_ours_are(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    tensors = tuple(OpponentNetwork(OpponentConfig("efficientnet_lite0", num_classes=1000)).state_dict().values())
    start = PublishedWeights(tensors, Origin("lite.pth of ImageNet", "5" * 64, unrecorded=True))
    monkeypatch.setattr(opponents, "pretrained", lambda opponent: start)

    def end(row: dict[str, float]) -> None:
        raise EndedError

    given = {"model": "efficientnet_lite0", "image_size": 32, "batch_size": 8, "epochs": 2, "device": "cpu"}
    given |= {"runs": tmp_path, "plain_patients": True}
    whole = medmambase.train(images, name="whole", **given)
    with pytest.raises(EndedError):
        medmambase.train(images, name="cut", on_epoch=end, **given)
    cut = Run(tmp_path / "cut-001").resume()
    for name in ("metrics.csv", "last/model.safetensors", "test/predictions.csv", "test/metrics.json"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name

    told = json.loads((whole.folder / "config.json").read_text(encoding="utf-8"))
    assert told["model"]["opponent"] == "efficientnet_lite0" and told["training"]["recipe"] == "efficientnet_lite0"
    assert told["start"].startswith("lite.pth of ImageNet (SHA-256 555555555555...), learned from images that are not")
    assert told["engine"] == "PyTorch's own operators, of which efficientnet_lite0 consists"
    assert isinstance(whole.network, OpponentNetwork)
    assert "which efficientnet_lite0 has not" in whole.report.read_text(encoding="utf-8")
    found = list(whole.predictor(device="cpu")(images / "test"))
    assert found and all(one.problem is None for one in found)
    assert evaluate.main([str(whole.folder)]) == 0 and compare.main([str(whole.folder), str(cut.folder)]) == 0
    assert "there is no interval for the difference" in capsys.readouterr().out  # they are the same
