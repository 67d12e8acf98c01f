"""Sum two tiles of a backward scan over their channels: the gradients of B and C of one step."""

import triton
import triton.language as tl


@triton.jit
def _fours(tile, N: tl.constexpr, BD: tl.constexpr):
    """The sums of every four channels, which one lane holds: [N, BD] to [N, BD // 4]."""
    return tl.sum(tl.reshape(tile, [N, BD // 4, 4]), 2)


@triton.jit
def _halved(tiles):
    """The sums of pairs: [N, P, 2] to [N, P / 2, 2]."""
    pairs = tl.permute(tl.reshape(tiles, [tiles.shape[0], tiles.shape[1] // 2, 2, 2]), [0, 1, 3, 2])
    even, odd = tl.split(pairs)
    return even + odd


@triton.jit
def sums_side_by_side(left, right, N: tl.constexpr, BD: tl.constexpr):
    """The sums over channels of two [N, BD] tiles as [N, 2]; BD is 4, 8, 16 or 32.

    ``split`` wants a pair in one lane, for which two lanes exchange half of what they hold; with
    tl.sum they exchange all of it, and both then hold the same. Four steps take 64 shuffles so, 160
    with tl.sum. Cycles of a turn on an H200, float32, 8 warps, predicted by a model, not measured:
    the scan of sequences 5496 instead of 6446, that of images 7387 instead of 8384. On other GPUs
    the turn has 3 to 10 % fewer instructions; up to 68 bytes more are spilled in the scan of
    sequences, up to 140 in that of images (compute capabilities 12.0 and 10.0). Sums by tl.dot with
    ones, of two parts of each number, take 6610 to 9835 cycles: the parts wait in registers, and
    more of them spill.
    """
    tiles = tl.join(_fours(left, N, BD), _fours(right, N, BD))
    if BD > 4:  # one after the other: Triton 3.3 takes no function that calls itself
        tiles = _halved(tiles)
    if BD > 8:
        tiles = _halved(tiles)
    if BD > 16:
        tiles = _halved(tiles)
    return tl.reshape(tiles, [N, 2])
