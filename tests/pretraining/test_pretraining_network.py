"""What is thrown away after a pretraining: a head and a decoder for maps of any size."""

import pytest
import torch

from medmambase import MedMambaSE, ModelConfig
from medmambase.pretraining.network import Decoder, Pretrained, predict

TINY = ModelConfig(dims=(4, 8, 16), depths=(1, 1, 1), in_chans=1, state=2)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (20, 36)])
def test_pictures_have_the_size_of_the_input_and_every_stage_has_a_gradient(height: int, width: int) -> None:
    network = Pretrained(MedMambaSE(TINY, features_only=True), structures=3, pictures=2)
    found = predict(network, torch.randn(2, 1, height, width), torch.float32)
    assert found.structures.shape == (2, 3) and found.pictures.shape == (2, 2, height, width)
    (found.structures.square().mean() + found.pictures.square().mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert all(lateral[1].weight.grad.abs().sum() > 0 for lateral in network.decoder.lateral)


def test_a_pixel_is_painted_where_its_maps_are() -> None:
    decoder = Decoder((4, 8), 1)
    coarse, fine = torch.zeros(1, 2, 3, 8), torch.zeros(1, 4, 5, 4)
    dark = decoder([fine, coarse], 15, 20)
    bright = coarse.clone()
    bright[0, 1, 2] = torch.arange(8.0)
    moved = (decoder([fine, bright], 15, 20) - dark).abs()[0, 0] > 1e-6
    rows, columns = moved.nonzero().unbind(1)
    assert moved.shape == (15, 20)
    assert (rows.min(), columns.min()) == (4, 12) and moved[8:, 16:].all()  # its 8 pixels, and those of the convolution


def test_what_is_not_asked_for_is_not_built() -> None:
    backbone = MedMambaSE(TINY, features_only=True).eval()
    only = Pretrained(backbone, structures=0, pictures=1)
    found = predict(only, torch.randn(1, 1, 16, 16), torch.float32)
    assert only.head is None and found.structures is None and found.pictures is not None
    only = Pretrained(backbone, structures=2, pictures=0)
    image = torch.randn(1, 1, 16, 16)
    found = predict(only, image, torch.bfloat16)
    assert only.decoder is None and found.pictures is None and found.structures.dtype == torch.float32
    pooled = backbone(image)[-1].mean((2, 3))
    assert torch.allclose(predict(only, image, torch.float32).structures, only.head(pooled), atol=1e-6)
