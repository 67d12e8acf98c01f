"""LayerNorm times the SiLU of a gate: every engine equals the definition."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, TRITON, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels import gated_norm

NAMES = ("y", "z", "weight", "bias")


def make_case(
    b: int,
    h: int,
    w: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    wide: bool = False,
    half: bool = False,
    seed: int = 0,
) -> list[Tensor]:
    """y, z, weight and bias. ``wide``: y in float32 beside a z of ``dtype``; ``half``: z is the
    second half of a projection."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.randn(b, h, w, d, generator=g) * 3 + 1).to(torch.float32 if wide else dtype)
    projection = torch.randn(b, h, w, 2 * d, generator=g).to(dtype)
    z = projection[..., d:] if half else projection[..., d:].contiguous()
    return [y, z, torch.randn(d, generator=g), torch.randn(d, generator=g)]


@st.composite
def cases(draw):
    side = st.integers(1, 5)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    return make_case(
        draw(st.integers(0, 2)),
        draw(side),
        draw(side),
        draw(st.integers(4, 70) | st.sampled_from([16, 32, 48, 64])),
        dtype,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def outputs_and_gradients(args: list[Tensor], engine: str) -> dict[str, Tensor]:
    leaves = [t.detach().to(engine_device(engine)).requires_grad_() for t in args]
    out = gated_norm(*leaves, backend=engine)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
    (out * weight).float().sum().backward()
    return {"out": out} | {f"gradient of {name}": t.grad for name, t in zip(NAMES, leaves, strict=True)}


def assert_equal_to_the_definition(args: list[Tensor], engine: str) -> None:
    expected = outputs_and_gradients(args, "reference")
    for name, actual in outputs_and_gradients(args, engine).items():
        assert actual.dtype == expected[name].dtype, name
        error = relative_error(actual, expected[name])
        assert error <= 4 * TOLERANCE[args[1].dtype], (
            f"{name}: relative error {error:.2e}"
        )  # a division by a small deviation makes roundings larger


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25)
@given(args=cases())
def test_every_engine_equals_the_definition(engine: str, args: list[Tensor]) -> None:
    assert_equal_to_the_definition(args, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("b", "h", "w", "d"), [(1, 1, 1, 96), (1, 3, 5, 1030), (2, 7, 5, 33), (3, 40, 17, 4)])
def test_odd_maps_and_narrow_and_wide_channels_are_exact(engine: str, b: int, h: int, w: int, d: int) -> None:
    assert_equal_to_the_definition(make_case(b, h, w, d, half=True), engine)


@pytest.mark.parametrize("engine", [TRITON])
def test_rows_of_several_strips_and_steps_are_all_summed(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    from medmambase_kernels._triton import gated_norm as gated_norm_triton

    monkeypatch.setattr(gated_norm_triton, "_STRIPS", 3)
    assert_equal_to_the_definition(make_case(2, 9, 7, 200), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("eps", [1e-3, 0.5])
@pytest.mark.parametrize("d", [24, 32])
def test_it_is_layer_norm_times_silu(engine: str, eps: float, d: int) -> None:
    ours, theirs = ([t.to(engine_device(engine)).requires_grad_() for t in make_case(2, 3, 4, d)] for _ in range(2))
    y, z, weight, bias = theirs
    actual, expected = gated_norm(*ours, eps, backend=engine), F.layer_norm(y, (d,), weight, bias, eps) * F.silu(z)
    assert relative_error(actual, expected) < 1e-5
    for one, other in zip(
        torch.autograd.grad(actual.sum(), ours), torch.autograd.grad(expected.sum(), theirs), strict=True
    ):
        assert relative_error(one, other) < 4e-5


def test_gradcheck_passes_in_float64() -> None:
    args = [t.double().requires_grad_() for t in make_case(1, 2, 3, 5)]
    for engine in ("cpu", "reference"):
        assert torch.autograd.gradcheck(lambda *a: gated_norm(*a, backend=engine), args)  # noqa: B023  # called before the loop goes on


@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_are_bit_equal_and_autocast_changes_no_bit(engine: str) -> None:
    args = make_case(2, 6, 7, 40)
    first, second = (outputs_and_gradients(args, engine) for _ in range(2))
    with torch.autocast(engine_device(engine).type, torch.bfloat16):
        third = outputs_and_gradients(args, engine)
    assert all(torch.equal(first[name], other[name]) for name in first for other in (second, third))


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.randn(2, 3, 4), "y has shape"),
        (1, torch.randn(1, 3, 4, 6), "z has shape"),
        (2, torch.randn(4), "weight has shape"),
        (3, torch.randn(5, 1), "bias has shape"),
        (3, torch.ones(5, dtype=torch.int32), "bias has dtype"),
        (0, torch.randn(1, 3, 4, 5).half(), "y has dtype"),
    ],
)
def test_a_wrong_argument_is_named(index: int, wrong: Tensor, message: str) -> None:
    args = make_case(1, 3, 4, 5)
    args[index] = wrong
    with pytest.raises(ValueError, match=message):
        gated_norm(*args)


@pytest.mark.parametrize("half", [False, True])
def test_the_custom_operator_passes_torchs_own_checks(half: bool) -> None:
    args = [t.requires_grad_() for t in make_case(2, 3, 4, 5, half=half)]
    torch.library.opcheck(torch.ops.medmambase.gated_norm, (*args, 1e-5, True, "cpu"))
