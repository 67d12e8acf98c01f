"""The selective scan in plain PyTorch operations, on any device.

    a_l = exp(delta_l A)    h_l = a_l h_{l-1} + (delta_l u_l) B_l    y_l = <C_l, h_l> + D u_l

Time stands first and channels last, so that one step is one fused multiply-add on a slab (group,
batch, state, channel); everything else is done for CHUNK steps at once in buffers that are used
again. Forward keeps the state at each chunk's entry and nothing else; backward rebuilds a chunk
from there, then sweeps it in reverse. The scan of an image runs on the same three functions, its
directions being the groups.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels.reference import groups_of

CHUNK = 16
# Numbers in one chunk's buffer. Larger batches are taken in slices: a slab that has left the cache
# is several times slower.
BUDGET = 1 << 20
LOG2E = math.log2(math.e)


def batch_slices(batch: int, per_image: int) -> list[slice]:
    """The batch in slices whose chunk buffers of ``per_image`` numbers an image stay within the
    budget."""
    step = max(1, BUDGET // max(1, per_image))
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


@dataclass
class Buffers:
    """Work space for one chunk: decays a (t, g, b, n, e), states h (t + 1, ...), adjoints and
    products (t, ...). e: channels of a group."""

    a: Tensor
    h: Tensor
    adjoint: Tensor
    product: Tensor

    @classmethod
    def like(cls, A: Tensor, batch: int, steps: int, backward: bool) -> "Buffers":
        """For decay rates A (g, 1, n, e)."""
        slab = (A.shape[0], batch, *A.shape[2:])
        only_backward = A.new_empty(2, steps if backward else 0, *slab)
        return cls(A.new_empty(steps, *slab), A.new_empty(steps + 1, *slab), only_backward[0], only_backward[1])


def rebuild(
    delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, entry: Tensor, buffers: Buffers
) -> tuple[Tensor, Tensor]:
    """A chunk's decays a (t, g, b, n, e) and states h (t + 1, ...), h[0] being ``entry``.

    delta and drive = delta * u are (t, g, b, e); A (g, 1, n, e); B (t, g, b, n, 1), or (g, 1, n, e)
    when constant.
    """
    steps = len(delta)
    a, h = buffers.a[:steps], buffers.h[: steps + 1]
    h[0] = entry  # first, since the entry may be the last state of the chunk before, in this very buffer
    torch.mul(delta.unsqueeze(-2), A * LOG2E, out=a).exp2_()  # 2^x takes a third of the time of e^x here
    torch.mul(drive.unsqueeze(-2), B, out=h[1:])
    states = h.unbind()
    for decay, before, state in zip(a.unbind(), states, states[1:], strict=False):
        state.addcmul_(decay, before)
    return a, h


def over_states(weights: Tensor, states: Tensor, product: Tensor) -> Tensor:
    """Sum over n of weights (t, g, b, n, 1) or (g, 1, n, e) times states (t, g, b, n, e): (t, g, b,
    e). Overwrites ``product``.

    Here and below a product and a sum: as a batch of small matrix products the same takes three
    times as long.
    """
    return torch.mul(states, weights, out=product).sum(-2)


def reverse(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    drive: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    a: Tensor,
    h: Tensor,
    carry: Tensor,
    buffers: Buffers,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one chunk, given dy (t, g, b, e) and ``carry``, the adjoint (g, b, n, e) of the
    state that leaves it.

    Returns du, ddelta (t, g, b, e), dA (g, n, e), and dB, dC shaped as B and C; overwrites
    ``carry`` with the adjoint of the chunk's entry state, and a with rubbish.
    """
    adjoint, product = buffers.adjoint[: len(dy)], buffers.product[: len(dy)]
    torch.mul(dy.unsqueeze(-2), C, out=adjoint)
    adjoint[-1] += carry
    adjoints = adjoint.unbind()[::-1]
    for decay, after, earlier in zip(a.unbind()[::-1], adjoints, adjoints[1:], strict=False):
        earlier.addcmul_(decay, after)
    torch.mul(a[0], adjoint[0], out=carry)
    dB, dC = _weight_gradient(adjoint, drive, B, product), _weight_gradient(h[1:], dy, C, product)
    ddrive = over_states(B, adjoint, product)
    dlog = a.mul_(h[:-1]).mul_(adjoint)  # the adjoint of delta_l A, since d exp(s) = exp(s) ds
    dA = _over_steps_and_images(torch.mul(dlog, delta.unsqueeze(-2), out=product))
    ddelta = over_states(A, dlog, product).addcmul_(ddrive, u)
    return ddrive.mul_(delta), ddelta, dA, dB, dC


