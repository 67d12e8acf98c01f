"""Run one scan problem of either operator on the GPU, in two passes: allocate, compute the grid,
launch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels._triton import launch_table
from medmambase_kernels._triton import scan_backward as back
from medmambase_kernels._triton import scan_forward as scan

_INTERPRETED = 100  # multiprocessors, where there is no GPU to ask
_REACH = 2**31  # elements that a 32-bit index reaches


@dataclass(frozen=True)
class Scan:
    """k routes over x (b, l, d), l = height * width; k = 1 is a sequence, k = 4 an image. N is n
    padded to a power of two, k * g rows a position.

    ``rows`` (b, l, k g, width): [B | C | rank of delta], each padded with zeros; B and C only where
    they vary, else ``B``, ``C`` (N, d).
    ``raw`` (b, l, k, d), what goes into the softplus but for ``bias``; None: ``W`` (k, rank padded,
    d) times the rank. A (k, N, d); D, bias (k, d).
    All are contiguous.
    """

    x: Tensor
    raw: Tensor | None
    rows: Tensor
    W: Tensor | None
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    D: Tensor
    bias: Tensor
    softplus: bool
    height: int
    width: int
    groups: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """(b, height, width, d, channels of a group)."""
        return self.x.shape[0], self.height, self.width, self.x.shape[2], self.x.shape[2] // self.groups

    @property
    def shared(self) -> dict[str, object]:
        """The kernels' switches that do not depend on the pass."""
        k, N, d = self.A.shape
        inside = self.x.shape[1] * max(
            self.rows.shape[2] * self.rows.shape[3], k * d, N * d
        )  # the last for the chunks' states, of four steps or more
        return {
            "K": k, "GROUPS": self.groups, "N": N, "WIDTH": self.rows.shape[3], "VARY_B": self.B is None,
            "VARY_C": self.C is None, "SOFTPLUS": self.softplus, "INDEX": tl.int32 if inside < _REACH else tl.int64,
            "num_warps": 1, "enable_fp_fusion": True,
        }  # fmt: skip  # as in the kernels


def processors(t: Tensor) -> int:
    """Multiprocessors of the GPU that t is on."""
    return torch.cuda.get_device_properties(t.device).multi_processor_count if t.is_cuda else _INTERPRETED


def table(t: Tensor) -> Tensor:
    """(..., d, n) weights as the kernels read them: (..., n padded, d), float32."""
    swapped = t.transpose(-2, -1).float()
    return F.pad(swapped, (0, 0, 0, launch_table.power_of_two(t.shape[-1]) - t.shape[-1])).contiguous()


def rows_of(parts: Sequence[Tensor]) -> Tensor:
    """Parts (b, l, j, n) side by side, each padded with zeros to a power of two: (b, l, j, width),
    float32."""
    sizes = [launch_table.power_of_two(part.shape[-1]) for part in parts]
    rows = parts[0].new_empty(*parts[0].shape[:3], sum(sizes), dtype=torch.float32)
    for part, room in zip(parts, rows.split(sizes, -1), strict=True):
        room[..., : part.shape[-1]] = part
        room[..., part.shape[-1] :] = 0
    return rows


