"""``mamba_ssm``'s residual block and its decoding step, by their names.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/modules/block.py and
ops/triton/selective_state_update.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medmambase_kernels._drop_in.norms import RMSNorm, layer_norm_fn
from medmambase_kernels._mamba.block import Mamba as Mamba  # other people import it from here
from medmambase_kernels._mamba.selective_state_update import selective_state_update as one_step
from medmambase_kernels.arguments import check_shapes, check_tensors
from medmambase_kernels.selective_scan import selective_scan

Make = Callable[[int], nn.Module]


class Block(nn.Module):
    """A mixer behind a norm and the sum of all before: (hidden, residual) -> (mixed, new residual),
    with an MLP behind a second norm if ``mlp_cls`` makes one."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Make,
        mlp_cls: Make = nn.Identity,
        norm_cls: Make = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.layer_idx: int | None = None
        self.norm, self.mixer = norm_cls(dim), mixer_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states, residual (b, l, dim). Other keywords go to the mixer."""
        hidden_states, residual = self._normed(self.norm, hidden_states, residual)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = self._normed(self.norm2, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def _normed(self, norm: nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            rms = isinstance(norm, RMSNorm)
            weight, bias, eps = norm.weight, norm.bias, norm.eps
            assert isinstance(weight, Tensor) and isinstance(eps, float)  # of a norm
            found = layer_norm_fn(
                x, weight, bias, residual, eps=eps, prenorm=True,  # type: ignore[arg-type]  # a tensor or None
                residual_in_fp32=self.residual_in_fp32, is_rms_norm=rms,
            )  # fmt: skip  # tensors, options
            y, total = found
            assert y is not None and total is not None  # prenorm asks for both
            return y, total
        total = x if residual is None else x + residual
        y = norm(total.to(norm.weight.dtype))  # type: ignore[arg-type]  # a tensor
        return y, total.float() if self.residual_in_fp32 else total

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **mixer_kwargs: Any
    ) -> Any:
        """The mixer's."""
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **mixer_kwargs)  # type: ignore[operator]  # a mixer's method


class BlockOfOnce(Block):
    """``Block`` as ``mamba_simple`` had it: the norm comes third, and there is no MLP."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Make,
        norm_cls: Make = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """``medmambase_kernels.selective_state_update``, also with heads: state (b, heads, d, n), x,
    dt, z (b, heads, d), A (heads, d, n), D and dt_bias (heads, d), B and C (b, groups, n). The
    state of image i stands in row ``state_batch_indices[i]``."""
    rows = state if state_batch_indices is None else state[state_batch_indices.long()]
    _check_step(rows, x, dt, A, B, C, D, z, dt_bias)
    h, (u, delta, A, B, C, D, gate, bias) = _without_heads(rows, x, dt, A, B, C, D, z, dt_bias)
    y = one_step(h, u, delta, A, B, C, D, gate, bias, dt_softplus)
    if state_batch_indices is not None:
        state[state_batch_indices.long()] = h.view(rows.shape)
    elif not rows.is_contiguous():
        state.copy_(h.view(rows.shape))
    return y.view(x.shape)


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """The same by the definition: a scan of one step, in float64."""
    _check_step(state, x, dt, A, B, C, D, z, dt_bias)
    h, (u, delta, A, B, C, D, gate, bias) = _without_heads(state, x, dt, A, B, C, D, z, dt_bias)
    long: list[Any] = [None if t is None else t.unsqueeze(-1) for t in (u, delta, B, C, gate)]
    u, delta, B, C, gate = long
    with torch.no_grad():
        y, last = selective_scan(
            u, delta, A, B, C, D, gate, bias, dt_softplus, True, initial_state=h, backend="reference"
        )
        state.copy_(last.view(state.shape))
    return y.view(x.shape)


def _check_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    """Check the arguments of a step, with heads or without, by the names that they have here."""
    first = {"x": x, "state": state, "dt": dt, "A": A, "B": B, "C": C}
    check_tensors(first | {"D": D, "z": z, "dt_bias": dt_bias}, optional=("D", "z", "dt_bias"))
    channels = ("heads", "channels") if state.dim() == 4 else ("channels",)
    groups = ("groups",) if B.dim() == 3 else ()
    check_shapes(
        ("state", state, ("batch", *channels, "state")),
        ("x", x, ("batch", *channels)),
        ("dt", dt, ("batch", *channels)),
        ("A", A, (*channels, "state")),
        ("B", B, ("batch", *groups, "state")),
        ("C", C, ("batch", *groups, "state")),
        ("D", D, channels),
        ("z", z, ("batch", *channels)),
        ("dt_bias", dt_bias, channels),
    )


def _without_heads(state: Tensor, *of_step: Tensor | None) -> tuple[Tensor, list[Any]]:
    """The state, and x, dt, A, B, C, D, z, dt_bias, with the axes of heads and channels as one."""
    if state.dim() == 3:
        return state.contiguous(), list(of_step)
    first = (1, 1, 0, None, None, 0, 1, 0)  # the axis of heads
    flat = [
        t if t is None or axis is None else t.flatten(axis, axis + 1) for t, axis in zip(of_step, first, strict=True)
    ]
    return state.contiguous().flatten(1, 2), flat


custom_fwd = partial(torch.amp.custom_fwd, device_type="cuda")
custom_bwd = partial(torch.amp.custom_bwd, device_type="cuda")
