"""The squeeze-and-excitation gate: every engine equals the definition."""

import pytest
import torch
from boundaries import backwards, between
from conftest import ENGINES, HAS_TRITON, TOLERANCE, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import OPERATORS, leaves_of
from torch import Tensor

from medmambase_kernels import SqueezeExcite, squeeze_excite


@st.composite
def cases(draw):
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    b, h, w, c, hidden = (
        draw(st.integers(0, 3)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 40) | st.sampled_from([16, 32])),
        draw(st.integers(1, 5)),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    x = torch.randn(b, h, w, c, generator=g).to(dtype)
    if draw(st.booleans()):
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    return [x, torch.randn(hidden, c, generator=g), torch.randn(c, hidden, generator=g)], draw(
        st.sampled_from([1.0, 2.0])
    )


def outputs_and_gradients(args: list[Tensor], scale: float, engine: str) -> list[Tensor]:
    leaves = [t.detach().to(engine_device(engine)).requires_grad_() for t in args]
    y = squeeze_excite(*leaves, scale=scale, backend=engine)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    (y * weight).float().sum().backward()
    return [y, *(t.grad for t in leaves)]


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=30)
@given(case=cases())
def test_every_engine_equals_the_definition(engine: str, case) -> None:
    args, scale = case
    for actual, expected in zip(
        outputs_and_gradients(args, scale, engine), outputs_and_gradients(args, scale, "reference"), strict=True
    ):
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) <= TOLERANCE[args[0].dtype]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_gradcheck_passes_in_float64(engine: str) -> None:
    args = [t.double().requires_grad_() for t in (torch.randn(2, 2, 3, 4), torch.randn(3, 4), torch.randn(4, 3))]
    assert torch.autograd.gradcheck(lambda *a: squeeze_excite(*a, scale=2.0, backend=engine), args)


def test_a_new_gate_of_scale_two_changes_nothing_and_can_learn() -> None:
    module = SqueezeExcite(32, scale=2.0)
    x = torch.randn(2, 3, 3, 32)
    y = module(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert module.excite.grad.abs().sum() > 0


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_gate_is_what_forward_multiplies_by(scale: float) -> None:
    module = SqueezeExcite(16, scale=scale)
    torch.nn.init.normal_(module.excite)
    x = torch.rand(2, 3, 4, 16) + 1
    assert relative_error(module(x) / x, module.gate(x)[:, None, None].expand_as(x)) < 1e-6


def test_the_hidden_width_is_never_below_its_minimum() -> None:
    assert SqueezeExcite(16).squeeze.shape == (8, 16)
    assert SqueezeExcite(16, hidden_min=1).squeeze.shape == (1, 16)
    assert SqueezeExcite(768).squeeze.shape == (48, 768)


def test_the_module_is_made_on_a_device_and_in_a_dtype_and_says_what_it_is() -> None:
    for scale in (1.0, 2.0):
        module = SqueezeExcite(16, scale=scale, device="meta", dtype=torch.bfloat16)
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    assert SqueezeExcite(32, hidden_min=1, scale=2.0).extra_repr() == "32, hidden=2, scale=2.0"
    assert SqueezeExcite(32, backend="cpu").extra_repr() == "32, hidden=8, scale=1.0, backend='cpu'"
    x = torch.rand(1, 2, 3, 16, dtype=torch.float16)
    assert SqueezeExcite(16, dtype=torch.float16)(x).dtype == torch.float16


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.randn(2, 4, 5), "x has shape"),
        (0, torch.randn(2, 0, 5, 4), "at least one position"),
        (1, torch.randn(2, 3), "squeeze has shape"),
        (2, torch.randn(3, 4), "excite"),
    ],
)
def test_a_wrong_argument_is_named(index: int, wrong: Tensor, message: str) -> None:
    args = [torch.randn(1, 2, 2, 4), torch.randn(2, 4), torch.randn(4, 2)]
    args[index] = wrong
    with pytest.raises(ValueError, match=message):
        squeeze_excite(*args)


def test_the_custom_operator_passes_torchs_own_checks() -> None:
    args = [t.requires_grad_() for t in (torch.randn(2, 3, 4, 5), torch.randn(2, 5), torch.randn(5, 2))]
    torch.library.opcheck(torch.ops.medmambase.squeeze_excite, (*args, None, None, None, 2.0, True, "cpu"))


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_does_not_reach_the_arithmetic(engine: str) -> None:
    args = [torch.randn(2, 3, 4, 16), torch.randn(8, 16), torch.randn(16, 8)]
    expected = outputs_and_gradients(args, 2.0, engine)
    with torch.autocast(engine_device(engine).type, torch.bfloat16):
        actual = outputs_and_gradients(args, 2.0, engine)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale is"):
        squeeze_excite(torch.randn(1, 2, 2, 4), torch.randn(2, 4), torch.randn(4, 2), scale=scale)
    with pytest.raises(ValueError, match="scale is"):
        SqueezeExcite(16, scale=scale)


