"""TrivialAugment: one operation an image, each as Pillow does it or as its map says."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from medmambase.data import trivial_augment
from medmambase.data.augment import _warp, augment, keys_of, mixup_share
from medmambase.data.trivial_augment import OPERATIONS

Picture = Callable[[Image.Image, float, float], Image.Image]
# In Pillow; each gets the strength, and the strength with its sign.
PILLOW: dict[str, Picture] = {
    "identity": lambda picture, strength, signed: picture,
    "brightness": lambda picture, strength, signed: ImageEnhance.Brightness(picture).enhance(1 + 0.99 * signed),
    "contrast": lambda picture, strength, signed: ImageEnhance.Contrast(picture).enhance(1 + 0.99 * signed),
    "sharpness": lambda picture, strength, signed: ImageEnhance.Sharpness(picture).enhance(1 + 0.99 * signed),
    "colour": lambda picture, strength, signed: ImageEnhance.Color(picture).enhance(1 + 0.99 * signed),
    "posterize": lambda picture, strength, signed: ImageOps.posterize(picture, 8 - round(6 * strength)),
    "solarize": lambda picture, strength, signed: ImageOps.solarize(picture, 256 * (1 - strength)),  # type: ignore[arg-type]  # it compares alone
    "autocontrast": lambda picture, strength, signed: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, signed: ImageOps.equalize(picture),
}
# By how many grey levels ours may differ: Pillow rounds, down or twice, where we do not.
LEVELS = {
    "identity": 0.01,
    "posterize": 0.01,
    "solarize": 0.01,
    "equalize": 0.01,
    "brightness": 1.01,
    "autocontrast": 1.01,
}


def pictures(channels: int) -> npt.NDArray[np.uint8]:
    """uint8 (5, channels, 24, 24): noise, dark, of one grey, pale, with two levels."""
    noise = (np.random.default_rng(0).beta(0.7, 1.5, (5, channels, 24, 24)) * 255).astype(np.uint8)
    noise[1] //= 3
    noise[2] = 7
    noise[3] = noise[3] // 2 + 60
    noise[4] = np.where(noise[4] < 90, 20, 200)
    return noise


def place(name: str, b: int = 1) -> Tensor:
    return torch.full((b,), OPERATIONS.index(name))


@pytest.mark.parametrize(
    ("name", "channels"), [(name, c) for name in PILLOW for c in (1, 3) if name != "colour" or c == 3]
)
@pytest.mark.parametrize("signed", [0.0, 0.31, -0.31, 0.77, -0.97])
def test_what_moves_nothing_is_what_pillow_does(name: str, channels: int, signed: float) -> None:
    given, strength = pictures(channels), abs(signed)
    images = torch.from_numpy(given).float() / 127.5 - 1
    found = trivial_augment.vary(
        images, place(name, 5), torch.full((5,), strength), torch.full((5,), signed)
    )  # fmt: skip  # one call
    for image, pixels in zip(found, given, strict=True):
        picture = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
        wanted = np.asarray(PILLOW[name](picture, strength, signed), dtype=np.float32)
        wanted = wanted[None] if channels == 1 else wanted.transpose(2, 0, 1)
        assert np.abs((image.numpy() + 1) * 127.5 - wanted).max() < LEVELS.get(name, 1.5)


def moved(name: str, signed: float) -> tuple[float, float]:
    """Where a point right of and above the middle comes from, as x and y in [-1, 1]."""
    assert trivial_augment.moves(place(name)).all()
    x, y = (trivial_augment.maps(place(name), torch.tensor([signed]))[0] @ torch.tensor([0.5, -0.25, 1.0])).tolist()
    return x, y


def test_what_moves_the_picture_has_the_published_strengths() -> None:
    assert moved("shear x", 0.5) == pytest.approx((0.5 - 0.25 * 0.495, -0.25))
    assert moved("shear y", -0.5) == pytest.approx((0.5, -0.25 - 0.5 * 0.495))
    assert moved("shift x", 1.0) == pytest.approx((0.5 + 2 / 7, -0.25))
    assert moved("shift y", -0.5) == pytest.approx((0.5, -0.25 - 1 / 7))
    assert moved("rotate", 90 / 135) == pytest.approx((0.25, 0.5), abs=1e-6)
    still = [name for name in OPERATIONS if not trivial_augment.moves(place(name)).any()]
    assert still == ["identity", *(name for name in OPERATIONS if name in PILLOW and name != "identity")]
    for name in still:
        assert torch.equal(trivial_augment.maps(place(name), torch.ones(1))[0], torch.eye(2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_gets_one_operation_drawn_uniformly_after_a_mirror(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour only where there is some; strengths and their signs are uniform, too."""
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    vary = trivial_augment.vary

    def noted(images: Tensor, operation: Tensor, strength: Tensor, signed: Tensor) -> Tensor:
        drawn.append((operation, strength, signed))
        return vary(images, operation, strength, signed)

    monkeypatch.setattr(trivial_augment, "vary", noted)
    ramp = torch.linspace(-0.8, 0.8, 8).expand(7000, channels, 8, 8)
    indices = torch.arange(7000)
    varied = augment(ramp, "trivial", 0, 1, indices)
    operation, strength, signed = drawn[0]
    kinds = len(OPERATIONS) - (channels == 1)
    share = operation.bincount(minlength=len(OPERATIONS)) / 7000
    assert (share[:kinds] - 1 / kinds).abs().max() < 0.015 and not share[kinds:].any()
    assert (strength.mean() - 0.5).abs() < 0.02 and torch.equal(signed.abs(), strength)
    assert ((signed < 0).float().mean() - 0.5).abs() < 0.03
    kept = augment(ramp, "trivial", 0, 1, indices, laterality=True)
    same, mirrored = ((varied == other).all((1, 2, 3))[operation == 0] for other in (ramp, ramp.flip(3)))
    assert (same ^ mirrored).all() and 0.4 < mirrored.float().mean() < 0.6
    assert torch.equal(kept[operation == 0], ramp[operation == 0]), "left stays left"


