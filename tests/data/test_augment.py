"""Augmentation: the same for an image wherever it comes, in range, and really of the kind it
says."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medmambase.config import Augmentation
from medmambase.data.augment import _bits, _normals, _probe_motion, _sector, _uniforms, _warp, augment, keys_of

KINDS = get_args(Augmentation)


def places(b: int) -> Tensor:
    return torch.arange(b)


def batch(b: int = 16, channels: int = 1, size: int = 32) -> Tensor:
    """Smooth pictures of which no turn or mirror image looks the same, grey even if they have three
    channels."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    picture = (0.6 * x + 0.3 * y).clamp(-1, 1) * (x**2 + y**2 < 0.8) - (x**2 + y**2 >= 0.8).float()
    return picture.expand(b, channels, size, size).clone()


def sector(size: int = 64, reach: float = 2.0) -> Tensor:
    """(1, size, size): tissue within 40 degrees of a probe in the middle of the upper edge, as deep
    as ``reach``, on black."""
    y, x = torch.meshgrid(torch.linspace(0, 2, size), torch.linspace(-1, 1, size), indexing="ij")
    inside = (torch.atan2(x, y).abs() < 0.7) & (torch.hypot(x, y) < reach)
    return torch.where(inside, 0.2, -1.0)[None]


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.flatten().double(), y.flatten().double()]))[0, 1])


