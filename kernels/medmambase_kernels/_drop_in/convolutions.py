"""The package ``causal_conv1d`` and its compiled extension by their names.

The extension's functions changed their arguments from release to release, and forks call them in
every way: what matters is read from how many came. Facts from
https://github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and
cpp_functions.py.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from medmambase_kernels._drop_in.packed_sequences import packed_causal_conv1d
from medmambase_kernels._mamba.causal_conv1d import causal_conv1d, final_states
from medmambase_kernels.arguments import SEQUENCE, check_shapes, check_tensor, check_tensors
from medmambase_kernels.backend import use_backend

_ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """act(bias + weight * x), causal: y (b, d, l), with ``return_final_states`` and the final
    states (b, d, w - 1), which are also written into ``final_states_out``.

    x (b, d, l); weight (d, w); bias (d,); initial_states (b, d, w - 1); activation None, "silu" or
    "swish", which once came fourth. seq_idx as in ``packed_causal_conv1d``; with it there are no
    initial and no final states, which raises ValueError.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    if activation not in _ACTIVATIONS:
        raise NotImplementedError(f"activation is {activation!r}; it must be None, 'silu' or 'swish'")
    if seq_idx is not None:
        _no_states(initial_states, return_final_states)
        return packed_causal_conv1d(x, weight, bias, seq_idx, activation)
    found = causal_conv1d(x, weight, bias, initial_states, activation, return_final_states)
    if return_final_states and final_states_out is not None:
        _as("final_states_out", final_states_out, found[1])
        return found[0], final_states_out.copy_(found[1])
    return found


class CausalConv1dFn:
    """``causal_conv1d_fn`` as forks call their autograd Function."""

    apply = staticmethod(causal_conv1d_fn)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``causal_conv1d_fn`` by the definition: sums in float64."""
    with use_backend("reference"):
        return causal_conv1d_fn(
            x, weight, bias, None, initial_states, return_final_states, final_states_out, activation
        )


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """``causal_conv1d_update`` by the definition."""
    with use_backend("reference"):
        return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next steps x (b, d) or (b, d, l) of a sequence, y in x's shape; ``conv_state`` (b, d, at
    least w - 1), the inputs before them, is updated in place.

    cache_seqlens: (b,), how many steps came before; the state is then a ring, whose step i stands
    at i modulo its length. conv_state_indices: (b,), which row of ``conv_state`` is whose; below 0:
    nobody's, and y is 0.
    """
    check_tensors({"x": x, "conv_state": conv_state, "weight": weight, "bias": bias}, optional=("bias",))
    steps = x.unsqueeze(-1) if x.dim() == 2 else x
    sizes = check_shapes(
        ("x", x, SEQUENCE if x.dim() == 3 else SEQUENCE[:2]),
        ("weight", weight, ("channels", "taps")),
        ("bias", bias, ("channels",)),
        ("conv_state", conv_state, ("batch" if conv_state_indices is None else "rows", "channels", "steps")),
    )
    for name, t in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if t is not None and (check_tensor(name, t).shape != (len(x),) or t.is_floating_point()):
            raise ValueError(
                f"{name} has shape {tuple(t.shape)} and dtype {t.dtype}; it must be ({len(x)},), whole numbers"
            )
    before = sizes["taps"] - 1
    if conv_state.shape[2] < before:
        raise ValueError(f"conv_state has shape {tuple(conv_state.shape)}; it must hold at least {before} steps")
    if conv_state_indices is None:
        y = _advance(steps, conv_state, weight, bias, activation, cache_seqlens)
    else:
        (there,) = (conv_state_indices >= 0).nonzero(as_tuple=True)
        places = conv_state_indices[there].long()
        rows = conv_state[places]
        came = None if cache_seqlens is None else cache_seqlens[there]
        y = torch.zeros_like(steps).index_copy(0, there, _advance(steps[there], rows, weight, bias, activation, came))
        conv_state[places] = rows
    return y.reshape(x.shape)


def _advance(
    steps: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    came: Tensor | None,
) -> Tensor:
    """y of the next steps (b, d, l); the state (b, d, length) is moved on in place."""
    before, length = weight.shape[1] - 1, state.shape[2]
    if came is None:
        y = causal_conv1d(steps, weight, bias, state[..., length - before :], activation)
        state.copy_(final_states(steps, length, state))
    else:
        initial = state.gather(2, _ring(came, range(-before, 0), state))
        y = causal_conv1d(steps, weight, bias, initial, activation)
        l = steps.shape[2]
        last = range(max(0, l - length), l)  # what a ring shorter than the steps still holds
        state.scatter_(2, _ring(came, last, state), steps[..., last.start :].to(state.dtype))
    assert isinstance(y, Tensor)  # no final states were asked for
    return y


def _ring(came: Tensor, steps: range, state: Tensor) -> Tensor:
    """Where the steps, counted from the next one, stand in a ring (b, d, length)."""
    places = came.long().unsqueeze(1) + torch.arange(steps.start, steps.stop, device=state.device)
    return places.remainder(state.shape[2]).unsqueeze(1).expand(-1, state.shape[1], -1)