def project(rows: Tensor, W: Tensor) -> Tensor:
    """raw (b, l, k, d) in float32 from the rows, whose last columns are the rank, and W (k, rank
    padded, d)."""
    b, l, k, width = rows.shape
    raw = rows.new_empty(b, l, k, W.shape[2])
    blocks = triton.cdiv(W.shape[2], 64)
    scan.project[(triton.cdiv(b * l, 32) * k * blocks,)](
        rows,
        W,
        raw,
        b * l,
        W.shape[2],
        blocks,
        K=k,
        WIDTH=width,
        RANK=W.shape[1],
        BL=32,
        BD=64,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return raw


def forward(
    s: Scan, config: launch_table.ForwardLaunch, initial: Tensor | None, save: bool, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of y (1, 2 or 4, b, l, d), to be added; the state before each chunk (b, k, chunks, N,
    d); the last state (b, N, d) where k = 1."""
    (k, N, d), (b, l, _) = s.A.shape, s.x.shape
    chunks, blocks = triton.cdiv(l, config.chunk), triton.cdiv(d // s.groups, config.channels)
    pair = 2 if config.pair and k == 4 and not config.chunked else 1
    y = torch.empty(k // pair, b, l, d, dtype=out_dtype, device=s.x.device)
    entry = s.A.new_empty((b, k, chunks, N, d) if save or config.chunked else 0)
    total = s.A.new_empty((b, k, chunks, d) if config.chunked else 0)
    last = s.A.new_empty((b, N, d) if k == 1 else 0)
    raw = s.rows if s.raw is None else s.raw

    def run(mode: tl.constexpr, programs: int, steps: int) -> None:
        for first, count in launch_table.cut(programs * s.groups * blocks, steps, N, processors(s.x)):
            scan.forward[(count,)](
                s.x, raw, s.rows, s.D if s.W is None else s.W, s.A, s.A if s.B is None else s.B,
                s.A if s.C is None else s.C, s.D, s.bias, s.A if initial is None else initial, y, last, entry, total,
                *s.sizes, blocks, 0, first,
                RANK=0 if s.W is None else s.W.shape[1], INITIAL=initial is not None, SAVE=save, MODE=mode.value,
                PAIR=pair, BD=config.channels, STEPS=config.steps, CHUNK=config.chunk, EVEN=l % config.steps == 0,
                **s.shared,
            )  # fmt: skip  # line by line the kernel's parameters

    if config.chunked:
        run(scan.ENDS, b * k * chunks, config.chunk)
        _carry(s, entry, total, initial, last, reverse=False)
        run(scan.CHUNKS, b * k * chunks, config.chunk)
    else:
        run(scan.WHOLE, b * (k // pair), l * pair)
    return y, entry, last


def _carry(s: Scan, entry: Tensor, total: Tensor, initial: Tensor | None, last: Tensor, reverse: bool) -> None:
    b, k, chunks, N, d = entry.shape
    blocks = triton.cdiv(d, 32)
    scan.carry[(b * k * blocks,)](
        entry, total, s.A, s.A if initial is None else initial, last, d, blocks, chunks, 0,
        K=k, N=N, INITIAL=initial is not None, REVERSE=reverse, BD=32, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip  # line by line the kernel's parameters


@dataclass(frozen=True)
class Gradients:
    """Of one Scan. ``x`` (k, b, l, d), to be added over k; ``rows`` (b, l, k g, [B and C by turns])
    of those that vary; B, C (N, d) where constant;

    ``state`` (b, N, d), that of the initial state, where k = 1. The others are shaped as in Scan.
    """

    x: Tensor
    raw: Tensor
    rows: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
    state: Tensor


def backward(
    s: Scan, config: launch_table.BackwardLaunch, dy: Tensor, entry: Tensor, dlast: Tensor | None, draw: Tensor
) -> Gradients:
    """Gradients for dy (b, l, d), contiguous; draw (b, l, k, d) receives the gradient of raw, and
    may be raw itself."""
    assert s.raw is not None
    (k, N, d), (b, l, _), varies = s.A.shape, s.x.shape, (s.B is None) + (s.C is None)
    chunks, blocks = triton.cdiv(l, config.chunk), triton.cdiv(d // s.groups, config.channels)
    dx = s.A.new_empty(k, b, l, d, dtype=torch.float32 if k > 1 else s.x.dtype)
    state = s.A.new_empty((b, N, d) if k == 1 else 0)
    adjoint = dlast
    if config.chunked:
        adjoint, total = s.A.new_empty(b, k, chunks, N, d), s.A.new_empty(b, k, chunks, d)
        steps, width = min(4, config.steps), triton.cdiv(d // s.groups, 32)
        for first, count in launch_table.cut(b * k * s.groups * width * chunks, config.chunk, N, processors(s.x)):
            back.adjoint_ends[(count,)](
                dy, s.raw, s.rows, s.A, s.A if s.C is None else s.C, s.bias, adjoint, total,
                *s.sizes, width, 0, first, BD=32, STEPS=steps, CHUNK=config.chunk, EVEN=l % steps == 0, **s.shared,
            )  # fmt: skip  # line by line the kernel's parameters
        _carry(s, adjoint, total, dlast, state, reverse=True)
    part = (chunks if config.chunked else 1, b)
    drows = s.A.new_empty(blocks, b, l, k * s.groups, varies * N)
    dA, dD, dbias = s.A.new_empty(*part, k, N, d), s.A.new_empty(*part, k, d), s.A.new_empty(*part, k, d)
    dB, dC = (s.A.new_empty((*part, N, d) if t is not None else 0) for t in (s.B, s.C))
    items = b * k * s.groups * blocks * part[0]
    programs = min(items, config.programs)
    strip = s.A.new_empty(programs, config.chunk // config.steps + config.steps - 1, N, config.channels)
    for first, count in launch_table.cut(items, config.chunk if config.chunked else l, N, processors(s.x)):
        back.backward[(min(count, programs),)](
            dy, s.x, s.raw, s.rows, s.A, s.A if s.B is None else s.B, s.A if s.C is None else s.C, s.D, s.bias, entry,
            s.A if adjoint is None else adjoint, strip, dx, draw, drows, dA, dB, dC, dD, dbias, state,
            first + count, *s.sizes, blocks, 0, first,
            ADJOINT=adjoint is not None, CHUNKED=config.chunked, BD=config.channels, STEPS=config.steps,
            CHUNK=config.chunk, EVEN=l % config.steps == 0, **s.shared,
        )  # fmt: skip  # line by line the kernel's parameters
    dA, dB, dC, dD, dbias = (t.sum((0, 1)) if t.numel() else t for t in (dA, dB, dC, dD, dbias))
    return Gradients(dx, draw, drows.sum(0), dA, dB, dC, dD, dbias, state)
