"""The table of operators that the generic tests walk, with sample arguments, and what those tests
share.

A new operator is one row of OPERATORS, and its block sizes are lines of ``boundaries.py``. Then it
is held to its definition on every backend, compiled, exported, checked by torch, batched,
differentiated by torch.func, checkpointed and faked.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from conftest import engine_device
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import medmambase_kernels
from medmambase import MedMambaSE, ModelConfig
from medmambase_kernels import (
    SelectiveScan,
    SqueezeExcite,
    causal_conv1d,
    depthwise_silu,
    gated_norm,
    selective_scan,
    selective_scan_2d,
    squeeze_excite,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def bare(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str | None = None) -> Tensor:
    y = selective_scan(u, delta, A, B, C, backend=backend)
    assert isinstance(y, Tensor)
    return y


def everything(u, delta, A, B, C, D, z, delta_bias, initial_state, *, backend: str | None = None) -> Tensor:
    """Both outputs in one tensor."""
    y, last = selective_scan(
        u, delta, A, B, C, D, z, delta_bias, True, True, initial_state=initial_state, backend=backend
    )
    return torch.cat([y.flatten(1), last.to(y.dtype).flatten(1)], 1)


def last_state(u, delta, A, B, C, D, z, delta_bias, initial_state, *, backend: str | None = None) -> Tensor:
    return selective_scan(
        u, delta, A, B, C, D, z, delta_bias, True, True, initial_state=initial_state, backend=backend
    )[1]


def causal(x, weight, bias, initial_states, *, backend: str | None = None) -> Tensor:
    """Both outputs in one tensor."""
    y, last = causal_conv1d(x, weight, bias, initial_states, "silu", True, backend=backend)
    return torch.cat([y, last], 2)


def four_directions(*tensors: Tensor, backend: str | None = None) -> Tensor:
    """In float32 whatever x is, as the network asks for it."""
    return selective_scan_2d(*tensors, out_dtype=torch.float32, backend=backend)


def by_logarithm(*tensors: Tensor, backend: str | None = None) -> Tensor:
    return selective_scan_2d(*tensors, log_A=True, backend=backend)


def one_group(b: int, l: int, d: int = 4, n: int = 3) -> list[Tensor]:
    return [torch.randn(b, d, l), torch.rand(b, d, l), -torch.rand(d, n), torch.randn(b, n, l), torch.randn(b, n, l)]


def constants(b: int, l: int, d: int = 4, n: int = 3) -> list[Tensor]:
    return [torch.randn(b, d, l), torch.rand(b, d, l), -torch.rand(d, n), torch.randn(d, n), torch.randn(d, n)]


def groups_and_all(b: int, l: int, d: int = 4, n: int = 3, g: int = 2) -> list[Tensor]:
    rows = [torch.randn(b, g, n, l) for _ in range(2)]
    return [
        torch.randn(b, d, l),
        torch.randn(b, d, l),
        -torch.rand(d, n),
        *rows,
        torch.randn(d),
        torch.randn(b, d, l),
        torch.randn(d),
        torch.randn(b, d, n),
    ]


def image(b: int, l: int, w: int = 2, d: int = 4, n: int = 3, r: int = 1) -> list[Tensor]:
    return [
        torch.randn(b, l, w, d),
        torch.randn(b, l, w, 4, r + 2 * n),
        torch.randn(4, d, r),
        torch.randn(4, d),
        -torch.rand(4, d, n),
        torch.randn(4, d),
    ]


def gate(b: int, l: int, w: int = 2, c: int = 6, hidden: int = 3) -> list[Tensor]:
    return [torch.randn(b, l, w, c), torch.randn(hidden, c), torch.randn(c, hidden)]


def norm(b: int, l: int, w: int = 2, d: int = 16) -> list[Tensor]:
    return [torch.randn(b, l, w, d), torch.randn(b, l, w, d), torch.randn(d), torch.randn(d)]


def convolution(b: int, l: int, w: int = 2, d: int = 16) -> list[Tensor]:
    return [torch.randn(b, l, w, d), torch.randn(d, 1, 3, 3), torch.randn(d)]


def sequence(b: int, l: int, d: int = 3, taps: int = 4) -> list[Tensor]:
    return [torch.randn(b, d, l), torch.randn(d, taps), torch.randn(d), torch.randn(b, d, taps - 1)]


def odd_norm(b: int, l: int) -> list[Tensor]:
    return norm(b, l, d=6)


def odd_convolution(b: int, l: int) -> list[Tensor]:
    return convolution(b, l, d=6)


def wide_gate(b: int, l: int) -> list[Tensor]:
    return gate(b, l, c=16)


def shuffled_gate(b: int, l: int, c: int = 6) -> list[Tensor]:
    tensors = gate(b, l, c=c)
    return [*tensors, torch.randn_like(tensors[0])]


def wide_shuffled_gate(b: int, l: int) -> list[Tensor]:
    return shuffled_gate(b, l, c=16)


def halves_gate(b: int, l: int, c: int = 6) -> list[Tensor]:
    x, *weights = gate(b, l, c=c)
    first, second = (half.contiguous() for half in x.chunk(2, -1))
    return [first, *weights, torch.randn_like(x), second, torch.rand(b)]


def wide_halves_gate(b: int, l: int) -> list[Tensor]:
    return halves_gate(b, l, c=32)


def halves(*tensors: Tensor, backend: str | None = None) -> Tensor:
    *others, factor = tensors
    return squeeze_excite(*others, factor.detach(), backend=backend)


@dataclass(frozen=True)
class Sample:
    """One way to call an operator.

    name: the operator's, in ``medmambase_kernels`` and in ``reference``. function: takes the
    tensors and ``backend=``, returns one tensor. tensors: makes them for a batch and a length; all
    of them are differentiable. factor: of the tolerance, where the formula amplifies roundings.
    """

    name: str
    function: Callable[..., Tensor]
    tensors: Callable[[int, int], list[Tensor]]
    factor: float = 1.0


# Widths of 16 are a multiple of every processor's lanes; others take a way of their own there.
OPERATORS = {
    "scan": Sample("selective_scan", bare, one_group),
    "scan with constant B and C": Sample("selective_scan", bare, constants),
    "scan with all arguments": Sample("selective_scan", everything, groups_and_all),
    "last state alone": Sample("selective_scan", last_state, groups_and_all),
    "four directions": Sample("selective_scan_2d", four_directions, image),
    "four directions, A by its logarithm": Sample("selective_scan_2d", by_logarithm, image),
    "gate": Sample("squeeze_excite", squeeze_excite, gate),
    "gate in lanes": Sample("squeeze_excite", squeeze_excite, wide_gate),
    "gate, shuffle and residual": Sample("squeeze_excite", squeeze_excite, shuffled_gate),
    "gate, shuffle and residual in lanes": Sample("squeeze_excite", squeeze_excite, wide_shuffled_gate),
    "gate of two halves": Sample("squeeze_excite", halves, halves_gate),
    "gate of two halves in lanes": Sample("squeeze_excite", halves, wide_halves_gate),
    "norm": Sample("gated_norm", gated_norm, odd_norm, 4.0),
    "norm in lanes": Sample("gated_norm", gated_norm, norm, 4.0),
    "convolution": Sample("depthwise_silu", depthwise_silu, odd_convolution),
    "convolution in lanes": Sample("depthwise_silu", depthwise_silu, convolution),
    "causal convolution": Sample("causal_conv1d", causal, sequence),
}


def registered() -> list[str]:
    """The public names of the kernels that are custom operators of torch."""
    return [name for name in medmambase_kernels.__all__ if hasattr(torch.ops.medmambase, name)]


every_operator = pytest.mark.parametrize("operator", OPERATORS)
# Each with its input's shape; all but the batch of the network's may vary when exported.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "SelectiveScan": (lambda: SelectiveScan(8, state=3, bidirectional=True), (5, 21, 8), (0, 1)),
    "SqueezeExcite": (lambda: SqueezeExcite(8), (5, 7, 3, 8), (0, 1)),
    "MedMambaSE": (lambda: MedMambaSE(ModelConfig(depths=(1,), dims=(8,), state=2)).eval(), (5, 3, 20, 12), (0,)),
}
every_module = pytest.mark.parametrize("name", MODULES)


def strided(t: Tensor) -> Tensor:
    """The same numbers with the last axis outermost in memory."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def leaves_of(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def outputs_and_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output and, for the sum of its squares, every gradient: zero where there is none."""
    leaves = leaves_of(tensors)
    y = function(*leaves)
    y.float().square().sum().backward()
    return [y.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in leaves)]


def module_results(module: Callable[[Tensor], Tensor], owner: nn.Module, x: Tensor) -> list[Tensor]:
    parameters = list(owner.parameters())
    x = x.detach().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one, other), f"result {index} differs"


class Recorder(TorchDispatchMode):
    """Keeps the calls of our operators and their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple[object, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "medmambase":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def recorded_calls(
    operator: str, layout: Callable[[Tensor], Tensor], dtype: torch.dtype, engine: str, length: int = 18
):
    """The forward and the backward call, with the arguments as they arrive at the operator."""
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = [layout(t.to(engine_device(engine), dtype)) for t in arguments(2, length)]
    with Recorder() as recorder:
        y = function(*leaves_of(tensors), backend=engine)
        y.backward(layout(torch.randn_like(y)))
    (forward, forward_args), (backward, backward_args) = (
        (call, tree_map_only(Tensor, Tensor.detach, args)) for call, args in recorder.calls
    )
    return (forward, tree_map_only(Tensor, Tensor.requires_grad_, forward_args)), (
        backward,
        backward_args,
    )  # which has no derivative
