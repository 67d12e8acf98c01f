"""Register an operator with PyTorch as a custom operator, with fakes, derivatives and a vmap rule.

A custom operator goes through torch.compile, torch.export, FakeTensors and dispatch modes as one
node, and costs 30 to 90 us of Python a call. Where nobody looks at nodes, the backend is called at
once, inside an autograd Function if a gradient is wanted.

What ``register`` asks of a backend's file of the operator, for the tensors and options of its
schema:

    forward(*tensors, *options, save) -> (*outputs, kept)
    backward(*gradients of the outputs, *tensors, *options, kept) -> a gradient for each tensor
    kept_shape(*tensors) -> the shape of what forward keeps for backward if ``save``; else (0,)

All results are new tensors; the gradient of a tensor that is None, that is added to the output as
it is, or that has none, may be None.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from medmambase_kernels import backend as engines

Output = tuple[tuple[int, ...], torch.dtype]  # the shape and dtype of a result


def register(
    name: str,
    tensors: str,
    options: str,
    outputs: Callable[..., tuple[Output, ...]],
    *,
    kept_like: str,
    returns: int = 1,
    added: str = "",
    constant: str = "",
) -> Callable[..., tuple[Tensor, ...]]:
    """Make ``medmambase::<name>`` and ``medmambase::<name>_backward`` of the backends' files.

    Args:
        tensors, options: the schema of the arguments, as "Tensor x, Tensor? D" and "float eps"; ""
        for no options.
        outputs: takes tensors and options, and returns the shape and dtype of each output.
        kept_like: the name of a tensor whose dtype is that of the arithmetic, and of what is kept.
        returns: the number of outputs.
        added: the name of a tensor that the first output contains as a summand, in its dtype and
        shape: its gradient is that of the output, and no backend computes it.
        constant: the name of a tensor that has no gradient.

    Returns:
        A function of all tensors and options and the backend's name, in that order and without
        keywords, that returns the outputs.
    """
    names = [argument.split()[1] for argument in tensors.split(", ")]
    count, like = len(names), names.index(kept_like)
    summand = names.index(added) if added else None
    without = names.index(constant) if constant else None
    declared = f"{tensors}, {options}" if options else tensors
    of_outputs = ", ".join(f"Tensor d_output_{i}" for i in range(returns))

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *given, backend = arguments
        return _contiguous(engines.run(name, backend, "forward", *given))

    def forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        *given, save, backend = arguments
        kept = engines.engine(name, backend).kept_shape(*given[:count]) if save else (0,)
        empty = (given[0].new_empty(shape, dtype=dtype) for shape, dtype in outputs(*given))
        return *empty, given[like].new_empty(kept)

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        *given, backend = arguments
        return _contiguous(engines.run(name, backend, "backward", *given))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        first, *others = arguments[returns : returns + count]
        return first.new_empty(first.shape), *(
            first.new_empty(0) if t is None or i in (summand, without) else t.new_empty(t.shape)
            for i, t in enumerate(others, start=1)
        )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *given, ctx.saved, ctx.backend = inputs
        ctx.options = given[count:]
        ctx.save_for_backward(*given[:count], output[-1])
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        d_outputs = d_results[:-1]
        nothing = (None,) * (len(ctx.options) + 2)  # the gradients of the options, save and backend
        if all(d is None for d in d_outputs):  # torch asks this way whether a gradient may be missing
            return (None,) * count + nothing
        *saved, kept = ctx.saved_tensors
        given = (*saved, *ctx.options)
        if any(d is None for d in d_outputs):
            zeros = (saved[0].new_zeros(shape, dtype=dtype) for shape, dtype in outputs(*given))
            d_outputs = tuple(zero if d is None else d for d, zero in zip(d_outputs, zeros, strict=True))
        if not ctx.saved:
            kept = call_forward(*given, True, ctx.backend)[-1]
        found = list(call_backward(*d_outputs, *given, kept, ctx.backend))
        if summand is not None:
            found[summand] = d_outputs[0]
        if without is not None:
            found[without] = None
        return *(None if t is None else d for t, d in zip(saved, found, strict=True)), *nothing

    def no_setup(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    results = ", ".join(["Tensor"] * (returns + 1))
    camel = "".join(part.capitalize() for part in name.split("_"))
    schema = f"({declared}, bool save, str backend) -> ({results})"
    call_forward = _callable(name, camel, schema, forward, forward_fake, gradients, setup)
    schema = f"({of_outputs}, {declared}, Tensor kept, str backend) -> ({', '.join(['Tensor'] * count)})"
    call_backward = _callable(
        f"{name}_backward", f"{camel}Gradients", schema, backward, backward_fake, _no_such_derivative, no_setup
    )

    def operator(*arguments: Any) -> tuple[Tensor, ...]:
        *given, backend = arguments
        return call_forward(*given, _worth_saving(given[:count]), backend)[:-1]

    return operator


def _worth_saving(tensors: list[Tensor | None]) -> bool:
    """Whether to keep something for a backward pass over these inputs: a hint, since backward runs
    forward once more where there is nothing.

    An exported or traced graph is for use and keeps nothing: torch.jit.trace records with gradients
    and compares with a recording without. Under vmap a tensor does not show that it requires a
    gradient.
    """
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and torch._C._get_tracing_state() is None
        and any(t is not None and t.requires_grad for t in tensors)
    )


def _contiguous(results: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """What an operator returns: every tensor contiguous, since a compiled graph reads memory as the
    fake says; None becomes an empty tensor."""
    given = next(t for t in results if t is not None)
    return tuple(given.new_empty(0) if t is None else t.contiguous() for t in results)


def _callable(
    name: str,
    title: str,
    schema: str,
    plain: Callable[..., tuple[Tensor, ...]],
    fake: Callable[..., tuple[Tensor, ...]],
    gradients: Callable[..., Any],
    setup: Callable[..., None],
) -> Callable[..., Any]:
    """Make ``plain``, a function from tensors to new tensors, a custom operator that is called by
    the shortest way possible. ``gradients`` and ``setup``: see torch.library.register_autograd."""
    custom = torch.library.custom_op(f"medmambase::{name}", plain, mutates_args=(), schema=schema)
    custom.register_fake(fake)

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
    direct: Any = type(title, base, {"forward": staticmethod(at_once), "backward": staticmethod(gradients)})
    methods: dict[str, Any] = {
        "forward": custom,
        "setup_context": setup,
        "backward": gradients,
        "jvp": _no_such_derivative,
    }
    transformed: Any = type(
        f"{title}Transformed",
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