@pytest.mark.parametrize("engine", ["cpu", "torch", "reference"])
def test_a_map_without_channels_is_given_back(engine: str) -> None:
    assert squeeze_excite(torch.randn(2, 3, 3, 0), torch.randn(4, 0), torch.randn(0, 4), backend=engine).shape == (
        2,
        3,
        3,
        0,
    )


def test_the_gate_of_a_large_map_and_of_a_small_one_are_the_same() -> None:
    for h in (40, 400):  # 51,200 and 512,000 numbers, and 1,024,000
        x, squeeze, excite = torch.randn(2, h, 40, 32), torch.randn(4, 32), torch.randn(32, 4)
        for image in (x, x.repeat(1, 2, 1, 1)):
            expected = squeeze_excite(image, squeeze, excite, scale=2.0, backend="reference")
            assert relative_error(squeeze_excite(image, squeeze, excite, scale=2.0, backend="cpu"), expected) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=10)
@given(case=cases(), wide=st.booleans())
def test_with_a_residual_the_shuffled_product_is_added_in_the_residuals_dtype(engine: str, case, wide: bool) -> None:
    (x, squeeze, excite), scale = case
    if x.shape[3] % 2:
        x, squeeze, excite = x.repeat(1, 1, 1, 2), squeeze.repeat(1, 2), excite.repeat(2, 1)
    residual = torch.randn(*x.shape[:3], 2 * x.shape[3])[..., ::2].to(torch.float32 if wide else x.dtype)
    found, expected = (
        [t.detach().to(engine_device(name)).requires_grad_() for t in (x, squeeze, excite, residual)]
        for name in (engine, "reference")
    )
    plain = squeeze_excite(*expected[:3], scale=scale, backend="reference").double()
    halves = torch.stack(plain.chunk(2, -1), -1).flatten(-2)
    results = []
    for leaves, name in ((found, engine), (expected, "reference")):
        y = squeeze_excite(*leaves, scale=scale, backend=name)
        y.float().square().sum().backward()
        results.append([y, *(t.grad for t in leaves)])
    assert relative_error(results[1][0], residual.double() + halves) <= 2 * TOLERANCE[x.dtype]
    for actual, wanted in zip(*results, strict=True):
        assert actual.dtype == wanted.dtype
        assert relative_error(actual, wanted) <= 4 * TOLERANCE[x.dtype]


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("most", [0, 1 << 15], ids=["in three launches", "in one"])
@pytest.mark.parametrize("operator", ["gate", "gate, shuffle and residual", "gate of two halves"])
def test_large_maps_and_small_ones_equal_the_definition_wherever_they_lie(
    operator: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmambase_kernels._triton import squeeze_excite_image

    monkeypatch.setattr(squeeze_excite_image, "_MOST", most)
    monkeypatch.setattr(squeeze_excite_image, "_NUMBERS", 16)  # several steps a program
    sample, scale = OPERATORS[operator], {} if operator == "gate of two halves" else {"scale": 2.0}
    for dtype, layout in ((torch.float32, between), (torch.bfloat16, backwards)):
        tensors = [t.to(dtype) for t in sample.tensors(2, 3)]
        results = []
        for engine in ("triton", "reference"):
            leaves = leaves_of([layout(t.to(engine_device(engine)), i) for i, t in enumerate(tensors)])
            y = sample.function(*leaves, backend=engine, **scale)
            dy = layout(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y), len(tensors))
            found = torch.autograd.grad(y, leaves, dy, allow_unused=True)
            results.append([y, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True))])
        for one, other in zip(*results, strict=True):
            assert one.dtype == other.dtype and relative_error(one, other) <= 4 * TOLERANCE[dtype]


def test_an_odd_number_of_channels_cannot_be_shuffled() -> None:
    x, squeeze, excite = torch.randn(1, 2, 2, 5), torch.randn(2, 5), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2, 5\); with residual it must have an even number"):
        squeeze_excite(x, squeeze, excite, x)
    with pytest.raises(ValueError, match="residual has shape"):
        squeeze_excite(x[..., :4], squeeze[:, :4], excite[:4], x)
