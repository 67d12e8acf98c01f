"""The backward kernel of both scans on a CPU.

With dh_t the adjoint of h_t, a_t = 2^(delta_t A2) and s_t = delta_t x_t:

    dh_t = C_t dy_t + a_{t+1} dh_{t+1}    dB_t = sum_d dh_t s_t    dC_t = sum_d dy_t h_t
    dA += delta_t a_t h_{t-1} dh_t        ds_t = sum_n dh_t B_t
    ddelta_t = x_t ds_t + sum_n A a_t h_{t-1} dh_t

A task is an image (or a group of a sequence's channels), or a cut of its channels. Chunk after
chunk from the last, block after block of channels, it builds a_t and h_{t-1} anew from the state
that forward kept, in the first-level cache, and sweeps back over them, a few states at a time. The
sums over channels stay vectors, one for each number of a chunk's rows, and become numbers once at
the chunk's end. No two tasks write to one place, and partial sums are added in a fixed order:
results do not depend on the number of threads.
"""

from medmambase_kernels._cpu.lanes import totals
from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import LN2, exp2
from medmambase_kernels._cpu.scan_forward import CHUNK, INPUTS, SIZES, Form, Lines, Walk
from medmambase_kernels._cpu.values import Pointer, Value

_RANKS = 3  # of delta's projection at a time: the usual ranks, a 32nd of the channels, are multiples of 3
OUTPUTS = ("dx", "draw", "drows", "dW", "dA", "dB", "dC", "dD", "dbias", "dinitial")


def scratch_floats(form: Form, channels: int, rank: int) -> int:
    """Scratch memory a thread needs beyond what the kernel knows: the adjoint of the state, and a
    vector for each number of a chunk's rows."""
    return form.state * channels + CHUNK * (rank + form.columns) * form.lanes


def backward_kernel(form: Form) -> Kernel:
    """Writes dx (b, l, d), draw (b, l, k, d) unless the rank is multiplied inside, drows (cuts, b,
    l, k, columns) and dinitial (b, k, n, d).

    Adds to dA, dB, dC (b k, n, d), dD, dbias (b k, d) and dW (b k, r, d). ``dlast`` (b, k, n, d) is
    read where the form has an initial state.
    """
    lanes = form.lanes
    kernel = Kernel("scan_backward", (*INPUTS, "dy", "dlast", "entry", *OUTPUTS), (*SIZES, "cuts"), lanes)
    block = form.vectors * lanes
    lines = Lines(kernel, form, ("delta", "drive", "slope", "dy", "ddelta", "ddrive"))
    past = Lines(
        kernel, form, [*(f"decay {j}" for j in range(form.at_once)), *(f"state {j}" for j in range(form.at_once))]
    )
    entry = Lines(kernel, form, ("h",), form.state)
    batch, length, channels, directions, cuts = kernel.sizes("batch", "length", "channels", "directions", "cuts")
    (drows,) = kernel.pointers("drows")
    near = kernel.scratch(CHUNK * form.columns)
    carry = kernel.rest()
    sums = carry.at(channels * form.state)
    chunks, blocks = (length + (CHUNK - 1)) // CHUNK, channels // block
    with kernel.tasks() as task:
        cut, b = task // batch, task % batch
        first_block, last_block = cut * blocks // cuts, (cut + 1) * blocks // cuts
        with kernel.range(0, directions) as k:
            image = Walk(kernel, form, near, b, k, kernel.constant_index(0))
            with kernel.range(first_block, last_block) as i:
                _enter(kernel, form, Walk(kernel, form, near, b, k, i * block), carry)
            with kernel.range(chunks - 1, -1, -1) as chunk:
                first = chunk * CHUNK
                steps = kernel.smaller(length - first, CHUNK)
                with kernel.range(0, steps * image.width) as i:
                    sums.store(i * lanes, 0.0)
                with kernel.range(first_block, last_block) as i:
                    walk = Walk(kernel, form, near, b, k, i * block)
                    _fetch(walk, entry, chunk * form.state)
                    _read(walk, lines, first, steps)
                    with kernel.range(0, form.state, form.at_once) as n:
                        _sweep(walk, lines, past, entry, carry, sums, n, steps)
                    _finish(walk, lines, first, steps)
                    if form.low:
                        _project(walk, lines, sums, first, steps)
                with kernel.range(0, steps) as t:
                    row = cut * batch * length + image.position(first + t)
                    _add_up(
                        kernel,
                        sums.at(t * image.width * lanes),
                        drows.at((row * directions + k) * image.width),
                        image.width,
                    )
            with kernel.range(first_block, last_block) as i:
                _leave(kernel, form, Walk(kernel, form, near, b, k, i * block), carry)
    return kernel


def _states(walk: Walk) -> Value:
    """Where the states of a direction begin, in (b k, n, d)."""
    return walk.bk * (walk.channels * walk.form.state) + walk.channel


