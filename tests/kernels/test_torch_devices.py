"""The operators run where their tensors are: on no device at all, in a CUDA graph, on the second
GPU."""

import pytest
import torch
from operators import (
    DTYPES,
    OPERATORS,
    assert_same_bits,
    every_operator,
    leaves_of,
    outputs_and_gradients,
    recorded_calls,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from medmambase_kernels import backend


@every_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_meta_and_fake_tensors_have_the_results_shape_and_dtype(operator: str, dtype: torch.dtype) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = [t.to(dtype) for t in arguments(2, 20)]
    expected = outputs_and_gradients(function, tensors)
    with FakeTensorMode() as mode:
        fake = outputs_and_gradients(function, [mode.from_tensor(t) for t in tensors])
    for results in (fake, outputs_and_gradients(function, [t.to("meta") for t in tensors])):
        assert [(t.shape, t.dtype) for t in results] == [(t.shape, t.dtype) for t in expected]


@every_operator
def test_nothing_asks_for_a_tensors_values_on_the_host(operator: str) -> None:
    for call, recorded in recorded_calls(operator, torch.clone, torch.float32, "torch"):
        args = tree_map_only(Tensor, Tensor.detach, recorded[:-1])  # without the engine's name
        name, step = (
            call._opname.removesuffix("_backward"),
            "backward" if call._opname.endswith("_backward") else "forward",
        )
        with (
            FakeTensorMode() as mode
        ):  # has no values: an .item() or a branch on data raises, as it would break a CUDA graph
            backend.run(name, "torch", step, *tree_map_only(Tensor, mode.from_tensor, args))


def test_vector_code_refuses_tensors_without_memory() -> None:
    x = torch.ones(2, 3, 3, 32, device="meta")
    with pytest.raises(RuntimeError, match="has no memory to compute with"):
        backend.run(
            "squeeze_excite", "cpu", "forward", x, torch.ones(4, 32), torch.ones(32, 4), None, None, None, 1.0, False
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@every_operator
def test_a_training_step_can_be_captured_in_a_cuda_graph(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    static = leaves_of([t.cuda() for t in arguments(2, 100)])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(function(*static).square().sum(), static, allow_unused=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = function(*static)
        gradients = torch.autograd.grad(y.square().sum(), static, allow_unused=True, materialize_grads=True)
    fresh = [t.cuda() for t in arguments(2, 100)]
    with torch.no_grad():
        for t, value in zip(static, fresh, strict=True):
            t.copy_(value)
    graph.replay()
    assert_same_bits([y, *gradients], outputs_and_gradients(function, fresh))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA GPUs")
@every_operator
def test_an_operator_runs_on_the_gpu_of_its_tensors_not_on_the_current_one(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(2, 100)
    with torch.cuda.device(0):
        second = outputs_and_gradients(function, [t.to("cuda:1") for t in tensors])
        first = outputs_and_gradients(function, [t.to("cuda:0") for t in tensors])
    assert all(t.device.index == 1 for t in second)
    assert_same_bits([t.cpu() for t in second], [t.cpu() for t in first])
