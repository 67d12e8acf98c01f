"""Linear maps of channels, as a GPU computes them."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from medmambase.model.projection import Beside, PointwiseConv2d, watched


def test_a_convolution_of_1x1_is_a_product_of_matrices() -> None:
    convolution, x = PointwiseConv2d(4, 6, 1), torch.randn(2, 4, 3, 5)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(convolution.as_product(given), convolution(given))


def test_a_projection_beside_another_use_adds_its_gradient_to_that_of_the_use() -> None:
    x, weight = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((2, 3, 4, 5), (7, 5)))

    def loss(handed: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        return handed.sin().sum() + projected.square().sum()

    expected = torch.autograd.grad(loss(x, x @ weight.t()), (x, weight))
    found = torch.autograd.grad(loss(*Beside.apply(x, weight)), (x, weight))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    assert torch.equal(Beside.apply(x, weight)[0], x)


def test_what_pytorch_traces_or_transforms_is_watched_and_nothing_else() -> None:
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(watched())
        return x + 1

    x = torch.ones(2, 3)
    for trace in (
        lambda: make_fx(look)(x),
        lambda: torch.vmap(look)(x),
        lambda: torch.func.grad(lambda t: look(t).sum())(x),
    ):
        trace()
        assert seen.pop() is True and seen == []
    assert look(x) is not None and seen == [False]