def causal_conv1d_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """``causal_conv1d_cuda.causal_conv1d_fwd``: y (b, d, l). The rest is (silu), (seq_idx, silu),
    (seq_idx, initial_states, final_states_out, silu), or that with ``out`` before final_states_out,
    which is then also written."""
    *options, silu = rest
    seq_idx = initial = out = last = None
    if len(options) == 1:
        (seq_idx,) = options
    elif len(options) == 3:
        seq_idx, initial, last = options
    elif len(options) == 4:
        seq_idx, initial, out, last = options
    elif options:
        _unknown("causal_conv1d_fwd", 3 + len(rest), "4, 5, 7 or 8")
    activation = "silu" if silu else None
    with torch.no_grad():
        y = causal_conv1d_fn(x, weight, bias, seq_idx, initial, activation=activation)
        assert isinstance(y, Tensor)  # no final states were asked for
        if last is not None:
            found = final_states(x, weight.shape[1] - 1, initial)
            _as("final_states_out", last, found).copy_(found)
        return y if out is None else _as("out", out, y).copy_(y)


def causal_conv1d_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    """``causal_conv1d_cuda.causal_conv1d_bwd``: (dx, dweight, dbias), dx written into the tensor
    that was given for it.

    The rest is (silu), (dx, silu) or (seq_idx, dx, silu); for those that unpack a fourth result,
    the gradient of the initial states or None, (seq_idx, initial_states, dfinal_states, dx,
    return_dinitial_states, silu) or (seq_idx, initial_states, dfinal_states, dx, dweight, dbias,
    dinitial_states, silu), all of whose gradients are then written.
    """
    *options, silu = rest
    seq_idx = initial = dlast = None
    places: list[Tensor | None] = [None] * 4  # for the gradients
    if len(options) in (1, 2):
        *first, places[0] = options
        seq_idx = first[0] if first else None
    elif len(options) == 5:
        seq_idx, initial, dlast, places[0], _ = options
    elif len(options) == 7:
        seq_idx, initial, dlast, *places = options
    elif options:
        _unknown("causal_conv1d_bwd", 4 + len(rest), "5, 6, 7, 10 or 12")
    activation = "silu" if silu else None
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, initial)]
        of_x, of_weight, of_bias, of_initial = leaves
        given = (of_x, of_weight, of_bias, seq_idx, of_initial, dlast is not None)
        found = causal_conv1d_fn(*given, activation=activation)
        outputs = [found] if isinstance(found, Tensor) else [*found]
        _as("dout", dout, outputs[0])
        d_outputs = [dout] if dlast is None else [dout, dlast]
        wanted = [t for t in leaves if t is not None]
        each = iter(torch.autograd.grad(outputs, wanted, d_outputs, materialize_grads=True))
    gradients: list[Any] = [None if t is None else next(each) for t in leaves]
    with torch.no_grad():
        dx, dweight, dbias, dinitial = (
            gradient if place is None or gradient is None else place.copy_(gradient)
            for place, gradient in zip(places, gradients, strict=True)
        )
    return (dx, dweight, dbias, dinitial) if len(options) >= 5 else (dx, dweight, dbias)


def raw_update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """``causal_conv1d_cuda.causal_conv1d_update``: y. The rest is (silu), (silu, cache_seqlens),
    (silu, cache_seqlens, conv_state_indices), or that with ``out`` first, which is then also
    written."""
    if not 1 <= len(rest) <= 4:
        _unknown("causal_conv1d_update", 4 + len(rest), "5 to 8")
    out, silu, seqlens, indices = (*(rest if len(rest) == 4 else (None, *rest)), None, None)[:4]
    y = cpp_update(x, conv_state, weight, bias, bool(silu), seqlens, indices)
    return y if out is None else out.copy_(y)


def cpp_bwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """``causal_conv1d.cpp_functions.causal_conv1d_bwd_function``."""
    given = (seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu_activation)
    return causal_conv1d_bwd(x, weight, bias, dout, *given)


def cpp_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """``causal_conv1d.cpp_functions.causal_conv1d_fwd_function``."""
    return causal_conv1d_fwd(x, weight, bias, seq_idx, initial_states, final_states_out, silu_activation)


def cpp_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """``causal_conv1d.cpp_functions.causal_conv1d_update_function``."""
    activation = "silu" if silu_activation else None
    return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)


def _as(name: str, given: Tensor, result: Tensor) -> Tensor:
    """Return a tensor that was given for a result, or for its gradient. Raises ValueError for
    another shape."""
    if check_tensor(name, given).shape != result.shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be {tuple(result.shape)}")
    return given


def _no_states(initial_states: Tensor | None, return_final_states: bool) -> None:
    given = ["initial_states"] * (initial_states is not None) + ["return_final_states"] * return_final_states
    if given:
        raise ValueError(
            f"{' and '.join(given)} came with seq_idx, whose sequences begin and end within a row; leave one out"
        )


def _unknown(name: str, count: int, known: str) -> NoReturn:
    raise TypeError(f"{name} was called with {count} arguments; it takes {known}")
