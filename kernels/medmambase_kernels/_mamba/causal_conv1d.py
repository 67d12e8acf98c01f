"""A causal depthwise convolution of sequences and SiLU: what precedes the scan in a Mamba block.

Checks, then the custom operator, then the backend that ``backend`` chose; the definition is
``reference.causal_conv1d``.
"""

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.arguments import SEQUENCE, check_flag, check_shapes, check_tensors
from medmambase_kernels.custom_op import register

_ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: str | None = None,
    return_final_states: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """act(bias + sum over taps i of weight_i x_{l - w + 1 + i}): a step sees itself and the w - 1
    before it, channel by channel (Gu and Dao, "Mamba", 2023).

    Args:
        x: (b, d, l), channels before length; strides of any kind.
        weight: (d, w), at least one tap; the last one is the step itself. bias: (d,).
        initial_states: (b, d, w - 1), what stands before x; zeros if None.
        activation: "silu", which is also called "swish", or None.
        return_final_states: return (y, final states) instead of y; both carry gradients.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Tensors are float32, bfloat16, float16 or float64, each its own: x alone decides the dtype of
    the results and of the arithmetic, float64 for a float64 x, else float32. A gradient has the
    dtype of its argument.

    Returns:
        y (b, d, l), contiguous, rounded once; the final states are (b, d, w - 1), what stands
        before the next step.

    Raises:
        TypeError: an argument that is no tensor. ValueError: a shape, dtype, device or activation
        that does not fit. BackendError: the backend asked for cannot run.
    """
    tensors = {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states}
    check_tensors(tensors, optional=("bias", "initial_states"))
    return_final_states = check_flag("return_final_states", return_final_states)
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be 'silu', 'swish' or None")
    sizes = check_shapes(("x", x, SEQUENCE), ("weight", weight, ("channels", "taps")), ("bias", bias, ("channels",)))
    if not sizes["taps"] or not sizes["channels"]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must have at least one channel and tap")
    before = sizes["taps"] - 1
    check_shapes(("x", x, SEQUENCE), ("initial_states", initial_states, ("batch", "channels", before)))
    choice = engines.choose("causal_conv1d", x.device, x.dtype, backend)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight = weight.to(work)
    bias = weight.new_zeros(len(weight)) if bias is None else bias.to(work)
    states = None if initial_states is None else initial_states.to(work)
    if choice.name == "reference":
        y = reference.causal_conv1d(x, weight, bias, states, activation is not None).to(x.dtype)
    else:
        (y,) = _convolve(x, weight, bias, states, activation is not None, choice.name)
    return (y, final_states(x, before, initial_states)) if return_final_states else y


def final_states(x: Tensor, before: int, initial_states: Tensor | None) -> Tensor:
    """The last ``before`` columns of what stands before x (b, d, l), zeros if None, and of x; in
    x's dtype."""
    first = x.new_zeros(*x.shape[:2], before) if initial_states is None else initial_states.to(x.dtype)
    tail = torch.cat([first, x[..., max(0, x.shape[2] - before) :]], 2)
    return tail[..., tail.shape[2] - before :]


def _outputs(x, weight, bias, initial_states, silu):  # type: ignore[no-untyped-def]  # the schema types it
    return ((x.shape, x.dtype),)


_convolve = register(
    "causal_conv1d",
    "Tensor x, Tensor weight, Tensor bias, Tensor? initial_states",
    "bool silu",
    _outputs,
    kept_like="weight",
)
