"""How an operator of ours is known to PyTorch: as a custom operator with a fake, derivatives and a
rule for vmap; and by a shorter way where none is needed.

A custom operator goes through torch.compile, torch.export, FakeTensors and dispatch modes as one
node, and costs 30 to 90 us of Python a call. Where nobody looks at nodes, the engine is called at
once, inside an autograd Function if a gradient is wanted.
Last stop before: an operator's file. Next stop: backend.py, which calls the engine.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


class Operator:
    """``plain``, an ordinary function from tensors to a tuple of new tensors, and the custom
    operator ``name`` made of it."""

    def __init__(self, name: str, schema: str, plain: Callable[..., tuple[Tensor, ...]]) -> None:
        self.plain = plain
        self.custom = torch.library.custom_op(f"medmambase::{name}", plain, mutates_args=(), schema=schema)
        self.register_fake = self.custom.register_fake


def operator(name: str, schema: str) -> Callable[[Callable[..., tuple[Tensor, ...]]], Operator]:
    """As a decorator: the function as ``medmambase::<name>``."""
    return lambda plain: Operator(name, schema, plain)


def check_tensors(first: Tensor, others: dict[str, Tensor | None]) -> None:
    """Raise ValueError unless every tensor is real floating point and on the device of
    ``first``."""
    for name, t in {"the first argument": first, **others}.items():
        if t is None:
            continue
        if not t.is_floating_point():
            raise ValueError(f"{name} has dtype {t.dtype}; it must be a real floating-point type")
        if t.device != first.device:
            raise ValueError(f"{name} is on {t.device}, but the first argument is on {first.device}; move one of them")


def worth_saving(*tensors: Tensor | None) -> bool:
    """Whether to keep states for a backward pass over these inputs: a hint, since backward runs
    forward once more where there are none.

    An exported graph is for use and keeps nothing. Under vmap a tensor does not show that it
    requires a gradient.
    """
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and any(t is not None and t.requires_grad for t in tensors)
    )


def contiguous(results: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """What an operator returns: every tensor contiguous, since a compiled graph reads memory as the
    fake says; None becomes an empty tensor."""
    given = next(t for t in results if t is not None)
    return tuple(given.new_empty(0) if t is None else t.contiguous() for t in results)


def contiguous_fake(*arguments: Tensor | None) -> tuple[Tensor, ...]:
    """The fakes of ``contiguous`` gradients of the arguments."""
    given = next(t for t in arguments if t is not None)
    return tuple(given.new_empty(0) if t is None else t.new_empty(t.shape) for t in arguments)


def differentiable(
    name: str, forward: Operator, backward: Operator, gradients: Callable[..., Any], setup: Callable[..., None]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Give a pair of operators derivatives and a rule for vmap. Returns what to call in their
    place.

    ``gradients``, which calls the second of the pair, and ``setup`` are as in
    ``torch.library.register_autograd``.
    """

    def no_setup(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    return _callable(name, forward, gradients, setup), _callable(
        f"{name}Gradients", backward, _no_such_derivative, no_setup
    )


def _callable(
    name: str, operator: Operator, gradients: Callable[..., Any], setup: Callable[..., None]
) -> Callable[..., Any]:
    plain, custom = operator.plain, operator.custom

    def one_by_one(
        info: Any, dims: tuple[int | None, ...], *arguments: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # The axis of vmap cannot become part of the batch: each sample may have weights of its own,
        # and has gradients of its own for them.
        parts = [
            custom(*(t if dim is None else t.select(dim, i) for t, dim in zip(arguments, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(map(torch.stack, zip(*parts, strict=True)))
        return stacked, (0,) * len(stacked)

    def at_once(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        output = plain(*arguments)
        setup(ctx, arguments, output)
        return output

    custom.register_vmap(one_by_one)
    custom.register_autograd(gradients, setup_context=setup)
    base = (torch.autograd.Function,)
    direct: Any = type(name, base, {"forward": staticmethod(at_once), "backward": staticmethod(gradients)})
    methods: dict[str, Any] = {
        "forward": custom,
        "setup_context": setup,
        "backward": gradients,
        "jvp": _no_such_derivative,
    }
    transformed: Any = type(
        f"{name}Transformed",
        base,
        {"generate_vmap_rule": True, **{key: staticmethod(method) for key, method in methods.items()}},
    )

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return custom(*arguments)
        # What torch.library registers fails under torch.func.grad
        # (https://github.com/pytorch/pytorch/issues/170834) and lets a forward-mode derivative be
        # zero without a word. There the same formulas go by a Function.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return transformed.apply(*arguments)
        if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
            return custom(*arguments)
        wanted = False
        for t in arguments:
            if isinstance(t, Tensor):
                if (type(t) is not Tensor and type(t) is not nn.Parameter) or t.is_meta:
                    return custom(*arguments)
                wanted |= t.requires_grad
        return direct.apply(*arguments) if wanted and torch.is_grad_enabled() else plain(*arguments)

    return call


def _no_such_derivative(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "backends 'triton', 'cpu' and 'torch' have first derivatives in reverse mode only; ask for backend "
        "'reference', which has all"
    )
