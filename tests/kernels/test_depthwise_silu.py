"""The depthwise 3x3 convolution with its SiLU: every engine equals the definition."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, TRITON, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import depthwise_silu

NAMES = ("x", "weight", "bias")


def make_case(
    b: int, h: int, w: int, d: int, dtype: torch.dtype = torch.float32, half: bool = False, seed: int = 0
) -> list[Tensor]:
    """x, weight and bias; ``half``: x is the first half of a projection."""
    g = torch.Generator().manual_seed(seed)
    projection = torch.randn(b, h, w, 2 * d, generator=g).to(dtype)
    x = projection[..., :d] if half else projection[..., :d].contiguous()
    return [x, torch.randn(d, 1, 3, 3, generator=g), torch.randn(d, generator=g)]


@st.composite
def cases(draw):
    side = st.integers(1, 7)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    return make_case(
        draw(st.integers(0, 2)),
        draw(side),
        draw(side),
        draw(st.integers(1, 40) | st.sampled_from([16, 32, 48])),
        dtype,
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def outputs_and_gradients(args: list[Tensor], engine: str) -> dict[str, Tensor]:
    leaves = [t.detach().to(engine_device(engine)).requires_grad_() for t in args]
    y = depthwise_silu(*leaves, backend=engine)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    (y * weight).float().sum().backward()
    return {"y": y} | {f"gradient of {name}": t.grad for name, t in zip(NAMES, leaves, strict=True)}


def assert_equal_to_the_definition(args: list[Tensor], engine: str) -> None:
    expected = outputs_and_gradients(args, "reference")
    for name, actual in outputs_and_gradients(args, engine).items():
        assert actual.dtype == expected[name].dtype, name
        error = relative_error(actual, expected[name])
        assert error <= TOLERANCE[args[0].dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=20)
@given(args=cases())
def test_every_engine_equals_the_definition(engine: str, args: list[Tensor]) -> None:
    assert_equal_to_the_definition(args, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("b", "h", "w", "d"), [(1, 1, 1, 3), (1, 1, 40, 2), (1, 40, 1, 2), (2, 7, 5, 33), (3, 9, 8, 4)]
)
def test_odd_maps_are_exact_to_the_edge(engine: str, b: int, h: int, w: int, d: int) -> None:
    assert_equal_to_the_definition(make_case(b, h, w, d, half=True), engine)


@pytest.mark.parametrize("engine", [TRITON])
def test_tiles_of_several_strips_and_steps_are_all_summed(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    from medmambase_kernels._triton import depthwise_silu as depthwise_silu_triton

    monkeypatch.setattr(depthwise_silu_triton, "_PROGRAMS", 3)
    assert_equal_to_the_definition(make_case(2, 9, 8, 5), engine)


def test_it_is_the_convolution_of_torch_and_silu() -> None:
    conv = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    x = torch.randn(2, 5, 4, 12)
    expected = F.silu(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert torch.allclose(depthwise_silu(x, conv.weight, conv.bias), expected, atol=1e-6)


def test_gradcheck_passes_in_float64() -> None:
    args = [t.double().requires_grad_() for t in make_case(1, 2, 3, 2)]
    for engine in ("cpu", "reference"):
        assert torch.autograd.gradcheck(lambda *a: depthwise_silu(*a, backend=engine), args)  # noqa: B023  # called before the loop goes on


@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_are_bit_equal_and_autocast_changes_no_bit(engine: str) -> None:
    args = make_case(2, 6, 7, 5)
    first, second = (outputs_and_gradients(args, engine) for _ in range(2))
    with torch.autocast(engine_device(engine).type, torch.bfloat16):
        third = outputs_and_gradients(args, engine)
    assert all(torch.equal(first[name], other[name]) for name in first for other in (second, third))


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.randn(3, 4, 5), "x has shape"),
        (0, torch.randn(1, 0, 4, 5), "at least one position"),
        (1, torch.randn(5, 3, 3), "weight has shape"),
        (2, torch.randn(4), "bias has shape"),
        (2, torch.ones(5, dtype=torch.int32), "bias has dtype"),
    ],
)
def test_a_wrong_argument_is_named(index: int, wrong: Tensor, message: str) -> None:
    args = make_case(1, 3, 4, 5)
    args[index] = wrong
    with pytest.raises(ValueError, match=message):
        depthwise_silu(*args)


@pytest.mark.parametrize("half", [False, True])
def test_the_custom_operator_passes_torchs_own_checks(half: bool) -> None:
    args = [t.requires_grad_() for t in make_case(2, 3, 4, 5, half=half)]
    torch.library.opcheck(torch.ops.medmambase.depthwise_silu, (*args, True, "cpu"))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_infinite_pixel_reaches_its_neighbours_and_no_others(engine: str) -> None:
    x = torch.zeros(1, 3, 4, 16)
    x[0, 0, 0, 0] = float("inf")
    y = depthwise_silu(
        x.to(engine_device(engine)),
        torch.ones(16, 1, 3, 3).to(engine_device(engine)),
        torch.zeros(16).to(engine_device(engine)),
        backend=engine,
    )
    assert y[0, :, :, 0].cpu().tolist() == [[float("inf")] * 2 + [0.0] * 2] * 2 + [[0.0] * 4]
    assert not y[..., 1:].any()
