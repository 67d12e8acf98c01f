"""Add the partial sums that the programs of a kernel left, in a fixed order: no atomics, every run
gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton.numerics import load

TILE = {"BP": 64, "BC": 32}  # parts and columns a step of a program


@triton.jit
def total(source, parts, size, column, live, BP: tl.constexpr, BC: tl.constexpr):
    """The sums over ``parts`` rows, ``size`` elements apart, of columns that are live."""
    sums = tl.zeros([BP, BC], tl.float32)
    for first in range(0, parts, BP):
        part = first + tl.arange(0, BP).to(tl.int64)
        sums += load(source + part[:, None] * size + column[None, :], (part < parts)[:, None] & live[None, :])
    return tl.sum(sums, 0)


@triton.jit
def split_total(source, left, right, i, parts, size, cut, BP: tl.constexpr, BC: tl.constexpr):
    """left (cut,) and right (size - cut,): the sums over parts of source (parts, size), BC columns
    by program i."""
    column = i.to(tl.int64) * BC + tl.arange(0, BC)
    sums = total(source, parts, size, column, column < size, BP, BC)
    tl.store(left + column, sums, mask=column < cut)
    tl.store(right + (column - cut), sums, mask=(column >= cut) & (column < size))


@triton.jit
def add(part_ptr, left_ptr, right_ptr, parts, size, cut, BP: tl.constexpr, BC: tl.constexpr):
    """``split_total`` by a kernel of its own."""
    split_total(part_ptr, left_ptr, right_ptr, tl.program_id(0), parts, size, cut, BP, BC)


def added(part: Tensor, cut: int) -> tuple[Tensor, Tensor]:
    """The sums over the rows of part (parts, size), contiguous and in float32: of the first ``cut``
    columns, and of the others. They share no memory, as results of an operator may not."""
    parts, size = part.shape
    left, right = part.new_empty(cut), part.new_empty(size - cut)
    add[(triton.cdiv(size, TILE["BC"]),)](
        part, left, right, parts, size, cut, **TILE, num_warps=4, enable_fp_fusion=True
    )
    return left, right
