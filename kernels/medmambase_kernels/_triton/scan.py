"""Run the scan of an image on the GPU, in two passes where needed: allocate, compute the grid,
launch.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from medmambase_kernels._triton import launch_table
from medmambase_kernels._triton import scan_backward as back
from medmambase_kernels._triton import scan_forward as scan

_INTERPRETED = 100  # multiprocessors, where there is no GPU to ask
_REACH = 2**31  # elements that a 32-bit index reaches
K = scan.K.value


@dataclass(frozen=True)
class Scan:
    """K = 4 directions over x (b, l, d), l = height * width.

    ``rows`` (b, l, K, width): [B | C | rank of delta], each padded with zeros to a power of two, B
    and C to N. W (K, rank padded, d) times the rank, plus ``bias``, goes into the softplus; ``raw``
    (b, l, K, d) is that product where it was made before the scan. A2 (K, N, d) is A log2(e); D,
    bias (K, d). All are contiguous, and in float32: 2 bytes a lane cannot be copied ahead.
    """

    x: Tensor
    raw: Tensor | None
    rows: Tensor
    W: Tensor
    A2: Tensor
    D: Tensor
    bias: Tensor
    height: int
    width: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """(b, height, width, d)."""
        return self.x.shape[0], self.height, self.width, self.x.shape[2]

    @property
    def shared(self) -> dict[str, object]:
        """The kernels' switches that do not depend on the pass."""
        N, d = self.A2.shape[1:]
        inside = self.x.shape[1] * max(
            K * self.rows.shape[3], K * d, N * d
        )  # the last for the chunks' states, of four steps or more
        return {
            "N": N, "WIDTH": self.rows.shape[3], "INDEX": tl.int32 if inside < _REACH else tl.int64,
            "num_warps": 1, "enable_fp_fusion": True,
        }  # fmt: skip  # as in the kernels


def processors(t: Tensor) -> int:
    """Multiprocessors of the GPU that t is on."""
    return torch.cuda.get_device_properties(t.device).multi_processor_count if t.is_cuda else _INTERPRETED


def forward(s: Scan, config: launch_table.ForwardLaunch, save: bool) -> tuple[Tensor, Tensor]:
    """Parts of y (2 or 4, b, l, d) in float32, to be added; the state before each chunk (b, K,
    chunks, N, d)."""
    N, (b, l, d) = s.A2.shape[1], s.x.shape
    chunks, blocks = triton.cdiv(l, config.chunk), triton.cdiv(d, config.channels)
    pair = 2 if config.pair and not config.chunked else 1
    y = s.A2.new_empty(K // pair, b, l, d)
    entry = s.A2.new_empty((b, K, chunks, N, d) if save or config.chunked else 0)
    total = s.A2.new_empty((b, K, chunks, d) if config.chunked else 0)

    def run(mode: tl.constexpr, programs: int, steps: int) -> None:
        for first, count in launch_table.cut(programs * blocks, steps, N, processors(s.x)):
            scan.forward[(count,)](
                s.x, s.rows if s.raw is None else s.raw, s.rows, s.W, s.A2, s.D, s.bias, y, entry, total,
                *s.sizes, blocks, 0, first,
                RANK=s.W.shape[1] if s.raw is None else 0, SAVE=save, MODE=mode.value, PAIR=pair, BD=config.channels,
                STEPS=config.steps, CHUNK=config.chunk, EVEN=l % config.steps == 0,
                maxnreg=config.registers, **s.shared,
            )  # fmt: skip  # line by line the kernel's parameters

    if config.chunked:
        run(scan.ENDS, b * K * chunks, config.chunk)
        _carry(s, entry, total, reverse=False)
        run(scan.CHUNKS, b * K * chunks, config.chunk)
    else:
        run(scan.WHOLE, b * (K // pair), l * pair)
    return y, entry


def _carry(s: Scan, entry: Tensor, total: Tensor, reverse: bool) -> None:
    b, _, chunks, N, d = entry.shape
    blocks = triton.cdiv(d, 32)
    scan.carry[(b * K * blocks,)](
        entry, total, s.A2, d, blocks, chunks, 0, N=N, REVERSE=reverse, BD=32, num_warps=1, enable_fp_fusion=True
    )


@dataclass(frozen=True)
class Gradients:
    """Of one Scan. ``x`` (K, b, l, d), to be added over K; ``raw`` as in Scan; ``rows`` (blocks of
    channels, b, l, K, N, [B | C]), to be added over the blocks; ``parts`` (parts, K, [A: N | D: 1 |
    bias: 1], d), to be added over the parts."""

    x: Tensor
    raw: Tensor
    rows: Tensor
    parts: Tensor


def backward(s: Scan, config: launch_table.BackwardLaunch, dy: Tensor, entry: Tensor | None) -> Gradients:
    """Gradients for dy (b, l, d), contiguous, in float32. ``entry`` is the state before each chunk;
    None: there is one chunk, which starts from zero. The gradient of raw takes raw's place."""
    assert s.raw is not None
    N, (b, l, d) = s.A2.shape[1], s.x.shape
    chunks, blocks = triton.cdiv(l, config.chunk), triton.cdiv(d, config.channels)
    dx, adjoint = s.A2.new_empty(K, b, l, d), s.A2
    if config.chunked:
        adjoint, total = s.A2.new_empty(b, K, chunks, N, d), s.A2.new_empty(b, K, chunks, d)
        steps, width = min(4, config.steps), triton.cdiv(d, 32)
        for first, count in launch_table.cut(b * K * width * chunks, config.chunk, N, processors(s.x)):
            back.adjoint_ends[(count,)](
                dy, s.raw, s.rows, s.A2, s.bias, adjoint, total,
                *s.sizes, width, 0, first, BD=32, STEPS=steps, CHUNK=config.chunk, EVEN=l % steps == 0, **s.shared,
            )  # fmt: skip  # line by line the kernel's parameters
        _carry(s, adjoint, total, reverse=True)
    per_image = chunks if config.chunked else 1
    drows, parts = s.A2.new_empty(blocks, b, l, K, N, 2), s.A2.new_empty(per_image * b, K, N + 2, d)
    items = b * K * blocks * per_image
    programs = min(items, config.programs)
    strip = s.A2.new_empty(programs, config.chunk // config.steps + config.steps - 1, N, config.channels)
    for first, count in launch_table.cut(items, config.chunk if config.chunked else l, N, processors(s.x)):
        back.backward[(min(count, programs),)](
            dy, s.x, s.raw, s.rows, s.A2, s.D, s.bias, s.A2 if entry is None else entry, adjoint, strip,
            dx, drows, parts, first + count, *s.sizes, blocks, 0, first,
            ENTRY=entry is not None, CHUNKED=config.chunked, BD=config.channels, STEPS=config.steps,
            CHUNK=config.chunk, EVEN=l % config.steps == 0, **s.shared,
        )  # fmt: skip  # line by line the kernel's parameters
    return Gradients(dx, s.raw, drows, parts)
