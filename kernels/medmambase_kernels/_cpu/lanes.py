"""Sum and transpose as many vectors as a vector has lanes, a square in registers."""

from collections.abc import Sequence

from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.values import Value


def totals(kernel: Kernel, vectors: Sequence[Value]) -> Value:
    """The sums over the lanes of as many vectors as there are lanes, as one vector: halves are
    exchanged and added, level by level."""
    level, distance = [vectors[i] for i in _reversed_bits(kernel.lanes)], 1
    while len(level) > 1:
        half = len(level) // 2
        keep = [i if not i & distance else kernel.lanes + (i ^ distance) for i in range(kernel.lanes)]
        pass_on = [i | distance if not i & distance else kernel.lanes + i for i in range(kernel.lanes)]
        level = [
            kernel.shuffle(a, b, keep) + kernel.shuffle(a, b, pass_on)
            for a, b in zip(level[:half], level[half:], strict=True)
        ]
        distance *= 2
    return level[0]


def transposed(kernel: Kernel, vectors: Sequence[Value]) -> list[Value]:
    """The columns of a square of as many vectors as there are lanes: blocks of ever smaller size
    change places."""
    square, distance = list(vectors), kernel.lanes // 2
    while distance:
        upper = [i if not i & distance else kernel.lanes + i - distance for i in range(kernel.lanes)]
        lower = [i + distance if not i & distance else kernel.lanes + i for i in range(kernel.lanes)]
        for i in (i for i in range(kernel.lanes) if not i & distance):
            a, b = square[i], square[i + distance]
            square[i], square[i + distance] = kernel.shuffle(a, b, upper), kernel.shuffle(a, b, lower)
        distance //= 2
    return square


def _reversed_bits(count: int) -> list[int]:
    """0 .. count - 1, a power of two, with the bits of each reversed: the order in which ``totals``
    takes vectors so that sums come out in place."""
    return (
        [0]
        if count == 1
        else [2 * i for i in _reversed_bits(count // 2)] + [2 * i + 1 for i in _reversed_bits(count // 2)]
    )
