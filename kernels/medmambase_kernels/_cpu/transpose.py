"""Transpose matrices in vector code, a square of as many rows and columns as there are lanes at a
time, in registers.

A sequence arrives with its steps side by side and is scanned with its channels side by side.
PyTorch's own copy between the two jumps from cache line to cache line, and takes three times as
long as the scan.
"""

import functools

from torch import Tensor

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.compiler import Program, compiled
from medmambase_kernels._cpu.lanes import transposed
from medmambase_kernels._cpu.language import Kernel

_BAND = 256  # columns of a task


@functools.cache
def _transpose(lanes: int) -> Program:
    kernel = Kernel(
        "transpose",
        ("source", "out"),
        ("bands", "rows", "columns", "filled", "from_matrix", "from_row", "to_matrix", "to_row"),
        lanes,
    )
    source, out = kernel.pointers("source", "out")
    bands, rows, columns, filled, from_matrix, from_row, to_matrix, to_row = kernel.sizes(*kernel.arguments[2:])
    whole_rows = rows // lanes * lanes
    with kernel.tasks() as task:
        matrix, first = task // bands, task % bands * _BAND
        last = kernel.smaller(first + _BAND, columns)
        whole_columns = first + (last - first) // lanes * lanes
        old, new = source.at(matrix * from_matrix), out.at(matrix * to_matrix)
        with kernel.range(first, whole_columns, lanes) as j, kernel.range(0, whole_rows, lanes) as i:
            square = transposed(kernel, [old.load((i + s) * from_row + j) for s in range(lanes)])
            for s, vector in enumerate(square):
                new.store((j + s) * to_row + i, vector)
        for start, stop, rows_from, rows_to in (
            (first, last, whole_rows, rows),
            (whole_columns, last, kernel.constant_index(0), whole_rows),
        ):
            with kernel.range(start, stop) as j, kernel.range(rows_from, rows_to) as i:
                new.store_number(j * to_row + i, old.number(i * from_row + j))
        with kernel.range(first, last) as j, kernel.range(rows, filled) as i:
            new.store_number(j * to_row + i, kernel.number(0.0))
    return compiled(kernel)


def transpose(source: Tensor, out: Tensor) -> Tensor:
    """Write source (b, rows, columns) into out (b, columns, rows or more), and zeros into what is
    more. float32, both with their last axis side by side.

    Returns ``out``.
    """
    b, rows, columns = source.shape
    bands = -(-columns // _BAND)
    _transpose(compiler.lanes()).launch(
        b * bands, source=source, out=out, bands=bands, rows=rows, columns=columns, filled=out.shape[2],
        from_matrix=source.stride(0), from_row=source.stride(1), to_matrix=out.stride(0), to_row=out.stride(1),
    )  # fmt: skip  # as in the kernel
    return out
