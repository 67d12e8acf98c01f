"""Random variation of training batches, on the device where the batch is.

Stop before: ``images.normalise``. Stop after: the network, in training only. Values are normalised with mean 0.5 and std 0.5:
black is -1, white is 1, and what comes out stays there. Every random number comes from the generator handed in, so a batch
can be made again; its numbers are drawn on the generator's device, the CPU as a rule, and are then the same for every card.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medmambase.config import Augmentation

_BLACK = -1.0


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """torch.float32 (b, c, s, s) in [-1, 1] to the same shape and range; every image is varied in its own way.

    "none" gives the batch back. "crop_flip" cuts 8 to 100 % of the area, side ratio 3/4 to 4/3, and mirrors half of the images.
    "ultrasound" mirrors half, turns up to 15 degrees, scales, shifts, and varies gain, contrast, depth gain and speckle, and
    throws a shadow into one in four. Raises ValueError for another kind.
    """
    if kind == "none":
        return images
    if kind == "crop_flip":
        return _warp(images, _crop_flip(len(images), generator))
    if kind == "ultrasound":
        return _echoes(_warp(images, _probe_motion(len(images), generator)), generator)
    raise ValueError(f"augmentation is {kind!r}; it must be 'ultrasound', 'crop_flip' or 'none'")


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _mirror(b: int, generator: torch.Generator) -> Tensor:
    return 1 - 2 * (_uniform(generator, 0, 1, b) < 0.5).float()


def _crop_flip(b: int, generator: torch.Generator) -> Tensor:
    """Affine maps (b, 2, 3) from output to input places, both in [-1, 1].

    A crop that would not fit is made as wide or high as the image, instead of drawing again: the count of random numbers stays fixed.
    """
    area = _uniform(generator, 0.08, 1.0, b)
    ratio = (4 / 3) ** _uniform(generator, -1, 1, b)
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (1 - wide) * _uniform(generator, -1, 1, b), (1 - high) * _uniform(generator, -1, 1, b)
    zero = torch.zeros_like(x)
    return torch.stack([torch.stack([wide * _mirror(b, generator), zero, x], 1), torch.stack([zero, high, y], 1)], 1)


def _probe_motion(b: int, generator: torch.Generator) -> Tensor:
    """The same for a probe held a little differently: (b, 2, 3)."""
    turn = _uniform(generator, -0.26, 0.26, b)
    scale = 1.2 ** _uniform(generator, -1, 1, b)
    x, y = _uniform(generator, -0.1, 0.1, b), _uniform(generator, -0.1, 0.1, b)
    cos, sin, mirror = turn.cos() * scale, turn.sin() * scale, _mirror(b, generator)
    return torch.stack([torch.stack([cos * mirror, -sin, x], 1), torch.stack([sin * mirror, cos, y], 1)], 1)


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    """Bilinear. What lies outside takes its nearest pixel: black rims in training alone would make every image without one look strange later."""
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _echoes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gain, contrast, depth gain, speckle and shadow. All multiply, so the black around the sector stays black."""
    b, _, height, width = images.shape
    brightness = (images - _BLACK) / 2
    depth = torch.linspace(-1, 1, height, device=generator.device).view(1, 1, -1, 1)
    across = torch.linspace(-1, 1, width, device=generator.device).view(1, 1, 1, -1)
    gain = _uniform(generator, 0.75, 1.3, b, 1, 1, 1)
    depth_gain = _uniform(generator, -0.3, 0.3, b, 1, 1, 1) * depth
    noise = torch.randn((b, 1, height, width), generator=generator, device=generator.device)
    speckle = _uniform(generator, 0, 0.15, b, 1, 1, 1) * noise
    middle, half, strength = (_uniform(generator, low, high, b, 1, 1, 1) for low, high in ((-0.8, 0.8), (0.05, 0.2), (0.3, 0.9)))
    cast = (_uniform(generator, 0, 1, b, 1, 1, 1) < 0.25).float()
    begins = _uniform(generator, -0.5, 0.5, b, 1, 1, 1)
    shadow = cast * strength * torch.sigmoid((half - (across - middle).abs()) / 0.03) * torch.sigmoid((depth - begins) / 0.05)
    factor = gain * (1 + depth_gain) * (1 + speckle) * (1 - shadow)
    gamma = 1.35 ** _uniform(generator, -1, 1, b, 1, 1, 1)
    varied = brightness.clamp(min=0).pow(gamma.to(images)) * factor.to(images)
    return varied.clamp(0, 1) * 2 + _BLACK
