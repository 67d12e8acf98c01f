"""Predictions by CUDA graphs, without a GPU: which inputs have one, and that none is used that is
not exact. A function stands for the graph."""

import io
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from medmambase import MedMambaSE, ModelConfig, use_backend
from medmambase.model import captures, frozen
from medmambase.model.captures import GraphCaptures, can_be_graphed


class Standing:
    """Stands for CUDA graphs: a replay computes anew what was captured."""

    def __init__(self, off_by: float = 0.0) -> None:
        self.captured, self.replays, self.off_by = 0, 0, off_by

    def capture(self, compute: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        self.captured += 1
        found = [torch.full_like(t, torch.nan) for t in compute()]

        def replay() -> None:
            self.replays += 1
            for mine, new in zip(found, compute(), strict=True):
                mine.copy_(new + self.off_by)

        return replay, found


def two_maps(patches: Tensor) -> list[Tensor]:
    return [patches * 2, patches.sum(-1)]


def test_an_input_is_captured_when_it_is_met_again_and_each_result_is_its_own() -> None:
    standing = Standing()
    graphs = GraphCaptures(lambda device: standing)
    inputs, found = torch.randn(6, 1, 4, 4, 8), []
    for patches in inputs:
        found.append(graphs(two_maps, patches, last=False))
    assert standing.captured == 1 and standing.replays == 6  # the first came without, the second was tried first
    for patches, maps in zip(inputs, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(maps, two_maps(patches), strict=True))
    last = graphs(two_maps, inputs[0], last=True)
    assert len(last) == 1 and torch.equal(last[0], two_maps(inputs[0])[1])


def test_shape_dtype_autocast_and_backend_have_a_graph_each_and_there_are_four_at_most() -> None:
    standing = Standing()
    graphs = GraphCaptures(lambda device: standing)
    x = torch.randn(2, 4, 4, 8)
    kinds = [x, x[:1], x.double(), x[:, :2], x[:, :3]]
    for patches in kinds * 3:
        assert torch.equal(graphs(two_maps, patches, last=False)[0], patches * 2)
    assert standing.captured == len(graphs) == 4
    graphs = GraphCaptures(lambda device: standing)
    for dtype in (None, torch.bfloat16) * 2:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            graphs(lambda t: [t @ t.mT], x, last=False)
    assert len(graphs) == 2
    for _ in range(2):
        with use_backend("torch"):
            graphs(two_maps, x, last=False)
    assert len(graphs) == 3
    assert len(deepcopy(graphs)) == 0


def test_results_can_be_learned_from_and_memory_is_kept_across_inference_mode() -> None:
    graphs, x = GraphCaptures(lambda device: Standing()), torch.randn(1, 4, 4, 8)
    with torch.inference_mode():
        for _ in range(2):
            graphs(two_maps, x, last=False)
    assert len(graphs) == 1
    weight = torch.ones(8, requires_grad=True)
    (graphs(two_maps, x + 1, last=False)[0] * weight).sum().backward()
    assert weight.grad is not None and torch.allclose(weight.grad, (2 * (x + 1)).sum((0, 1, 2)))


def refusing(device: torch.device) -> Any:
    raise RuntimeError("CUDA out of memory\nmore")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda device: Standing(off_by=1e-6), "a replay differs from the computation"),
        (refusing, "CUDA out of memory$"),
    ],
)
def test_a_graph_that_is_not_exact_is_not_used_and_is_told_once(make: Callable[..., Any], why: str) -> None:
    graphs, x = GraphCaptures(make), torch.randn(1, 4, 4, 8)
    assert torch.equal(graphs(two_maps, x, last=False)[0], x * 2)
    with pytest.warns(RuntimeWarning, match=f"predictions go on without CUDA graphs: {why}"):
        assert torch.equal(graphs(two_maps, x, last=False)[0], x * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for patches in (x, x, x[:, :2], x[:, :2]):
            assert torch.equal(graphs(two_maps, patches, last=False)[0], patches * 2)
    assert not len(graphs)


@pytest.mark.parametrize("features_only", [False, True])
def test_a_network_predicts_by_its_graphs_and_forgets_them_when_it_moves(
    features_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MedMambaSE(ModelConfig(num_classes=3, depths=(1, 1), dims=(16, 32)), features_only=features_only).eval()
    fast, images = network.for_prediction(), torch.randn(4, 2, 3, 16, 16)
    expected = [fast(image) for image in images]
    monkeypatch.setattr(frozen, "can_be_graphed", lambda network, image: True)
    fast._graphs = GraphCaptures(lambda device: Standing())
    for image, wanted in zip(images, expected, strict=True):
        found = fast(image)
        assert all(map(torch.equal, found, wanted) if features_only else [torch.equal(found, wanted)])
    assert len(fast._graphs) == 1
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    assert not len(torch.load(file, weights_only=False)._graphs)
    assert not len(deepcopy(fast)._graphs) and not len(fast.double()._graphs)


def test_only_inputs_on_a_gpu_that_nobody_watches_have_graphs() -> None:
    network = MedMambaSE(ModelConfig(num_classes=3, depths=(1,), dims=(16,)))
    assert not can_be_graphed(network, torch.zeros(1, 3, 16, 16))
    assert captures._small(network, torch.zeros(1, 3, 16, 16))
    assert not captures._small(network, torch.zeros(0, 3, 16, 16))
    assert not captures._small(network, torch.zeros(1, 3, 1024, 1024))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_predictions_by_graphs_are_those_without() -> None:
    network = MedMambaSE(ModelConfig(num_classes=3, depths=(1, 1), dims=(32, 64))).cuda().eval()
    fast, images = network.for_prediction(), torch.randn(5, 2, 3, 32, 32, device="cuda")
    plain = network.for_prediction()
    plain._graphs._refused = True
    assert all(torch.equal(fast(image), plain(image)) for image in images)
    assert len(fast._graphs) == 1 and not len(plain._graphs)
