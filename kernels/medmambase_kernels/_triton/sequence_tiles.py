"""Read and write tiles of (b, d, l) along l, and take them apart into steps.

A tile is [channel, step], as the tensors lie in memory. Four steps of float32, or eight of 16 bits,
are one access of 16 bytes a lane, and ``columns`` then gives a lane the steps of its own channel
without moving any data between lanes. Eight steps of float32 are two lanes a channel and one
shuffle a step, but whole sectors of 32 bytes.
"""

import triton
import triton.language as tl

from medmambase_kernels._triton.numerics import load_pair, softplus


@triton.jit
def _four_columns(tile):
    even, odd = tl.split(tl.reshape(tile, [tile.shape[0], 2, 2]))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def _four_joined(c0, c1, c2, c3):
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), [c0.shape[0], 4])


# Eight steps by functions of their own: Triton 3.3 takes no function that calls itself.
@triton.jit
def columns(tile, STEPS: tl.constexpr):
    """The columns of a [channel, STEPS] tile, as a tuple of [channel]; STEPS is 2, 4 or 8."""
    if STEPS == 2:
        return tl.split(tile)
    elif STEPS == 4:
        return _four_columns(tile)
    else:
        even, odd = tl.split(tl.reshape(tile, [tile.shape[0], 4, 2]))
        c0, c2, c4, c6 = _four_columns(even)
        c1, c3, c5, c7 = _four_columns(odd)
        return c0, c1, c2, c3, c4, c5, c6, c7


@triton.jit
def joined(parts, STEPS: tl.constexpr):
    """The opposite of ``columns``: a tuple of [channel] as a [channel, STEPS] tile."""
    if STEPS == 2:
        return tl.join(parts[0], parts[1])
    elif STEPS == 4:
        return _four_joined(parts[0], parts[1], parts[2], parts[3])
    else:
        even = _four_joined(parts[0], parts[2], parts[4], parts[6])
        odd = _four_joined(parts[1], parts[3], parts[5], parts[7])
        return tl.reshape(tl.join(even, odd), [parts[0].shape[0], 8])


@triton.jit
def load_steps(at, t, l, EVEN: tl.constexpr, STEPS: tl.constexpr, LAST: tl.constexpr):
    """Steps t to t + STEPS - 1 of each channel, as a tuple of [channel] in float32; 0 past the end.

    at: pointers [channel, STEPS] to the first steps. LAST: nothing reads these soon again.
    """
    if EVEN:
        return columns(tl.load(at + t, eviction_policy="evict_first" if LAST else "").to(tl.float32), STEPS)
    else:
        live = (t + tl.arange(0, STEPS) < l)[None, :] & (tl.arange(0, at.shape[0]) >= 0)[:, None]
        return columns(tl.load(at + t, mask=live, other=0.0).to(tl.float32), STEPS)


@triton.jit
def store_steps(at, t, l, in_d, parts, EVEN: tl.constexpr, STEPS: tl.constexpr):
    """Store a tuple of [channel] where ``load_steps`` would find them."""
    inside = tl.arange(0, STEPS) >= 0
    if not EVEN:
        inside = t + tl.arange(0, STEPS) < l
    tl.store(at + t, joined(parts, STEPS).to(at.dtype.element_ty), mask=in_d[:, None] & inside[None, :])


@triton.jit
def load_rows(row, t, l, table, VARY: tl.constexpr, ROW: tl.constexpr, N: tl.constexpr, INDEX: tl.constexpr,
              EVEN: tl.constexpr, STEPS: tl.constexpr):  # fmt: skip  # where; what stays; switches and tile sizes
    """B or C of steps t to t + STEPS - 1, as a tuple of [N, 1]: past the end the last one; the
    [N, channel] ``table`` where it does not vary."""
    found = ()
    for s in tl.static_range(STEPS):
        if VARY:
            step = t + s if EVEN else tl.minimum(t + s, l - 1)
            found += (tl.load(row + tl.full([], step, INDEX) * ROW + tl.arange(0, N))[:, None],)
        else:
            found += (table,)
    return found


@triton.jit
def step_delta(raw, t, l, SOFTPLUS: tl.constexpr, EVEN: tl.constexpr):
    """delta from what goes into the softplus, and its slope: 0 and 0 past the end, where a step
    then changes nothing."""
    delta, slope = raw, tl.zeros_like(raw) + 1.0
    if SOFTPLUS:
        delta, slope = softplus(raw)
    if not EVEN:
        delta, slope = tl.where(t < l, delta, 0.0), tl.where(t < l, slope, 0.0)
    return delta, slope


@triton.jit
def load_row_pairs(row, t, l, ROW: tl.constexpr, N: tl.constexpr, INDEX: tl.constexpr, EVEN: tl.constexpr,
                   STEPS: tl.constexpr):  # fmt: skip  # where; switches and tile sizes
    """B and C of steps t to t + STEPS - 1, where both vary, each as a tuple of [N, 1]: past the end
    the last ones."""
    Bs, Cs = (), ()
    for s in tl.static_range(STEPS):
        step = t + s if EVEN else tl.minimum(t + s, l - 1)
        B, C = load_pair(row + tl.full([], step, INDEX) * ROW, N)
        Bs += (B,)
        Cs += (C,)
    return Bs, Cs
