"""Predict how many cycles a loop takes on one multiprocessor of a GPU, from its machine code, with
so many warps beside each other. No GPU is needed, and nothing here was measured.

Counting instructions cannot see waiting; this can. Every instruction of the loop is issued in
order, for every warp: by its control bits (machine_code.py), a warp's next instruction may follow
after so many cycles and once its barriers are released. Each of the four schedulers issues one
instruction a cycle, of the first warp that is ready, beginning after the one that issued last.

    units of a scheduler     cycles that an instruction of a warp keeps them:
                             float32 1, integer and logic 2, IMAD 2, uniform 2, exponentials and
                             conversions 8
    the load/store unit      one for the multiprocessor; cycles: lines of 128 bytes touched, or
                             groups of 128 bytes written to registers if these are more; a queue,
                             behind which issue stalls
    the port to the L2, the multiprocessor's share of the memory   bytes a cycle
    latencies                until a result releases its barrier

An asynchronous copy (LDGSTS) is waited for at DEPBAR.LE, by groups. BAR is that of a program of
one warp. A loop with an inner loop is not a subject: only innermost loops are.

Where a load's data lies the machine code does not say: ``place`` does, by the opcode, for the scans
as Triton 3.7 compiles them. Tritons before it copy what is less than 32 numbers, as delta's rank
and in backward B or C alone, by the opcode of tiles along the length: there the cycles come out up
to 3 times too high.

What is not modelled: the instruction cache, conflicts of register and shared memory banks, address
translation, pages of the memory, write-back traffic, barriers between warps, changes of the clock.

How well it predicts: on an H200, twelve forward times of the scans, 0.03 to 1.4 ms, came out
within 0.79 to 1.38 of the measured ones, after the fitted numbers had been chosen on the same
times: nothing was held out. Trust it to a factor of 1.4, and its ranking of variants of one kernel
further.
"""

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from machine_code import NO_BARRIER, Instruction

SCHEDULERS = 4
_FLOAT = {"FFMA", "FMUL", "FADD", "FFMA32I", "FMUL32I", "FADD32I", "HFMA2", "HADD2", "HMUL2"}
_SPECIAL = {"MUFU", "I2F", "F2I", "F2F", "POPC", "FLO"}
_GLOBAL_LOADS = {"LDG", "LD", "LDGSTS"}
_GLOBAL_STORES = {"STG", "ST", "RED", "ATOM", "ATOMG"}
_SHARED = {"LDS", "STS", "ATOMS", "LDSM", "STSM", "SHFL", "LDL", "STL"}
_MEMORY = _GLOBAL_LOADS | _GLOBAL_STORES | _SHARED
# They take a slot of the scheduler and no unit.
_FREE = {"BRA", "NOP", "BSSY", "BSYNC", "EXIT", "WARPSYNC", "BAR", "DEPBAR", "LDGDEPBAR", "MEMBAR", "ERRBAR",
         "CCTL", "YIELD", "CALL", "RET", "BREAK"}  # fmt: skip  # names
_CONSTANT_LOADS = {"LDC", "ULDC", "LDCU", "S2R", "S2UR", "R2UR"}
_COSTS = {"float": 1, "special": 8, "integer": 2, "imad": 2, "uniform": 2}
_RESULT = 6  # cycles until an arithmetic result is there; as a rule the stall bits say so
_READ = 8  # cycles after the load/store unit took it until an access has read its operands
_REACH = 4  # cycles until an access reaches the load/store unit
_SKEW, _SKEW_NEXT = 37, 11  # cycles by which programs start after each other: they are not in step
_LINE, _SECTOR = 128, 32  # bytes


@dataclass(frozen=True)
class Place:
    """Where loads find their data: ``where`` (l1, l2 or hbm), how many lines of 128 bytes a warp's
    access touches, and the share of accesses that start a new line: the others find it in the L1,
    or under way."""

    where: str
    lines: float
    fresh: float