def test_what_is_moved_in_lies_on_black_only_where_the_picture_does(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 2, 64), torch.linspace(-1, 1, 64), indexing="ij")
    sector = torch.where(torch.atan2(x, y).abs() < 0.7, 0.2, -1.0).expand(300, 1, 64, 64)
    varied = augment(sector, "trivial", 0, 1, torch.arange(300))
    alone = augment(torch.full((300, 1, 64, 64), 0.2), "trivial", 0, 1, torch.arange(300), laterality=True)
    black = (varied == -1).float().mean((1, 2, 3))
    before = (sector == -1).float().mean((1, 2, 3))
    assert (black > before + 0.05).sum() > 30, "turned sectors leave black corners"
    assert (alone > -1).all((1, 2, 3)).float().mean() > 0.9, "pictures that fill their frame leave none"


def test_an_image_that_is_not_moved_has_the_same_bits_in_any_batch() -> None:
    images = torch.from_numpy(pictures(3)).float() / 127.5 - 1
    images = images.repeat(8, 1, 1, 1)
    whole = augment(images, "trivial", 4, 1, torch.arange(40))
    operation = [int(u * len(OPERATIONS)) for u in _which(4, 40)]
    for row in (row for row in range(40) if OPERATIONS[operation[row]] in ("equalize", "posterize", "solarize")):
        alone = augment(images[row : row + 1], "trivial", 4, 1, torch.tensor([row]))
        assert torch.equal(alone[0], whole[row])


def _which(seed: int, count: int) -> list[float]:
    from medmambase.data.augment import _uniforms

    return _uniforms(keys_of(seed, 1, torch.arange(count)), 0, 1)[0].tolist()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_of_mixtures_come_from_a_beta_distribution(alpha: float) -> None:
    keys = keys_of(3, 1, torch.arange(20_000))
    shares = mixup_share(keys, alpha)
    assert shares.dtype == torch.float32 and shares.shape == (20_000,) and shares.min() >= 0 and shares.max() <= 1
    assert (shares.mean() - 0.5).abs() < 0.01
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert torch.equal(shares[7:9], mixup_share(keys[7:9], alpha))
    assert mixup_share(keys, 1e300).unique().tolist() == [0.5] and mixup_share(keys, 1e-9).isfinite().all()


def test_a_shift_moves_the_picture_by_a_seventh_of_its_side_at_most() -> None:
    picture = torch.full((1, 1, 1, 70), -1.0)
    picture[..., 35] = 1.0
    shifted = _warp(picture, trivial_augment.maps(place("shift x"), torch.ones(1)))
    assert shifted[0, 0, 0].argmax() == 25