def _enter(kernel: Kernel, form: Form, walk: Walk, carry: Pointer) -> None:
    """The adjoint of the last state, of a block."""
    (dlast,) = kernel.pointers("dlast")
    with kernel.range(0, form.state) as n:
        for v in range(form.vectors):
            place = n * walk.channels + walk.channel + v * kernel.lanes
            carry.store(
                place, dlast.load(_states(walk) + n * walk.channels + v * kernel.lanes) if form.initial else 0.0
            )


def _leave(kernel: Kernel, form: Form, walk: Walk, carry: Pointer) -> None:
    """The adjoint of the initial state, of a block."""
    (dinitial,) = kernel.pointers("dinitial")
    if form.initial:
        with kernel.range(0, form.state) as n:
            for v in range(form.vectors):
                dinitial.store(
                    _states(walk) + n * walk.channels + v * kernel.lanes,
                    carry.load(n * walk.channels + walk.channel + v * kernel.lanes),
                )


def _fetch(walk: Walk, entry: Lines, first: Value) -> None:
    """The states of a block that forward kept, all of them: they come from main memory, which
    answers many requests as fast as one."""
    kernel = walk.kernel
    (kept,) = kernel.pointers("entry")
    chunks = (walk.length + (CHUNK - 1)) // CHUNK
    kept = kept.at((walk.bk * (chunks * walk.form.state) + first) * walk.channels + walk.channel)
    with kernel.range(0, walk.form.state) as n:
        for v in range(walk.form.vectors):
            entry.store(entry.of(n), "h", v, kept.load(n * walk.channels + v * kernel.lanes))


def _read(walk: Walk, lines: Lines, first: Value, steps: Value) -> None:
    """What the steps of a chunk bring to a block."""
    kernel, lanes = walk.kernel, walk.kernel.lanes
    (dy,) = kernel.pointers("dy")
    with kernel.range(0, steps) as t:
        row, deltas, slopes = walk.delta(first + t)
        walk.fetch(row, t)
        line = lines.of(t)
        for v in range(walk.form.vectors):
            place = row * walk.channels + walk.channel + v * lanes
            for field, value in (
                ("delta", deltas[v]),
                ("drive", deltas[v] * walk.x.load(place)),
                ("slope", slopes[v]),
                ("dy", dy.load(place)),
            ):
                lines.store(line, field, v, value)
            lines.store(line, "ddelta", v, 0.0)
            lines.store(line, "ddrive", v, 0.0)


def _sweep(
    walk: Walk, lines: Lines, past: Lines, entry: Lines, carry: Pointer, sums: Pointer, n: Value, steps: Value
) -> None:
    """Some states of a block through a chunk: forwards to build decays and states anew, and back
    with the adjoint."""
    kernel, form, lanes = walk.kernel, walk.form, walk.kernel.lanes
    dA, dB, dC = kernel.pointers("dA", "dB", "dC")
    vectors, at_once = range(form.vectors), range(form.at_once)
    A2, B_table, C_table = walk.table(walk.A2, n), walk.table(walk.B, n), walk.table(walk.C, n)
    h = [[kernel.variable(entry.load(entry.of(n + j), "h", v)) for v in vectors] for j in at_once]
    with kernel.range(0, steps) as t:
        B, _ = walk.weights(t, n)
        line, was = lines.of(t), past.of(t)
        for v in vectors:
            delta, drive = lines.load(line, "delta", v), lines.load(line, "drive", v)
            for j in at_once:
                decay = exp2(kernel, delta * A2[j][v])
                past.store(was, f"decay {j}", v, decay)
                past.store(was, f"state {j}", v, h[j][v].value)
                h[j][v].value = decay * h[j][v].value + drive * (B[j] if B else B_table[j][v])
    adjoint = carry.at(n * walk.channels + walk.channel)
    dh = [[kernel.variable(adjoint.load(j * walk.channels + v * lanes)) for v in vectors] for j in at_once]
    of_A, of_B, of_C = ([[kernel.variable(kernel.constant(0.0)) for _ in vectors] for _ in at_once] for _ in range(3))
    with kernel.range(steps - 1, -1, -1) as t:
        B, C = walk.weights(t, n)
        of_row = sums.at((t * walk.width + (walk.rank if form.low else 0) + n) * lanes)
        line, was = lines.of(t), past.of(t)
        row_B = [of_row.load(j * lanes) for j in at_once] if B else []
        row_C = [of_row.load((form.state * form.b_varies + j) * lanes) for j in at_once] if C else []
        for v in vectors:
            delta, drive, dy, ddelta, ddrive = (
                lines.load(line, field, v) for field in ("delta", "drive", "dy", "ddelta", "ddrive")
            )
            for j in at_once:
                before, after = past.load(was, f"state {j}", v), h[j][v].value
                total = dy * (C[j] if C else C_table[j][v]) + dh[j][v].value
                if C:
                    row_C[j] = dy * after + row_C[j]
                else:
                    of_C[j][v].value = dy * after + of_C[j][v].value
                if B:
                    row_B[j] = total * drive + row_B[j]
                else:
                    of_B[j][v].value = total * drive + of_B[j][v].value
                ddrive = total * (B[j] if B else B_table[j][v]) + ddrive
                dh[j][v].value = total * past.load(was, f"decay {j}", v)
                exponent = dh[j][v].value * before  # the adjoint of delta A
                ddelta = exponent * A2[j][v] + ddelta
                of_A[j][v].value = exponent * delta + of_A[j][v].value
                h[j][v].value = before
            lines.store(line, "ddelta", v, ddelta)
            lines.store(line, "ddrive", v, ddrive)
        for j in at_once:
            if B:
                of_row.store(j * lanes, row_B[j])
            if C:
                of_row.store((form.state * form.b_varies + j) * lanes, row_C[j])
    tables = [(dA, of_A)] + [(dB, of_B)] * (not form.b_varies) + [(dC, of_C)] * (not form.c_varies)
    for j in at_once:
        for v in vectors:
            adjoint.store(j * walk.channels + v * lanes, dh[j][v].value)
            for table, part in tables:
                place = _states(walk) + (n + j) * walk.channels + v * lanes
                table.store(place, table.load(place) + part[j][v].value)