@dataclass(frozen=True)
class Latencies:
    """Cycles until a result releases its barrier: of an exponential, shared memory, a shuffle, a
    barrier of a program of one warp, a constant; of a load that hits in the L1, in the L2, in
    neither.

    From published microbenchmarks of the H100, which say 33 to 41 for the L1, 200 to 263 for the
    L2, 480 to 650 for the memory.
    """

    special: int = 22
    shared: int = 29
    shuffle: int = 24
    barrier: int = 22
    constant: int = 30
    l1: int = 35
    l2: int = 260
    hbm: int = 650


@dataclass(frozen=True)
class Multiprocessor:
    """One of a GPU: bytes a cycle, cycles, and clock in Hz. The defaults are an H200's.

    Published: the clock, the number of multiprocessors, the units' rates, the bytes of the memory.
    Fitted on twelve times measured once on an H200: the bytes from the L2 (64 at its port; 22 is
    what others have measured over all multiprocessors), and some of operator_times.py. Assumed, for
    nobody has published them: the queue, and the cycles of a load of 128 bits of one address by all
    lanes, from memory and from shared memory, which may be 1 to 4.
    """

    clock: float = 1.98e9
    count: int = 132
    l2_bytes: float = 22.0  # fitted
    hbm_bytes: float = 16.4  # 4.3 TB/s
    queue: int = 24  # assumed
    broadcast: float = 2.0  # assumed
    broadcast_shared: float = 4.0  # assumed, the worst
    latency: Latencies = Latencies()

    def place(self, one: Instruction) -> Place:
        """Where a load's data lies, by its opcode: what is marked evict_first, or copied past the
        L1, is read along the length, a line a lane; a load of 128 bits is a part of a row of B and
        C; the rest is a row of x or delta, a channel a lane."""
        if ".EF" in one.opcode or "BYPASS" in one.opcode:
            return Place("hbm", 32, one.bits / 256)
        if one.name == "LDGSTS":
            return Place(
                "l2", 1, 1.0
            )  # of x, delta, or B and C: 4 bytes a lane are a line, of delta's rank a part of one
        return Place("l2", 1, 0.125) if one.bits == 128 else Place("hbm", 1, 1.0)

    def store_lines(self, one: Instruction) -> float:
        """Lines that a store touches: those of four steps of a channel, and those marked, go along
        the length."""
        return 32 if ".EF" in one.opcode or one.opcode.endswith("E.128") else 1


H200 = Multiprocessor()


@dataclass(frozen=True)
class Prediction:
    """``cycles`` a turn of the loop for all the warps together, PREDICTED; what a warp waited for
    and how busy each unit was, as shares of the time."""

    cycles: float
    waits: dict[str, float]
    busy: dict[str, float]


