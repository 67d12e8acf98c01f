"""Augmentation of images on a GPU, in one launch or two instead of 260: what medmambase's
``data/augment.py`` defines, with the same random numbers to the bit.

    image p of image x:    u_0, u_1, ... = hash of (key, 0), (key, 1), ...
    map = crop and mirror, or the motion of a probe about the place that ``_sector`` finds
    v = bilinear x at map p;  black outside of a picture on black ground
    y = 2 clamp(((v + 1) / 2) ^ gamma gain_p (1 + speckle_p) (1 - shadow_p)) - 1      for ultrasound

Random numbers are hashes of integers, so that every pixel computes those it needs. Places and
powers are rounded otherwise than there: the results differ by 1e-5 where images are smooth.
Bytes a number, float32: 8, and 4 more for ultrasound.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton.numerics import sigmoid

_PIXELS = {"BP": 1024, "num_warps": 4, "enable_fp_fusion": True}
_ROWS = 16  # of the image a step of ``_sector``

# SplitMix64 (Steele, Lea, Flood 2014), as signed numbers.
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9 - 2**64)
MIX_2 = tl.constexpr(0x94D049BB133111EB - 2**64)
LAST_24 = tl.constexpr(2**24 - 1)
UNIT = tl.constexpr(2.0**-24)
TURN = tl.constexpr(2 * math.pi * 2**-24)
SIDES = tl.constexpr(math.log2(4 / 3))  # of a crop, at most
ZOOM = tl.constexpr(math.log2(1.2))
GAMMA = tl.constexpr(math.log2(1.35))
ECHOES, SPECKLE = tl.constexpr(8), tl.constexpr(24)  # the first of the numbers that each takes; motion begins with 0


@triton.jit
def _bits(key, number):
    """The number-th of the 64 random bits of a key, int64. Shifts are masked, since those of signed
    numbers drag the sign along."""
    z = key + (key * 0 + number + 1) * GOLDEN  # a product of 64 bits, whatever type number has
    z = (z ^ ((z >> 30) & (2**34 - 1))) * MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))


@triton.jit
def _between(key, number, low, high):
    """The number-th random number of a key, uniform in [low, high)."""
    uniform = ((_bits(key, number) >> 40) & LAST_24).to(tl.float32) * UNIT
    return uniform * (high - low) + low


@triton.jit
def _lit(images, i_b, row, column, last, h, w, C: tl.constexpr):
    """1 where the brightest channel of an image is no dark ground, in rows before ``last``; else
    0."""
    live = (row < last)[:, None] & (column < w)[None, :]
    at = images + i_b * (C * h * w) + row[:, None] * w + column[None, :]
    brightest = tl.load(at, mask=live, other=-1.0)
    for channel in tl.static_range(1, C):
        brightest = tl.maximum(brightest, tl.load(at + channel * h * w, mask=live, other=-1.0))
    return (brightest > -0.9).to(tl.int32)


@triton.jit
def _sector(x_ptr, found_ptr, h, w, corner, C: tl.constexpr, ROWS: tl.constexpr, W: tl.constexpr):
    """found (b, 3) of images (b, C, h, w): where the probe stood, as x and y in [-1, 1], and 1 for
    a picture on black ground."""
    i_b = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    counts, top = tl.zeros([W], tl.int32), tl.full([], h, tl.int32)
    for first in range(0, h, ROWS):
        row = first + tl.arange(0, ROWS)
        lit = _lit(x_ptr, i_b, row, column, h, h, w, C)
        counts += tl.sum(lit, 0)
        # A row or column belongs to the picture from one lit pixel in 32 on.
        top = tl.minimum(top, tl.min(tl.where(tl.sum(lit, 1) * 32 >= w, row, h), 0))
    top = tl.where(top >= h, 0, top)
    picture = (counts * 32 >= h) & (column < w)
    left, right = tl.min(tl.where(picture, column, W), 0), tl.max(tl.where(picture, column, -1), 0)
    left, right = tl.where(left == W, 0, left), tl.where(right < 0, w - 1, right)
    upper, last = tl.zeros([W], tl.int32), tl.minimum(top + corner, h)
    for first in range(0, corner, ROWS):
        upper += tl.sum(_lit(x_ptr, i_b, top + first + tl.arange(0, ROWS), column, last, h, w, C), 0)
    across = (2 * column + 1).to(tl.float32) / w - 1.0
    middle = tl.sum(upper.to(tl.float32) * across, 0) / tl.maximum(tl.sum(upper, 0), 1).to(tl.float32)
    in_left = (column >= left) & (column < left + corner)
    in_right = (column > right - corner) & (column <= right)
    corners = tl.maximum(tl.sum(tl.where(in_left, upper, 0), 0), tl.sum(tl.where(in_right, upper, 0), 0))
    black = corners / (corner * corner) < 0.1
    tl.store(found_ptr + i_b * 3, middle)
    tl.store(found_ptr + i_b * 3 + 1, (2 * top).to(tl.float32) / h - 1.0)
    tl.store(found_ptr + i_b * 3 + 2, black.to(tl.float32))


@triton.jit
def _echoes(key, pixel, half, depth, across):
    """The exponent of brightness and its factor at pixels of depth and place across in [-1, 1]."""
    gain, slope = _between(key, ECHOES, 0.75, 1.3), _between(key, ECHOES + 1, -0.3, 0.3)
    grain, middle = _between(key, ECHOES + 2, 0.0, 0.15), _between(key, ECHOES + 3, -0.8, 0.8)
    wide, strength = _between(key, ECHOES + 4, 0.05, 0.2), _between(key, ECHOES + 5, 0.3, 0.9)
    cast, begins = _between(key, ECHOES + 6, 0.0, 1.0), _between(key, ECHOES + 7, -0.5, 0.5)
    exponent = tl.exp2(_between(key, ECHOES + 8, -1.0, 1.0) * GAMMA)
    # Box and Muller: the first half of the pixels takes the cosines, the second the sines.
    bits = _bits(key, SPECKLE + tl.where(pixel < half, pixel, pixel - half))
    radius = tl.sqrt(-2.0 * tl.log((((bits >> 40) & LAST_24).to(tl.float32) + 0.5) * UNIT))
    angle = (bits & LAST_24).to(tl.float32) * TURN
    speckle = grain * radius * tl.where(pixel < half, tl.cos(angle), tl.sin(angle))
    beside, below = (wide - tl.abs(across - middle)) / 0.03, (depth - begins) / 0.05
    shadow = tl.where(cast < 0.25, strength, 0.0) * sigmoid(beside) * sigmoid(below)
    return exponent, gain * (1.0 + slope * depth) * (1.0 + speckle) * (1.0 - shadow)


@triton.jit
def _vary(
    x_ptr, keys_ptr, found_ptr, y_ptr, h, w, tiles, half, down, right,
    ULTRASOUND: tl.constexpr, LATERALITY: tl.constexpr, C: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip  # tensors; sizes and steps; switches and tile sizes
    """y (b, C, h, w), augmented; ``down`` and ``right`` are the steps of depth and place."""
    i = tl.program_id(0)
    i_b = (i // tiles).to(tl.int64)
    pixel = i % tiles * BP + tl.arange(0, BP)
    live = pixel < h * w
    row = pixel // w
    column = pixel - row * w
    key = tl.load(keys_ptr + i_b + tl.arange(0, 1))
    base_x, base_y = (2 * column + 1).to(tl.float32) / w - 1.0, (2 * row + 1).to(tl.float32) / h - 1.0
    side = 1.0
    exponent, factor, black = 1.0, 1.0, False  # of crops
    if not LATERALITY:
        side = tl.where(_between(key, 4, 0.0, 1.0) < 0.5, -1.0, 1.0)
    if ULTRASOUND:
        turn, scale = _between(key, 0, -0.26, 0.26), tl.exp2(_between(key, 1, -1.0, 1.0) * ZOOM)
        cos, sin = tl.cos(turn) * scale, tl.sin(turn) * scale
        x = _between(key, 2, -0.1, 0.1) + (1.0 - scale) * tl.load(found_ptr + i_b * 3)
        y = _between(key, 3, -0.1, 0.1) + (1.0 - scale) * tl.load(found_ptr + i_b * 3 + 1)
        at_x, at_y = cos * side * base_x - sin * base_y + x, sin * side * base_x + cos * base_y + y
    else:
        area, ratio = _between(key, 0, 0.08, 1.0), tl.exp2(_between(key, 1, -1.0, 1.0) * SIDES)
        wide, high = tl.minimum(tl.sqrt(area * ratio), 1.0), tl.minimum(tl.sqrt(area / ratio), 1.0)
        at_x = wide * side * base_x + (1.0 - wide) * _between(key, 2, -1.0, 1.0)
        at_y = high * base_y + (1.0 - high) * _between(key, 3, -1.0, 1.0)
    in_x = tl.minimum(tl.maximum(((at_x + 1.0) * w - 1.0) * 0.5, 0.0), w - 1.0)
    in_y = tl.minimum(tl.maximum(((at_y + 1.0) * h - 1.0) * 0.5, 0.0), h - 1.0)
    left, upper = in_x.to(tl.int32), in_y.to(tl.int32)
    of_right, of_lower = in_x - left.to(tl.float32), in_y - upper.to(tl.float32)
    beyond, under = tl.minimum(left + 1, w - 1), tl.minimum(upper + 1, h - 1)
    if ULTRASOUND:
        exponent, factor = _echoes(key, pixel, half, row * down - 1.0, column * right - 1.0)
        black = tl.load(found_ptr + i_b * 3 + 2) * tl.maximum(tl.abs(at_x), tl.abs(at_y)) > 1.0
    for channel in tl.static_range(C):
        from_ptr = x_ptr + (i_b * C + channel) * (h * w)
        above = tl.load(from_ptr + upper * w + left, mask=live, other=0.0) * (1.0 - of_right)
        above += tl.load(from_ptr + upper * w + beyond, mask=live, other=0.0) * of_right
        lower = tl.load(from_ptr + under * w + left, mask=live, other=0.0) * (1.0 - of_right)
        lower += tl.load(from_ptr + under * w + beyond, mask=live, other=0.0) * of_right
        value = above * (1.0 - of_lower) + lower * of_lower
        if ULTRASOUND:
            bright = tl.where(black, 0.0, (value + 1.0) * 0.5)
            bright = tl.where(bright > 0, tl.exp2(exponent * tl.log2(tl.maximum(bright, 1e-30))), 0.0) * factor
            value = tl.minimum(tl.maximum(bright, 0.0), 1.0) * 2.0 - 1.0
        tl.store(y_ptr + (i_b * C + channel) * (h * w) + pixel, value, mask=live)


def _step(count: int) -> float:
    """Between ``count`` places from -1 to 1."""
    return 2.0 / (count - 1) if count > 1 else 0.0


def forward(images: Tensor, keys: Tensor, ultrasound: bool, laterality: bool) -> Tensor:
    """Augment images (b, c, h, w), torch.float32 in [-1, 1], as "ultrasound" or "crop_flip" do;
    keys torch.int64 (b,)."""
    images = images.contiguous()
    out, (b, c, h, w) = torch.empty_like(images), images.shape
    if not images.numel():
        return out
    found = images.new_empty(b, 3)
    if ultrasound:
        _sector[(b,)](
            images, found, h, w, max(1, min(h, w) // 16), C=c, ROWS=_ROWS, W=triton.next_power_of_2(w), num_warps=8,
            enable_fp_fusion=True,
        )  # fmt: skip  # line by line the kernel's parameters
    tiles = triton.cdiv(h * w, _PIXELS["BP"])
    _vary[(b * tiles,)](
        images, keys, found, out, h, w, tiles, (h * w + 1) // 2, _step(h), _step(w),
        ULTRASOUND=ultrasound, LATERALITY=laterality, C=c, **_PIXELS,
    )  # fmt: skip  # line by line the kernel's parameters
    return out


augment = torch.library.custom_op("medmambase::augment", forward, mutates_args=())


@augment.register_fake
def _fake(images: Tensor, keys: Tensor, ultrasound: bool, laterality: bool) -> Tensor:
    return torch.empty_like(images, memory_format=torch.contiguous_format)
