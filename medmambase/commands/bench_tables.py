"""Print what medmambase-bench finds: the machine, the checks, and the tables of times."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from medmambase.model.measure import NetworkRow
from medmambase.plural import count_of
from medmambase_kernels.bench.cases import Case
from medmambase_kernels.bench.measure import Row, Verdict, name_of

# Title, field of the row, width, and where the column stands: on every device, on a GPU, on a CPU,
# beside a comparison with eager PyTorch or mamba_ssm.
COLUMNS = (
    ("operator", "operator", -17, ""), ("map", "map", -10, ""), ("batch", "batch", 5, ""), ("dtype", "dtype", -8, ""),
    ("pass", "passes", -16, ""), ("ms", "ms", 8, ""), ("spread", "spread_ms", 8, ""), ("n", "repetitions", 3, ""),
    ("call ms", "call_ms", 8, "cuda"), ("peak MB", "peak_mb", 8, "cuda"), ("exp", "exp_floor_ms", 8, "cuda"),
    ("issue", "issue_floor_ms", 8, "cuda"), ("bytes", "bytes_floor_ms", 8, "cuda"), ("floor%", "of_floor", 6, "cuda"),
    ("GFLOP/s", "gflops", 8, "cpu"), ("peak%", "of_peak", 6, "cpu"), ("eager", "eager_ms", 8, "eager"),
    ("ratio", "eager_ratio", 6, "eager"), ("mamba", "mamba_ms", 8, "mamba"), ("ratio", "mamba_ratio", 6, "mamba"),
)  # fmt: skip  # a table
NETWORK_COLUMNS = (
    ("network", "model", -8, ""), ("pixels", "size", 6, ""), ("batch", "batch", 5, ""), ("dtype", "dtype", -8, ""),
    ("what", "what", -13, ""), ("ms", "ms", 8, ""), ("spread", "spread_ms", 8, ""), ("n", "repetitions", 3, ""),
    ("images/s", "images_per_s", 8, ""), ("call ms", "call_ms", 8, "cuda"), ("peak MB", "peak_mb", 8, "cuda"),
    ("original", "original_ms", 8, ""), ("ratio", "original_ratio", 6, ""), ("its peak", "original_peak_mb", 8, "cuda"),
)  # fmt: skip  # a table

# What stands in a column whose title does not say it, by its field.
MEANINGS = {
    "map": "height x width x channels of the tensor", "passes": "forward alone, or forward and backward",
    "ms": "median time of one call, in milliseconds", "spread_ms": "interquartile range of these times",
    "repetitions": "how many times were measured", "call_ms": "time of one call by the clock, with Python and launches",
    "peak_mb": "most memory during a call, in MB of 10^6 bytes", "exp_floor_ms": "least ms for its exponentials",
    "issue_floor_ms": "least ms for its instructions", "bytes_floor_ms": "least ms for its bytes to and from memory",
    "of_floor": "the largest of these three, in percent of ms: 100 is as fast as this GPU can be",
    "gflops": "operations that the definition needs, in 10^9 a second",
    "of_peak": "the same in percent of what this CPU does in a matrix product",
    "eager_ms": "time of the original code in PyTorch, for the same work",
    "eager_ratio": "that time divided by ours for the same work: above 1 ours is faster",
    "mamba_ms": "time of mamba_ssm's kernel", "mamba_ratio": "the same of mamba_ssm",
    "what": "a prediction, or a training step", "images_per_s": "images per second",
    "original_ms": "time of the same network with the original's operators",
    "original_ratio": "that time divided by ours: above 1 ours is faster", "original_peak_mb": "its most memory, in MB",
}  # fmt: skip  # a table


def print_head(machine: dict[str, Any], backends: dict[str, str], why_mamba: str) -> None:
    """Print versions, device, the backend of each dtype, and whether mamba_ssm can be compared."""
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("python", "torch", "triton", "triton-windows", "mamba-ssm")
        if name in machine
    )
    print(f"medmambase-bench {machine.get('medmambase', '')}   {machine['system']}, {versions}")
    if "peak_gflops" in machine:
        print(f"device: {machine['device']}, peak {machine['peak_gflops']:.0f} GFLOP/s (float32 matmul)")
    else:
        clock, bandwidth = (machine[name] and machine[name] / 1e9 for name in ("clock_hz", "bytes_per_s"))
        print(
            f"device: {machine['device']}, {machine['multiprocessors']} SMs, {clock or '?'} GHz, {bandwidth or '?'} "
            f"GB/s, driver {machine['driver'] or '?'}"
        )
    load = "unknown" if machine["load"] is None else f"{machine['load']:.1f}"
    print(f"threads: {machine['threads']}, load before: {load} on {count_of(machine['processors'], 'processor')}")
    for dtype, backend in backends.items():
        print(f"backend: {backend} ({dtype})")
    print(f"mamba_ssm: {why_mamba}")


def print_verdict(verdict: Verdict) -> None:
    """Print whether an operator equals its definition."""
    result = "equals the definition" if verdict.passed else "IS WRONG and will not be timed"
    line = (
        f"check: {verdict.operator} {verdict.dtype} {result}: largest error {verdict.error:.1e} of "
        f"{verdict.tolerance:.0e} ({verdict.where})"
    )
    print(ascii_only(line), flush=True)


def print_table(
    columns: Sequence[tuple[str, str, int, str]], shown: set[str], rows: Iterator[Row] | Iterator[NetworkRow]
) -> list[dict[str, Any]]:
    """Print each row as soon as it is measured, the columns of ``shown`` only; return all rows."""
    wanted = [(title, field, width) for title, field, width, where in columns if where in shown]
    head = "  ".join(f"{title:<{-width}}" if width < 0 else f"{title:>{width}}" for title, _, width in wanted)
    lines: list[dict[str, Any]] = []
    for row in rows:
        if not lines:
            print(f"\n{head}")
        lines.append(asdict(row))
        values = lines[-1] | ({"map": f"{row.height}x{row.width}x{row.channels}"} if isinstance(row, Row) else {})
        cells = (
            f"{_cell(field, values[field]):<{-width}}" if width < 0 else f"{_cell(field, values[field]):>{width}}"
            for _, field, width in wanted
        )
        print(ascii_only(f"{'  '.join(cells)}  {row.note}".rstrip()), flush=True)
    return lines


def print_meanings(columns: Sequence[tuple[str, str, int, str]], shown: set[str]) -> None:
    """Print a line for each column of a table that its title does not explain."""
    print()
    for title, field, _, where in columns:
        if where in shown and field in MEANINGS:
            print(f"{title + ':':10} {MEANINGS[field]}")


def print_sweep(case: Case, found: Sequence[tuple[str, str, float | None]]) -> None:
    """Print every launch of a scan, the fastest first, and mark the launch table's own."""
    print(
        f"\n{case.operator} {case.height}x{case.width}x{case.channels}, batch {case.batch}, {name_of(case.dtype)}",
        flush=True,
    )
    for step in ("forward", "backward"):
        mine = [(launch, ms) for of, launch, ms in found if of == step]
        chosen = mine[0][1] or math.inf
        for place, (launch, ms) in enumerate(sorted(mine, key=lambda pair: pair[1] or math.inf)):
            better = place == 0 and ms is not None and ms < 0.97 * chosen  # less is within the spread
            mark = "<- the table's" if launch == mine[0][0] else "<- proposed" if better else ""
            print(
                f"  {step:8} {'refused' if ms is None else figure(ms):>8} "
                f"{'' if ms is None else f'{chosen / ms:5.2f}x':6}  {launch}  {mark}".rstrip()
            )


def _cell(field: str, value: Any) -> str:
    if value is None:
        return "-"
    if field.startswith("of_"):
        return f"{100 * value:.1f}"
    return figure(value) if isinstance(value, float) else str(value)


def figure(value: float) -> str:
    """Write a number with three or four digits, in eight places."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}" if value >= 0.1 or value == 0 else f"{value:#.3g}"


def ascii_only(text: str) -> str:
    """Escape characters that a console may not show: a backend's message may hold any."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
