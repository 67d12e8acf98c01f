"""``mamba_ssm``'s residual block, its decoding step, and what it has for generating text, by their
names.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/modules/block.py,
ops/triton/selective_state_update.py and utils/generation.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medmambase_kernels._drop_in.norms import RMSNorm, layer_norm_fn
from medmambase_kernels._mamba.block import Mamba as Mamba  # other people import it from here
from medmambase_kernels._mamba.selective_state_update import selective_state_update as one_step

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
            assert isinstance(found, tuple)  # prenorm asks for both
            return found
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

    def flat(t: Tensor | None, first: int) -> Tensor | None:
        """The axes of heads and channels as one."""
        return t if t is None or state.dim() == 3 else t.flatten(first, first + 1)

    of_channels = [flat(t, 0) for t in (A, D, dt_bias)]
    of_images = [flat(t, 1) for t in (rows.contiguous(), x, dt, z)]
    y = one_step(
        of_images[0], of_images[1], of_images[2], of_channels[0], B, C, of_channels[1], of_images[3], of_channels[2],  # type: ignore[arg-type]  # given
        dt_softplus,
    )  # fmt: skip  # in the operator's order
    if state_batch_indices is not None:
        state[state_batch_indices.long()] = of_images[0].view(rows.shape)  # type: ignore[union-attr]  # given
    elif not rows.is_contiguous():
        state.copy_(of_images[0].view(rows.shape))  # type: ignore[union-attr]  # given
    return y.view(x.shape)


@dataclass
class InferenceParams:
    """Where a text that is being generated stands: the states of each layer, and the steps so
    far."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew, with the same states' memory."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


custom_fwd = partial(torch.amp.custom_fwd, device_type="cuda")
custom_bwd = partial(torch.amp.custom_bwd, device_type="cuda")
