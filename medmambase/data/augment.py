"""Vary training batches at random, on the device that holds the batch.

Values are normalised with mean 0.5 and std 0.5: black is -1, white is 1, and what comes out stays
there.

Every random number is a hash of (seed, epoch, index of the image, which number), in integers, which
all devices compute alike: an image is varied in the same way in whatever batch, order or process it
comes, and after a resumption. Kornia draws from torch's global state, batch by batch, and cannot
promise that; torchvision and what stands on it pin torch.
"""

import math
from typing import get_args

import scipy  # which imports its parts when they are first used: they are slow to import
import torch
import torch.nn.functional as F
from torch import Tensor

from medmambase.config import Augmentation
from medmambase.data import trivial_augment
from medmambase_kernels import triton_kernels

_BLACK = -1.0
_DARK = _BLACK + 0.1  # darker than this is ground, not tissue: compressed files are not quite black around the sector
# SplitMix64 (Steele, Lea, Flood 2014): a counter times the golden ratio, then two multiplications
# that mix. As signed numbers, since torch has no others.
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_MOTION, _MIXUP, _ECHOES, _SPECKLE = 0, 7, 8, 24  # the first of the numbers that each step takes


def augment(
    images: Tensor, kind: Augmentation, seed: int, epoch: int, indices: Tensor, *, laterality: bool = False
) -> Tensor:
    """Augment a batch, torch.float32 (b, c, s, s) in [-1, 1], each image in its own way; shape and
    range stay.

    ``indices``, torch.int64 (b,) on any device, are the images' places in the training set: with
    ``seed`` and ``epoch`` they decide everything.
    "none" gives the batch back. "crop_flip" cuts 8 to 100 % of the area, side ratio 3/4 to 4/3, and
    mirrors half of the images.
    "ultrasound" mirrors half, turns up to 15 degrees, zooms by up to 1.2 about the place of the
    probe, shifts, and varies gain, contrast, depth gain and speckle, and throws a shadow into one
    in four.
    "trivial" mirrors half, and does one operation of TrivialAugment (``trivial_augment.py``) to
    each. With ``laterality`` left stays left: nothing is mirrored.
    Raises ValueError for another kind, or for indices that are not one for each image.
    """
    if kind == "none":
        return images
    if indices.dtype != torch.int64 or indices.shape != images.shape[:1]:
        raise ValueError(
            f"indices are {indices.dtype} {tuple(indices.shape)}; they must be torch.int64 ({len(images)},), one for "
            f"each image"
        )
    return augment_by_keys(images, kind, keys_of(seed, epoch, indices.to(images.device)), laterality=laterality)


def augment_by_keys(images: Tensor, kind: Augmentation, keys: Tensor, *, laterality: bool = False) -> Tensor:
    """Augment a batch as ``augment`` does, from ``keys_of`` its images, torch.int64 (b,) on the
    device of the batch.

    On a GPU where Triton runs "ultrasound" and "crop_flip" are two kernels
    (``_triton/augment.py``), held to what is written here. Nothing in it waits for the host, and no
    number in it changes from step to step but the keys: it can be part of a CUDA graph.
    """
    if kind == "none":
        return images
    if kind not in get_args(Augmentation):
        raise ValueError(f"augmentation is {kind!r}; it must be 'ultrasound', 'crop_flip', 'trivial' or 'none'")
    if kind == "trivial":
        return _trivial(images, keys, laterality)
    if (kernels := triton_kernels("augment", images)) is not None:
        with torch.cuda.device_of(images):  # Triton launches on the current one
            augmented: Tensor = kernels.augment(images, keys, kind == "ultrasound", laterality)
        return augmented
    if kind == "crop_flip":
        return _warp(images, _crop_flip(keys, laterality))
    apex, on_black = _sector(images)
    return _echoes(_warp(images, _probe_motion(keys, apex, laterality), on_black), keys)


def mixup_share(keys: Tensor, alpha: float) -> Tensor:
    """Return numbers from Beta(alpha, alpha), one for each of the ``keys``, torch.float32 (b,) on
    the CPU."""
    uniform = _uniforms(keys.cpu(), _MIXUP, 1)[0].double()
    return torch.from_numpy(scipy.special.betaincinv(alpha, alpha, uniform.numpy())).float()


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, int64 to int64. Shifts are masked, since those of signed numbers drag
    the sign along."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))


