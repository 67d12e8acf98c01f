"""Space to depth on a CPU: the four positions of each square of 2 x 2 side by side, as a step that
is captured and replayed with the kernels around it.
"""

import functools

from torch import Tensor

from medmambase_kernels._cpu import compiler
from medmambase_kernels._cpu.compiler import Program, compiled, empty
from medmambase_kernels._cpu.language import Kernel


@functools.cache
def _space_to_depth(lanes: int) -> Program:
    kernel = Kernel(
        "space_to_depth",
        ("x", "out"),
        ("height", "width", "channels", "from_image", "from_row", "from_position"),
        lanes,
    )
    x, out = kernel.pointers("x", "out")
    height, width, channels, from_image, from_row, from_position = kernel.sizes(*kernel.arguments[2:])
    with kernel.tasks() as row, kernel.range(0, width) as column:
        square = x.at(row // height * from_image + row % height * 2 * from_row + column * 2 * from_position)
        for corner, first in enumerate(
            (square, square.at(from_row), square.at(from_position), square.at(from_row + from_position))
        ):
            to = out.at(((row * width + column) * 4 + corner) * channels)
            with kernel.range(0, channels, lanes) as c:
                to.store(c, first.load(c))
    return compiled(kernel)


def fits(x: Tensor) -> bool:
    """Whether the channels fill the processor's vectors and stand side by side."""
    return x.shape[-1] % compiler.lanes() == 0 and x.stride(-1) == 1


def space_to_depth(x: Tensor) -> Tensor:
    """x (b, h, w, c), float32 and such that it ``fits`` -> (b, h // 2, w // 2, 4 c)."""
    b, h, w, c = x.shape
    out = empty(b, h // 2, w // 2, 4 * c)
    _space_to_depth(compiler.lanes()).launch(
        b * (h // 2),
        x=x,
        out=out,
        height=h // 2,
        width=w // 2,
        channels=c,
        from_image=x.stride(0),
        from_row=x.stride(1),
        from_position=x.stride(2),
    )
    return out
