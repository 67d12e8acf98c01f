"""The boxes of the architecture figure, one class each: patch embedding, SS-Conv-SSM block and its
two branches, patch merging.

Maps are channels-last (b, h, w, c) throughout. Last stop before: ``network.py``; next stop:
``medmambase_kernels``.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medmambase.config import Block, ModelConfig
from medmambase_kernels import (
    FrozenConvolution,
    FrozenNorm,
    SqueezeExcite,
    depthwise_silu,
    gated_norm,
    selective_scan_2d,
)

PATCH = 4
_SMALL = 20480  # numbers in a map up to which PyTorch convolves a single one without oneDNN


def convolve(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a module that wants (b, c, h, w) to a channels-last map; the permutations are views,
    not copies."""
    y: Tensor = module(x.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map of the channels, x (b, h, w, c) by weight (out, c); on a CPU as a convolution of
    1 x 1.

    PyTorch gives matrix products to MKL, which leaves half of an AMD processor's vectors idle, and
    convolutions to oneDNN, which does not: twice as fast there, and as fast on Intel's. A single
    small map gains nothing.
    """
    plain = (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
    if plain or (len(x) < 2 and x.numel() <= _SMALL) or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Projection(nn.Linear):
    """``project`` with its parameters."""

    def frozen(self) -> FrozenConvolution:
        """The same for prediction alone."""
        return frozen(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, in_features) -> (b, h, w, out_features)."""
        return project(x, self.weight, self.bias)


def frozen(weight: Tensor, bias: Tensor | None = None) -> FrozenConvolution:
    """``project`` by weights (out, c) that do not change any more."""
    return FrozenConvolution(weight[:, :, None, None], bias)


def lay_out(network: nn.Module) -> None:
    """Turn the weights of convolutions as the maps are, channels last, so that no convolution has
    to: a few per cent of a step on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros below and to the right of x (..., h, w), until h and w are multiples."""
    below, right = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, below)) if below or right else x


class DropPath(nn.Module):
    """In training, drop a whole branch of an image with probability ``rate`` and scale the others
    up (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (b, ...) -> the same shape."""
        if self.rate == 0 or not self.training:
            return x
        kept = torch.rand((len(x),) + (1,) * (x.dim() - 1), device=x.device, dtype=torch.float32) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))