def keys_of(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return where each image's own sequence of random numbers begins, torch.int64 (b,).
    ``indices``: as ``augment`` takes them; the keys lie on the same device."""
    key = torch.zeros((), dtype=torch.int64)
    for number in (torch.tensor(seed), torch.tensor(epoch), indices):
        key = _mix(
            key + (number + 1) * _GOLDEN
        )  # a tensor's product wraps round at 64 bits, a Python integer's would not
    return key


def _bits(keys: Tensor, first: int, count: int) -> Tensor:
    """int64 (b, count): numbers ``first`` to ``first + count - 1`` of each image's sequence, 64
    random bits each."""
    return _mix(keys[:, None] + _GOLDEN * torch.arange(first + 1, first + count + 1, device=keys.device))


def _uniforms(keys: Tensor, first: int, count: int) -> tuple[Tensor, ...]:
    """``count`` times float32 (b,), in [0, 1), of 24 bits: all that float32 holds without
    rounding."""
    return (((_bits(keys, first, count) >> 40) & (2**24 - 1)).float() * 2**-24).unbind(1)


def _normals(keys: Tensor, first: int, count: int) -> Tensor:
    """float32 (b, count), by Box and Muller: two from the two halves of each 64 bits."""
    bits = _bits(keys, first, (count + 1) // 2)
    radius = ((((bits >> 40) & (2**24 - 1)).float() + 0.5) * 2**-24).log_().mul_(-2).sqrt_()
    angle = (bits & (2**24 - 1)).float() * (2 * math.pi * 2**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return uniform * (high - low) + low


def _mirror(uniform: Tensor, laterality: bool) -> Tensor:
    """1, or -1 for half of the images."""
    return torch.ones_like(uniform) if laterality else 1 - 2 * (uniform < 0.5).float()


def _crop_flip(keys: Tensor, laterality: bool) -> Tensor:
    """Affine maps (b, 2, 3) from output to input places, both in [-1, 1].

    A crop that would not fit is made as wide or high as the image, instead of drawing again: the
    count of random numbers stays fixed.
    """
    area, ratio, x, y, mirror = _uniforms(keys, _MOTION, 5)
    area, ratio = _between(area, 0.08, 1.0), (4 / 3) ** _between(ratio, -1, 1)
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (1 - wide) * _between(x, -1, 1), (1 - high) * _between(y, -1, 1)
    zero = torch.zeros_like(x)
    return torch.stack(
        [torch.stack([wide * _mirror(mirror, laterality), zero, x], 1), torch.stack([zero, high, y], 1)], 1
    )


def _trivial(images: Tensor, keys: Tensor, laterality: bool) -> Tensor:
    """Mirror, then one operation, of a strength, in one direction or the other. What does not move
    the picture gets it as it is: so its grey levels are the same on every device."""
    which, strength, way, _, mirror = _uniforms(keys, _MOTION, 5)
    operation = (which * trivial_augment.count(images.shape[1])).long()
    signed = torch.where(way < 0.5, -strength, strength)
    mirrored = torch.where((_mirror(mirror, laterality) < 0).view(-1, 1, 1, 1), images.flip(3), images)
    moved = _warp(mirrored, trivial_augment.maps(operation, signed), _sector(mirrored)[1])
    varied = trivial_augment.vary(mirrored, operation, strength, signed)
    return torch.where(trivial_augment.moves(operation).view(-1, 1, 1, 1), moved, varied)


def _sector(images: Tensor) -> tuple[Tensor, Tensor]:
    """Where the probe stood, (b, 2) as x and y in [-1, 1], and whether the picture lies on black
    ground, bool (b,).

    The probe is the middle of the uppermost of what is not dark. A picture lies on black where the
    upper corners of the box around it are dark, as beside a sector; one that fills its frame, bars
    of a letterbox aside, does not.
    """
    lit = (images.amax(1) > _DARK).float()
    height, width = lit.shape[1:]
    # A row or column belongs to the picture from one lit pixel in 32 on: specks and single letters
    # do not.
    rows, columns = lit.mean(2) * 32 >= 1, lit.mean(1) * 32 >= 1
    top, left, right = _first(rows), _first(columns), width - 1 - _first(columns.flip(1))
    corner = max(1, min(height, width) // 16)
    upper = torch.einsum("bhw,bh->bw", lit, _within(top, corner, height))
    across = (torch.arange(width, device=images.device) * 2 + 1) / width - 1
    apex = torch.stack([(upper * across).sum(1) / upper.sum(1).clamp(min=1), 2 * top / height - 1], 1)
    share = (
        torch.stack([(upper * _within(start, corner, width)).sum(1) for start in (left, right - corner + 1)])
        / corner**2
    )
    return apex, share.amax(0) < 0.1


def _first(lit: Tensor) -> Tensor:
    """bool (b, n) to the place of the first True, float32 (b,); 0 where there is none."""
    return lit.float().argmax(1).float()


def _within(start: Tensor, count: int, n: int) -> Tensor:
    """float32 (b, n): 1 for the ``count`` places from ``start`` (b,) on."""
    place = torch.arange(n, device=start.device) - start[:, None]
    return ((place >= 0) & (place < count)).float()


def _probe_motion(keys: Tensor, apex: Tensor, laterality: bool) -> Tensor:
    """The same maps for a probe held a little differently, and another depth chosen: (b, 2, 3).

    The zoom is the crop that suits a sector: its centre is the probe, which stays where it is, so
    that the deepest tissue leaves the picture or black comes in below, and the sector keeps its
    angle.
    """
    turn, scale, x, y, mirror = _uniforms(keys, _MOTION, 5)
    turn, scale = _between(turn, -0.26, 0.26), 1.2 ** _between(scale, -1, 1)
    x = _between(x, -0.1, 0.1) + (1 - scale) * apex[:, 0]
    y = _between(y, -0.1, 0.1) + (1 - scale) * apex[:, 1]
    cos, sin, side = turn.cos() * scale, turn.sin() * scale, _mirror(mirror, laterality)
    return torch.stack([torch.stack([cos * side, -sin, x], 1), torch.stack([sin * side, cos, y], 1)], 1)


def _warp(images: Tensor, maps: Tensor, on_black: Tensor | None = None) -> Tensor:
    """Bilinear. Outside of a picture that lies on black there is black: its nearest pixel may be
    tissue, which would be drawn out.

    Outside of one that fills its frame there is the nearest pixel: black rims in training alone
    would make every image without one look strange later.
    """
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if on_black is None:
        return warped
    outside = (grid.abs().amax(3) > 1) & on_black.view(-1, 1, 1)
    return warped.masked_fill_(outside[:, None], _BLACK)


def _echoes(images: Tensor, keys: Tensor) -> Tensor:
    """Gain, contrast, depth gain, speckle and shadow. All multiply, so the black around the sector
    stays black."""
    b, _, height, width = images.shape
    brightness = (images - _BLACK) / 2
    depth = torch.linspace(-1, 1, height, device=images.device).view(1, 1, -1, 1)
    across = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, -1)
    gain, depth_gain, grain, middle, half, strength, cast, begins, gamma = (
        u.view(b, 1, 1, 1) for u in _uniforms(keys, _ECHOES, 9)
    )
    speckle = _between(grain, 0, 0.15) * _normals(keys, _SPECKLE, height * width).view(b, 1, height, width)
    beside = (_between(half, 0.05, 0.2) - (across - _between(middle, -0.8, 0.8)).abs()) / 0.03
    below = (depth - _between(begins, -0.5, 0.5)) / 0.05
    shadow = (cast < 0.25).float() * _between(strength, 0.3, 0.9) * torch.sigmoid(beside) * torch.sigmoid(below)
    factor = _between(gain, 0.75, 1.3) * (1 + _between(depth_gain, -0.3, 0.3) * depth) * (1 + speckle) * (1 - shadow)
    varied = brightness.clamp(min=0).pow(1.35 ** _between(gamma, -1, 1)) * factor
    return varied.clamp(0, 1) * 2 + _BLACK
