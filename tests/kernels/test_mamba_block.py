"""The Mamba block: the weights' names of mamba_ssm and its forks, its formulas, and decoding step
by step."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import TOLERANCE, relative_error
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels import Mamba, selective_scan, selective_state_update

PLAIN = ("A_log", "D", "conv1d.bias", "conv1d.weight", "dt_proj.bias", "dt_proj.weight", "x_proj.weight")
SECOND = ("A{}_log", "D{}", "conv1d{}.bias", "conv1d{}.weight", "dt_proj{}.bias", "dt_proj{}.weight", "x_proj{}.weight")


def of_set(end: str) -> set[str]:
    return {name.format(end) for name in SECOND}


KINDS = {
    "none": set(PLAIN), "v1": {*PLAIN, "A_b_log"}, "v2": {*PLAIN, *of_set("_b")},
    "v3": {*PLAIN, *of_set("_b"), *of_set("_s")},
}  # fmt: skip  # a table


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_have_upstreams_names_and_marks(kind: str) -> None:
    block = Mamba(8, 3, expand=2, bimamba_type=kind, init_layer_scale=0.1)
    assert set(block.state_dict()) == KINDS[kind] | {"in_proj.weight", "out_proj.weight", "gamma"}
    shapes = {name: tuple(t.shape) for name, t in block.state_dict().items()}
    assert [shapes[name] for name in ("A_log", "conv1d.weight", "x_proj.weight", "dt_proj.weight")] == [
        (16, 3), (16, 1, 4), (7, 16), (16, 1),
    ]  # fmt: skip  # a list
    for name, t in block.named_parameters():
        assert getattr(t, "_no_weight_decay", False) == (name.endswith("_log") or name.startswith("D")), name
        assert getattr(t, "_no_reinit", False) == ("dt_proj" in name and "bias" in name), name
    assert F.softplus(block.dt_proj.bias).min() >= 1e-4


def once(block: Mamba, xz: Tensor, end: str, A: Tensor | None = None) -> Tensor:
    """The inside of a block by torch's operations and the definition of the scan, in float64."""
    conv, x_proj, dt_proj, D = (getattr(block, name + end) for name in ("conv1d", "x_proj", "dt_proj", "D"))
    A = -torch.exp(getattr(block, "A_log" if not end else f"A{end}_log")) if A is None else A
    x, z = xz.chunk(2, 1)
    x = F.silu(conv(x)[..., : x.shape[2]])
    low, B, C = x_proj(x.transpose(1, 2)).transpose(1, 2).split([block.dt_rank, block.d_state, block.d_state], 1)
    delta = torch.einsum("brl,dr->bdl", low, dt_proj.weight)
    return selective_scan(x, delta, A, B, C, D, z, dt_proj.bias, True, backend="reference")


def both_ways(block: Mamba, xz: Tensor) -> Tensor:
    return once(block, xz, "") + once(block, xz.flip(-1), "_b").flip(-1)


def shared(block: Mamba, xz: Tensor) -> Tensor:
    """Both ways with one set: what is flipped is what the convolution and the projections made."""
    x, z = xz.chunk(2, 1)
    x = F.silu(block.conv1d(x)[..., : x.shape[2]])
    low, B, C = block.x_proj(x.transpose(1, 2)).transpose(1, 2).split([block.dt_rank, block.d_state, block.d_state], 1)
    delta = torch.einsum("brl,dr->bdl", low, block.dt_proj.weight)
    y = torch.zeros_like(x)
    for log, turn in ((block.A_log, lambda t: t), (block.A_b_log, lambda t: t.flip(-1))):
        given = [turn(t) for t in (x, delta, B, C, z)]
        one = selective_scan(
            *given[:2], -torch.exp(log), *given[2:4], block.D, given[4], block.dt_proj.bias, True, backend="reference"
        )
        y = y + turn(one)
    return y


def in_slices(block: Mamba, xz: Tensor) -> Tensor:
    """The third scan visits the first step of each slice, then the second of each."""
    order = torch.arange(xz.shape[2]).view(block.nslices, -1).t().flatten()
    sliced = once(block, xz[..., order], "_s")
    return both_ways(block, xz) + torch.empty_like(sliced).index_copy(2, order, sliced)


