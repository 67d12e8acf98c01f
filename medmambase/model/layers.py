"""The boxes of the architecture figure, one class each, from the image downwards: patch embedding,
stage, patch merging, SS-Conv-SSM block, and its two branches.

Maps are channels-last (b, h, w, c) throughout.
"""

from collections.abc import Sequence
from itertools import count

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medmambase.config import Block, ModelConfig
from medmambase.model.batch_norm import BatchNorm, NormedConv2d, spares_bias
from medmambase.model.projection import PointwiseConv2d, Projection, project, project_beside
from medmambase_kernels import SqueezeExcite, depthwise_silu, gated_norm, selective_scan_2d, space_to_depth

PATCH = 4
DIRECTIONS = 4


class PatchEmbedding(nn.Module):
    """Turn the image (b, in_chans, h, w) into vectors, one for each patch of 4 x 4 pixels: (b,
    h / 4, w / 4, dims[0])."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pad = config.odd == "pad"
        self.proj = nn.Conv2d(config.in_chans, config.dims[0], PATCH, PATCH)
        self.norm = nn.LayerNorm(config.dims[0])

    def forward(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) of any size -> (b, h', w', dims[0])."""
        if self.pad:
            image = pad_to_multiple(image, PATCH)
        x: Tensor = self.norm(rearrange(self.proj(image), "b c h w -> b h w c"))
        return x


class Stage(nn.Module):
    """Blocks at one width, preceded by the patch merging that leads to it (none before the first).

    ``blocks`` gives for each block its drop-path rate and the hidden width of its gate.
    """

    def __init__(self, channels: int, config: ModelConfig, blocks: Sequence[tuple[float, int]], first: bool) -> None:
        super().__init__()
        self.merging = None if first else PatchMerging(channels // 2, pad=config.odd == "pad")
        self.blocks = nn.ModuleList(SSConvSSM(channels, config, rate, width) for rate, width in blocks)

    def forward(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None] | None = None,
        recompute: bool = False,
        counted: bool = False,
    ) -> Tensor:
        """x (b, h, w, c) -> (b, h', w', channels). ``factors``: for each block, see its
        ``forward``. ``recompute``: keep of each block its input alone, and compute the block again
        in backward. ``counted``: ``count_batch`` has counted this batch."""
        if self.merging is not None:
            x = self.merging(x)
        for block, factor in zip(self.blocks, factors or [None] * len(self.blocks), strict=True):
            x = recomputed(block, x, factor, counted) if recompute else block(x, factor, counted)
        return x


