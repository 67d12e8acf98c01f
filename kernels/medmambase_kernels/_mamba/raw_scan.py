"""The selective scan as a forward and a backward pass without autograd: for code that brings a
``torch.autograd.Function`` of its own.

What forward hands over for backward is one tensor of plain numbers, (b, d, k, 2n): its last entry
along k is the last state in the odd places, where callers of mamba_ssm's kernel look for it, and
the entries before are what the backend keeps. So nothing is scanned twice, and the tensor may be
saved, moved and copied like any other.
"""

from typing import Any

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels.arguments import SEQUENCE, check_flag, check_shapes, check_tensors
from medmambase_kernels.selective_scan import check_scan, prepared, selective_scan

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) in ``out_dtype``, and the tensor for ``backward``. Arguments as in
    ``selective_scan``, without z and an initial state."""
    check_scan(u, delta, A, B, C, D, None, delta_bias, None)
    delta_softplus = check_flag("delta_softplus", delta_softplus)
    name = engines.choose("selective_scan", u.device, u.dtype, None).name
    with torch.no_grad():
        if name == "reference":
            y, last = selective_scan(
                u, delta, A, B, C, D, None, delta_bias, delta_softplus, True, out_dtype=out_dtype, backend=name
            )
            return y, _packed(last, last.new_empty(0))
        given = prepared(u, delta, A, B, C, D, delta_bias, None)
        y, last, kept = engines.run("selective_scan", name, "forward", *given, delta_softplus, out_dtype, True)
        return y, _packed(last, kept)


def _packed(last: Tensor, kept: Tensor) -> Tensor:
    b, d, n = last.shape
    entries = -(-kept.numel() // max(1, 2 * last.numel()))
    x = last.new_zeros(entries + 1, b, d, 2 * n)
    x[:entries].view(-1)[: kept.numel()] = kept.flatten()
    x[entries, :, :, 1::2] = last
    return x.permute(1, 2, 0, 3)


def _kept(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    return x.permute(2, 0, 1, 3)[:-1].reshape(-1)[:count].view(shape)


def backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    x: Tensor | None,
) -> Gradients:
    """The gradients of u, delta, A, B, C, D and delta_bias, each in its argument's shape and dtype,
    None for what was None; for the gradient dy of y, whatever its strides.

    x: what ``forward`` returned; None: it is made once more.
    """
    check_scan(u, delta, A, B, C, D, None, delta_bias, None)
    delta_softplus = check_flag("delta_softplus", delta_softplus)
    check_tensors({"u": u, "dout": dy, "x": x}, optional=("x",))
    check_shapes(("u", u, SEQUENCE), ("dout", dy, SEQUENCE))
    name = engines.choose("selective_scan", u.device, u.dtype, None).name
    arguments = (u, delta, A, B, C, D, delta_bias)
    if name == "reference":
        return _of_the_definition(dy, arguments, delta_softplus)
    with torch.no_grad():
        given: Any = prepared(u, delta, A, B, C, D, delta_bias, None)
        if x is None:
            _, x = forward(u, delta, A, B, C, D, delta_bias, delta_softplus, dy.dtype)
        shape = engines.engine("selective_scan", name).kept_shape(*given)
        ours = x.dim() == 4 and (*x.shape[:2], x.shape[3]) == (*u.shape[:2], 2 * A.shape[1])
        if not ours or x[:, :, :-1].numel() < torch.Size(shape).numel():
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be what the forward pass of these arguments gave")
        kept = _kept(x, shape)
        dlast = given[2].new_zeros(len(u), *A.shape)
        found = engines.run(
            "selective_scan", name, "backward", dy, dlast, *given, delta_softplus, dy.dtype, kept.contiguous()
        )
        return tuple(_like(gradient, t) for gradient, t in zip(found, arguments, strict=False))  # type: ignore[return-value]  # as many as there are arguments


def _like(gradient: Tensor | None, t: Tensor | None) -> Tensor | None:
    """A gradient of what ``prepared`` made of t, as that of t."""
    if t is None or gradient is None:
        return None
    if gradient.dim() in (1, 3) and gradient.numel() > t.numel():  # a row of delta that channels share
        axis = 0 if t.dim() == 1 else 1
        gradient = gradient.unflatten(axis, (t.shape[axis], -1)).sum(axis + 1)
    return gradient.reshape(t.shape).to(t.dtype)


def _of_the_definition(dy: Tensor, arguments: tuple[Tensor | None, ...], delta_softplus: bool) -> Gradients:
    with torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in arguments]
        u, delta, A, B, C, D, delta_bias = leaves
        y = selective_scan(
            u, delta, A, B, C, D, None, delta_bias, delta_softplus, out_dtype=dy.dtype, backend="reference"
        )
        assert isinstance(y, Tensor)  # no last state was asked for
        found = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy, materialize_grads=True))
    return tuple(None if t is None else next(found) for t in leaves)  # type: ignore[return-value]  # as many as there are arguments
