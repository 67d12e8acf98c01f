"""Predict with weights that no longer change: a plan built from a trained network, box by box.

The boxes are those of ``layers.py``, under the same names and in the same order. What can be
computed once is computed once: BatchNorm is folded into its convolution, A taken from its
logarithm, each weight laid out for the processor at hand.

A small image on a CPU is captured the first time that its size is met, and replayed from then on
(``captures.py``): Python's share of a prediction falls from half to a few per cent. Hence the rule
for every step below: it is a launch of our kernels, or goes through ``_step``; what else is
computed in between stays as it was at the capture. On a GPU a CUDA graph has all that is computed.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from medmambase.config import ModelConfig
from medmambase.model.captures import Captures, GraphCaptures, can_be_captured, can_be_graphed
from medmambase.model.classifier import Classifier
from medmambase.model.frozen_ss2d import FrozenSS2D, kernels_of_small, matrix_of, norm_of, pointwise, precision
from medmambase.model.layers import (
    PATCH,
    ConvBranch,
    PatchEmbedding,
    PatchMerging,
    SSConvSSM,
    Stage,
    interleaved,
    pad_to_multiple,
)
from medmambase.model.weights import WeightsError
from medmambase_kernels import Capture, FrozenConv2d, FrozenLayerNorm, space_to_depth


class FrozenNetwork(Classifier):
    """A trained network for prediction alone, with the same logits up to rounding and without
    gradients; ``MedMambaSE.for_prediction`` makes one.

    It can be neither trained nor saved: keep the network that it came from. On a CPU a small batch
    is captured the first time that its size is met and then only replayed, on a GPU the second
    time: hooks of the parts are not called again, and weights must stay as they are. Of small maps
    a GPU computes some parts together, and never calls their hooks.
    """

    config: ModelConfig
    embedding: "FrozenPatchEmbedding"

    def __init__(self, network: Classifier) -> None:
        super().__init__(network.config, network.classes, network.preprocessing, network.features_only)
        self.embedding = FrozenPatchEmbedding(cast(PatchEmbedding, network.embedding))
        self.stages = nn.ModuleList(FrozenStage(stage) for stage in cast(Iterable[Stage], network.stages))
        self.head = deepcopy(network.head)
        self._captures, self._graphs = Captures(), GraphCaptures()
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def maps(self, image: Tensor) -> list[Tensor]:
        """image (b, in_chans, h, w) -> the map of each stage, (b, h', w', dims[i]); of a replay, of
        the last alone unless with ``features_only``."""
        patches = self.embedding.patches(image)
        if can_be_captured(self, image):
            return self._captures(self._maps_of, patches, last=not self.features_only)
        if can_be_graphed(self, image):
            return self._graphs(self._maps_of, patches, last=not self.features_only)
        return self._maps_of(patches)

    def _maps_of(self, patches: Tensor) -> list[Tensor]:
        x, maps = self.embedding(patches), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert all tensors; what was captured with them where they lay is forgotten."""
        self._captures, self._graphs = Captures(), GraphCaptures()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode. Raises RuntimeError if training mode is asked for."""
        if mode:
            raise RuntimeError(
                "a network for prediction has its BatchNorms folded and cannot be trained; train the network it was "
                "made from"
            )
        return super().train(False)

    def save(self, folder: Path | str) -> None:
        """Raise WeightsError: only the network that it came from can be saved."""
        raise WeightsError(
            f"{folder}: a network for prediction has its BatchNorms folded and is not for saving; save the network it "
            f"was made from"
        )


class FrozenPatchEmbedding(nn.Module):
    """``PatchEmbedding``; each patch becomes a vector before it is projected, as a position of a
    map is."""

    def __init__(self, embedding: PatchEmbedding) -> None:
        super().__init__()
        self.pad = embedding.pad
        self.proj = pointwise(embedding.proj.weight.flatten(1), embedding.proj.bias)
        self.norm = FrozenLayerNorm(embedding.norm)

    def patches(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> (b, h', w', in_chans * 4 * 4)."""
        if self.pad:
            image = pad_to_multiple(image, PATCH)
        height, width = (side // PATCH * PATCH for side in image.shape[2:])
        return rearrange(image[:, :, :height, :width], "b c (h p) (w q) -> b h w (c p q)", p=PATCH, q=PATCH)

    def forward(self, patches: Tensor) -> Tensor:
        """patches (b, h, w, in_chans * 4 * 4) -> (b, h, w, dims[0])."""
        x: Tensor = self.norm(self.proj(patches))
        return x


class FrozenStage(nn.Module):
    """``Stage``."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.merging = None if stage.merging is None else FrozenPatchMerging(stage.merging)
        self.blocks = nn.ModuleList(FrozenSSConvSSM(block) for block in cast(Iterable[SSConvSSM], stage.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) -> (b, h', w', channels)."""
        if self.merging is not None:
            x = self.merging(x)
        for block in self.blocks:
            x = block(x)
        return x


class FrozenPatchMerging(nn.Module):
    """``PatchMerging``."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.pad = merging.pad
        self.norm = FrozenLayerNorm(merging.norm)
        self.reduction = pointwise(merging.reduction.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) -> (b, h / 2, w / 2, 2c)."""
        b, h, w, c = x.shape
        if self.pad and (h % 2 or w % 2):
            x = _step(_pad, (b, h + h % 2, w + w % 2, c), x)
        y: Tensor = self.reduction(self.norm(space_to_depth(x)))
        return y


class FrozenSSConvSSM(nn.Module):
    """``SSConvSSM``; on a CPU both branches write their halves of one map, side by
    side."""

    def __init__(self, block: SSConvSSM) -> None:
        super().__init__()
        self.inner_residual = block.inner_residual
        self.conv_branch = FrozenConvBranch(block.conv_branch)
        self.ssm_norm = FrozenLayerNorm(block.ssm_norm)
        self.ssm_branch = FrozenSS2D(block.ssm_branch)
        self.se = deepcopy(block.se)
        self.mix = None if block.mix is None else pointwise(block.mix.weight, block.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels)."""
        conv_in, ssm_in = x.chunk(2, -1)
        if self.se is not None and self.mix is None and _apart(x):
            joined: Tensor = self.se(*self._branches(x))
            return joined
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        conv, ssm = y.chunk(2, -1)
        self.conv_branch(conv_in, conv)
        self.ssm_branch(self.ssm_norm(ssm_in), ssm_in if self.inner_residual else None, ssm)
        if self.mix is not None:
            mixed: Tensor = self.mix(y if self.se is None else self.se(y), x)
            return mixed
        if self.se is not None:
            shuffled: Tensor = self.se(y, x)
            return shuffled
        pairs = interleaved(y)
        return _step(torch.add, pairs.shape, x.unflatten(-1, (-1, 2)), pairs).flatten(-2)

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the gate takes: the left branch without its ReLU, x, and the right branch."""
        left, right, in_proj = self.conv_branch, self.ssm_branch, matrix_of(self.ssm_branch.in_proj)
        if (kernels := kernels_of_small(x, in_proj)) is None or left.scale is None:
            conv_in, ssm_in = x.chunk(2, -1)
            return left(conv_in, rectified=False), x, right(self.ssm_norm(ssm_in))
        with torch.cuda.device_of(x):
            conv_in, projected = kernels.halves(
                x, norm_of(self.ssm_norm), in_proj, left.scale, left.shift, precision(x)
            )
        return left.convolved(conv_in, rectified=False), x, right.scanned(projected)


class FrozenConvBranch(nn.Module):
    """``ConvBranch``; each convolution, the BatchNorm after it and the ReLU are one step.

    Around what the BatchNorm before the first convolution makes lie zeros, so that one stays, as a
    factor and a sum.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, branch: ConvBranch) -> None:
        super().__init__()
        modules, steps = list(branch), []
        for module, after in zip(modules, (*modules[1:], None), strict=True):
            if isinstance(module, nn.Conv2d):
                weight, bias = module.weight, module.bias
                if isinstance(after, nn.BatchNorm2d):
                    assert after.running_mean is not None and after.running_var is not None  # it keeps statistics
                    weight, bias = fuse_conv_bn_weights(
                        weight, bias, after.running_mean, after.running_var, after.eps, after.weight, after.bias
                    )
                steps.append(FrozenConv2d(weight, bias, relu=after is not None))
        self.steps = nn.ModuleList(steps)
        first = modules[0] if isinstance(modules[0], nn.BatchNorm2d) else None
        scale = shift = None
        if first is not None:
            assert first.running_mean is not None and first.running_var is not None  # likewise
            scale = (first.weight * (first.running_var + first.eps).rsqrt()).detach()
            shift = (first.bias - first.running_mean * scale).detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, out: Tensor | None = None, rectified: bool = True) -> Tensor:
        """x (b, h, w, channels) -> the same shape, in ``out`` if one is given. Without
        ``rectified``, the ReLU at the end is left to whoever takes it."""
        if self.scale is not None and self.shift is not None:
            x = _step(torch.addcmul, x.shape, self.shift, x, self.scale)
        return self.convolved(x, out, rectified)

    def convolved(self, x: Tensor, out: Tensor | None = None, rectified: bool = True) -> Tensor:
        """``forward`` from the first convolution on."""
        *steps, last = self.steps
        for step in steps:
            x = step(x)
        y: Tensor = last(x, out=out, rectified=rectified)
        return y


def _apart(x: Tensor) -> bool:
    """Whether the gate takes the branches as they come. On a CPU they are side by side sooner."""
    return x.device.type != "cpu"


def _step(function: Callable[..., Tensor], shape: tuple[int, ...], *arguments: Tensor) -> Tensor:
    """Compute ``function(*arguments)``, whose result has ``shape``; while a capture is open, into
    the same memory again at every replay."""
    capture = Capture.current()
    return function(*arguments) if capture is None else capture.call(function, shape, *arguments)


def _pad(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Add a row and a column of zeros to x (b, h, w, c) where h and w are odd."""
    if out is None:
        return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    out.zero_()[:, : x.shape[1], : x.shape[2]].copy_(x)
    return out