def _finish(walk: Walk, lines: Lines, first: Value, steps: Value) -> None:
    """The gradients of x and of what went into the softplus, of a block; dD and dbias."""
    kernel, lanes, vectors = walk.kernel, walk.kernel.lanes, range(walk.form.vectors)
    dx, draw, dD, dbias = kernel.pointers("dx", "draw", "dD", "dbias")
    dD, dbias = (t.at(walk.bk * walk.channels + walk.channel) for t in (dD, dbias))
    opens = walk.k < 1  # the first direction finds nothing in dx
    of_D, of_bias = ([kernel.variable(t.load(v * lanes)) for v in vectors] for t in (dD, dbias))
    with kernel.range(0, steps) as t:
        row, line = walk.position(first + t), lines.of(t)
        for v in vectors:
            place = row * walk.channels + walk.channel + v * lanes
            x, delta, dy, ddelta, ddrive, slope = (
                walk.x.load(place), *(lines.load(line, field, v) for field in ("delta", "dy", "ddelta", "ddrive",
                "slope")),
            )  # fmt: skip  # what is read, on one line
            raw = (ddelta * LN2 + ddrive * x) * slope
            if walk.form.low:
                lines.store(line, "ddelta", v, raw)
            else:
                draw.store((row * walk.directions + walk.k) * walk.channels + walk.channel + v * lanes, raw)
            of_bias[v].value = of_bias[v].value + raw
            of_D[v].value = dy * x + of_D[v].value
            before = kernel.where(opens, kernel.constant(0.0), dx.load(place))
            dx.store(place, dy * walk.D.load(v * lanes) + (ddrive * delta + before))
    for v in vectors:
        dbias.store(v * lanes, of_bias[v].value)
        dD.store(v * lanes, of_D[v].value)


def _project(walk: Walk, lines: Lines, sums: Pointer, first: Value, steps: Value) -> None:
    """Back through the projection of delta, of a block: dW, and the rank's share of the rows."""
    whole = walk.rank // _RANKS * _RANKS
    with walk.kernel.range(0, whole, _RANKS) as r:
        _project_some(walk, lines, sums, first, steps, r, _RANKS)
    with walk.kernel.range(whole, walk.rank) as r:
        _project_some(walk, lines, sums, first, steps, r, 1)


def _project_some(walk: Walk, lines: Lines, sums: Pointer, first: Value, steps: Value, r: Value, count: int) -> None:
    kernel, lanes, vectors, ranks = walk.kernel, walk.kernel.lanes, range(walk.form.vectors), range(count)
    (dW,) = kernel.pointers("dW")
    dW = dW.at((walk.bk * walk.rank + r) * walk.channels + walk.channel)
    places = [[i * walk.channels + v * lanes for v in vectors] for i in ranks]
    W = [[walk.W.load(r * walk.channels + place) for place in row] for row in places]
    of_W = [[kernel.variable(dW.load(place)) for place in row] for row in places]
    with kernel.range(0, steps) as t:
        numbers, of_row = walk.numbers(walk.position(first + t)).at(r), sums.at((t * walk.width + r) * lanes)
        raws = [lines.load(lines.of(t), "ddelta", v) for v in vectors]
        for i in ranks:
            part, number = of_row.load(i * lanes), numbers.number(i)
            for v in vectors:
                part = raws[v] * W[i][v] + part
                of_W[i][v].value = raws[v] * number + of_W[i][v].value
            of_row.store(i * lanes, part)
    for i in ranks:
        for v in vectors:
            dW.store(places[i][v], of_W[i][v].value)


def _add_up(kernel: Kernel, vectors: Pointer, out: Pointer, count: Value) -> None:
    """The sums over the lanes of ``count`` vectors that stand side by side, as numbers: as many at
    once as there are lanes, and the rest one by one."""
    lanes = kernel.lanes
    whole = count // lanes
    with kernel.range(0, whole) as i:
        out.store(i * lanes, totals(kernel, [vectors.load((i * lanes + j) * lanes) for j in range(lanes)]))
    with kernel.range(whole * lanes, count) as i:
        out.store_number(i, kernel.total(vectors.load(i * lanes)))
