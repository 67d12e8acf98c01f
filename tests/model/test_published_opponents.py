"""The opponents of MONAI, and what EfficientNet-Lite0 has learned: they are those that were
published. All of it needs the extra ``opponents``."""

import pytest
import torch

from medmambase.config import OpponentConfig, Preprocessing
from medmambase.model import opponents
from medmambase.model.opponents import OpponentNetwork

for package in ("monai", opponents.LEARNED):
    pytest.importorskip(package, reason=f"{package} is not installed; it comes with medmambase[opponents]")


def named(opponent: str, size: int, **ends: int) -> OpponentNetwork:
    """An opponent by its name, for images of so many pixels."""
    config = OpponentConfig.from_dict({"opponent": opponent, **ends})
    return OpponentNetwork(config, preprocessing=Preprocessing(size=size, channels=config.in_chans))


@pytest.mark.parametrize(
    ("opponent", "classes", "published"),
    [
        ("resnet18", 1000, 11_689_512),
        ("densenet121", 1000, 7_978_856),
        ("swin_tiny", 1000, 28_288_354),
        ("swin_tiny", 6, 27_523_968),
    ],
)
def test_an_opponent_has_as_many_parameters_as_were_published(opponent: str, classes: int, published: int) -> None:
    with torch.device("meta"):
        network = named(opponent, 224, num_classes=classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@pytest.mark.parametrize(
    ("opponent", "size"), [("resnet18", 33), ("densenet121", 33), ("swin_tiny", 32), ("swin_tiny", 33)]
)
def test_every_weight_of_an_opponent_learns_from_small_images_too(opponent: str, size: int) -> None:
    torch.manual_seed(0)
    network = named(opponent, size, num_classes=3, in_chans=1).eval()
    logits = network(torch.randn(2, 1, size, size))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still


def test_the_windows_of_swin_are_no_larger_than_its_maps() -> None:
    with torch.device("meta"):
        networks = [named("swin_tiny", size) for size in (224, 96)]
    windows = [[stage.window_size[0] for stage in network.body.stages] for network in networks]
    assert windows == [[7, 7, 7, 7], [7, 7, 6, 3]]
    assert not [name for name in networks[0].state_dict() if name.endswith("relative_position_index")]


def test_efficientnet_lite0_brings_along_what_it_has_learned_on_imagenet() -> None:
    found = opponents.pretrained("efficientnet_lite0")
    assert found is not None and found.origin.sha256.startswith("57934424")
    assert found.origin.sentence().startswith("efficientnet-lite0-57934424.pth of ImageNet (SHA-256 57934424")
    network = OpponentNetwork(OpponentConfig("efficientnet_lite0", num_classes=2))
    network.take(found)
    assert torch.equal(network.body.features[0].weight, found.tensors[0])
    assert network.body.features[1].running_var.mean() != 1.0
