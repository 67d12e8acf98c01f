"""Every operator refuses the same bad arguments, and the error names the one to change."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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

# For each operator its tensors by name: maps of 2 x 5 positions and 3 channels, 2 states, rank 1.
OPERATORS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "selective_scan": (
        selective_scan,
        {
            "u": (2, 3, 5), "delta": (2, 3, 5), "A": (3, 2), "B": (2, 2, 5), "C": (2, 2, 5), "D": (3,),
            "z": (2, 3, 5), "delta_bias": (3,), "initial_state": (2, 3, 2),
        },
    ),
    "selective_scan_2d": (
        selective_scan_2d,
        {
            "x": (1, 2, 5, 3), "x_dbl": (1, 2, 5, 4, 5), "dt_weight": (4, 3, 1), "dt_bias": (4, 3), "A": (4, 3, 2),
            "D": (4, 3),
        },
    ),
    "squeeze_excite": (squeeze_excite, {"x": (1, 2, 5, 3), "squeeze": (4, 3), "excite": (3, 4)}),
    "gated_norm": (gated_norm, {"y": (1, 2, 5, 3), "z": (1, 2, 5, 3), "weight": (3,), "bias": (3,)}),
    "depthwise_silu": (depthwise_silu, {"x": (1, 2, 5, 3), "weight": (3, 1, 3, 3), "bias": (3,)}),
    "causal_conv1d": (causal_conv1d, {"x": (2, 3, 5), "weight": (3, 4), "bias": (3,), "initial_states": (2, 3, 3)}),
}  # fmt: skip  # a table
OPTIONAL = {
    "selective_scan": {"D", "z", "delta_bias", "initial_state"},
    "causal_conv1d": {"bias", "initial_states"},
}
EVERY = [(operator, name) for operator, (_, shapes) in OPERATORS.items() for name in shapes]


def arguments(operator: str) -> dict[str, Any]:
    return {name: torch.rand(shape) for name, shape in OPERATORS[operator][1].items()}


def refusal(operator: str, kind: type[Exception] = ValueError, **wrong: Any) -> str:
    """The message of the error that an operator raises for one wrong argument."""
    with pytest.raises(kind) as raised:
        OPERATORS[operator][0](**arguments(operator) | wrong)
    return str(raised.value)


@pytest.mark.parametrize(("operator", "name"), EVERY)
def test_what_is_no_tensor_is_refused_by_name(operator: str, name: str) -> None:
    shape = OPERATORS[operator][1][name]
    kinds: list[tuple[Any, str]] = [(np.zeros(shape), "a numpy.ndarray"), (1.0, "a float"), ([1.0], "a list")]
    if name not in OPTIONAL.get(operator, set()):
        kinds.append((None, "None"))
    for value, kind in kinds:
        message = refusal(operator, TypeError, **{name: value})
        assert message.startswith(f"{name} is {kind}; it must be a torch.Tensor")
    assert f"give torch.as_tensor({name})" in refusal(operator, TypeError, **{name: np.zeros(shape)})


@pytest.mark.parametrize(("operator", "name"), EVERY)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_dtype_that_no_operator_computes_with_is_refused_by_name(
    operator: str, name: str, dtype: torch.dtype
) -> None:
    message = refusal(operator, **{name: torch.zeros(OPERATORS[operator][1][name]).to(dtype)})
    assert message == f"{name} has dtype {dtype}; it must be float32, bfloat16, float16 or float64"


@pytest.mark.parametrize(("operator", "name"), EVERY)
def test_a_complex_a_sparse_and_a_far_tensor_is_refused_by_name(operator: str, name: str) -> None:
    t = torch.ones(OPERATORS[operator][1][name])
    assert refusal(operator, **{name: t.to(torch.complex64)}) == f"{name} is complex; only a real {name} is supported"
    assert refusal(operator, **{name: t.to_sparse()}).startswith(
        f"{name} has layout torch.sparse_coo; it must be dense"
    )
    first = next(iter(OPERATORS[operator][1]))
    if name != first:
        assert (
            refusal(operator, **{name: t.to("meta")}) == f"{name} is on meta, but {first} is on cpu; move one of them"
        )


@pytest.mark.parametrize(("operator", "name"), EVERY)
def test_another_number_of_axes_is_refused_by_name_and_the_axes_are_said(operator: str, name: str) -> None:
    message = refusal(operator, **{name: torch.rand(OPERATORS[operator][1][name])[None, None]})
    assert re.match(rf"{name} has shape \(1, 1, .*\); it must be \(.*(channels|state|hidden|rank).*\)", message)


@pytest.mark.parametrize(
    ("operator", "wrong", "message"),
    [
        (
            "selective_scan",
            {"delta": (2, 3, 6)},
            "delta has shape (2, 3, 6); it must be (batch, channels, length) with length 5, as u has: (2, 3, 5), "
            "(batch, channels, length)",
        ),
        (
            "squeeze_excite",
            {"squeeze": (4, 7)},
            "squeeze has shape (4, 7); it must be (hidden, channels) with channels 3, as x has: (1, 2, 5, 3), "
            "(batch, height, width, channels)",
        ),
        ("depthwise_silu", {"weight": (3, 1, 5, 5)}, "weight has shape (3, 1, 5, 5); it must be (channels, 1, 3, 3)"),
        (
            "selective_scan_2d",
            {"x_dbl": (1, 2, 5, 4, 6)},
            "x_dbl has shape (1, 2, 5, 4, 6); it must have rank + 2 state = 5 columns, with dt_weight "
            "(4, 3, 1) and A (4, 3, 2)",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_told_with_the_tensor_that_it_must_fit(
    operator: str, wrong: dict[str, tuple[int, ...]], message: str
) -> None:
    assert refusal(operator, **{name: torch.rand(shape) for name, shape in wrong.items()}) == message


def test_a_sequence_with_channels_last_is_itself_named_not_a_weight() -> None:
    late = {name: torch.rand(2, 5, 3) for name in ("u", "delta", "z")}
    assert refusal("selective_scan", **late) == (
        "u has shape (2, 5, 3); it must be (batch, channels, length), and A (3, 2), (channels, state), has 3 channels: "
        "if u is (batch, length, channels), give u.transpose(1, 2)"
    )


@pytest.mark.parametrize(
    ("operator", "weight"),
    [("selective_scan_2d", "A"), ("squeeze_excite", "squeeze"), ("gated_norm", "weight"), ("depthwise_silu", "weight")],
)
def test_a_map_with_channels_first_is_itself_named_not_a_weight(operator: str, weight: str) -> None:
    given = arguments(operator)
    maps = {name: t.permute(0, 3, 1, 2) for name, t in given.items() if t.dim() == 4 and t.shape[0] == 1}
    name = next(iter(maps))
    message = refusal(operator, **maps)
    assert message.startswith(
        f"{name} has shape (1, 3, 2, 5); it must be (batch, height, width, channels), and {weight} "
    )
    assert message.endswith(
        f"has 3 channels: if {name} is (batch, channels, height, width), give {name}.permute(0, 2, 3, 1)"
    )


def test_one_weight_that_does_not_fit_is_named_though_a_map_has_an_axis_of_its_size() -> None:
    assert refusal("squeeze_excite", squeeze=torch.rand(4, 2)).startswith("squeeze has shape (4, 2)")
    assert refusal("gated_norm", bias=torch.rand(2)).startswith("bias has shape (2,); it must be (channels,)")


def test_the_module_of_a_gate_names_a_map_with_channels_first() -> None:
    with pytest.raises(ValueError, match=r"^x has shape \(1, 16, 2, 5\).*give x\.permute\(0, 2, 3, 1\)"):
        SqueezeExcite(16)(torch.rand(1, 16, 2, 5))


@pytest.mark.parametrize("operator", ["selective_scan", "selective_scan_2d"])
@pytest.mark.parametrize("value", [torch.int32, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_a_result_in_a_dtype_that_no_scan_computes_with_is_refused(
    operator: str, value: torch.dtype, backend: str
) -> None:
    assert (
        refusal(operator, out_dtype=value, backend=backend)
        == f"out_dtype is {value}; it must be float32, bfloat16, float16 or float64"
    )


def test_a_dtype_in_words_is_refused() -> None:
    assert refusal("selective_scan_2d", TypeError, out_dtype="float32").startswith(
        "out_dtype is 'float32'; it must be a torch.dtype"
    )


@pytest.mark.parametrize("module", [SelectiveScan, SqueezeExcite])
def test_a_module_refuses_a_dtype_that_no_operator_computes_with(module: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^dtype is torch\.int32; it must be float32"):
        module(8, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"^x is a numpy\.ndarray"):
        module(8)(np.zeros((1, 2, 8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_gradient_has_the_dtype_of_its_argument_and_the_first_tensor_decides_the_results(
    dtype: torch.dtype,
) -> None:
    for operator, (function, shapes) in OPERATORS.items():
        given = arguments(operator)
        decides = "z" if operator == "gated_norm" else next(iter(shapes))
        for other in (torch.float32, torch.float16, torch.float64):
            keep = {"y"} if operator == "gated_norm" else set()  # float32 or z's
            mixed: dict[str, Tensor] = {
                name: t.to(dtype if name == decides else torch.float32 if name in keep else other).requires_grad_()
                for name, t in given.items()
            }
            y = function(**mixed)
            assert y.dtype == dtype, (operator, other)
            gradients = torch.autograd.grad(y.float().sum(), list(mixed.values()))
            for (name, t), gradient in zip(mixed.items(), gradients, strict=True):
                assert gradient.dtype == t.dtype, (operator, name, other)