def _over_steps_and_images(product: Tensor) -> Tensor:
    """(t, g, b, n, e) -> (g, n, e), one axis after the other: both at once runs several times
    slower."""
    return product.sum(0).sum(1)


def _weight_gradient(states: Tensor, vector: Tensor, like: Tensor, product: Tensor) -> Tensor:
    """Gradient of B or C: states (t, g, b, n, e) times vector (t, g, b, e), summed over the axes on
    which ``like`` is constant."""
    torch.mul(states, vector.unsqueeze(-2), out=product)
    return product.sum(-1, keepdim=True) if like.dim() == 5 else _over_steps_and_images(product).unsqueeze(1)


def kept_shape(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *_: Tensor | None) -> tuple[int, ...]:
    """Shape of the states at the chunks' entries, (chunks, b, d, n). Tensors as in ``forward``."""
    return (-(-u.shape[2] // CHUNK), u.shape[0], *A.shape)


class _Grouped:
    """The operator's tensors, cut into groups and read a chunk at a time with time first."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool
    ) -> None:
        self.groups = groups_of(B, C)
        self.work = A.dtype
        self.u, self.delta, self.B, self.C = u, delta, B, C
        self.bias, self.softplus = delta_bias, delta_softplus
        self.A = self.constant(A)

    def constant(self, t: Tensor) -> Tensor:
        """(d, n) -> (g, 1, n, e)."""
        return t.to(self.work).unflatten(0, (self.groups, -1)).transpose(1, 2).unsqueeze(1).contiguous()

    def rows(self, t: Tensor, images: slice, steps: slice) -> Tensor:
        """A chunk of (b, d, l) as (t, g, b, e)."""
        return t[images, :, steps].to(self.work).unflatten(1, (self.groups, -1)).permute(3, 1, 0, 2).contiguous()

    def weights(self, t: Tensor, images: slice, steps: slice) -> Tensor:
        """A chunk of B or C: (t, g, b, n, 1), or (g, 1, n, e) when constant."""
        if t.dim() == 2:
            return self.constant(t)
        return t[images, :, :, steps].to(self.work).permute(3, 1, 0, 2).contiguous().unsqueeze(-1)

    def steps_of(self, images: slice, steps: slice) -> tuple[Tensor, Tensor]:
        """u and delta, bias and softplus applied, (t, g, b, e)."""
        delta = self.rows(self.delta, images, steps)
        if self.bias is not None:
            delta = delta + self.bias.view(
                self.groups, 1, -1
            )  # not in place: a chunk may still be a view of the caller's tensor
        return self.rows(self.u, images, steps), F.softplus(delta) if self.softplus else delta

    def states(self, t: Tensor) -> Tensor:
        """(b, d, n) -> (g, b, n, e)."""
        return t.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2)

    def flat(self, t: Tensor) -> Tensor:
        """(g, b, n, e) -> (b, d, n)."""
        return t.permute(1, 0, 3, 2).flatten(1, 2)

    def flat_rows(self, t: Tensor) -> Tensor:
        """(t, g, b, e) -> (b, d, t)."""
        return t.permute(2, 1, 3, 0).flatten(1, 2)


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, d, l), the last state (b, d, n) and, if ``save``, the chunks' entry states; shapes as
    in ``reference``."""
    batch, _, length = u.shape
    grouped = _Grouped(u, delta, A, B, C, delta_bias, delta_softplus)
    y = u.new_empty(u.shape, dtype=out_dtype)
    last = A.new_zeros(batch, *A.shape) if initial_state is None else initial_state.clone()
    kept = A.new_empty(kept_shape(u, delta, A, B, C) if save else (0,))
    for images in batch_slices(batch, min(CHUNK, length) * A.numel()):
        buffers = Buffers.like(grouped.A, images.stop - images.start, min(CHUNK, length), backward=False)
        entry = grouped.states(last[images])
        for index, steps in enumerate(_chunks(length)):
            if save:
                kept[index, images] = grouped.flat(entry)
            u_c, delta_c = grouped.steps_of(images, steps)
            a, h = rebuild(delta_c, delta_c * u_c, grouped.A, grouped.weights(B, images, steps), entry, buffers)
            entry = h[-1]
            y_c = over_states(grouped.weights(C, images, steps), h[1:], a)
            if D is not None:
                y_c = y_c.addcmul_(u_c, D.view(grouped.groups, 1, -1))
            y[images, :, steps] = grouped.flat_rows(y_c)
        last[images] = grouped.flat(entry)
    return y, last, kept


def backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias and initial_state, None for what was None."""
    batch, channels, length = u.shape
    grouped = _Grouped(u, delta, A, B, C, delta_bias, delta_softplus)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA, dD, dbias = A.new_zeros(A.shape), A.new_zeros(channels), A.new_zeros(channels)
    dB, dC = (
        t.new_zeros(t.shape, dtype=A.dtype if t.dim() == 2 else t.dtype) for t in (B, C)
    )  # constants are summed over all chunks
    dinitial = dlast.clone()
    for images in batch_slices(batch, min(CHUNK, length) * A.numel()):
        buffers = Buffers.like(grouped.A, images.stop - images.start, min(CHUNK, length), backward=True)
        carry = grouped.states(dlast[images]).contiguous()
        for index, steps in reversed(list(enumerate(_chunks(length)))):
            u_c, delta_c = grouped.steps_of(images, steps)
            drive = delta_c * u_c
            B_c, C_c = grouped.weights(B, images, steps), grouped.weights(C, images, steps)
            a, h = rebuild(delta_c, drive, grouped.A, B_c, grouped.states(kept[index, images]), buffers)
            dy_c = grouped.rows(dy, images, steps)
            du_c, ddelta_c, dA_c, dB_c, dC_c = reverse(
                dy_c, u_c, delta_c, drive, grouped.A, B_c, C_c, a, h, carry, buffers
            )
            if D is not None:
                du_c.addcmul_(dy_c, D.view(grouped.groups, 1, -1))
                dD += (dy_c * u_c).sum((0, 2)).flatten()
            if delta_softplus:
                ddelta_c *= -torch.expm1(-delta_c)  # the sigmoid of what went into the softplus
            if delta_bias is not None:
                dbias += ddelta_c.sum((0, 2)).flatten()
            dA += dA_c.transpose(1, 2).flatten(0, 1)
            du[images, :, steps] = grouped.flat_rows(du_c)
            ddelta[images, :, steps] = grouped.flat_rows(ddelta_c)
            for gradient, part in ((dB, dB_c), (dC, dC_c)):
                if gradient.dim() == 2:
                    gradient += part.squeeze(1).transpose(1, 2).flatten(0, 1)
                else:
                    gradient[images, :, :, steps] = part.squeeze(-1).permute(2, 1, 3, 0)
        dinitial[images] = grouped.flat(carry)
    return (
        du, ddelta, dA, dB.to(B.dtype), dC.to(C.dtype), None if D is None else dD,
        None if delta_bias is None else dbias, None if initial_state is None else dinitial,
    )  # fmt: skip  # the operator's order, on two lines
