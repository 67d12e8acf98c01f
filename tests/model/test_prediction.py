"""Networks and layers that only predict: frozen weights, vector code, and recordings that are
repeated."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from conftest import relative_error
from torch.nn import functional as F

from medmambase import MedMambaSE, ModelConfig, use_backend
from medmambase_kernels import FrozenConvolution, FrozenNorm, Recording, corners, squeeze_excite
from medmambase_kernels._cpu import compiler as machine_cpu
from medmambase_kernels._cpu import openmp as threads_cpu

LANES = [4, 8, *([16] if machine_cpu.lanes() == 16 else [])]


def trained(block: str = "medmambase", dims: tuple[int, ...] = (64, 128), odd: str = "pad") -> MedMambaSE:
    network = MedMambaSE(ModelConfig(num_classes=3, block=block, depths=(1, 2)[: len(dims)], dims=dims, odd=odd))
    for _ in range(3):
        network(2 * torch.randn(4, 3, 24, 24) + 1)  # so that no BatchNorm is the identity
    return network.eval()


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("inputs", "outputs", "b", "h", "w"),
    [(5, 48, 1, 1, 1), (48, 140, 2, 7, 9), (33, 64, 1, 4, 13), (16, 1, 3, 2, 3), (64, 176, 1, 8, 8)],
)
def test_a_frozen_convolution_is_the_convolution(
    lanes: int, size: int, inputs: int, outputs: int, b: int, h: int, w: int, monkeypatch
) -> None:
    monkeypatch.setattr(machine_cpu, "lanes", lambda: lanes)
    x = torch.randn(b, h, w, 2 * inputs)[..., inputs:]  # half of a map
    weight, bias, add = (
        torch.randn(outputs, inputs, size, size),
        torch.randn(outputs),
        torch.randn(b, h, w, 3 * outputs)[..., :outputs],
    )
    exact = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=size // 2).permute(
        0, 2, 3, 1
    )
    assert relative_error(FrozenConvolution(weight, bias)(x), exact) < 3e-6
    assert relative_error(FrozenConvolution(weight)(x), exact - bias) < 3e-6
    whole = torch.full((b, h, w, 3 * outputs), 7.0)
    into = whole[..., outputs : 2 * outputs]
    FrozenConvolution(weight, bias, relu=True)(x, add, into)
    assert relative_error(into, exact.relu() + add) < 3e-6
    assert (whole[..., :outputs] == 7).all()
    assert (whole[..., 2 * outputs :] == 7).all()
    with use_backend("torch"):
        assert relative_error(FrozenConvolution(weight, bias, relu=True)(x, add), exact.relu() + add) < 3e-6


@pytest.mark.parametrize("lanes", LANES)
def test_a_frozen_norm_is_the_norm(lanes: int, monkeypatch) -> None:
    monkeypatch.setattr(machine_cpu, "lanes", lambda: lanes)
    for c in (48, 52, 64):
        norm = torch.nn.LayerNorm(c)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        x = torch.randn(2, 9, 11, 2 * c)[..., :c] + 3
        assert relative_error(FrozenNorm(norm)(x), norm.double()(x.double())) < 1e-6


def test_the_gate_of_a_large_map_and_of_a_small_one_are_the_same() -> None:
    for h in (40, 400):  # 51,200 and 512,000 numbers, and 1,024,000
        x, squeeze, excite = torch.randn(2, h, 40, 32), torch.randn(4, 32), torch.randn(32, 4)
        for image in (x, x.repeat(1, 2, 1, 1)):
            expected = squeeze_excite(image, squeeze, excite, scale=2.0, backend="reference")
            assert relative_error(squeeze_excite(image, squeeze, excite, scale=2.0, backend="cpu"), expected) < 1e-6


def test_what_is_wrongly_shaped_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(4, 4, 5, 5\)"):
        FrozenConvolution(torch.randn(4, 4, 5, 5))
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2, 5\); it must be \(batch, height, width, 4\)"):
        FrozenConvolution(torch.randn(4, 4, 1, 1))(torch.randn(1, 2, 2, 5))


@pytest.mark.parametrize("block", ["medmambase", "medmamba", "notebook", "medmamba_v0"])
@pytest.mark.parametrize(
    ("height", "width", "odd"), [(32, 32, "pad"), (20, 37, "pad"), (44, 36, "crop"), (4, 4, "pad")]
)
def test_each_prediction_is_of_its_own_image(block: str, height: int, width: int, odd: str) -> None:
    network = trained(block, odd=odd)
    fast = network.for_prediction()
    with torch.no_grad():
        for batch in (1, 2, 1):
            for _ in range(3):
                image = torch.randn(batch, 3, height, width)
                assert relative_error(fast(image), network(image)) < 1e-5
    assert fast._recorded._recordings  # it was not the slow way that was right


def test_results_outlive_the_next_prediction_and_every_map_is_given() -> None:
    network = MedMambaSE(ModelConfig(num_classes=3, depths=(1, 1), dims=(64, 128)), features_only=True).eval()
    fast, images = network.for_prediction(), torch.randn(3, 1, 3, 32, 32)
    found = [fast(image) for image in images]
    for image, maps in zip(images, found, strict=True):
        for actual, expected in zip(maps, network(image), strict=True):
            assert relative_error(actual, expected) < 1e-5


def test_predictions_from_many_threads_at_once_are_those_of_one() -> None:
    fast, images = trained().for_prediction(), torch.randn(16, 1, 3, 32, 32)
    expected = [fast(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(fast, images), expected, strict=True))


def test_the_number_of_threads_changes_no_bit_of_a_prediction() -> None:
    fast, image, before = trained().for_prediction(), torch.randn(1, 3, 40, 40), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found += [fast(image), fast(image)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_other_ways_to_predict_go_on_without_a_recording() -> None:
    network = trained()
    fast, image = network.for_prediction(), torch.randn(1, 3, 32, 32)
    expected = network(image)
    with use_backend("torch"):
        assert relative_error(fast(image), expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(fast(image), expected) < 0.1
    assert relative_error(fast(torch.randn(40, 3, 128, 128))[:1], expected) > 0
    assert not fast._recorded._recordings
    assert relative_error(deepcopy(fast).double()(image.double()), expected) < 1e-5


def test_a_copy_has_recordings_of_its_own_and_old_sizes_are_forgotten() -> None:
    fast = trained(dims=(64,)).for_prediction()
    for size in (8, 12, 16, 20, 24, 28):
        fast(torch.randn(1, 3, size, size))
    assert len(fast._recorded._recordings) == 4
    assert not deepcopy(fast)._recorded._recordings


def test_a_recording_takes_its_steps_again_and_only_one_is_open() -> None:
    x, convolution = torch.randn(1, 4, 4, 16), FrozenConvolution(torch.randn(16, 16, 3, 3))
    with Recording() as recording:
        y = recording.call(torch.add, (1, 4, 4, 16), convolution(x), x)
        with pytest.raises(RuntimeError, match="open in this thread already"), Recording():
            pass
    x.copy_(torch.randn_like(x))
    recording.replay()
    assert relative_error(y, convolution(x) + x) < 1e-6


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("h", "w", "c"), [(2, 2, 16), (5, 7, 32), (4, 6, 20)])
def test_corners_stand_side_by_side(lanes: int, h: int, w: int, c: int, monkeypatch) -> None:
    monkeypatch.setattr(machine_cpu, "lanes", lambda: lanes)
    x = torch.randn(2, h, w, 2 * c)[..., c:]
    places = [(i, j) for i in range(h // 2) for j in range(w // 2)]
    found = [
        torch.cat([x[:, 2 * i + down, 2 * j + right] for right in (0, 1) for down in (0, 1)], -1) for i, j in places
    ]
    expected = torch.stack(found, 1).view(2, h // 2, w // 2, 4 * c)
    assert torch.equal(corners(x), expected)
    with use_backend("torch"):
        assert torch.equal(corners(x), expected)
    assert corners(x[:, :1]).shape == (2, 0, w // 2, 4 * c)


@pytest.mark.parametrize("way", ["pool", "one thread", "the other entry"])
def test_a_recording_is_replayed_alike_by_every_kind_of_thread(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if way == "one thread" else 2)
    try:
        fast, images = trained().for_prediction(), torch.randn(3, 1, 3, 32, 32)
        expected = [fast(image) for image in images]
        came: list[int] = []

        def number(identity: int, me: int) -> None:
            came.append(me)

        barrier = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)(number)

        def by_the_other_entry(entries: threads_cpu.Entries, table: int, count: int) -> None:
            me = ctypes.c_int32(7)
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(entries.kmp)(
                ctypes.addressof(me), None, table
            )

        teams = {
            "pool": threads_cpu._pool(),
            "the other entry": threads_cpu.Team(
                by_the_other_entry, ctypes.cast(barrier, ctypes.c_void_p).value or 0, 1
            ),
        }
        if way in teams:
            monkeypatch.setattr(threads_cpu, "_team", lambda: teams[way])
        for _ in range(2):
            assert all(torch.equal(fast(image), each) for image, each in zip(images, expected, strict=True))
        assert set(came) == ({7} if way == "the other entry" else set())
    finally:
        torch.set_num_threads(before)