class PatchMerging(nn.Module):
    """Halve the map and double its channels: (b, h, w, c) -> (b, h / 2, w / 2, 2c)."""

    def __init__(self, channels: int, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Projection(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """An odd row or column gets a neighbour of zeros, or is dropped."""
        below, right = x.shape[1] % 2, x.shape[2] % 2
        if self.pad and (below or right):
            x = F.pad(x, (0, 0, 0, right, 0, below))
        y: Tensor = self.reduction(self.norm(space_to_depth(x)))
        return y


class SSConvSSM(nn.Module):
    """One block: half the channels through convolutions, half through SS2D, then recalibrated,
    mixed and added to the input.

    The four published variants differ in four places: BatchNorm first in the conv branch, SS2D's
    own residual, SE, and a 1x1 convolution (``mix``) in place of the channel shuffle.
    """

    def __init__(self, channels: int, config: ModelConfig, drop_path: float, gate_width: int) -> None:
        super().__init__()
        self.inner_residual = as_coded(config.block)
        self.conv_branch = ConvBranch(channels // 2, norm_first=not as_coded(config.block))
        self.ssm_norm = nn.LayerNorm(channels // 2)
        self.ssm_branch = SS2D(channels // 2, config.state)
        self.drop_path = DropPath(drop_path)
        self.se: SqueezeExcite | None = None
        if has_se(config.block):  # as wide as channels // reduction, but at least hidden_min: here that alone decides
            self.se = SqueezeExcite(channels, reduction=channels, hidden_min=gate_width, scale=se_scale(config))
        self.mix = Projection(channels, channels) if as_coded(config.block) else None

    def forward(self, x: Tensor, factor: Tensor | None = None, counted: bool = False) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels). ``factor``: that of the SSM branch of each
        image, from ``draw_paths``. ``counted``: see ``Stage``."""
        conv_in, ssm_in = x.chunk(2, -1)
        if self.se is not None and self.mix is None:  # which takes the branches as they are, in one pass
            conv = self.conv_branch(conv_in, counted, rectified=False)
            ssm = self.ssm_branch(self.ssm_norm(ssm_in))
            shuffled: Tensor = self.se(conv, x, ssm, factor)
            return shuffled
        conv = self.conv_branch(conv_in, counted)
        ssm = self.drop_path(self.ssm_branch(self.ssm_norm(ssm_in)), factor)
        if self.inner_residual:
            ssm = ssm + ssm_in
        y = torch.cat([conv, ssm], -1)
        if self.mix is not None:
            mixed: Tensor = self.mix(y if self.se is None else self.se(y))
            return x + mixed
        return x + channel_shuffle(y)


class ConvBranch(nn.Sequential):
    """Two 3x3 convolutions and a 1x1. ``norm_first`` adds BatchNorm before the first and ReLU after
    the last, as MedMamba does."""

    def __init__(self, channels: int, norm_first: bool) -> None:
        def conv_norm_relu() -> list[nn.Module]:
            return [NormedConv2d(channels, channels, 3, padding=1), BatchNorm(channels), nn.ReLU()]

        before: list[nn.Module] = [BatchNorm(channels)] if norm_first else []
        after: list[nn.Module] = [nn.ReLU()] if norm_first else []
        super().__init__(*before, *conv_norm_relu(), *conv_norm_relu(), PointwiseConv2d(channels, channels, 1), *after)

    def forward(self, x: Tensor, counted: bool = False, rectified: bool = True) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels). ``counted``: see ``Stage``. Without
        ``rectified``, the ReLU at the end is left to whoever takes it. A ReLU after a BatchNorm is
        computed by that, so its hooks are not called."""
        modules = list(self) if rectified else list(self)[:-1]
        x = rearrange(x, "b h w c -> b c h w")
        for before, module, after in zip((None, *modules[:-1]), modules, (*modules[1:], None), strict=True):
            if isinstance(module, BatchNorm):
                x = module(x, rectified=isinstance(after, nn.ReLU))
            elif not (isinstance(module, nn.ReLU) and isinstance(before, BatchNorm)):  # which has taken it
                x = module(x, biased=False) if counted and spares_bias(module, after) else module(x)
        return rearrange(x, "b c h w -> b h w c")


class SS2D(nn.Module):
    """The state-space branch: every position reads the whole image along four scans. (b, h, w,
    channels) -> the same shape.

    Inside, the width is doubled to d = 2 channels; x and its gate z come from one projection,
    delta, B and C from another.
    ``conv`` and ``norm`` only hold their parameters: each is one operator with the SiLU that
    follows it.
    """

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        inner, rank = 2 * channels, -(-channels // 16)
        self.rank, self.state = rank, state
        self.in_proj = Projection(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * state, inner))
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(DIRECTIONS, inner, 1))
        self.D = nn.Parameter(torch.ones(DIRECTIONS, inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = Projection(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels)."""
        x, z = self.in_proj(x).chunk(2, -1)
        assert self.conv.bias is not None  # it was built with one
        x = depthwise_silu(x, self.conv.weight, self.conv.bias)
        x, low = project_beside(x, self.x_proj.flatten(0, 1))
        x_dbl = rearrange(low, "b h w (k c) -> b h w k c", k=DIRECTIONS)
        # The sum of four scans leaves float32 only after the norm: in float16 it can overflow.
        wide = torch.float64 if self.A_log.dtype == torch.float64 else torch.float32
        parameters = (self.dt_weight, self.dt_bias, self.A_log, self.D)
        y = selective_scan_2d(x, x_dbl, *parameters, out_dtype=wide, log_A=True)
        out: Tensor = self.out_proj(gated_norm(y, z, self.norm.weight, self.norm.bias, self.norm.eps))
        return out

    def state_matrix(self) -> Tensor:
        """A (directions, inner, state), below zero, in float32 or float64."""
        return -self.A_log.float().exp() if self.A_log.dtype != torch.float64 else -self.A_log.exp()

    def delta(self, x: Tensor) -> Tensor:
        """The step of each scan at each position of x (b, h, w, channels), as ``forward`` takes it:
        (b, h, w, directions, d), above zero."""
        assert self.conv.bias is not None
        x = depthwise_silu(self.in_proj(x).chunk(2, -1)[0], self.conv.weight, self.conv.bias)
        low = project(x, self.x_proj[:, : self.rank].flatten(0, 1))
        low = rearrange(low, "b h w (k r) -> b h w k r", k=DIRECTIONS)
        return F.softplus(torch.einsum("bhwkr,kdr->bhwkd", low, self.dt_weight) + self.dt_bias)


def channel_shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels: out[2i] = x[i], out[2i + 1] = x[c / 2 + i]."""
    return interleaved(x).flatten(-2)


def interleaved(x: Tensor) -> Tensor:
    """``channel_shuffle`` as a view of x (..., c), in which channels still stand in pairs: (...,
    c / 2, 2)."""
    return rearrange(x, "... (branch c) -> ... c branch", branch=2)


class DropPath(nn.Module):
    """In training, drop a whole branch of an image with probability ``rate`` and scale the others
    up (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, factor: Tensor | None) -> Tensor:
        """x (b, ...) -> the same shape, times the factor (b,) of each image that ``draw_paths`` has
        drawn."""
        return x if factor is None else x * factor.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))


def draw_paths(paths: Sequence[DropPath], x: Tensor) -> list[Tensor | None]:
    """Draw for a batch x (b, ...) which branches are dropped: for each path the factors (b,), 0 or
    1 / (1 - rate), in x's dtype; None for a path that drops nothing.

    All are drawn at once, in a few launches on a GPU instead of as many for each.
    """
    factors: list[Tensor | None] = [None] * len(paths)
    places = [i for i, path in enumerate(paths) if path.training and path.rate > 0]
    if places:
        rates = [paths[i].rate for i in places]
        drawn = torch.rand(len(places), len(x), device=x.device, dtype=torch.float32)
        torch._foreach_sub_(list(drawn.unbind()), rates)
        kept = drawn.ge_(0).to(x.dtype)
        torch._foreach_div_(list(kept.unbind()), [1 - rate for rate in rates])
        for i, factor in zip(places, kept.unbind(), strict=True):
            factors[i] = factor
    return factors


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Add zeros below and to the right of x (..., h, w), until h and w are multiples."""
    below, right = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, below)) if below or right else x


def recomputed(block: nn.Module, x: Tensor, factor: Tensor | None, counted: bool) -> Tensor:
    """Compute ``block(x, factor, counted)``, and once more in backward instead of keeping what is
    inside it."""
    runs = count()

    def run(x: Tensor) -> Tensor:
        # A batch counts once: from the second run on, copies of BatchNorm's running statistics take
        # it.
        stand_ins = {name: t.clone() for name, t in block.named_buffers()} if next(runs) else {}
        y: Tensor = functional_call(block, stand_ins, (x, factor, counted))
        return y

    y: Tensor = checkpoint(run, x, use_reentrant=False)
    return y


def lay_out(network: nn.Module) -> None:
    """Store the weights of convolutions as the maps are, channels last, so that no convolution has
    to convert them: a few per cent of a training step on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def as_coded(block: Block) -> bool:
    """Whether the block is one of the two that the originals' first code had: convolution first,
    inner residual, 1x1 convolution."""
    return block in ("notebook", "medmamba_v0")


def has_se(block: Block) -> bool:
    """Whether the block recalibrates its channels."""
    return block in ("medmambase", "notebook")


def se_scale(config: ModelConfig) -> float:
    """The factor of the sigmoid gate; see ``ModelConfig``."""
    return config.se_scale if config.se_scale is not None else 2.0 if config.init == "corrected" else 1.0
