"""The causal convolution with and without its SiLU: every engine equals the definition, and the
states let a sequence be taken in parts."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels import causal_conv1d


def results(tensors: dict[str, Tensor], activation: str | None, engine: str) -> list[Tensor]:
    """Both outputs, and the gradients of a weighted sum of them."""
    leaves = {name: t.detach().to(engine_device(engine)).requires_grad_() for name, t in tensors.items()}
    y, last = causal_conv1d(**leaves, activation=activation, return_final_states=True, backend=engine)
    weight = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
    loss = (y.float() * weight).sum() + last.float().square().sum()
    return [y, last, *torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)]


@st.composite
def cases(draw) -> tuple[dict[str, Tensor], str | None]:
    b, d, l, w = (draw(st.integers(*ends)) for ends in ((0, 2), (1, 5), (0, 37), (1, 5)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(b, 2 * d, l, generator=g)[:, d:].to(
        draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    )
    if draw(st.booleans()):  # channels last
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    tensors = {"x": x, "weight": torch.randn(d, w, generator=g)}
    if draw(st.booleans()):
        tensors["bias"] = torch.randn(d, generator=g)
    if draw(st.booleans()):
        tensors["initial_states"] = torch.randn(b, d, w - 1, generator=g)
    return tensors, draw(st.sampled_from([None, "silu", "swish"]))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25)
@given(case=cases())
def test_every_engine_equals_the_definition(engine: str, case: tuple[dict[str, Tensor], str | None]) -> None:
    for found, expected in zip(results(*case, engine), results(*case, "reference"), strict=True):
        assert found.dtype == expected.dtype
        assert relative_error(found, expected) <= TOLERANCE[case[0]["x"].dtype]


def test_it_is_the_convolution_of_torch_padded_on_the_left() -> None:
    x, weight, bias = torch.randn(2, 3, 9), torch.randn(3, 4), torch.randn(3)
    expected = F.silu(F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=3))
    torch.testing.assert_close(causal_conv1d(x, weight, bias, activation="silu"), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_sequence_in_two_parts_is_the_whole_sequence(engine: str, cut: int) -> None:
    x, weight, bias = (t.to(engine_device(engine)) for t in (torch.randn(2, 3, 9), torch.randn(3, 4), torch.randn(3)))
    whole, last = causal_conv1d(x, weight, bias, None, "silu", True, backend=engine)
    first, states = causal_conv1d(x[..., :cut], weight, bias, None, "silu", True, backend=engine)
    second, end = causal_conv1d(x[..., cut:], weight, bias, states, "silu", True, backend=engine)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    assert torch.equal(end, last)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_infinite_step_reaches_the_next_ones_and_their_weights_only(engine: str) -> None:
    x = torch.zeros(1, 2, 35)
    x[0, 0, 34] = float("inf")  # the last step: only the last tap sees it
    leaves = [t.to(engine_device(engine)).requires_grad_() for t in (x, torch.ones(2, 4), torch.zeros(2))]
    y = causal_conv1d(*leaves, backend=engine)  # SiLU has no slope there
    y.sum().backward()
    assert y[0, 0].isinf().tolist() == [False] * 34 + [True]
    gradient = leaves[1].grad
    assert gradient is not None
    assert gradient[0].isfinite().tolist() == [True] * 3 + [False]
    assert gradient[1].isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "gelu"}, "activation is 'gelu'; it must be 'silu', 'swish' or None"),
        ({"weight": torch.ones(3, 0)}, r"weight has shape \(3, 0\); it must have at least one channel and tap"),
        ({"initial_states": torch.ones(2, 3, 4)}, r"initial_states has shape \(2, 3, 4\); it must be \(batch, .*, 3\)"),
        ({"x": torch.ones(2, 9, 3)}, r"if x is \(batch, length, channels\), give x.transpose\(1, 2\)"),
    ],
)
def test_a_wrong_argument_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**{"x": torch.ones(2, 3, 9), "weight": torch.ones(3, 4)} | wrong)
