"""torch.func transforms the operators like any other: grad, vmap, jacrev, functional_call;
derivatives that do not exist are refused."""

import pytest
import torch
from conftest import TOLERANCE, UNDER_WINE, relative_error
from operators import MODULES, OPERATORS, every_operator, leaves_of, module_results, outputs_and_gradients
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap


@every_operator
def test_func_grad_and_vmap_equal_autograd_and_a_loop(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    samples = [arguments(2, 20) for _ in range(3)]
    everywhere = tuple(range(len(samples[0])))

    def loss(*tensors: Tensor) -> Tensor:
        return function(*tensors).square().sum()

    expected = [outputs_and_gradients(function, tensors) for tensors in samples]
    for tensors, (_, *gradients) in zip(samples, expected, strict=True):
        for one, gradient in zip(grad(loss, everywhere)(*tensors), gradients, strict=True):
            assert relative_error(one, gradient) <= TOLERANCE[torch.float32]
    batched = [torch.stack(column, 1) for column in zip(*samples, strict=True)]
    columns = [torch.stack(column) for column in zip(*expected, strict=True)]
    one_by_one = vmap(grad(loss, everywhere), in_dims=1)(*batched)
    of_the_sum = grad(lambda *t: vmap(loss, in_dims=1)(*t).sum(), everywhere)(*batched)
    assert relative_error(vmap(function, in_dims=1)(*batched), columns[0]) <= TOLERANCE[torch.float32]
    for one, other, gradient in zip(one_by_one, of_the_sum, columns[1:], strict=True):
        assert relative_error(one, gradient) <= TOLERANCE[torch.float32]
        assert relative_error(other.movedim(1, 0), gradient) <= TOLERANCE[torch.float32]


@every_operator
def test_vmap_over_one_argument_leaves_the_others_whole(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(2, 20)
    for index, t in enumerate(tensors):
        several = torch.stack([t, t / 2, t * 0.9])
        dims = tuple(0 if i == index else None for i in range(len(tensors)))
        together = vmap(function, in_dims=dims)(*tensors[:index], several, *tensors[index + 1 :])
        alone = [function(*tensors[:index], one, *tensors[index + 1 :]) for one in several]
        assert relative_error(together, torch.stack(alone)) <= TOLERANCE[torch.float32], index


@every_operator
def test_jacrev_gives_every_derivative_of_every_output(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(1, 3)
    jacobian = jacrev(lambda first: function(first, *tensors[1:]).flatten())(tensors[0])
    first = tensors[0].clone().requires_grad_()
    rows = [
        torch.autograd.grad(value, first, retain_graph=True)[0] for value in function(first, *tensors[1:]).flatten()
    ]
    assert torch.equal(jacobian, torch.stack(rows))


def test_gradients_image_by_image_of_a_network_are_those_of_single_images() -> None:
    make, shape, _ = MODULES["MedMambaSE"]
    network, images = make(), torch.randn(3, *shape[1:])
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, parameters, (image[None],)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    for index, image_ in enumerate(images):
        _, _, *alone = module_results(network, network, image_[None])
        for name, gradient in zip(parameters, alone, strict=True):
            assert relative_error(together[name][index], gradient) <= 1e-4, name


@pytest.mark.skipif(
    UNDER_WINE, reason="Wine 8 ends a process in which an exception leaves PyTorch's autograd engine, whoever raised it"
)
@every_operator
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on the first jvp
def test_derivatives_that_do_not_exist_are_refused_and_named(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(1, 5)
    first, *others = leaves_of(tensors)
    (gradient,) = torch.autograd.grad(function(first, *others).square().sum(), first, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"first derivatives in reverse mode only.*'reference'"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="first derivatives in reverse mode only"):
        grad(lambda t: grad(lambda s: function(s, *tensors[1:]).square().sum())(t).sum())(tensors[0])
    with pytest.raises(NotImplementedError, match="first derivatives in reverse mode only"):
        jvp(lambda t: function(t, *tensors[1:]), (tensors[0],), (tensors[0],))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="first derivatives in reverse mode only"):
        function(forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0])), *tensors[1:])
    function(*tensors)
