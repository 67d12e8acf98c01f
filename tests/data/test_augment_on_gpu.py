"""The Triton kernels of augmentation do what the definition in PyTorch's operations does."""

import pytest
import torch
from conftest import HAS_TRITON, engine_device
from torch import Tensor

from medmambase.config import Augmentation
from medmambase.data.augment import augment
from medmambase_kernels import triton_kernels, use_backend

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def smooth(b: int, channels: int, height: int, width: int) -> Tensor:
    """Smooth pictures, each another, whose channels differ."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    waves = [torch.sin(3 * x + i) * torch.cos(2 * y - i) for i in range(b * channels)]
    return (torch.stack(waves) * 0.9).view(b, channels, height, width)


def both(images: Tensor, kind: Augmentation, laterality: bool = False, seed: int = 3) -> tuple[Tensor, Tensor]:
    """What the kernels make of images, and what the definition makes of them."""
    indices = torch.arange(len(images)) * 7
    with use_backend("triton"):
        found = augment(images.to(engine_device("triton")), kind, seed, 2, indices, laterality=laterality)
    with use_backend("torch"):
        return found.cpu(), augment(images, kind, seed, 2, indices, laterality=laterality)


@pytest.mark.parametrize("kind", ["crop_flip", "ultrasound"])
@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [pytest.param(1, 32, 32, marks=pytest.mark.slow), (3, 17, 33), (2, 40, 9), (1, 1, 1), (1, 1, 7), (1, 5, 2)],
)
def test_the_kernels_equal_the_definition(kind: Augmentation, channels: int, height: int, width: int) -> None:
    for laterality in (False, True):
        found, expected = both(smooth(12, channels, height, width), kind, laterality)
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert (found - expected).abs().max() < 2e-5
    if height * width > 1:  # there is one way to crop a single pixel
        assert (expected - smooth(12, channels, height, width)).abs().max() > 0.1


def on_black(size: int) -> Tensor:
    """(8, 1, size, size): what the search for the sector tells apart."""
    pictures = torch.full((8, 1, size, size), -1.0)
    half = size // 2
    pictures[0, :, 2:, half - 3 : half + 3] = 0.4  # narrow, in the middle
    pictures[1, :, 5:half, 4:half] = 0.4  # up and to the left
    pictures[2, :, half:, half:] = 0.4  # down and to the right
    pictures[3] = 0.4  # fills its frame
    pictures[4, :, 5:-5] = 0.4  # a letterbox
    pictures[5, :, :, 0] = pictures[5, :, 7:] = 0.4  # one upper corner is lit
    pictures[6, 0, 1, 3] = 0.9  # a speck; and 7 is black
    return pictures


@pytest.mark.parametrize("size", [32, 45])
def test_sector_frame_and_black_ground_are_found_alike(size: int) -> None:
    pictures = on_black(size)
    for seed in range(3):
        found, expected = both(pictures, "ultrasound", seed=seed)
        # A pixel at the rim of the picture may round to the other side.
        assert ((found - expected).abs() > 2e-4).sum() <= 2


def test_images_of_any_layout_are_read_and_left_alone() -> None:
    images = smooth(4, 3, 16, 12).permute(0, 1, 3, 2)
    before = images.clone()
    found, expected = both(images, "ultrasound")
    assert (found - expected).abs().max() < 2e-5 and torch.equal(images, before)


def test_pictures_that_are_no_float32_and_the_other_backends_take_the_definition() -> None:
    for backend in ("cpu", "torch", "reference"):
        with use_backend(backend):
            assert triton_kernels("augment", torch.zeros(1)) is None
    assert triton_kernels("augment", torch.zeros(1)) is None, "on a CPU nobody asked for it"


def test_torch_may_trace_it() -> None:
    images, keys = smooth(2, 1, 8, 8), torch.tensor([5, 6])
    with use_backend("triton"):
        kernels = triton_kernels("augment", images)
        assert kernels is not None
        torch.library.opcheck(torch.ops.medmambase.augment, (images, keys, True, False))
