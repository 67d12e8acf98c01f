"""Several sequences in one row, as ``causal_conv1d`` takes them: ``seq_idx`` says of each step to
which sequence it belongs.

Facts from https://github.com/Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py and
causal_conv1d_varlen.py.
"""

import torch
from torch import Tensor

from medmambase_kernels._mamba.causal_conv1d import causal_conv1d


def packed_causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: str | None
) -> Tensor:
    """``causal_conv1d`` whose steps see no step of another sequence: x (b, d, l), seq_idx (b, l) of
    whole numbers, a sequence's steps side by side -> y (b, d, l); y is 0 where seq_idx is below 0.

    The sequences are set apart by as many zeros as a step looks back, in a longer row.

    Raises ValueError for a seq_idx of another shape or of fractions.
    """
    b, d, l = x.shape
    if tuple(seq_idx.shape) != (b, l) or seq_idx.is_floating_point():
        raise ValueError(
            f"seq_idx has shape {tuple(seq_idx.shape)} and dtype {seq_idx.dtype}; it must be ({b}, {l}), whole numbers"
        )
    if seq_idx.numel() == 0:
        y = causal_conv1d(x, weight, bias, None, activation)
        assert isinstance(y, Tensor)  # no final states were asked for
        return y
    begins = torch.zeros_like(seq_idx, dtype=torch.long)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    places = torch.arange(l, device=x.device) + (weight.shape[1] - 1) * begins.cumsum(1)
    longest = int(places.max()) + 1
    places = places.unsqueeze(1).expand(b, d, l)
    apart = x.new_zeros(b, d, longest).scatter(2, places, x)
    y = causal_conv1d(apart, weight, bias, None, activation)
    assert isinstance(y, Tensor)  # no final states were asked for
    return y.gather(2, places).masked_fill((seq_idx < 0).unsqueeze(1), 0)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last ``state_len`` steps of each sequence, zeros before its first one: x (all steps, d),
    cu_seqlens (sequences + 1,) with the ends of the sequences behind a 0 -> (sequences, d,
    state_len)."""
    starts, ends = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    places = ends - torch.arange(state_len, 0, -1, device=x.device)
    steps = torch.cat([x, x.new_zeros(1, x.shape[1])])  # the last stands for what lies before
    return steps[places.masked_fill(places < starts, len(x)).long()].transpose(1, 2)
