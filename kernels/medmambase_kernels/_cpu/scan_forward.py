"""The forward kernel of both scans on a CPU: lanes are channels, so the recurrence needs no sum
over lanes, and B and C are numbers.

    h_t = 2^(delta_t A2) h_{t-1} + delta_t x_t B_t      A2 = A log2(e)
    y_t = sum_n C_t h_t + D x_t

A task is an image (or a group of a sequence's channels) and a block of channels. It walks each
direction by chunks of CHUNK steps: first delta and delta x of every step, into the first-level
cache; then the states, a few at a time so that they stay in registers; then y, added in place over
the directions. A direction is a list of positions, so no turned copy of anything exists. Kept for
backward: the state before each chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import exp2, softplus
from medmambase_kernels._cpu.values import Pointer, Value

# steps: what a block of channels needs of them fits the first-level cache; the states kept are 4 n
# / 32 bytes an element and direction
CHUNK = 32
INPUTS = ("x", "raw", "rows", "W", "A2", "B", "C", "D", "bias", "order", "initial")
SIZES = ("batch", "length", "channels", "directions", "periods", "rank", "row_stride")


@dataclass(frozen=True)
class Form:
    """What a kernel is made for.

    lanes: of a vector. state: n. at_once: states that stay in registers, which divides n. vectors:
    of channels in a block. low: delta comes as its rank, else as it is. B and C vary, or are tables
    (n, d). initial: there is an initial state, and an adjoint of the last.
    """

    lanes: int
    state: int
    at_once: int
    vectors: int
    low: bool
    softplus: bool
    b_varies: bool
    c_varies: bool
    initial: bool

    @property
    def columns(self) -> int:
        """Numbers of B and C at a position."""
        return self.state * (self.b_varies + self.c_varies)


class Lines:
    """Scratch memory of some fields, each a block of channels, for every step of a chunk; the
    fields of a step stand side by side."""

    def __init__(self, kernel: Kernel, form: Form, fields: Sequence[str], steps: int = CHUNK) -> None:
        self.kernel, self.block = kernel, form.vectors * kernel.lanes
        self.place = {field: i * self.block for i, field in enumerate(fields)}
        self.memory = kernel.scratch(steps * len(fields) * self.block)

    def of(self, step: Value | int) -> Pointer:
        """The fields of a step."""
        return self.memory.at(step * (len(self.place) * self.block))

    def load(self, line: Pointer, field: str, vector: int) -> Value:
        """One vector of a field."""
        return line.load(self.place[field] + vector * self.kernel.lanes)

    def store(self, line: Pointer, field: str, vector: int, value: Value | float) -> None:
        """Write one vector of a field."""
        line.store(self.place[field] + vector * self.kernel.lanes, value)


class Walk:
    """Where a task stands: image ``b``, direction ``k``, the row of weights ``w``, the block's
    first channel; and what the steps' numbers are.

    ``near``: scratch memory for B and C of a chunk's steps.
    """

    def __init__(self, kernel: Kernel, form: Form, near: Pointer, b: Value, k: Value, channel: Value) -> None:
        self.kernel, self.form, self.near, self.b, self.k, self.channel = kernel, form, near, b, k, channel
        self.length, self.channels, self.directions, periods, self.rank, self.row_stride = kernel.sizes(*SIZES[1:])
        self.x, self.raw, self.rows, W, A2, B, C, D, bias, order, _ = kernel.pointers(*INPUTS)
        self.bk = b * self.directions + k
        self.w = self.bk % periods
        self.width = self.rank + form.columns if form.low else kernel.constant_index(form.columns)
        self.order = order.at(k * self.length)
        of_weights = self.w * self.channels + channel
        self.D, self.bias = D.at(of_weights), bias.at(of_weights)
        self.W = W.at(self.w * self.rank * self.channels + channel)
        table = self.w * form.state * self.channels + channel
        self.A2, self.B, self.C = A2.at(table), B.at(table), C.at(table)

    def position(self, step: Value) -> Value:
        """Of a step: image and position as one row of (b l, ...)."""
        return self.b * self.length + self.order.index(step)

    def numbers(self, row: Value) -> Pointer:
        """[rank | B | C] of this direction there."""
        return self.rows.at(row * self.row_stride + self.k * self.width)

    def table(self, table: Pointer, first: Value) -> list[list[Value]]:
        """From state ``first`` on, of a table (n, d): [state][vector]."""
        return [
            [table.load((first + j) * self.channels + v * self.kernel.lanes) for v in range(self.form.vectors)]
            for j in range(self.form.at_once)
        ]

    def fetch(self, row: Value, t: Value) -> None:
        """Copy B and C of step t of a chunk, where they vary, to where ``weights`` finds them: side
        by side in the first-level cache."""
        numbers, place = self.numbers(row), self.near.at(t * self.form.columns)
        if self.form.low:
            numbers = numbers.at(self.rank)
        whole = self.form.columns // self.kernel.lanes * self.kernel.lanes
        for i in range(0, whole, self.kernel.lanes):
            place.store(i, numbers.load(i))
        for i in range(whole, self.form.columns):
            place.store_number(i, numbers.number(i))

    def weights(self, t: Value, first: Value) -> tuple[list[Value] | None, list[Value] | None]:
        """B and C of step t of a chunk, from state ``first`` on, where they vary."""
        numbers = self.near.at(t * self.form.columns + first)
        B = [numbers.number(j) for j in range(self.form.at_once)] if self.form.b_varies else None
        C = (
            [numbers.number(self.form.state * self.form.b_varies + j) for j in range(self.form.at_once)]
            if self.form.c_varies
            else None
        )
        return B, C

    def delta(self, step: Value) -> tuple[Value, list[Value], list[Value]]:
        """Row, delta and its slope at a step, each a list of vectors: softplus of bias plus the
        projection of the rank, or plus what is given."""
        kernel, lanes, vectors = self.kernel, self.kernel.lanes, range(self.form.vectors)
        row = self.position(step)
        if self.form.low:
            sums = [kernel.variable(self.bias.load(v * lanes)) for v in vectors]
            numbers = self.numbers(row)
            with kernel.range(0, self.rank) as r:
                number = numbers.number(r)
                for v in vectors:
                    sums[v].value = number * self.W.load(r * self.channels + v * lanes) + sums[v].value
            raws = [variable.value for variable in sums]
        else:
            given = self.raw.at((row * self.directions + self.k) * self.channels + self.channel)
            raws = [given.load(v * lanes) + self.bias.load(v * lanes) for v in vectors]
        pairs = [softplus(kernel, raw) if self.form.softplus else (raw, kernel.constant(1.0)) for raw in raws]
        return row, [delta for delta, _ in pairs], [slope for _, slope in pairs]


def forward_kernel(form: Form, save: bool) -> Kernel:
    """y (b, l, d); entry (b, k, chunks, n, d) if ``save``; last (b, k, n, d)."""
    lanes = form.lanes
    kernel = Kernel("scan_forward", (*INPUTS, "y", "entry", "last"), SIZES, lanes)
    block, vectors, at_once = form.vectors * lanes, range(form.vectors), range(form.at_once)
    lines, state = Lines(kernel, form, ("delta", "drive", "y")), Lines(kernel, form, ("h",), form.state)
    near = kernel.scratch(CHUNK * form.columns)
    x, initial, y, entry, last = kernel.pointers("x", "initial", "y", "entry", "last")
    length, channels, directions = kernel.sizes("length", "channels", "directions")
    chunks, blocks = (length + (CHUNK - 1)) // CHUNK, channels // block
    with kernel.tasks() as task, kernel.range(0, directions) as k:
        b, channel = task // blocks, task % blocks * block
        walk = Walk(kernel, form, near, b, k, channel)
        opens = k < 1  # the first direction finds nothing in y
        states = walk.bk * (channels * form.state) + channel
        with kernel.range(0, form.state) as n:
            for v in vectors:
                state.store(
                    state.of(n), "h", v, initial.load(states + n * channels + v * lanes) if form.initial else 0.0
                )
        with kernel.range(0, chunks) as chunk:
            first = chunk * CHUNK
            steps = kernel.smaller(length - first, CHUNK)
            if save:
                kept = entry.at((walk.bk * chunks + chunk) * (channels * form.state) + channel)
                with kernel.range(0, form.state) as n:
                    for v in vectors:
                        kept.store(n * channels + v * lanes, state.load(state.of(n), "h", v))
            with kernel.range(0, steps) as t:
                row, deltas, _ = walk.delta(first + t)
                walk.fetch(row, t)
                line = lines.of(t)
                for v in vectors:
                    x_t = x.load(row * channels + channel + v * lanes)
                    lines.store(line, "delta", v, deltas[v])
                    lines.store(line, "drive", v, deltas[v] * x_t)
                    lines.store(line, "y", v, walk.D.load(v * lanes) * x_t)
            with kernel.range(0, form.state, form.at_once) as n:
                A2, B_table, C_table = walk.table(walk.A2, n), walk.table(walk.B, n), walk.table(walk.C, n)
                h = [[kernel.variable(state.load(state.of(n + j), "h", v)) for v in vectors] for j in at_once]
                with kernel.range(0, steps) as t:
                    B, C = walk.weights(t, n)
                    line = lines.of(t)
                    for v in vectors:
                        delta, drive, sums = (lines.load(line, field, v) for field in ("delta", "drive", "y"))
                        for j in at_once:
                            h[j][v].value = exp2(kernel, delta * A2[j][v]) * h[j][v].value + drive * (
                                B[j] if B else B_table[j][v]
                            )
                            sums = h[j][v].value * (C[j] if C else C_table[j][v]) + sums
                        lines.store(line, "y", v, sums)
                for j in at_once:
                    for v in vectors:
                        state.store(state.of(n + j), "h", v, h[j][v].value)
            with kernel.range(0, steps) as t:
                row = walk.position(first + t)
                for v in vectors:
                    place = row * channels + channel + v * lanes
                    before = kernel.where(opens, kernel.constant(0.0), y.load(place))
                    y.store(place, before + lines.load(lines.of(t), "y", v))
        with kernel.range(0, form.state) as n:
            for v in vectors:
                last.store(states + n * channels + v * lanes, state.load(state.of(n), "h", v))
    return kernel
