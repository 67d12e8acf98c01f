"""One step of the selective scan, whose state is updated in place: what a network does for each
token that it generates.

The definition is ``reference.selective_scan`` at length 1, from an initial state.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels.arguments import check_flag, check_shapes, check_tensors


def selective_state_update(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """h = exp(delta A) h + delta x B, written into ``state``, and y = (<C, h> + D x) silu(z): one
    step of ``selective_scan``, without gradients.

    Args:
        state: (b, d, n), the state before the step; afterwards the one after it.
        x, delta, z: (b, d). A: (d, n), real. B, C: (b, n), or (b, g, n): channel i belongs to group
        i // (d / g). D, delta_bias: (d,).
        delta_softplus: apply softplus to delta, after the bias.

    Tensors are float32, bfloat16, float16 or float64, each its own, on any device. The arithmetic
    is float64 for a float64 x, else float32.

    Returns:
        y (b, d) in x's dtype, rounded once.

    Raises:
        TypeError: an argument that is no tensor. ValueError: a shape, dtype or device that does not
        fit; x is named first.
    """
    tensors = {"x": x, "state": state, "delta": delta, "A": A, "B": B, "C": C}
    check_tensors(tensors | {"D": D, "z": z, "delta_bias": delta_bias}, optional=("D", "z", "delta_bias"))
    of_row = ("batch", "groups", "state") if B.dim() == 3 else ("batch", "state")
    sizes = check_shapes(
        ("state", state, ("batch", "channels", "state")),
        ("x", x, ("batch", "channels")),
        ("delta", delta, ("batch", "channels")),
        ("A", A, ("channels", "state")),
        ("B", B, of_row),
        ("C", C, of_row),
        ("D", D, ("channels",)),
        ("z", z, ("batch", "channels")),
        ("delta_bias", delta_bias, ("channels",)),
    )
    if B.dim() == 3 and (not sizes["groups"] or sizes["channels"] % sizes["groups"]):
        raise ValueError(f"B has shape {tuple(B.shape)}; its groups must divide the {sizes['channels']} channels")
    delta_softplus = check_flag("delta_softplus", delta_softplus)
    with torch.no_grad():
        return _step(state, x, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide, step, A = x.to(work), delta.to(work), A.to(work)
    if delta_bias is not None:
        step = step + delta_bias.to(work)
    if delta_softplus:
        step = F.softplus(step)
    groups = B.shape[1] if B.dim() == 3 else 1
    B, C = (t.to(work).view(len(x), groups, 1, -1) for t in (B, C))
    h = state if state.dtype == work and state.is_contiguous() else state.to(work).contiguous()
    h.mul_(torch.exp(step.unsqueeze(-1) * A))
    grouped = h.unflatten(1, (groups, -1))
    grouped.addcmul_((step * wide).view(len(x), groups, -1, 1), B)
    y = torch.matmul(grouped, C.transpose(2, 3)).view(wide.shape)
    if h is not state:
        state.copy_(h)
    if D is not None:
        y = torch.addcmul(y, wide, D.to(work))
    return (y if z is None else y * F.silu(z.to(work))).to(x.dtype)