class PatchEmbedding(nn.Module):
    """The image (b, in_chans, h, w) in patches of 4 x 4 pixels, each a vector: (b, h / 4, w / 4,
    dims[0])."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pad = config.odd == "pad"
        self.proj: nn.Module = nn.Conv2d(config.in_chans, config.dims[0], PATCH, PATCH)
        self.norm: nn.Module = nn.LayerNorm(config.dims[0])

    def forward(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) of any size -> (b, h', w', dims[0])."""
        if isinstance(self.proj, FrozenConvolution):
            x: Tensor = self.norm(self.proj(self.patches(image)))
        else:
            x = self.norm(self.proj(self._fit(image)).permute(0, 2, 3, 1))
        return x

    def patches(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> (b, h', w', in_chans * 4 * 4): what ``proj``, frozen,
        takes."""
        image = self._fit(image)
        height, width = (side // PATCH * PATCH for side in image.shape[2:])
        return (
            image[:, :, :height, :width]
            .unflatten(3, (-1, PATCH))
            .unflatten(2, (-1, PATCH))
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(3)
        )

    def freeze(self) -> None:
        """Each patch becomes a vector before it is projected, as a position of a map is."""
        assert isinstance(self.proj, nn.Conv2d)
        self.proj = frozen(self.proj.weight.flatten(1), self.proj.bias)

    def _fit(self, image: Tensor) -> Tensor:
        return pad_to_multiple(image, PATCH) if self.pad else image


class PatchMerging(nn.Module):
    """Halve the map and double its channels: (b, h, w, c) -> (b, h / 2, w / 2, 2c)."""

    def __init__(self, channels: int, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.norm: nn.Module = nn.LayerNorm(4 * channels)
        self.reduction: nn.Module = Projection(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """An odd row or column gets a neighbour of zeros, or is dropped."""
        if self.pad:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        corners = [x[:, row:height:2, column:width:2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        y: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return y


class OnMaps(nn.Sequential):
    """Modules that want (b, c, h, w), one after the other on a channels-last map."""

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) -> (b, h, w, c')."""
        return convolve(super().forward, x)


class ConvBranch(OnMaps):
    """Two 3x3 convolutions and a 1x1. ``norm_first`` adds BatchNorm before the first and ReLU after
    the last, as MedMamba does."""

    def __init__(self, channels: int, norm_first: bool) -> None:
        def conv_norm_relu() -> list[nn.Module]:
            return [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]

        before: list[nn.Module] = [nn.BatchNorm2d(channels)] if norm_first else []
        after: list[nn.Module] = [nn.ReLU()] if norm_first else []
        super().__init__(*before, *conv_norm_relu(), *conv_norm_relu(), nn.Conv2d(channels, channels, 1), *after)

    def frozen(self) -> nn.Sequential:
        """The same for prediction alone: each convolution, the BatchNorm after it and the ReLU as
        one step."""
        steps: list[nn.Module] = []
        for module, after in zip(self, (*list(self)[1:], None), strict=True):
            if isinstance(module, nn.Conv2d):
                folded = fuse_conv_bn_eval(module, after) if isinstance(after, nn.BatchNorm2d) else module
                steps.append(FrozenConvolution(folded.weight, folded.bias, relu=after is not None))
            elif not steps:  # the BatchNorm before the first convolution: zeros lie around what it makes, so it stays
                steps.append(OnMaps(module))
        return nn.Sequential(*steps)


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
        inner, rank, directions = 2 * channels, -(-channels // 16), 4
        self.rank, self.state = rank, state
        self.in_proj: nn.Module = Projection(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(directions, rank + 2 * state, inner))
        self.dt_weight = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(directions, inner, 1))
        self.D = nn.Parameter(torch.ones(directions, inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj: nn.Module = Projection(inner, channels, bias=False)
        # Once frozen: the projection by x_proj, and A.
        self.to_columns: nn.Module | None = None
        self.A: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels)."""
        x, z = self.in_proj(x).chunk(2, -1)
        assert self.conv.bias is not None  # it was built with one
        x = depthwise_silu(x, self.conv.weight, self.conv.bias)
        columns = project(x, self.x_proj.flatten(0, 1)) if self.to_columns is None else self.to_columns(x)
        x_dbl = columns.unflatten(-1, self.x_proj.shape[:2])
        A = self.state_matrix() if self.A is None else self.A
        # The sum of four scans leaves float32 only after the norm: in float16 it can overflow.
        y = selective_scan_2d(x, x_dbl, self.dt_weight, self.dt_bias, A, self.D, out_dtype=A.dtype)
        out: Tensor = self.out_proj(gated_norm(y, z, self.norm.weight, self.norm.bias, self.norm.eps))
        return out

    def delta(self, x: Tensor) -> Tensor:
        """What ``forward`` reads x (b, h, w, channels) with: the step of each scan at each
        position, (b, h, w, directions, d), above zero."""
        assert self.conv.bias is not None
        x = depthwise_silu(self.in_proj(x).chunk(2, -1)[0], self.conv.weight, self.conv.bias)
        low_rank = project(x, self.x_proj[:, : self.rank].flatten(0, 1)).unflatten(-1, (len(self.x_proj), self.rank))
        return F.softplus(torch.einsum("bhwkr,kdr->bhwkd", low_rank, self.dt_weight) + self.dt_bias)

    def state_matrix(self) -> Tensor:
        """A (directions, inner, state), below zero, in float32 or float64."""
        return -self.A_log.float().exp() if self.A_log.dtype != torch.float64 else -self.A_log.exp()

    def freeze(self) -> None:
        """Compute and lay out once what does not change any more: A and delta's projection as the
        scan reads them, with the channels side by side."""
        self.to_columns = frozen(self.x_proj.flatten(0, 1))
        del self.A
        self.register_buffer("A", self.state_matrix().transpose(1, 2).contiguous().transpose(1, 2))
        self.dt_weight.data = self.dt_weight.data.transpose(1, 2).contiguous().transpose(1, 2)


def freeze(network: nn.Module) -> None:
    """Replace what can be computed once, or laid out once, where weights do not change any more;
    for evaluation alone and without gradients."""
    for module in list(network.modules()):
        if isinstance(module, SS2D | PatchEmbedding):
            module.freeze()
        for name, child in list(module.named_children()):
            if isinstance(child, Projection | ConvBranch):
                setattr(module, name, child.frozen())
            elif isinstance(child, nn.LayerNorm) and not isinstance(
                module, SS2D
            ):  # whose norm is one operator with the gate
                setattr(module, name, FrozenNorm(child))


def channel_shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels: out[2i] = x[i], out[2i + 1] = x[c / 2 + i]."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


class SSConvSSM(nn.Module):
    """One block: half the channels through convolutions, half through SS2D, then recalibrated,
    mixed and added to the input.

    The four published variants differ in four places: BatchNorm first in the conv branch, SS2D's
    own residual, SE, and a 1x1 convolution (``mix``) in place of the channel shuffle.
    """

    def __init__(self, channels: int, config: ModelConfig, drop_path: float, gate_width: int) -> None:
        super().__init__()
        self.inner_residual = as_coded(config.block)
        self.conv_branch: nn.Module = ConvBranch(channels // 2, norm_first=not as_coded(config.block))
        self.ssm_norm: nn.Module = nn.LayerNorm(channels // 2)
        self.ssm_branch = SS2D(channels // 2, config.state)
        self.drop_path = DropPath(drop_path)
        self.se: SqueezeExcite | None = None
        if has_se(config.block):  # as wide as channels // reduction, but at least hidden_min: here that alone decides
            self.se = SqueezeExcite(channels, reduction=channels, hidden_min=gate_width, scale=se_scale(config))
        self.mix: nn.Module | None = Projection(channels, channels) if as_coded(config.block) else None

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels)."""
        conv_in, ssm_in = x.chunk(2, -1)
        conv = self.conv_branch(conv_in)
        ssm = self.drop_path(self.ssm_branch(self.ssm_norm(ssm_in)))
        if self.inner_residual:
            ssm = ssm + ssm_in
        y = torch.cat([conv, ssm], -1)
        if self.se is not None:
            y = self.se(y)
        y = channel_shuffle(y) if self.mix is None else self.mix(y)
        return x + y


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