def predict(code: Sequence[Instruction], warps: int, machine: Multiprocessor = H200, turns: int = 12) -> Prediction:
    """Simulate ``warps`` on one multiprocessor, each taking the loop ``turns`` times. The first
    third warms up and is not counted."""
    if warps < 1 or turns < 2 or not code:
        raise ValueError(f"got {warps} warps, {turns} turns and {len(code)} instructions, wanted 1, 2 and 1 at least")
    run = _Run(code, warps, machine)
    marks = run.walk(turns)
    warm = max(1, turns // 3)
    total = max(mark[-1] for mark in marks)
    return Prediction(
        max((mark[-1] - mark[warm - 1]) / (turns - warm) for mark in marks),
        {why: cycles / (total * warps) for why, cycles in run.waits.items()},
        {unit: cycles / total for unit, cycles in run.busy.items()},
    )


@dataclass
class _Warp:
    """A warp: where it stands, from when on nothing of its own holds it, and why not before."""

    at: int = 0
    turn: int = 0
    ready: float = 0.0
    why: str = "stall bits"
    left: float = 0.0  # when it last issued
    barriers: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: list[float] = field(default_factory=list)  # when each committed group of copies is there
    open_copies: float = 0.0
    marks: list[float] = field(default_factory=list)  # the ends of its turns


class _Run:
    """One simulation. Time jumps from one issue to the next; a warp's own obstacles are known as
    soon as it has issued, and only the units it shares with others are asked again."""

    def __init__(self, code: Sequence[Instruction], warps: int, machine: Multiprocessor) -> None:
        self.code, self.machine = code, machine
        self.pipes = [_pipe(one) for one in code]
        self.reaches = [one.name in _MEMORY and not one.never for one in code]
        self.warps = [_Warp(ready=_SKEW * (w // SCHEDULERS) + _SKEW_NEXT * (w % SCHEDULERS)) for w in range(warps)]
        self.units: list[dict[str, float]] = [dict.fromkeys(_COSTS, 0.0) for _ in range(SCHEDULERS)]
        self.lsu = self.l2 = self.hbm = 0.0  # until when they are taken
        self.accepted: deque[float] = deque(maxlen=machine.queue)  # by the load/store unit
        self.fresh: dict[tuple[int, str], float] = {}  # of a warp and an opcode: the share of a line begun
        self.line_at: dict[tuple[int, str], float] = {}  # and when its newest line is there
        self.waits: defaultdict[str, float] = defaultdict(float)
        self.busy: defaultdict[str, float] = defaultdict(float)

    def walk(self, turns: int) -> list[list[float]]:
        """Issue until every warp has made its turns; the ends of all turns of each warp."""
        members = [list(range(s, len(self.warps), SCHEDULERS)) for s in range(SCHEDULERS)]
        queue = [(0.0, s) for s in range(SCHEDULERS) if members[s]]
        while queue:
            cycle, s = heappop(queue)
            soonest, chosen = float("inf"), None
            for w in members[s]:  # the first is the one after the last that issued
                at = self._may_issue(s, self.warps[w])
                if at <= cycle:
                    chosen = w
                    break
                soonest = min(soonest, at)
            if chosen is None:
                heappush(queue, (soonest, s))
                continue
            self._issue(s, chosen, cycle)
            place = members[s].index(chosen) + 1
            members[s] = members[s][place:] + members[s][:place]
            if self.warps[chosen].turn == turns:
                members[s].remove(chosen)
            if members[s]:
                heappush(queue, (cycle + 1, s))
        return [warp.marks for warp in self.warps]

    def _may_issue(self, s: int, warp: _Warp) -> float:
        """From when on a warp may issue, as far as can be said now."""
        at, pipe = warp.ready, self.pipes[warp.at]
        if pipe and self.units[s][pipe] > at:
            at = self.units[s][pipe]
        if self.reaches[warp.at] and len(self.accepted) == self.machine.queue and self.accepted[0] > at:
            at = self.accepted[0]
        return at

    def _issue(self, s: int, w: int, cycle: float) -> None:
        """Issue a warp's instruction, and find out what holds its next one."""
        warp, machine = self.warps[w], self.machine
        one, pipe = self.code[warp.at], self.pipes[warp.at]
        self.waits[warp.why] += max(0.0, warp.ready - warp.left - 1)
        self.waits["a unit, or the turn of another warp"] += cycle - max(warp.ready, warp.left + 1)
        self.busy["issue"] += 1 / SCHEDULERS
        done = released = cycle + _RESULT
        if pipe:
            self.units[s][pipe] = cycle + _COSTS[pipe]
            self.busy[pipe] += _COSTS[pipe] / SCHEDULERS
        if self.reaches[warp.at]:
            done = self._access(w, one, cycle)
            released = self.lsu + _READ
        elif one.name == "LDGDEPBAR":
            before = warp.copies[-1] if warp.copies else 0.0
            warp.copies = [*warp.copies[-64:], max(warp.open_copies, before)]
            warp.open_copies = 0.0
        elif pipe == "special":
            done = cycle + machine.latency.special
        elif one.name == "BAR":
            done = cycle + machine.latency.barrier
        elif one.name in _CONSTANT_LOADS:
            done = cycle + machine.latency.constant
        if one.write != NO_BARRIER:
            warp.barriers[one.write] = max(warp.barriers[one.write], done)
        if one.read != NO_BARRIER:
            warp.barriers[one.read] = max(warp.barriers[one.read], released)
        warp.at += 1
        if warp.at == len(self.code):
            warp.at, warp.turn = 0, warp.turn + 1
            warp.marks.append(cycle)
        # A program of one warp waits at a barrier for itself alone.
        warp.ready = cycle + (machine.latency.barrier if one.name == "BAR" else max(1, one.stall))
        warp.why, warp.left = "stall bits", cycle
        self._wait_for(warp, self.code[warp.at])

    @staticmethod
    def _wait_for(warp: _Warp, following: Instruction) -> None:
        for i in range(6):
            if following.wait >> i & 1 and warp.barriers[i] > warp.ready:
                warp.ready, warp.why = warp.barriers[i], "barriers"
        if following.name == "DEPBAR" and (left := re.search(r"SB\d, 0x([0-9a-f]+)", following.text)):
            due = warp.copies[: len(warp.copies) - int(left[1], 16)]
            if due and due[-1] > warp.ready:
                warp.ready, warp.why = due[-1], "asynchronous copies"

    def _access(self, w: int, one: Instruction, cycle: float) -> float:
        """Send an access through the load/store unit. Returns when its result is there."""
        machine = self.machine
        takes = self._takes(one)
        self.lsu = max(self.lsu, cycle + _REACH) + takes
        self.busy["load/store"] += takes
        self.accepted.append(self.lsu)
        if one.name in _GLOBAL_LOADS:
            done = self._load(w, one)
            if one.name == "LDGSTS":
                self.warps[w].open_copies = max(self.warps[w].open_copies, done)
            return done
        if one.name in _GLOBAL_STORES:
            self.hbm = max(self.hbm, self.lsu) + 4 * one.bits / machine.hbm_bytes  # 32 lanes of bits / 8 bytes
            self.busy["memory"] += 4 * one.bits / machine.hbm_bytes
            return self.lsu + _READ
        latency = {"SHFL": machine.latency.shuffle, "LDL": machine.latency.l1}
        return self.lsu + latency.get(one.name, machine.latency.shared)

    def _load(self, w: int, one: Instruction) -> float:
        """When a load's data is there; all accesses of a warp by the same opcode walk through
        lines."""
        machine, key = self.machine, (w, one.opcode)
        place = machine.place(one)
        begun = self.fresh.get(key, 1.0 - 1e-9) + place.fresh
        # Past the L1 the other half of a sector comes from the L2.
        again = "BYPASS" in one.opcode and begun < 1
        if begun >= 1 or again:
            where = "l2" if again else place.where
            begun -= 0 if again else 1
            size = place.lines * (_SECTOR if place.lines > 4 else _LINE)
            data = self.lsu
            if where != "l1":
                data = self.l2 = max(self.l2, self.lsu) + size / machine.l2_bytes
                self.busy["L2"] += size / machine.l2_bytes
            if where == "hbm":
                data = self.hbm = max(self.hbm, self.lsu) + size / machine.hbm_bytes
                self.busy["memory"] += size / machine.hbm_bytes
            self.line_at[key] = max(data, self.lsu) + getattr(machine.latency, where)
        self.fresh[key] = begun
        return max(self.line_at.get(key, 0.0), self.lsu + machine.latency.l1)

    def _takes(self, one: Instruction) -> float:
        """Cycles of the load/store unit."""
        groups = max(1.0, one.bits / 32)
        if one.name in _GLOBAL_LOADS:
            lines = self.machine.place(one).lines
            if one.name == "LDG" and lines == 1 and one.bits == 128:
                groups = self.machine.broadcast
            return max(groups, lines)
        if one.name in _GLOBAL_STORES:
            return max(groups, self.machine.store_lines(one))
        return min(groups, self.machine.broadcast_shared) if one.name == "LDS" else groups


def _pipe(one: Instruction) -> str | None:
    """The scheduler's unit that an instruction takes; None for accesses and jumps."""
    if one.name in _MEMORY or one.name in _FREE:
        return None
    if one.name in _FLOAT:
        return "float"
    if one.name in _SPECIAL:
        return "special"
    if one.name == "IMAD":
        return "imad"
    return "uniform" if one.name.startswith("U") or one.name in ("R2UR", "S2UR", "VOTEU") else "integer"
