"""Load in float32, and compute softplus, its slope and sigmoid, for several kernels.

Made of exp2 (one instruction on the exp unit), multiply-adds and selections: tl.log, tl.exp and a
division are 5 to 30 instructions each.
"""

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))


@triton.jit
def load(ptr, live):
    """The values in float32 whatever is stored, 0 where not live."""
    return tl.load(ptr, mask=live, other=0.0).to(tl.float32)


@triton.jit
def softplus(v):
    """log(1 + e^v) and its slope, the sigmoid of v, both to 5e-7 in relative terms wherever e^v is
    a normal float32; NaN stays NaN."""
    e = tl.exp2(tl.abs(v) * -LOG2E)
    p = -0.008539203554391861  # log(1 + e) / e on [0, 1]
    p = p * e + 0.04408961534500122
    p = p * e - 0.10768169164657593
    p = p * e + 0.17745240032672882
    p = p * e - 0.24495461583137512
    p = p * e + 0.33275479078292847
    p = p * e - 0.4999740421772003
    p = p * e + 0.9999998211860657
    beyond = p * e
    return beyond + tl.maximum(v, 0.0), tl.where(v > 0, 1.0, e) * tl.exp2(
        beyond * -LOG2E
    )  # 1 / (1 + e) by exp2: a division is 9 instructions


@triton.jit
def sigmoid(v):
    """1 / (1 + e^-v), to a few float32 roundings in relative terms; NaN stays NaN."""
    e = tl.exp2(tl.abs(v) * -LOG2E)
    return tl.where(v > 0, 1.0, e) / (1.0 + e)


@triton.jit
def load_pair(at, N: tl.constexpr):
    """Two rows of N numbers that lie side by side, each as [N, 1]: B and C of a step.

    One load, and not one of each: before 3.7, Triton takes a load of fewer numbers than a warp has
    lanes for a cheap one, and in a pipelined loop every lane copies all of it, 16 bytes at a time.
    """
    left, right = tl.split(tl.trans(tl.reshape(tl.load(at + tl.arange(0, 2 * N)), [2, N])))
    return left[:, None], right[:, None]
