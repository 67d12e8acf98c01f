"""The selective scan of sequences on a GPU: allocate, compute the grids, launch.

Kernels a call, PyTorch's included: forward ``pack`` and the scan, or its three passes over chunks;
backward ``pack``, the scan, ``unpack`` and ``totals``, and two more over chunks. Tensors that lie
along l are read where they are, whatever their other strides; another is copied once.
Kept for backward: nothing for up to 64 steps from a zero state, else the state before every 32,
2 bytes an element of u at n = 16.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import launch_table
from medmambase_kernels._triton import sequence_backward as back
from medmambase_kernels._triton import sequence_forward as scan
from medmambase_kernels._triton import sequence_pack as packing
from medmambase_kernels._triton.scan import processors
from medmambase_kernels.reference import groups_of

_REACH = 2**31  # elements that a 32-bit index reaches
_STAGES = 3  # one more than the turns that a loop loads ahead
# At most, a lane, where the launch table says 168 with 8 steps a tile: with 168, Triton 3.9 spills
# on compute capability 9.0 (float32), and with 160, Triton 3.7 does on 10.0 (float16).
_REGISTERS = 168 if triton.__version__.startswith("3.7.") else 160
_SUMMED = 32  # parts and channels that ``totals`` adds at once


def kept_shape(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *_: Tensor | None) -> tuple[int, ...]:
    """Shape of the states kept for backward, (b, chunks, n padded, d); empty for one chunk from a
    zero state, which the inputs suffice for. Tensors as in ``forward``."""
    chunks = launch_table.chunks_of(u.shape[2])
    if chunks <= 1 and _[-1] is None:  # the initial state
        return (0,)
    return u.shape[0], chunks, launch_table.power_of_two(A.shape[1]), u.shape[1]


@dataclass(frozen=True)
class _Inputs:
    """What the kernels read: sequences (b, d, l) along l; ``rows`` (b, l, g, [B | C]), those that
    vary; ``tables`` (1 to 3, N, d); ``states`` (b, N, d) or None."""

    u: Tensor
    delta: Tensor
    rows: Tensor
    tables: Tensor
    states: Tensor | None
    D: Tensor | None
    bias: Tensor | None
    groups: int
    vary: tuple[bool, bool]  # B, C
    softplus: bool

    @property
    def switches(self) -> dict[str, object]:
        """The kernels' switches that do not depend on the pass."""
        (b, d, l), N = self.u.shape, self.tables.shape[1]
        chunks = launch_table.chunks_of(l)
        # Programs, elements of an image's rows, and of its kept states.
        farthest = max(b * d * chunks, l * self.groups * sum(self.vary) * N, chunks * N * d)
        return {
            "GROUPS": self.groups, "N": N, "VARY_B": self.vary[0], "VARY_C": self.vary[1], "SOFTPLUS": self.softplus,
            "INDEX": tl.int32 if farthest < _REACH else tl.int64,
            "num_warps": 1, "enable_fp_fusion": True, "STAGES": _STAGES,
        }  # fmt: skip  # as in the kernels

    def blocks(self, channels: int) -> int:
        """Programs of so many channels a group."""
        return triton.cdiv(self.u.shape[1] // self.groups, channels)


def _width(l: int, N: int) -> int:
    """Steps that ``pack`` and ``unpack`` turn at once: a tile fits into the registers of two
    warps."""
    return min(64, 2048 // N, max(16, launch_table.power_of_two(l)))


def _lengthwise(t: Tensor) -> Tensor:
    """(b, d, l) with neighbouring steps: as it is, or a contiguous copy."""
    b, d, l = t.shape
    if t.stride(2) == 1 or l == 1:
        return t
    out = torch.empty(b, d, l, dtype=t.dtype, device=t.device)
    blocks, wide = triton.cdiv(l, 32), triton.cdiv(d, 32)
    packing.lengthwise[(b * blocks * wide,)](t, out, *t.stride(), l, d, blocks, wide, BX=32, num_warps=2)
    return out


def _pack(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    states: Tensor | None, softplus: bool,
) -> _Inputs:  # fmt: skip  # in the operator's order
    (b, d, l), n, groups = u.shape, A.shape[1], groups_of(B, C)
    N, vary = launch_table.power_of_two(n), (B.dim() == 4, C.dim() == 4)
    rows, tables = A.new_empty(b, l, groups, sum(vary) * N), A.new_empty(3 - sum(vary), N, d)
    turned = None if states is None else A.new_empty(b, N, d)
    width = _width(l, N)
    blocks, wide = triton.cdiv(l, width), triton.cdiv(d, width)
    of_rows, of_tables = b * groups * blocks if any(vary) else 0, len(tables) * wide
    strides = [s for t in (B, C) for s in (t.stride() if t.dim() == 4 else (0, 0, t.stride(1), t.stride(0)))]
    of_states = (0, 0, 0) if states is None else (states.stride(0), states.stride(2), states.stride(1))
    packing.pack[(of_rows + of_tables + (0 if states is None else b * wide),)](
        B, C, A, states, rows, tables, turned,
        *strides, A.stride(1), A.stride(0), *of_states, l, d, n, blocks, wide, of_rows, of_tables,
        GROUPS=groups, N=N, VARY_B=vary[0], VARY_C=vary[1], BX=width, num_warps=2,
    )  # fmt: skip  # line by line the kernel's parameters
    D, bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
    return _Inputs(_lengthwise(u), _lengthwise(delta), rows, tables, turned, D, bias, groups, vary, softplus)


def _sizes(steps: int, l: int, *sequences: Tensor) -> tuple[bool, list[int]]:
    """Whether every tile of so many steps is whole and begins at a multiple of them in memory; the
    length and the strides of batch and channels, in tiles if so."""
    sizes = [l, *(t.stride(axis) for t in sequences for axis in (0, 1))]
    even = all(size % steps == 0 for size in sizes)
    return even, [size // steps for size in sizes] if even else sizes


def _carry(given: _Inputs, entry: Tensor, total: Tensor, last: Tensor | None, n: int, *, reverse: bool = False) -> None:
    b, chunks, N, d = entry.shape
    blocks = triton.cdiv(d, 32)
    scan.carry[(b * blocks,)](
        entry, total, given.tables, given.states, last, d, n, blocks, chunks, 0,
        N=N, REVERSE=reverse, BD=32, STAGES=_STAGES, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip  # line by line the kernel's parameters


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    initial_state: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype, save: bool,
    config: launch_table.SequenceForward | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip  # in the operator's order
    """y (b, d, l) in out_dtype, the last state (b, d, n), what is kept (empty unless save).
    Arguments as in reference.py."""
    shape = kept_shape(u, delta, A, B, C, D, delta_bias, initial_state) if save else (0,)
    y = torch.empty(u.shape, dtype=out_dtype, device=u.device)
    if not u.numel():
        last = (
            A.new_zeros(u.shape[0], *A.shape)
            if initial_state is None
            else initial_state.clone(memory_format=torch.contiguous_format)
        )
        return y, last, A.new_empty(shape)
    (b, d, l), n = u.shape, A.shape[1]
    given = _pack(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus)
    config = config or launch_table.sequence_forward(
        b, d, l, n, processors(u), given.groups, constant=not all(given.vary)
    )
    chunks, blocks, N = triton.cdiv(l, config.chunk), given.blocks(config.channels), given.tables.shape[1]
    entry = A.new_empty((b, chunks, N, d) if config.chunked else shape)
    total, last = A.new_empty((b, chunks, d) if config.chunked else 0), A.new_empty(b, d, n)
    even, (length, *strides) = _sizes(config.steps, l, given.u, given.delta)
    registers = _REGISTERS if (config.steps, config.registers) == (8, 168) else config.registers

    def run(mode: tl.constexpr, parts: int, steps: int) -> None:
        walked = triton.cdiv(steps * config.channels, 32)  # each lane has a channel, or two, or half of one
        for first, count in launch_table.cut(b * given.groups * blocks * parts, walked, N, processors(u)):
            scan.forward[(count,)](
                given.u, given.delta, given.rows, given.tables, given.D, given.bias, given.states,
                y, last, entry, total, length, *strides, b, d, n, d // given.groups, blocks, 0, first,
                SAVE=shape != (0,), MODE=mode.value, EVEN=even, BD=config.channels, STEPS=config.steps,
                CHUNK=config.chunk, maxnreg=registers, **given.switches,
            )  # fmt: skip  # line by line the kernel's parameters

    if config.chunked:
        run(scan.ENDS, chunks, config.chunk)
        _carry(given, entry, total, last, n)
        run(scan.CHUNKS, chunks, config.chunk)
    else:
        run(scan.WHOLE, 1, l)
    return y, last, entry if shape != (0,) else A.new_empty(0)


def backward(
    dy: Tensor, dlast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool, out_dtype: torch.dtype, kept: Tensor,
    config: launch_table.SequenceBackward | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip  # in the operator's order
    """Gradients of u, delta, A, B, C, D, delta_bias, initial_state, contiguous, each None where its
    argument is."""
    if not u.numel():
        arguments = (u, delta, A, B, C, D, delta_bias)
        zeros = [None if t is None else torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in arguments]
        return (*zeros, None if initial_state is None else dlast.clone(memory_format=torch.contiguous_format))
    (b, d, l), n = u.shape, A.shape[1]
    given = _pack(u, delta, A, B, C, D, delta_bias, dlast, delta_softplus)
    dy, groups, vary, N = _lengthwise(dy), given.groups, given.vary, given.tables.shape[1]
    config = config or launch_table.sequence_backward(b, d, l, n, processors(u), groups, constant=not all(vary))
    chunks, blocks, segment = triton.cdiv(l, config.chunk), given.blocks(config.channels), d // groups
    adjoint, dinitial = given.states, None if initial_state is None else A.new_empty(b, d, n)
    if config.chunked:
        adjoint, total = A.new_empty(b, chunks, N, d), A.new_empty(b, chunks, d)
        even, (length, *strides) = _sizes(config.ends, l, dy, given.delta)
        wide = given.blocks(32)
        for first, count in launch_table.cut(b * groups * wide * chunks, config.chunk, N, processors(u)):
            back.adjoint_ends[(count,)](
                dy, given.delta, given.rows, given.tables, given.bias, adjoint, total,
                length, *strides, b, d, segment, wide, 0, first,
                EVEN=even, BD=32, STEPS=config.ends, CHUNK=config.chunk, **given.switches,
            )  # fmt: skip  # line by line the kernel's parameters
        _carry(given, adjoint, total, dinitial, n, reverse=True)
    parts = chunks if config.chunked else 1
    items = b * groups * blocks * parts
    programs = min(items, config.programs)
    strip = A.new_empty(programs, config.chunk // config.steps, N, config.channels)
    du, ddelta = (torch.empty(u.shape, dtype=t.dtype, device=u.device) for t in (u, delta))
    drows = A.new_empty(blocks, b, l, groups, N, sum(vary))
    sums = A.new_empty(parts * b, (3 - sum(vary)) * N + 2, d)
    even, (length, *strides) = _sizes(config.steps, l, dy, given.u, given.delta)
    for first, count in launch_table.cut(items, config.chunk if config.chunked else l, N, processors(u)):
        back.backward[(min(count, programs),)](
            dy, given.u, given.delta, given.rows, given.tables, given.D, given.bias, kept if kept.numel() else None,
            adjoint, strip, du, ddelta, drows, sums, None if config.chunked else dinitial,
            first + count, length, *strides, b, d, n, segment, blocks, 0, first,
            CHUNKED=config.chunked, EVEN=even, BD=config.channels, STEPS=config.steps, CHUNK=config.chunk,
            **given.switches,
        )  # fmt: skip  # line by line the kernel's parameters
    dA, dB, dC, dD, dbias = (None if t is None else torch.empty(t.shape, dtype=t.dtype, device=u.device)
                             for t in (A, B, C, D, delta_bias))  # fmt: skip  # one a tensor
    if any(vary):
        width = _width(l, N)
        tiles = triton.cdiv(l, width)
        packing.unpack[(b * groups * tiles,)](
            drows, dB, dC, l, n, tiles, blocks, drows[0].numel(),
            GROUPS=groups, N=N, VARY_B=vary[0], VARY_C=vary[1], BX=width, num_warps=2,
        )  # fmt: skip  # line by line the kernel's parameters
    wide = triton.cdiv(d, _SUMMED)
    packing.totals[(sums.shape[1] * wide,)](
        sums, dA, dB, dC, dD, dbias, parts * b, d, n, wide,
        N=N, VARY_B=vary[0], VARY_C=vary[1], BP=_SUMMED, BD=_SUMMED, num_warps=4,
    )  # fmt: skip  # line by line the kernel's parameters
    return du, ddelta, dA, dB, dC, dD, dbias, dinitial