INSIDE: dict[str, Callable[[Mamba, Tensor], Tensor]] = {
    "none": lambda block, xz: once(block, xz, ""), "v1": shared, "v2": both_ways, "v3": in_slices,
}  # fmt: skip  # a table


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_its_formulas_with_every_gradient(kind: str) -> None:
    block = Mamba(8, 3, bias=True, bimamba_type=kind, nslices=2, if_divide_out=kind == "v2", init_layer_scale=0.5)
    exact = Mamba(
        8, 3, bias=True, bimamba_type=kind, nslices=2, if_divide_out=kind == "v2", init_layer_scale=0.5
    ).double()
    exact.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 8)
    xz = exact.in_proj(x.double()).transpose(1, 2)
    inside = INSIDE[kind](exact, xz) / (2 if kind == "v2" else 1)
    expected = exact.out_proj(inside.transpose(1, 2)) * exact.gamma
    y = block(x)
    assert relative_error(y, expected) <= TOLERANCE[torch.float32]
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), (_, other) in zip(block.named_parameters(), exact.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        assert relative_error(one.grad, other.grad) <= 4 * TOLERANCE[torch.float32], name


def test_steps_after_a_prefill_are_the_whole_sequence() -> None:
    block, x = Mamba(8, 3, layer_idx=0), torch.randn(2, 54, 8)  # 4 at once, then 50 steps
    with torch.no_grad():
        whole = block(x)
    states = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    with torch.no_grad():
        parts = [block(x[:, :4], inference_params=states)]
    for i in range(4, 54):
        states.seqlen_offset = i
        parts.append(block(x[:, i : i + 1], inference_params=states))
    assert relative_error(torch.cat(parts, 1), whole) <= TOLERANCE[torch.float32]
    cache = block.allocate_inference_cache(2, 54)
    alone = [block.step(x[:, i : i + 1], *cache)[0] for i in range(54)]
    assert relative_error(torch.cat(alone, 1), whole) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mamba(8, bimamba_type="v4"), ValueError, "bimamba_type is 'v4'; it must be 'none', 'v1', 'v2', 'v3'"),
        (lambda: Mamba(8, dt_init="zero"), ValueError, "dt_init is 'zero'"),
        (lambda: Mamba(8, bimamba_type="v3", nslices=4)(torch.ones(1, 6, 8)), ValueError, "6 steps; nslices 4"),
        (lambda: Mamba(8, bimamba_type="v2").step(torch.ones(1, 1, 8), None, None), NotImplementedError, "no step"),
        (lambda: Mamba(8)(torch.ones(1, 1, 8), SimpleNamespace(seqlen_offset=0)), ValueError, "layer_idx is None"),
    ],
)
def test_what_a_block_cannot_do_is_said(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("groups", [0, 2])
def test_a_step_in_place_is_the_scan_of_one_step(dtype: torch.dtype, groups: int) -> None:
    b, d, n = 2, 4, 3
    state = torch.randn(b, n, d).to(dtype).transpose(1, 2)  # its states lie apart
    x, delta, z = (torch.randn(b, d).to(dtype) for _ in range(3))
    A, D, bias = -torch.rand(d, n), torch.randn(d), torch.randn(d)
    B, C = (torch.randn(b, groups, n) if groups else torch.randn(b, n) for _ in range(2))
    expected, last = selective_scan(
        x[..., None], delta[..., None], A, B[..., None], C[..., None], D, z[..., None], bias, True, True,
        initial_state=state, backend="reference",
    )  # fmt: skip  # in the operator's order
    y = selective_state_update(state, x, delta, A, B, C, D, z, bias, True)
    assert y.dtype == dtype
    assert relative_error(y, expected[..., 0]) <= TOLERANCE[dtype]
    assert relative_error(state, last) <= TOLERANCE[dtype]


def test_a_step_names_a_wrong_argument() -> None:
    given = {"state": torch.ones(2, 4, 3), "x": torch.ones(2, 4), "delta": torch.ones(2, 4), "A": torch.ones(4, 3)}
    given |= {"B": torch.ones(2, 3), "C": torch.ones(2, 3)}
    for name, t, message in (
        ("A", torch.ones(4, 2), r"A has shape \(4, 2\); it must be \(channels, state\) with state 3"),
        ("B", torch.ones(2, 3, 3), "B has shape|C has shape"),
        ("x", torch.ones(2, 4, dtype=torch.int32), "x has dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            selective_state_update(**given | {name: t})
