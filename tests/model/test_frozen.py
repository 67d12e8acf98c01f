"""Networks that only predict: a plan of the same boxes, with the same logits, whose small images
are captured and replayed."""

import ctypes
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import HAS_TRITON, engine_device, relative_error
from torch import nn

from medmambase import MedMambaSE, ModelConfig, use_backend
from medmambase.model import layers
from medmambase.model.weights import WeightsError
from medmambase_kernels._cpu import openmp as threads_cpu


def trained(block: str = "medmambase", dims: tuple[int, ...] = (64, 128), odd: str = "pad") -> MedMambaSE:
    network = MedMambaSE(ModelConfig(num_classes=3, block=block, depths=(1, 2)[: len(dims)], dims=dims, odd=odd))
    for _ in range(3):
        network(2 * torch.randn(4, 3, 24, 24) + 1)  # so that no BatchNorm is the identity
    return network.eval()


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
    assert len(fast._captures)  # it was not the slow way that was right


def test_what_a_gpu_computes_in_fewer_launches_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    joint: list[torch.Size] = []

    def convolve(x, weight, bias, stride, padding, dilation, groups):
        joint.append(x.shape)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    network = trained().double()
    monkeypatch.setattr("medmambase.model.frozen._apart", lambda x: True)
    monkeypatch.setattr("medmambase_kernels.inference._cudnn", lambda x: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolve)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert relative_error(network.for_prediction()(image), network(image)) < 1e-10
    assert len(joint) == 6  # two in each of three blocks


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_small_map_on_a_gpu_takes_its_norms_with_its_products(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmambase_kernels._triton import normed_product, selective_scan_2d

    ran: list[str] = []
    for module, name in ((normed_product, "halves"), (normed_product, "gated"), (selective_scan_2d, "parts")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, n=name, plain=plain: (ran.append(n), plain(*given))[1])
    monkeypatch.setattr("medmambase.model.frozen._apart", lambda x: True)
    network = trained(dims=(16,)).to(engine_device("triton"))
    image, fast = torch.randn(1, 3, 4, 8).to(engine_device("triton")), network.for_prediction()
    with use_backend("torch"), torch.no_grad():
        expected = network(image)
    with use_backend("triton"), torch.autocast(image.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        assert relative_error(fast(image), expected) < (1e-5 if dtype is None else 0.05)
        assert ran == (["halves", "parts", "gated"] if dtype is None else ["halves", "gated"])
        ran.clear()
        monkeypatch.setattr(normed_product, "_MOST", 0)
        assert relative_error(fast(image), expected) < (1e-5 if dtype is None else 0.05)
        assert not ran


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


def test_other_ways_to_predict_go_on_without_a_capture() -> None:
    network = trained()
    fast, image = network.for_prediction(), torch.randn(1, 3, 32, 32)
    expected = network(image)
    with use_backend("torch"):
        assert relative_error(fast(image), expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(fast(image), expected) < 0.1
    assert relative_error(fast(torch.randn(40, 3, 128, 128))[:1], expected) > 0
    assert not len(fast._captures)
    assert relative_error(deepcopy(fast).double()(image.double()), expected) < 1e-5


def test_a_copy_has_captures_of_its_own_and_old_sizes_are_forgotten() -> None:
    fast = trained(dims=(64,)).for_prediction()
    for size in (8, 12, 16, 20, 24, 28):
        fast(torch.randn(1, 3, size, size))
    assert len(fast._captures) == 4
    assert not len(deepcopy(fast)._captures)


@pytest.mark.parametrize("way", ["pool", "one thread", "the other entry"])
def test_a_capture_is_replayed_alike_by_every_kind_of_thread(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


@contextmanager
def calls(network: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are called, in order."""
    names: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: names.append(name))
        for name, module in network.named_modules()
    ]
    yield names
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("block", ["medmambase", "medmamba", "notebook", "medmamba_v0"])
def test_the_plan_has_the_boxes_of_the_network_in_the_same_order(block: str, captured: bool) -> None:
    network, image = trained(block), torch.randn(1, 3, 36, 36)
    fast = network.for_prediction()
    found = []
    for each in (network, fast):
        with calls(each) as names, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not captured):
            each(image)
        # There is dropout in training alone; in the plan the conv branch has other parts, and
        # SS2D one more.
        found.append([name for name in names if not re.search(r"drop|conv_branch\.|x_proj", name)])
    assert bool(len(fast._captures)) == captured
    assert found[0] == found[1]
    assert "stages.1.blocks.1.ssm_branch.out_proj" in found[0] and found[0][-1] == "head"


def test_the_layers_know_nothing_of_the_plan() -> None:
    assert not re.search(r"fr[eo]+z|predict|captur|record", Path(layers.__file__).read_text(encoding="utf-8"), re.I)


@pytest.mark.parametrize("block", ["medmambase", "notebook"])
def test_a_network_in_training_mode_stays_so_and_its_plan_predicts_as_it_will(block: str, tmp_path: Path) -> None:
    network, image = trained(block).train(), torch.randn(2, 3, 20, 28)
    fast = network.for_prediction()
    assert network.training and not any(module.training for module in fast.modules())
    assert all(p.requires_grad for p in network.parameters()) and not any(p.requires_grad for p in fast.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert relative_error(fast(image), network.eval()(image)) < 1e-5
    assert (fast.config, fast.classes, fast.preprocessing) == (network.config, network.classes, network.preprocessing)
    with pytest.raises(RuntimeError, match="cannot be trained; train the network it was made from"):
        fast.train()
    with pytest.raises(WeightsError, match="save the network it was made from"):
        fast.save(tmp_path)
    assert not fast.eval().training


def test_the_plan_has_memory_of_its_own() -> None:
    network, image = trained("notebook"), torch.randn(1, 3, 32, 32)
    fast = network.for_prediction()
    before = fast(image)
    with torch.no_grad():
        for t in (*network.parameters(), *network.buffers()):
            t.zero_()
    assert torch.equal(fast(image), before)
    assert torch.equal(deepcopy(fast)(image), before)


def test_a_plan_is_pickled_without_its_captures() -> None:
    fast, image, file = trained().for_prediction(), torch.randn(1, 3, 32, 32), io.BytesIO()
    before = fast(image)
    torch.save(fast, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert not len(again._captures)
    assert torch.equal(again(image), before)


def compile_and_export(block: str) -> None:
    fast, image = trained(block).for_prediction(), torch.randn(2, 3, 32, 32)
    expected = fast(image)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(image), expected) < 1e-5
    exported = torch.export.export(fast, (image,)).module()
    assert relative_error(exported(image), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("block", ["medmambase", "notebook"])
def test_a_plan_is_compiled_and_exported(block: str) -> None:
    # In a process of its own: the compiler keeps what it first saw as torch.empty_like, which may
    # be what poisons memory in tests.
    code = f"import test_frozen; test_frozen.compile_and_export({block!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_a_plan_in_another_precision_predicts_in_it(dtype: torch.dtype, most: float) -> None:
    network, image = trained(), torch.randn(2, 3, 36, 32)
    logits = network.for_prediction().to(dtype)(image.to(dtype))
    assert logits.dtype == dtype
    assert relative_error(logits, network(image)) < most
