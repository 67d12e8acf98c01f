"""The operations of TrivialAugment (Müller and Hutter, ICCV 2021), as functions of a batch: each
image gets one of them, drawn by ``augment.py``.

The set and its strengths are those published as "wide". Otherwise than there, a shear keeps the
middle of the picture in its place, pictures are shifted by up to a seventh of their side (32 of the
224 pixels of ImageNet), and moved ones are interpolated.
Images are torch.float32 (b, c, h, w) in [-1, 1]; ``operation``, torch.int64 (b,), is a place in
``OPERATIONS``, ``strength`` in [0, 1), ``signed`` the same in (-1, 1). Nothing waits for the host.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS = (
    "identity", "shear x", "shear y", "shift x", "shift y", "rotate", "brightness", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize", "colour",
)  # fmt: skip  # a list; colour comes last, since grey images have none
_SHEAR, _SHIFT, _TURN = 0.99, 2 / 7, math.radians(135)  # at most; the picture is 2 wide
_BLEND = 0.99  # at most, towards the other picture or away from it
_BITS = 6  # of 8, that are taken away at most
_LEVELS = 256


def count(channels: int) -> int:
    """Return the number of operations there are for images of so many channels."""
    return len(OPERATIONS) if channels == 3 else len(OPERATIONS) - 1


def moves(operation: Tensor) -> Tensor:
    """Return where an operation moves the picture, bool (b,)."""
    return (operation >= OPERATIONS.index("shear x")) & (operation <= OPERATIONS.index("rotate"))


def maps(operation: Tensor, signed: Tensor) -> Tensor:
    """Return the affine maps (b, 2, 3) of operations that move the picture, from output to input
    places, both in [-1, 1]; of others the identity."""

    def only(name: str, most: float) -> Tensor:
        return torch.where(_is(operation, name), signed * most, 0.0)

    turn = only("rotate", _TURN)
    cos, sin = turn.cos(), turn.sin()
    across = torch.stack([cos, only("shear x", _SHEAR) - sin, only("shift x", _SHIFT)], 1)
    down = torch.stack([sin + only("shear y", _SHEAR), cos, only("shift y", _SHIFT)], 1)
    return torch.stack([across, down], 1)


def vary(images: Tensor, operation: Tensor, strength: Tensor, signed: Tensor) -> Tensor:
    """Do the operations that move nothing; images of others stay as they are."""
    operation, strength, signed = (t.view(-1, 1, 1, 1) for t in (operation, strength, signed))
    return _by_levels(_blended(images, operation, signed), operation, strength)


def _is(operation: Tensor, *names: str) -> Tensor:
    """Where the operation is one of these."""
    found = operation == OPERATIONS.index(names[0])
    for name in names[1:]:
        found = found | (operation == OPERATIONS.index(name))
    return found


def _blended(images: Tensor, operation: Tensor, signed: Tensor) -> Tensor:
    """Brightness, contrast, sharpness and colour: the picture is moved towards black, its mean, a
    smooth or a grey one, or away from it."""
    grey = images.mean(1, keepdim=True)
    if images.shape[1] == 3:  # as bright as the eye sees it (ITU-R 601)
        red, green, blue = images.split(1, 1)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
    other = torch.where(_is(operation, "contrast"), grey.mean((2, 3), keepdim=True), -1.0)
    other = torch.where(_is(operation, "sharpness"), _smooth(images), other)
    other = torch.where(_is(operation, "colour"), grey, other)
    blends = _is(operation, "brightness", "contrast", "sharpness", "colour")
    return torch.where(blends, other.lerp(images, 1 + _BLEND * signed).clamp(-1, 1), images)


def _smooth(images: Tensor) -> Tensor:
    """Mean of each pixel, five times, and its eight neighbours; the rim stays."""
    smooth = images.clone()
    if min(images.shape[2:]) >= 3:
        middle = images[..., 1:-1, 1:-1]
        smooth[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(images, 3, 1) + 4 * middle) / 13
    return smooth


def _by_levels(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Posterize, solarize, autocontrast and equalize: a table of grey levels for each channel."""
    b, c, h, w = images.shape
    levels = ((images + 1) * 127.5).round().long().view(b, c, h * w)
    operation, strength = operation.view(b, 1, 1), strength.view(b, 1, 1)
    level = torch.arange(_LEVELS, device=images.device).expand(b, c, _LEVELS)
    lost = (_BITS * strength).round().long()
    solarized = torch.where(level < _LEVELS * (1 - strength), level, _LEVELS - 1 - level)
    table = torch.where(_is(operation, "posterize"), (level >> lost) << lost, level).float()
    table = torch.where(_is(operation, "solarize"), solarized.float(), table)
    table = torch.where(_is(operation, "autocontrast"), _stretched(levels, level), table)
    table = torch.where(_is(operation, "equalize"), _equalized(levels, level), table)
    looked_up = (table.gather(2, levels) / 127.5 - 1).view(images.shape)
    by_levels = _is(operation, "posterize", "solarize", "autocontrast", "equalize")
    return torch.where(by_levels.view(b, 1, 1, 1), looked_up, images)


def _stretched(levels: Tensor, level: Tensor) -> Tensor:
    """The table that makes the darkest level of a channel black and the brightest white."""
    dark, bright = levels.amin(2, keepdim=True), levels.amax(2, keepdim=True)
    wide = (bright - dark).clamp(min=1)
    return torch.where(bright > dark, (level - dark) * (_LEVELS - 1) / wide, level).clamp(0, _LEVELS - 1)


def _equalized(levels: Tensor, level: Tensor) -> Tensor:
    """The table after which all levels of a channel are about equally frequent."""
    counts = torch.zeros_like(level).scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // (_LEVELS - 1)
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=_LEVELS - 1)
    return torch.where(step > 0, table, level).float()
