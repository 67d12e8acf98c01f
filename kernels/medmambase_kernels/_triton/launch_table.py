"""The launch table: how each scan kernel is launched, as pure functions of shape and GPU.

Nothing is tuned at run time. First-call latency and run-to-run variation are worse than the last
few per cent, and a configuration that depended on timings could change bits.
``medmambase-bench --sweep`` measures the candidates beside these choices.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

# (states up to, steps loaded together) forward: a lane holds all states of one channel, so that the
# tile's registers grow with the states.
_FORWARD = ((16, 4), (32, 2), (64, 1))
# (states up to, channels a program) backward: the sweep holds about twelve tiles of 16 numbers a
# lane.
_BACKWARD = ((16, 32), (32, 16), (64, 8))
_SHORT = 64  # a sequence up to this long is one chunk: nothing is kept for backward but the inputs
_CHUNK = 32
_RANK_INSIDE = 4  # up to here the product with delta's rank hides behind the exp unit; from 8 on it is cheaper outside
WARPS = 4  # schedulers of a multiprocessor, each wants a program of one warp
# A display's driver resets the card when one launch takes 2 s. So many states a multiprocessor
# takes in one: 0.05 s forward and 0.2 s backward at the full rate of the slowest cards (1.5 GHz),
# by the instructions counted for each.
_MOST_STATES = 2**25
_LONGEST = 2**16  # steps that one program walks
_MOST_CHUNKS = 2**15  # that ``carry`` walks


@dataclass(frozen=True)
class ForwardLaunch:
    """``channels`` a program (one a lane), ``steps`` loaded together, ``chunk`` steps between kept
    states.

    ``chunked``: the chunks of a sequence run beside each other, in two passes. ``pair``: one
    program takes a direction and its reverse and adds them in place. ``rank_inside``: delta is
    projected in the scan, not before it. ``registers`` at most a lane.
    """

    channels: int
    steps: int
    chunk: int
    chunked: bool
    pair: bool
    rank_inside: bool
    registers: int


@dataclass(frozen=True)
class BackwardLaunch:
    """As ForwardLaunch; ``programs`` share the items out, so that their scratch fits into the
    cache."""

    channels: int
    steps: int
    chunk: int
    chunked: bool
    programs: int


@dataclass(frozen=True)
class SequenceForward:
    """How the forward scan of sequences is launched: ``channels`` a program, ``steps`` a tile,
    ``registers`` at most a lane, ``chunk`` steps between kept states; ``chunked`` as in
    ForwardLaunch."""

    channels: int
    steps: int
    registers: int
    chunk: int
    chunked: bool


@dataclass(frozen=True)
class SequenceBackward:
    """As SequenceForward; ``ends`` steps a tile of the first pass, if ``chunked``; ``programs``
    share the items out, so that their scratch fits into the cache."""

    channels: int
    steps: int
    ends: int
    chunk: int
    chunked: bool
    programs: int


Forward = ForwardLaunch | SequenceForward
Backward = BackwardLaunch | SequenceBackward


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


def chunk_of(length: int) -> int:
    """Steps between the states kept for backward: by length alone, so that forward and backward
    agree on any GPU."""
    if length <= _SHORT:
        return max(4, -(-length // 4) * 4)
    return _CHUNK * power_of_two(-(-length // (_CHUNK * _MOST_CHUNKS)))


def chunks_of(length: int) -> int:
    """Number of chunks of a sequence."""
    return -(-length // chunk_of(length))


def _row(table: tuple[tuple[int, int], ...], state: int) -> int:
    for states, value in table:
        if state <= states:
            return value
    raise ValueError(
        f"A has {state} states; the Triton kernels take at most {table[-1][0]}: ask for backend 'torch', or for fewer"
    )


def forward(
    batch: int, directions: int, channels: int, length: int, state: int, rank: int, processors: int
) -> ForwardLaunch:
    """The forward launch for x (batch, length, channels) in so many directions, on a GPU of so many
    multiprocessors.

    Predicted by a model of the multiprocessor, not measured: ms on an H200, float32, 16 states, at
    96, 192, 384 and 768 channels, lengths 1024, 256, 64 and 16, PyTorch's sum over the directions
    included. Batch 64: 0.28, 0.12, 0.06, 0.04, of which the scan's kernel 0.21, 0.07, 0.04, 0.02;
    batch 16: 0.11, 0.06, 0.03, 0.02. Left alone, the compiler stops at 128 registers; when this was
    chosen, the scan's kernel took a tenth longer so (batch 64, length 1024). With 64 states, 32
    channels a program spill up to 136 bytes on compute capability 7.5, and 16 do not.
    """
    steps, width = _row(_FORWARD, state), 32 if state <= 32 else 16
    programs = batch * directions * -(-channels // width)
    few = programs < 0.7 * WARPS * processors or length > _LONGEST
    rank_inside = 0 < rank <= _RANK_INSIDE
    pair = (
        directions == 4 and not rank_inside and length <= _LONGEST and programs >= 4 * WARPS * processors
    )  # half as many programs still fill the GPU twice over
    registers = 168 if state <= 16 else 255
    return ForwardLaunch(width, steps, chunk_of(length), few and chunks_of(length) > 1, pair, rank_inside, registers)


def backward(batch: int, directions: int, channels: int, length: int, state: int, processors: int) -> BackwardLaunch:
    """The backward launch for the same."""
    width = _row(_BACKWARD, state)
    chunk, most = chunk_of(length), 2 * WARPS * processors  # at 255 registers two programs fit on a scheduler
    items = batch * directions * -(-channels // width)
    chunked = (items < most or length > _LONGEST) and chunks_of(length) > 1
    return BackwardLaunch(width, 4, chunk, chunked, _evenly(items * (chunks_of(length) if chunked else 1), most))


def sequence_forward(
    batch: int, channels: int, length: int, state: int, processors: int, groups: int = 1, constant: bool = False
) -> SequenceForward:
    """The forward launch for u (batch, channels, length), on a GPU of so many multiprocessors.
    ``constant``: B or C does not vary, and a lane holds it.

    Predicted by a model of the multiprocessor, not measured: ms on an H200, float32, 16 states, at
    96, 192, 384 and 768 channels a group in 4 groups, lengths 1024, 256, 64 and 16, PyTorch's
    kernels included. Batch 64: forward 0.24, 0.11, 0.06, 0.03, forward and backward 1.24, 0.58,
    0.27, 0.15; batch 16: forward 0.12, 0.04, 0.02, 0.01. With at most 168 registers the compiler
    loads B and C ahead of where it uses them; left alone it stops at 128, and a turn that keeps
    states took 2534 cycles instead of 1748 (4 steps, 6 warps) when this was chosen. With 64 states,
    32 channels a program spill, and 16 do not.
    """
    _row(_FORWARD, state)
    programs = batch * groups * -(-channels // groups // 32)
    chunked = (programs < 0.7 * WARPS * processors or length > _LONGEST) and chunks_of(length) > 1
    width, registers = 32 if state <= 32 else 16, 168 if state <= 16 and not constant else 255
    return SequenceForward(width, _tile(length, state), registers, chunk_of(length), chunked)


def sequence_backward(
    batch: int, channels: int, length: int, state: int, processors: int, groups: int = 1, constant: bool = False
) -> SequenceBackward:
    """The backward launch for the same. ``constant``: B or C does not vary, and its gradient's sums
    take the registers of two of the four steps.

    Predicted as above: at batch 64 and length 256, forward and backward take 0.58 ms where 768
    programs have two sequences each, and 0.62 where 1056 have one or two.
    """
    width = _row(_BACKWARD, state)
    items, most = batch * groups * -(-channels // groups // width), 2 * WARPS * processors
    chunked = (items < most or length > _LONGEST) and chunks_of(length) > 1
    return SequenceBackward(
        width, 2 if constant else 4, _tile(length, state), chunk_of(length), chunked,
        _evenly(items * (chunks_of(length) if chunked else 1), most),
    )  # fmt: skip  # the tiles; the passes


def _evenly(items: int, most: int) -> int:
    """Programs, so many at most, that share items out evenly: the busiest takes no more than with
    all of them, and the fewer there are, the faster is each."""
    rounds = max(1, -(-items // most))
    return -(-items // rounds)


def _tile(length: int, state: int) -> int:
    """Steps a tile of a pass with registers to spare: 8 steps are whole sectors of memory in
    float32."""
    return 8 if length % 8 == 0 and state <= _FORWARD[0][0] else 4


def cut(programs: int, steps: int, state: int, processors: int) -> Iterator[tuple[int, int]]:
    """(first program, how many) of each launch, for programs of so many steps and states: as a rule
    one launch of them all."""
    most = max(1, _MOST_STATES // (steps * state)) * processors
    for first in range(0, programs, most):
        yield first, min(most, programs - first)


def candidates(chosen: Forward | Backward) -> Iterator[Forward | Backward]:
    """What a sweep tries beside the chosen launch, all correct for the same inputs."""
    for steps in (1, 2, 4, 8):
        if chosen.chunk % steps == 0 and (steps > 1 or isinstance(chosen, ForwardLaunch | BackwardLaunch)):
            yield replace(chosen, steps=steps)
    yield replace(chosen, chunked=not chosen.chunked)
    if isinstance(chosen, ForwardLaunch):
        yield replace(chosen, pair=not chosen.pair, chunked=False)
        yield replace(chosen, rank_inside=not chosen.rank_inside)
        yield replace(chosen, registers=128)
    elif isinstance(chosen, SequenceForward):
        for registers in (128, 144, 168, 255):
            yield replace(chosen, registers=registers)
        for channels in (16, 32, 64):
            yield replace(chosen, channels=channels, steps=4)
    else:
        for channels in (8, 16, 32):
            yield replace(chosen, channels=channels)