def slope(images: Tensor) -> Tensor:
    """How much brighter the right is than the left, (b,)."""
    half = images.shape[-1] // 2
    return images[..., half:].mean((1, 2, 3)) - images[..., :half].mean((1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_seed_epoch_and_index_each_change_the_picture_and_nothing_else_does(kind: Augmentation, channels: int) -> None:
    images = batch(channels=channels)
    before = images.clone()
    first = augment(images, kind, 1, 1, places(16))
    assert first.shape == images.shape and first.dtype == torch.float32
    assert torch.equal(images, before), "the input is left alone"
    torch.rand(7)
    assert torch.equal(first, augment(images, kind, 1, 1, places(16)))
    for other in (
        augment(images, kind, 2, 1, places(16)),
        augment(images, kind, 1, 2, places(16)),
        augment(images, kind, 1, 1, places(16) + 16),
    ):
        assert (kind == "none") == torch.equal(first, other)
    assert (kind == "none") == torch.equal(first[0], first[1])


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 10**6),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=9, unique=True),
    st.data(),
    st.sampled_from(["crop_flip", "ultrasound", "trivial"]),
    st.sampled_from([8, 17, 32]),
)
def test_an_image_is_varied_alike_in_any_batch(
    seed: int, epoch: int, indices: list[int], data: st.DataObject, kind: Augmentation, size: int
) -> None:
    pictures = {
        index: torch.rand(1, size, size, generator=torch.Generator().manual_seed(index)) * 2 - 1 for index in indices
    }

    def varied(chosen: list[int]) -> dict[int, Tensor]:
        out = augment(torch.stack([pictures[index] for index in chosen]), kind, seed, epoch, torch.tensor(chosen))
        return dict(zip(chosen, out, strict=True))

    whole = varied(indices)
    part = data.draw(st.lists(st.sampled_from(indices), min_size=1, unique=True))
    for index, picture in varied(part).items():
        # Vector units take the last few values of an array one by one, with another rounding: the
        # numbers drawn are the same bits.
        assert torch.allclose(picture, whole[index], atol=1e-5, rtol=0)
    assert torch.equal(_bits(keys_of(seed, epoch, torch.tensor(part)), 0, 40),
    _bits(keys_of(seed, epoch, torch.tensor(indices)), 0, 40)[
        [indices.index(index) for index in part]
    ])  # fmt: skip  # one claim


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, None])
def test_values_stay_between_black_and_white_and_finite(kind: Augmentation, value: float | None) -> None:
    images = torch.rand(32, 3, 24, 24) * 2 - 1 if value is None else torch.full((32, 3, 24, 24), value)
    varied = augment(images, kind, 0, 1, places(32))
    assert varied.isfinite().all() and varied.min() >= -1 - 1e-6 and varied.max() <= 1 + 1e-6
    if value == -1.0:
        assert torch.allclose(varied, images, atol=1e-6), "black stays black"


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_numbers_are_untouched(kind: Augmentation) -> None:
    state = torch.get_rng_state()
    augment(batch(), kind, 0, 1, places(16))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_images_and_batches_of_one_pass(kind: Augmentation, size: int) -> None:
    assert augment(torch.zeros(1, 1, size, size), kind, 0, 1, places(1)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_grey_stays_grey(kind: Augmentation) -> None:
    varied = augment(batch(channels=3), kind, 0, 1, places(16))
    assert torch.allclose(varied[:, :1].expand_as(varied), varied, atol=1e-6)


@pytest.mark.parametrize("kind", ["crop_flip", "ultrasound"])
def test_about_half_of_the_images_are_mirrored_and_with_laterality_none(kind: Augmentation) -> None:
    ramp = torch.linspace(-0.8, 0.8, 32).expand(400, 1, 32, 32)
    assert 0.4 < (slope(augment(ramp, kind, 0, 1, places(400))) < 0).float().mean() < 0.6
    assert slope(augment(ramp, kind, 0, 1, places(400), laterality=True)).min() > 0, "left stays left"


def test_crop_flip_shows_parts_of_8_to_100_percent_and_never_the_outside() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    wide = augment(x.expand(500, 1, 65, 65), "crop_flip", 0, 1, places(500))
    high = augment(y.expand(500, 1, 65, 65), "crop_flip", 0, 1, places(500))
    # The slope of a ramp shows how much of it was cut out; in the middle, where nothing is held at
    # the edge's value.
    widths = (wide[:, 0, 32, 34] - wide[:, 0, 32, 30]).abs() / 4 * 32
    heights = (high[:, 0, 34, 32] - high[:, 0, 30, 32]).abs() / 4 * 32
    area, ratio = widths * heights, widths / heights
    assert 0.07 < area.min() < 0.12 and 0.9 < area.max() <= 1.001
    assert ratio.min() > 0.74 and ratio.max() < 1.35 and 0.4 < area.mean() < 0.6
    bright = augment(torch.ones(500, 1, 33, 33), "crop_flip", 0, 1, places(500))
    assert bright.min() > 0.999


def test_ultrasound_moves_a_little_and_varies_gain_speckle_and_shadow() -> None:
    varied = augment(batch(300, size=64), "ultrasound", 0, 1, places(300))
    flat = augment(torch.zeros(300, 1, 64, 64), "ultrasound", 0, 1, places(300))[:, 0, 20:44, 20:44]
    assert flat.mean((1, 2)).std() > 0.1, "gain"
    rows = flat.mean(2)
    assert (rows[:, -1] - rows[:, 0]).std() > 0.05, "depth gain"
    assert flat.diff(dim=2).std((1, 2)).max() > 0.05, "speckle"
    plain = augment(batch(1, size=64), "none", 0, 1, places(1))
    assert (varied > -0.99).float().mean((1, 2, 3)).min() > 0.4 * (plain > -0.99).float().mean(), (
        "most of the picture stays in view"
    )


def test_the_speckle_is_as_strong_as_documented_and_even() -> None:
    flat = (augment(torch.full((600, 1, 32, 32), -0.3), "ultrasound", 3, 1, places(600))[:, 0] + 1) / 2
    upper = flat[:, :6]  # where no shadow falls; a row has one depth gain
    grain = (upper / upper.mean(2, keepdim=True)).std(2).mean(1)
    assert 0 <= grain.min() < 0.01 and 0.14 < grain.max() < 0.17 and 0.07 < grain.mean() < 0.08
    columns = flat[:, -7:].mean(1)
    shadowed = columns.amin(1) < 0.76 * columns.median(1).values
    assert 0.2 < shadowed.float().mean() < 0.3, "one in four has a shadow"


def test_no_motion_puts_a_rim_on_an_image_that_fills_its_frame() -> None:
    full = torch.full((64, 1, 24, 24), 0.2)
    apex, on_black = _sector(full)
    assert not on_black.any()
    assert torch.allclose(_warp(full, _probe_motion(keys_of(0, 1, places(64)), apex, False), on_black), full, atol=1e-5)
    bars = torch.full((64, 1, 24, 24), 0.2)
    bars[:, :, :3] = bars[:, :, -3:] = -1  # a wide picture that fills its letterbox
    apex, on_black = _sector(bars)
    assert not on_black.any() and torch.allclose(apex[0], torch.tensor([0.0, -0.75]), atol=1e-6)
    moved = _warp(bars, _probe_motion(keys_of(0, 1, places(64)), apex, False), on_black)
    assert moved[:, 0, 10:14].amin() > 0.15, "no black comes in from the sides"


def test_the_probe_is_found_where_the_sector_begins() -> None:
    picture = torch.full((3, 1, 64, 64), -1.0)
    picture[0] = sector()
    picture[1, :, 10:, :50] = sector()[:, :54, 14:]  # lower and to the left
    picture[2] = picture[0]
    picture[2, 0, 2, 3] = 1.0  # a speck is no picture
    apex, on_black = _sector(picture)
    assert on_black.all()
    assert apex[0].tolist() == pytest.approx([0, -1], abs=0.05) and torch.allclose(apex[0], apex[2], atol=0.05)
    assert apex[1].tolist() == pytest.approx([-14 / 32, -1 + 10 / 32], abs=0.08)


def test_zooming_leaves_the_probe_in_its_place_and_the_sector_its_angle() -> None:
    keys = keys_of(0, 1, places(200))
    apex = torch.tensor([0.1, -0.9]).expand(200, 2)
    turn, _, x, y, _ = _uniforms(keys, 0, 5)
    maps = _probe_motion(keys, apex, True)
    scale = maps[:, 0, 0].square().add(maps[:, 1, 0].square()).sqrt()
    assert 0.833 <= scale.min() < 0.85 and 1.18 < scale.max() <= 1.2001
    assert torch.allclose(scale, maps[:, 0, 1].square().add(maps[:, 1, 1].square()).sqrt(), atol=1e-6), (
        "as much in width as in height"
    )
    turned = (turn * 2 - 1) * 0.26
    turned_apex = torch.stack(
        [apex[:, 0] * turned.cos() + apex[:, 1] * turned.sin(), apex[:, 1] * turned.cos() - apex[:, 0] * turned.sin()],
        1,
    )
    shift = torch.stack([x, y], 1) * 0.2 - 0.1
    shown = (maps[:, :, :2] @ turned_apex[:, :, None])[:, :, 0] + maps[:, :, 2]
    assert torch.allclose(shown, apex + shift, atol=1e-5), "but for turn and shift the probe is where it was"


def test_no_tissue_is_drawn_out_of_a_sector_that_touches_the_frame() -> None:
    picture = sector(64, reach=3.0).expand(300, 1, 64, 64).clone()
    picture[:, :, -2:, 31:33] = 1.0  # 4 bright pixels of tissue at the lower edge
    apex, on_black = _sector(picture)
    assert on_black.all()
    moved = _warp(picture, _probe_motion(keys_of(0, 1, places(300)), apex, False), on_black)
    bright = (moved > 0.6).sum((1, 2, 3))
    assert 4 <= bright.max() <= 12, (
        "4 pixels are 6 after the largest zoom, and some on their rims; drawn out they are a stripe"
    )
    drawn = _warp(picture, _probe_motion(keys_of(0, 1, places(300)), apex, False))
    assert (drawn > 0.6).sum((1, 2, 3)).max() > 24, "this is what the black ground is for"


def test_black_stays_black_beside_a_sector() -> None:
    picture = sector(64).expand(200, 1, 64, 64)
    maps = _probe_motion(keys_of(0, 1, places(200)), _sector(picture)[0], False)
    before = torch.zeros(200, 1, 64, 64).masked_fill_(picture > -0.9, 1.0)
    reach = torch.nn.functional.grid_sample(
        before, torch.nn.functional.affine_grid(maps, [200, 1, 64, 64], align_corners=False), align_corners=False
    )
    varied = augment(picture, "ultrasound", 0, 1, places(200))
    assert (varied[reach == 0] < -0.999).all() and (varied[reach > 0.99] > -0.99).float().mean() > 0.99


def test_the_hash_is_splitmix64() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [number % 2**64 for number in _bits(torch.tensor([1234567]), 0, 5)[0].tolist()] == published
    assert torch.equal(_bits(torch.tensor([1234567]), 3, 2), _bits(torch.tensor([1234567]), 0, 5)[:, 3:])


@pytest.mark.slow
@pytest.mark.parametrize("along", ["index", "epoch", "seed", "number"])
def test_random_numbers_are_uniform_and_neighbours_know_nothing_of_each_other(along: str) -> None:
    n = 1 << 14
    if along == "index":
        numbers = torch.stack(_uniforms(keys_of(0, 1, places(n)), 0, 4))
    elif along == "number":
        numbers = torch.stack(_uniforms(keys_of(0, 1, places(4)), 0, n), 1)
    else:
        rows = [keys_of(*((0, value) if along == "epoch" else (value, 1)), places(1)) for value in range(n)]
        numbers = torch.stack(_uniforms(torch.cat(rows), 0, 4))
    assert numbers.min() >= 0 and numbers.max() < 1
    for row in numbers:
        counts = torch.histc(row, 64, 0, 1)
        chi_square = float(((counts - n / 64) ** 2 / (n / 64)).sum())
        assert 63 - 5 * 126**0.5 < chi_square < 63 + 5 * 126**0.5, (
            "63 degrees of freedom: mean 63, variance 126; too even is no chance either"
        )
        for lag in (1, 2, 3, 16):
            assert abs(correlation(row[lag:], row[:-lag])) < 5 / n**0.5
    for other in numbers[1:]:
        assert abs(correlation(numbers[0], other)) < 5 / n**0.5


@pytest.mark.parametrize("bit", range(0, 40, 3))
def test_one_bit_of_the_index_changes_half_of_the_bits(bit: int) -> None:
    indices = places(256) * 977
    changed = keys_of(0, 1, indices) ^ keys_of(0, 1, indices ^ (1 << bit))
    ones = torch.stack([(changed >> place) & 1 for place in range(64)]).double()
    assert abs(ones.mean() - 0.5) < 0.02 and (ones.mean(1) - 0.5).abs().max() < 0.2


def test_speckle_is_normal_and_differs_from_pixel_to_pixel_and_image_to_image() -> None:
    noise = _normals(keys_of(5, 2, places(64)), 24, 4096).double()
    n = noise.numel()
    assert abs(noise.mean()) < 5 / n**0.5 and abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((noise**3).mean()) < 5 * (15 / n) ** 0.5 and abs((noise**4).mean() - 3) < 5 * (96 / n) ** 0.5
    tail = (noise.abs() > 3).double().mean()
    assert 0.0022 < tail < 0.0032 and noise.isfinite().all()
    for first, second in (
        (noise[:, 1:], noise[:, :-1]),
        (noise[:, 64:], noise[:, :-64]),
        (noise[:, 2048:], noise[:, :2048]),
        (noise[1:], noise[:-1]),
    ):
        assert abs(correlation(first, second)) < 5 / first.numel() ** 0.5
        assert abs(correlation(first**2, second**2)) < 5 / first.numel() ** 0.5
    assert _normals(keys_of(5, 2, places(3)), 24, 15).shape == (3, 15)


@pytest.mark.parametrize("kind", ["crop_flip", "ultrasound", "trivial"])
def test_no_number_is_taken_twice(kind: Augmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn and gain of one image, say, would go together."""
    taken: list[int] = []

    def noted(keys: Tensor, first: int, count: int) -> Tensor:
        taken.extend(range(first, first + count))
        return _bits(keys, first, count)

    monkeypatch.setattr("medmambase.data.augment._bits", noted)
    augment(batch(4), kind, 0, 1, places(4))
    assert len(set(taken)) == len(taken) > 4


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="augmentation is 'mixup'"):
        augment(batch(), "mixup", 0, 1, places(16))  # type: ignore[arg-type]  # the wrong name is the test


@pytest.mark.parametrize("indices", [places(3), torch.zeros(16), torch.zeros(4, 4, dtype=torch.int64)])
def test_indices_that_are_not_one_for_each_image_are_named(indices: Tensor) -> None:
    with pytest.raises(ValueError, match=r"indices are torch\.\w+ \([\d, ]+\); they must be torch.int64 \(16,\)"):
        augment(batch(), "ultrasound", 0, 1, indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_pictures_as_the_cpu(kind: Augmentation) -> None:
    images = batch()
    there = augment(images.cuda(), kind, 0, 1, places(16))
    assert there.is_cuda and torch.allclose(there.cpu(), augment(images, kind, 0, 1, places(16)), atol=1e-4)
    for seed in (0, 2**63 - 1):
        assert torch.equal(
            _bits(keys_of(seed, 1, places(999).cuda()), 0, 99).cpu(), _bits(keys_of(seed, 1, places(999)), 0, 99)
        )
