"""Every axis of every tensor of every public function is refused where its size does not fit, also
1, which PyTorch would stretch in silence."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import medmambase_kernels as kernels
from medmambase_kernels import FrozenConv2d, FrozenLayerNorm, Mamba, SelectiveScan, SqueezeExcite
from medmambase_kernels._drop_in import blocks, convolutions, gated_norms, interface, norms, scan_extensions
from medmambase_kernels._mamba import inner

Function = Callable[..., Any]
SCAN = "u:bdl delta:bdl A:dn B:bgnl C:bgnl D:d"
BLOCK = (
    "xz:bel= conv1d_weight:d1k conv1d_bias:d x_proj_weight:pd= delta_proj_weight:dr out_proj_weight:od out_proj_bias:o"
)
SIZES = dict(zip("bdlnghwkrteop", (2, 6, 5, 3, 2, 4, 7, 4, 1, 3, 12, 8, 7), strict=True))  # of each axis below
# For each function, which axes its tensors have. Those that "=" follows fit into no other number,
# although no second tensor has them: e is 2d and p is r + 2n.
TENSORS: dict[str, tuple[Function, str]] = {
    "selective_scan": (kernels.selective_scan, f"{SCAN} z:bdl delta_bias:d initial_state:bdn"),
    "selective_scan_2d": (kernels.selective_scan_2d, "x:bhwd x_dbl:bhwkp= dt_weight:kdr dt_bias:kd A:kdn D:kd"),
    "squeeze_excite": (kernels.squeeze_excite, "x:bhwt second:bhwt residual:bhwd squeeze:od excite:do factor:b"),
    "gated_norm": (kernels.gated_norm, "y:bhwd z:bhwd weight:d bias:d"),
    "depthwise_silu": (kernels.depthwise_silu, "x:bhwd weight:d1tt bias:d"),
    "causal_conv1d": (kernels.causal_conv1d, "x:bdl weight:dk bias:d initial_states:bdt"),
    "selective_state_update": (
        kernels.selective_state_update,
        "state:bdn x:bd delta:bd A:dn B:bgn C:bgn D:d z:bd delta_bias:d",
    ),
    "FrozenConv2d": (
        lambda bias, weight, x, add, out: FrozenConv2d(weight, bias)(x, add, out),
        "weight:od11 bias:o x:bhwd add:bhwo out:bhwo",
    ),
    "FrozenLayerNorm": (lambda x: FrozenLayerNorm(nn.LayerNorm(6))(x), "x:bhwd="),
    "SelectiveScan": (lambda x: SelectiveScan(6)(x), "x:bld="),
    "SqueezeExcite": (lambda x: SqueezeExcite(6)(x), "x:bhwd="),
    "SqueezeExcite.gate": (lambda x: SqueezeExcite(6).gate(x), "x:bhwd="),
    "Mamba": (lambda hidden_states: Mamba(6)(hidden_states), "hidden_states:bld="),
    "Mamba.step": (
        lambda **given: Mamba(6, d_state=3).step(**given),
        "hidden_states:b1d= conv_state:bek= ssm_state:ben=",
    ),
    "selective_scan_fn": (interface.selective_scan_fn, f"{SCAN} z:bdl"),
    "selective_scan_ref": (interface.selective_scan_ref, f"{SCAN} z:bdl"),
    "fwd": (lambda **given: scan_extensions.fwd(**given, delta_bias=None, delta_softplus=True), f"{SCAN} z:bdl"),
    "bwd": (
        lambda **given: scan_extensions.bwd(
            **given, delta_bias=None, x=None, delta_softplus=True, recompute_out_z=False
        ),
        f"{SCAN} z:bdl dout:bdl out:bdl dz:bdl",
    ),
    "core_fwd": (scan_extensions.core_fwd, SCAN),
    "core_bwd": (lambda **given: scan_extensions.core_bwd(**given, x=None), f"{SCAN} delta_bias:d dout:bdl"),
    "oflex_fwd": (scan_extensions.oflex_fwd, f"{SCAN} delta_bias:d"),
    "mamba_inner_fn": (
        inner.mamba_inner_fn,
        f"{BLOCK} A:dn D:d delta_bias:d B_proj_bias:n C_proj_bias:n b_rms_weight:n c_rms_weight:n dt_rms_weight:d",
    ),
    "bimamba_inner_fn": (
        inner.bimamba_inner_fn,
        f"{BLOCK} A:dn A_b:dn D:d delta_bias:d B_proj_bias:n C_proj_bias:n",
    ),
    "causal_conv1d_fn": (
        lambda **given: convolutions.causal_conv1d_fn(**given, return_final_states=True),
        "x:bdl weight:dk bias:d initial_states:bdt final_states_out:bdt",
    ),
    "causal_conv1d_update": (convolutions.causal_conv1d_update, "x:bd conv_state:bdk weight:dk bias:d"),
    "causal_conv1d_bwd": (
        lambda x, weight, bias, dout: convolutions.causal_conv1d_bwd(x, weight, bias, dout, True),
        "x:bdl weight:dk bias:d dout:bdl",
    ),
    "selective_state_update of heads": (
        blocks.selective_state_update,
        "state:bhdn x:bhd dt:bhd A:hdn B:bgn C:bgn D:hd z:bhd dt_bias:hd",
    ),
    "layer_norm_fn": (norms.layer_norm_fn, "x:bld weight:d bias:d residual:bld x1:bld weight1:d bias1:d"),
    "rms_norm_fn": (norms.rms_norm_fn, "x:bld weight:d bias:d residual:bld rowscale:bl"),
    "layernorm_fn": (gated_norms.layernorm_fn, "x:bld weight:d bias:d z:bld"),
}
FITS = {  # what is taken all the same: by numpy's rule none, each by what its docstring says
    ("causal_conv1d_update", "conv_state", 2, 5),  # longer than the taps
    ("causal_conv1d_update", "weight", 1, 1),
    ("causal_conv1d_update", "weight", 1, 5),
    ("mamba_inner_fn", "x_proj_weight", 0, 8),  # a projection of more than is read
    ("bimamba_inner_fn", "x_proj_weight", 0, 8),
}


def tensors(function: str) -> dict[str, tuple[str, bool]]:
    """The axes of each tensor, and whether all are fixed."""
    return {
        name: (axes.rstrip("="), axes.endswith("="))
        for name, axes in (each.split(":") for each in TENSORS[function][1].split())
    }


def shape(axes: str) -> list[int]:
    return [int(axis) if axis.isdigit() else SIZES[axis] for axis in axes]


def wrong_shapes(function: str) -> Iterator[tuple[str, int, int]]:
    """Each tensor with an axis and a size that does not fit: one more, and one, which PyTorch would
    stretch in silence."""
    given = tensors(function)
    often = "".join(axes for axes, _ in given.values())
    for name, (axes, fixed) in given.items():
        for i, axis in enumerate(axes):
            size = shape(axes)[i]
            free = often.count(axis) == 1 and axis not in "ep" and not (fixed and axis == "d")
            for other in {1, size + 1} - {size}:
                if not free and (function, name, i, other) not in FITS:
                    yield name, i, other


@pytest.mark.parametrize("function", TENSORS)
def test_every_axis_of_every_tensor_is_refused_where_its_size_does_not_fit(function: str) -> None:
    given = {name: torch.rand(shape(axes)) for name, (axes, _) in tensors(function).items()}
    call = TENSORS[function][0]
    call(**{name: t.clone() for name, t in given.items()})  # which fits
    for name, i, size in wrong_shapes(function):
        wrong = shape(tensors(function)[name][0])
        wrong[i] = size
        with pytest.raises(ValueError) as raised:
            call(**given | {name: torch.rand(wrong)})
            pytest.fail(f"{function} takes {name} of shape {wrong}")
        message = str(raised.value)
        assert re.search(r"\w+( has shape)? \([\d, ]+\)", message), (name, wrong, message)
