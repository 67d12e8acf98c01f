"""Augmentation: reproducible, in range, and really of the kind it says."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from medmambase.config import Augmentation
from medmambase.data.augment import _probe_motion, _warp, augment

KINDS = get_args(Augmentation)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(b: int = 16, channels: int = 1, size: int = 32) -> Tensor:
    """Smooth pictures of which no turn or mirror image looks the same, grey even if they have three channels."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    picture = (0.6 * x + 0.3 * y).clamp(-1, 1) * (x**2 + y**2 < 0.8) - (x**2 + y**2 >= 0.8).float()
    return picture.expand(b, channels, size, size).clone()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_generator_gives_the_same_batch_and_another_gives_another(kind: Augmentation, channels: int) -> None:
    images = batch(channels=channels)
    before = images.clone()
    first = augment(images, kind, generator(1))
    assert first.shape == images.shape and first.dtype == torch.float32
    assert torch.equal(images, before), "the input is left alone"
    assert torch.equal(first, augment(images, kind, generator(1)))
    assert (kind == "none") == torch.equal(first, augment(images, kind, generator(2)))
    assert (kind == "none") == torch.equal(first[0], first[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, None])
def test_values_stay_between_black_and_white_and_finite(kind: Augmentation, value: float | None) -> None:
    images = torch.rand(32, 3, 24, 24) * 2 - 1 if value is None else torch.full((32, 3, 24, 24), value)
    varied = augment(images, kind, generator())
    assert varied.isfinite().all() and varied.min() >= -1 - 1e-6 and varied.max() <= 1 + 1e-6
    if value == -1.0:
        assert torch.allclose(varied, images, atol=1e-6), "black stays black"


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_numbers_are_untouched(kind: Augmentation) -> None:
    state = torch.get_rng_state()
    augment(batch(), kind, generator())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_grey_stays_grey(kind: Augmentation) -> None:
    varied = augment(batch(channels=3), kind, generator())
    assert torch.allclose(varied[:, :1].expand_as(varied), varied, atol=1e-6)


@pytest.mark.parametrize("kind", ["crop_flip", "ultrasound"])
def test_about_half_of_the_images_are_mirrored(kind: Augmentation) -> None:
    varied = augment(batch(400), kind, generator())
    left, right = varied[..., :16].mean((1, 2, 3)), varied[..., 16:].mean((1, 2, 3))
    assert 0.4 < (left > right).float().mean() < 0.6


def test_crop_flip_shows_parts_of_8_to_100_percent_and_never_the_outside() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    wide = augment(x.expand(500, 1, 65, 65), "crop_flip", generator())
    high = augment(y.expand(500, 1, 65, 65), "crop_flip", generator())
    # The slope of a ramp shows how much of it was cut out; in the middle, where nothing is held at the edge's value.
    widths = (wide[:, 0, 32, 34] - wide[:, 0, 32, 30]).abs() / 4 * 32
    heights = (high[:, 0, 34, 32] - high[:, 0, 30, 32]).abs() / 4 * 32
    area, ratio = widths * heights, widths / heights
    assert 0.07 < area.min() < 0.12 and 0.9 < area.max() <= 1.001
    assert ratio.min() > 0.74 and ratio.max() < 1.35 and 0.4 < area.mean() < 0.6
    bright = augment(torch.ones(500, 1, 33, 33), "crop_flip", generator())
    assert bright.min() > 0.999


def test_ultrasound_moves_a_little_and_varies_gain_speckle_and_shadow() -> None:
    varied = augment(batch(300, size=64), "ultrasound", generator())
    flat = augment(torch.zeros(300, 1, 64, 64), "ultrasound", generator())[:, 0, 20:44, 20:44]
    assert flat.mean((1, 2)).std() > 0.1, "gain"
    rows = flat.mean(2)
    assert (rows[:, -1] - rows[:, 0]).std() > 0.05, "depth gain"
    assert flat.diff(dim=2).std((1, 2)).max() > 0.05, "speckle"
    plain = augment(batch(1, size=64), "none", generator())
    assert (varied > -0.99).float().mean((1, 2, 3)).min() > 0.4 * (plain > -0.99).float().mean(), "most of the picture stays in view"


def test_no_motion_puts_a_rim_on_an_image_that_fills_its_frame() -> None:
    full = torch.full((64, 1, 24, 24), 0.2)
    moved = _warp(full, _probe_motion(64, generator()))
    assert torch.allclose(moved, full, atol=1e-5)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="augmentation is 'mixup'"):
        augment(batch(), "mixup", generator())  # type: ignore[arg-type]  # the wrong name is the test


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_pictures_as_the_cpu(kind: Augmentation) -> None:
    images = batch()
    there = augment(images.cuda(), kind, generator())
    assert there.is_cuda and torch.allclose(there.cpu(), augment(images, kind, generator()), atol=1e-4)
