"""Every argument of every public function and constructor is refused by its name: of another type,
zero, negative, a fraction or text.

The tables, that of ``test_refused_shapes`` included, are complete: an argument that they lack makes
a test red.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_refused_shapes import TENSORS, tensors
from torch import Tensor, nn

import medmambase_kernels as kernels
from medmambase_kernels import BackendError, FrozenConv2d, FrozenLayerNorm, Mamba, SelectiveScan, SqueezeExcite, drop_in
from medmambase_kernels._drop_in import gated_norms, interface, norms
from medmambase_kernels._drop_in.language_model import GatedMLP, MambaConfig, MambaLMHeadModel, MixerModel

Function = Callable[..., Any]
TEXT, NOTHING, LIST = "64", None, [4]
SIZE: list[Any] = [TEXT, 64.5, 8.0, 0, -1, True, NOTHING, LIST]
OR_NONE: list[Any] = [TEXT, 64.5, 8.0, 0, -1, True, LIST]
ABOVE_0: list[Any] = [TEXT, 0, -1, True, NOTHING, float("nan"), float("inf"), torch.tensor(1.0)]
LEAST_0: list[Any] = [TEXT, -1e-9, True, NOTHING, float("nan"), float("inf")]
FLAG: list[Any] = ["yes", 2, -1, 0.5, LIST]
BACKEND: list[Any] = ["nonsense", 3, LIST]
DEVICE: list[Any] = ["nonsense", 1.5, True, LIST]
NOT_THERE: list[Any] = ["mps:9", "cuda:77"]
DTYPE: list[Any] = ["float32", 3, torch.int32, torch.complex64]
MADE = {"device": [*DEVICE, *NOT_THERE], "dtype": DTYPE}
SCAN_FLAGS = {"delta_softplus": [*FLAG, NOTHING], "return_last_state": [*FLAG, NOTHING]}
# For each function what its arguments that are no tensors refuse.
OTHERS: dict[str, tuple[Function, dict[str, Any], dict[str, list[Any]]]] = {
    "SelectiveScan": (
        SelectiveScan,
        {"channels": 8},
        {
            "channels": SIZE,
            "state": SIZE,
            "rank": OR_NONE,
            "bidirectional": [*FLAG, NOTHING],
            "backend": BACKEND,
            "step_range": [TEXT, 0.1, NOTHING, (1, 2, 3), ("a", "b"), (0, 1), (2, 1), (0.1, float("nan"))],
            **MADE,
        },
    ),
    "SqueezeExcite": (
        SqueezeExcite,
        {"channels": 8},
        {"channels": SIZE, "reduction": SIZE, "hidden_min": SIZE, "scale": ABOVE_0, "backend": BACKEND, **MADE},
    ),
    "Mamba": (
        Mamba,
        {"d_model": 8, "bimamba_type": "v3"},
        {
            "d_model": SIZE,
            "d_state": SIZE,
            "d_conv": SIZE,
            "expand": [*ABOVE_0, 0.01],
            "dt_rank": SIZE,
            "dt_min": ABOVE_0,
            "dt_max": ABOVE_0,
            "dt_init": [TEXT, 1, NOTHING],
            "dt_scale": LEAST_0,
            "dt_init_floor": LEAST_0,
            "conv_bias": FLAG,
            "bias": FLAG,
            "use_fast_path": FLAG,
            "layer_idx": [TEXT, 1.5, -1, True],
            "bimamba_type": [TEXT, 1, NOTHING],
            "nslices": SIZE,
            "if_divide_out": FLAG,
            "init_layer_scale": [TEXT, True, float("nan")],
            **MADE,
        },
    ),
    "FrozenConv2d": (FrozenConv2d, {"weight": torch.ones(2, 2, 1, 1)}, {"relu": [*FLAG, NOTHING]}),
    "FrozenLayerNorm": (
        FrozenLayerNorm,
        {},
        {"norm": [TEXT, 3, NOTHING, nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False)]},
    ),
    "selective_scan": (
        kernels.selective_scan,
        {
            "u": torch.rand(1, 2, 5),
            "delta": torch.rand(1, 2, 5),
            "A": -torch.rand(2, 2),
            "B": torch.rand(2, 2),
            "C": torch.rand(2, 2),
        },
        {
            **SCAN_FLAGS,
            "starts": [TEXT, 3, torch.tensor([1]), [1.0], [True, 3], [5], [-1], [3, 2]],
            "out_dtype": DTYPE,
            "backend": BACKEND,
        },
    ),
    "selective_scan_2d": (
        kernels.selective_scan_2d,
        {
            "x": torch.rand(1, 2, 2, 2),
            "x_dbl": torch.rand(1, 2, 2, 4, 3),
            "dt_weight": torch.rand(4, 2, 1),
            "dt_bias": torch.rand(4, 2),
            "A": -torch.rand(4, 2, 1),
            "D": torch.rand(4, 2),
        },
        {"log_A": [*FLAG, NOTHING], "out_dtype": DTYPE, "backend": BACKEND},
    ),
    "squeeze_excite": (
        kernels.squeeze_excite,
        {"x": torch.rand(1, 2, 2, 3), "squeeze": torch.rand(4, 3), "excite": torch.rand(3, 4)},
        {"scale": ABOVE_0, "backend": BACKEND},
    ),
    "gated_norm": (
        kernels.gated_norm,
        {"y": torch.rand(1, 2, 2, 3), "z": torch.rand(1, 2, 2, 3), "weight": torch.rand(3), "bias": torch.rand(3)},
        {"eps": LEAST_0, "backend": BACKEND},
    ),
    "depthwise_silu": (
        kernels.depthwise_silu,
        {"x": torch.rand(1, 2, 2, 3), "weight": torch.rand(3, 1, 3, 3), "bias": torch.rand(3)},
        {"backend": BACKEND},
    ),
    "causal_conv1d": (
        kernels.causal_conv1d,
        {"x": torch.rand(1, 2, 5), "weight": torch.rand(2, 4)},
        {"activation": ["relu", 1, True], "return_final_states": [*FLAG, NOTHING], "backend": BACKEND},
    ),
    "selective_state_update": (
        kernels.selective_state_update,
        {
            "state": torch.rand(1, 2, 3),
            "x": torch.rand(1, 2),
            "delta": torch.rand(1, 2),
            "A": -torch.rand(2, 3),
            "B": torch.rand(1, 3),
            "C": torch.rand(1, 3),
        },
        {"delta_softplus": [*FLAG, NOTHING]},
    ),
    "describe_backend": (
        kernels.describe_backend,
        {},
        {"device": [*DEVICE, NOTHING], "dtype": [*DTYPE, NOTHING], "operator": ["nonsense", 3]},
    ),
    "initial_dt_bias": (
        kernels.initial_dt_bias,
        {"shape": (3,)},
        {
            "shape": [TEXT, (3.0,), (2, -1), NOTHING, (True,)],
            "step_range": [TEXT, 3, NOTHING, (1, 2, 3), (0, 1), (2, 1)],
        },
    ),
    "space_to_depth": (kernels.space_to_depth, {}, {"x": [TEXT, NOTHING, LIST, torch.ones(2, 2, 2)]}),
    "triton_kernels": (
        kernels.triton_kernels,
        {"name": "augment", "x": torch.ones(1)},
        {"name": [3, NOTHING], "x": [TEXT, NOTHING]},
    ),
    "use_backend": (
        lambda **given: kernels.use_backend(**given).__enter__(),
        {"name": "torch"},
        {"name": ["nonsense", 3, NOTHING], "origin": [3, NOTHING]},
    ),
    "drop_in.install": (
        drop_in.install,
        {"quiet": True},
        {"instead": [*FLAG, NOTHING], "quiet": [*FLAG, NOTHING], "cpu": [*FLAG, NOTHING]},
    ),
    "drop_in.fuse": (
        drop_in.fuse,
        {"model": nn.Identity()},
        {"model": [TEXT, 3, NOTHING, nn.Identity], "size": SIZE, "quiet": [*FLAG, NOTHING]},
    ),
    "Capture.call": (
        lambda **given: kernels.Capture().call(**{"shape": (1,)} | given),
        {},
        {"function": [TEXT, 3, NOTHING]},
    ),
    "norms.RMSNorm": (
        norms.RMSNorm,
        {"hidden_size": 8},
        {"hidden_size": SIZE, "eps": LEAST_0, "dropout_p": [TEXT, 1.5, -1], **MADE},
    ),
    "gated_norms.RMSNorm": (
        gated_norms.RMSNorm,
        {"hidden_size": 8},
        {"hidden_size": SIZE, "eps": LEAST_0, "group_size": OR_NONE, "norm_before_gate": FLAG, **MADE},
    ),
    "gated_norms.LayerNorm": (
        gated_norms.LayerNorm,
        {"hidden_size": 8},
        {"hidden_size": SIZE, "eps": LEAST_0, "group_size": OR_NONE, "norm_before_gate": FLAG, **MADE},
    ),
    "selective_scan_fn": (
        lambda **given: interface.selective_scan_fn(
            *map(torch.rand, ((1, 2, 5), (1, 2, 5), (2, 2), (2, 2), (2, 2))), **given
        ),
        {},
        {"delta_softplus": FLAG, "return_last_state": FLAG},
    ),
    "GatedMLP": (
        lambda **given: GatedMLP(**{"in_features": 4} | given),
        {},
        {"in_features": SIZE, "hidden_features": OR_NONE, "out_features": OR_NONE, "multiple_of": SIZE, **MADE},
    ),
    "MixerModel": (
        lambda **given: MixerModel(**{"d_model": 4, "n_layer": 1, "vocab_size": 3} | given),
        {},
        {
            "d_model": SIZE,
            "n_layer": SIZE,
            "vocab_size": OR_NONE,
            "d_intermediate": [TEXT, 0.5, -1, True, NOTHING],
            **MADE,
        },
    ),
    "MambaLMHeadModel": (
        lambda **given: MambaLMHeadModel(MambaConfig(**{"d_model": 4, "n_layer": 1, "vocab_size": 3} | given)),
        {},
        {"d_model": SIZE, "n_layer": SIZE, "vocab_size": SIZE, "pad_vocab_size_multiple": SIZE},
    ),
}


@pytest.mark.parametrize("function", OTHERS)
def test_every_other_argument_is_refused_by_its_name_with_what_was_got_and_what_is_wanted(function: str) -> None:
    call, given, wrong = OTHERS[function]
    for name, values in wrong.items():
        for value in values:
            with pytest.raises((TypeError, ValueError, BackendError)) as raised:
                call(**given | {name: value})
                pytest.fail(f"{function} takes {name}={value!r}")
            message = str(raised.value)
            if isinstance(raised.value, BackendError):
                assert message.startswith(f"there is no backend {value!r} (from ") and "'torch'" in message
                continue
            assert re.match(rf"(config\.)?{name}(\[\d\])? (is|has) .*(must be|give|between)", message, re.DOTALL), (
                message
            )
            if isinstance(value, str | int | float):
                assert repr(value) in message or f"{type(value).__name__};" in message, message


def test_the_tables_hold_every_public_function_and_every_argument() -> None:
    for name in kernels.__all__:
        function = getattr(kernels, name)
        if name in ("BACKENDS", "BackendError", "Capture"):  # values, and what takes nothing
            continue
        if function.__module__ == "medmambase_kernels.export":  # test_export.py has what they refuse
            continue
        parameters = inspect.signature(function).parameters.values()
        others = {p.name for p in parameters if p.annotation not in (Tensor, Tensor | None)}
        assert others == (OTHERS[name][2].keys() - {"x"} if name in OTHERS else set()), name
        given = {p.name for p in parameters} - others
        known = set(tensors(name)) if name in TENSORS else set()
        assert given <= known or name in ("space_to_depth", "triton_kernels"), name
    for module, functions in ((norms, ["RMSNorm"]), (gated_norms, ["RMSNorm", "LayerNorm"])):
        for name in functions:
            key = f"{module.__name__.rpartition('.')[2]}.{name}"
            assert inspect.signature(getattr(module, name)).parameters.keys() == OTHERS[key][2].keys()


@pytest.mark.parametrize("make", [lambda: SelectiveScan(6), lambda: Mamba(6), lambda: FrozenLayerNorm(nn.LayerNorm(6))])
def test_a_module_names_an_input_of_another_dtype_and_takes_it_under_autocast(make: Function) -> None:
    module = make()
    x = torch.rand(1, 4, 6)
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(ValueError, match=rf"^\w+ has dtype {dtype}, and the module's weights have torch\.float32"):
            module(x.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x.bfloat16())
    with pytest.raises(ValueError, match=r"^\w+ is on meta, and the module's weights are on cpu"):
        module(x.to("meta"))


def test_rows_of_delta_that_channels_share_are_taken_where_they_are_documented() -> None:
    u, A, B, C = torch.rand(1, 6, 5), -torch.rand(6, 2), torch.rand(1, 2, 5), torch.rand(1, 2, 5)
    shared = torch.rand(1, 3, 5)
    wide = shared.repeat_interleave(2, 1)
    torch.testing.assert_close(kernels.selective_scan(u, shared, A, B, C), kernels.selective_scan(u, wide, A, B, C))
    with pytest.raises(ValueError, match=r"^delta has shape \(1, 3, 5\).*with channels 6, as u has: \(1, 6, 5\)"):
        interface.selective_scan_fn(u, shared, A, B, C)


def test_a_flag_may_be_1_0_or_one_of_numpy() -> None:
    given = dict(
        zip(["u", "delta", "A", "B", "C"], map(torch.rand, ((1, 2, 5), (1, 2, 5), (2, 2), (2, 2), (2, 2))), strict=True)
    )
    for flag in (1, torch.ones(1).numpy()[0] > 0):
        torch.testing.assert_close(
            kernels.selective_scan(**given, delta_softplus=flag), kernels.selective_scan(**given, delta_softplus=True)
        )
