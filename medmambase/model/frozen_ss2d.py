"""SS2D for prediction, and what a GPU does in fewer launches where a map is small: the norms before
the projections in one kernel with them, and the scan on what one product has laid out for it.
"""

from copy import deepcopy
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.model.layers import DIRECTIONS, SS2D
from medmambase.model.projection import watched
from medmambase_kernels import (
    FrozenConv2d,
    FrozenLayerNorm,
    depthwise_silu,
    gated_norm,
    selective_scan_2d,
    triton_kernels,
)

_LOG2E = 1.4426950408889634


class FrozenSS2D(nn.Module):
    """``SS2D``; A and delta's projection stand as the scan reads them, channels side by side."""

    A: Tensor
    A2: Tensor
    W: Tensor
    columns: Tensor

    def __init__(self, branch: SS2D) -> None:
        super().__init__()
        self.in_proj = pointwise(branch.in_proj.weight)
        self.conv = deepcopy(branch.conv)
        self.x_proj = pointwise(branch.x_proj.flatten(0, 1))
        self.dt_weight, self.dt_bias, self.D = (
            nn.Parameter(t) for t in (_side_by_side(branch.dt_weight), branch.dt_bias.clone(), branch.D.clone())
        )
        self.register_buffer("A", _side_by_side(branch.state_matrix()))
        self.norm = deepcopy(branch.norm)
        self.out_proj = pointwise(branch.out_proj.weight)
        for name, table in zip(("columns", "A2", "W"), _tables(branch), strict=True):
            self.register_buffer(name, table)

    def forward(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """x (b, h, w, channels) -> the same shape, plus ``add``, in ``out`` if one is given."""
        return self.scanned(self.in_proj(x), add, out)

    def scanned(self, projected: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """``forward`` from what ``in_proj`` has made of x, (b, h, w, 4 channels)."""
        x, z = projected.chunk(2, -1)
        assert self.conv.bias is not None
        x, out_proj = depthwise_silu(x, self.conv.weight, self.conv.bias), matrix_of(self.out_proj)
        kernels = kernels_of_small(z, out_proj) if add is None and out is None else None
        if kernels is not None:
            with torch.cuda.device_of(z):
                small: Tensor = kernels.gated(self._parts(x), z, norm_of(self.norm), out_proj, precision(z))
            return small
        normed = gated_norm(self._scan(x), z, self.norm.weight, self.norm.bias, self.norm.eps)
        y: Tensor = self.out_proj(normed, add, out)
        return y

    def _scan(self, x: Tensor) -> Tensor:
        x_dbl = rearrange(self.x_proj(x), "b h w (k c) -> b h w k c", k=DIRECTIONS)
        A = self.A if self.A.dtype == torch.float64 else self.A.float()
        return selective_scan_2d(x, x_dbl, self.dt_weight, self.dt_bias, A, self.D, out_dtype=A.dtype)

    def _parts(self, x: Tensor) -> Tensor:
        """The scan of a small map, as parts to be added: (p, b, h, w, d)."""
        kernels = triton_kernels("selective_scan_2d", x)
        if kernels is None or precision(x) != torch.float32 or not kernels.takes_rows(self.columns):
            return self._scan(x)[None]
        rows = F.linear(x, self.columns)
        parts: Tensor = kernels.parts(x, rows, self.W, self.A2, self.D, self.dt_bias)
        return parts


def kernels_of_small(x: Tensor, weight: Tensor) -> ModuleType | None:
    """The Triton kernels that normalise a small map x (b, h, w, c) and multiply it by weight
    (n, d) in one launch; None for a large map, and where they do not run."""
    if watched() or type(x) is not Tensor or x.dtype == torch.float64 or weight.dtype != torch.float32:
        return None
    kernels = triton_kernels("normed_product", x)
    return kernels if kernels is not None and kernels.is_small(x.shape[:3].numel(), weight) else None


def precision(x: Tensor) -> torch.dtype:
    """The dtype of what a projection makes of x."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def matrix_of(projection: FrozenConv2d) -> Tensor:
    """The weights (out, c) of what ``pointwise`` made."""
    return projection.weight.flatten(1)


def norm_of(norm: FrozenLayerNorm | nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and what is added to the variance."""
    return norm.weight, norm.bias, norm.eps


def pointwise(weight: Tensor, bias: Tensor | None = None) -> FrozenConv2d:
    """``project`` by weights (out, c) that no longer change."""
    return FrozenConv2d(weight[:, :, None, None], bias)


def _side_by_side(t: Tensor) -> Tensor:
    """A copy of t (directions, channels, n) that is the same but for its memory, in which the
    channels of each n stand side by side."""
    return t.detach().transpose(1, 2).contiguous().transpose(1, 2)


def _tables(branch: SS2D) -> tuple[Tensor, Tensor, Tensor]:
    """What the scan's kernels read, each part padded with zeros to a power of two: the weights
    (k (2 n + r), d) whose product with x are rows of B, C and the rank of delta; A log2(e)
    (k, n, d); and the weights of delta (k, r, d)."""
    n, r = (1 << (size - 1).bit_length() for size in (branch.state, branch.rank))
    rank, B, C = branch.x_proj.detach().split([branch.rank, branch.state, branch.state], 1)
    columns = torch.cat([_padded(B, n), _padded(C, n), _padded(rank, r)], 1).flatten(0, 1)
    A, W = (t.detach().transpose(1, 2) for t in (branch.state_matrix(), branch.dt_weight))
    return columns, _padded(A * _LOG2E, n).contiguous(), _padded(W, r).contiguous()


def _padded(t: Tensor, size: int) -> Tensor:
    """t (k, s, d) with zeros as s-th row and later ones, up to ``size``."""
    return F.pad(t, (0, 0, 0, size - t.shape[1]))
