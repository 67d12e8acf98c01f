"""``medmambase-bench``: are the operators right on this machine, how fast are they, and how fast
could they be.

Parse, call, print. The operators are measured by ``medmambase_kernels/bench/measure.py``, which
knows no network; the command stands here because of --network.
Every time is printed beside its spread (the interquartile range) and its number of repetitions.
Next stop: a person, or a file of --json.
"""

import argparse
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from medmambase import run_folder
from medmambase.commands.bench_network import NetworkRow, network_rows
from medmambase.config import PRESETS
from medmambase_kernels import BACKENDS, BackendError, describe_backend, use_backend
from medmambase_kernels.bench.cases import OPERATORS, SIZES, Case, cases, mamba_scan
from medmambase_kernels.bench.floors import Card, card, nvidia_smi
from medmambase_kernels.bench.measure import Bench, Row, Verdict, check, matmul_peak, name_of, sweep

DTYPES = {name_of(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
# --quick: seconds on a laptop; a flag given by hand still wins.
QUICK = {"size": [128], "stages": [2, 4], "batch": [1], "repeat": 5}
FULL = {"size": list(SIZES), "stages": [1, 2, 3, 4], "batch": [1, 16, 64], "repeat": None}
# Million state elements up to which the original's loop is timed: about 1.3 GB of memory and
# seconds a repetition on a CPU, 20 GB on a GPU.
COMPARE = {"cpu": 32.0, "cuda": 512.0}
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command. Returns its exit code: 0 ok, 1 a check failed, 2 usage, 130
    interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(words)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        parser.error(f"--json {options.json} is no place for a file: give a file's name in a folder that exists")
    try:
        return _bench(options, words, _device(options.device))
    except (UsageError, BackendError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130


class UsageError(ValueError):
    """What was asked for cannot be measured; the message says why and what can be."""


def _at_least(least: float) -> Any:
    def read(text: str) -> int | float:
        try:
            number: int | float = int(text) if isinstance(least, int) else float(text)
        except ValueError:
            number = -1
        if not number >= least:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number that is at least {least}")
        return number

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medmambase-bench",
        description="Check the operators against their definition, then time them, on the GPU if there is one, else "
        "on the CPU.",
        epilog="exit codes: 0 ok, 1 a check failed (what failed is not timed), 2 usage",
        allow_abbrev=False,
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    parser.add_argument("--backend", choices=BACKENDS, help="engine (default: the fastest that runs here)")
    parser.add_argument(
        "--operator",
        nargs="*",
        choices=list(OPERATORS),
        default=list(OPERATORS),
        help="which to time (default: all); no name: none",
    )
    parser.add_argument(
        "--size", nargs="+", type=int, choices=SIZES, help="pixels of the image, square (default: both)"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        type=int,
        choices=(1, 2, 3, 4),
        help="stages of tiny, whose widths are 96 to 768 (default: all)",
    )
    parser.add_argument("--batch", nargs="+", type=_at_least(1), help="images at a time (default: 1 16 64)")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(DTYPES), help="of the inputs (default: float32, on a GPU bfloat16 as well)"
    )
    parser.add_argument("--repeat", type=_at_least(3), help="repetitions (default: up to 20 in 2 seconds, at least 3)")
    parser.add_argument(
        "--compare", type=_at_least(0.0), metavar="M",
        help="also time the original's way in eager PyTorch, where batch x directions x channels x states x length "
            "is at most M million: "
        "it keeps about 40 bytes of each (default: 32 on a CPU, 512 on a GPU; 0: never)",
    )  # fmt: skip  # one argument list
    parser.add_argument(
        "--network",
        nargs="?",
        const="tiny",
        choices=PRESETS,
        help="time a training step and a prediction of this network too (alone: tiny)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="instead: time the launches of the Triton scans beside those the launch table picks",
    )
    parser.add_argument("--quick", action="store_true", help="a few small cases, seconds on a laptop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def _device(wish: str | None) -> torch.device:
    try:
        device = torch.device(wish or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, with or without CUDA in its build
        raise UsageError(
            f"--device {wish} cannot be used ({str(error).splitlines()[0]}); leave it out to choose automatically"
        ) from error
    if device.type not in COMPARE:
        raise UsageError(f"--device {wish} has no clock here; give cpu or cuda")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _bench(options: argparse.Namespace, words: Sequence[str], device: torch.device) -> int:
    dtypes = [
        DTYPES[name] for name in options.dtype or (["float32", "bfloat16"] if device.type == "cuda" else ["float32"])
    ]
    with use_backend(options.backend or "auto"):
        engines = {name_of(dtype): describe_backend(device, dtype) for dtype in dtypes}
        if os.environ.get("TRITON_INTERPRET") == "1" and any(
            engine.startswith("triton") for engine in engines.values()
        ):
            raise UsageError("TRITON_INTERPRET=1 runs the kernels in Python, whose times mean nothing; unset it")
        if options.sweep and not all(engine.startswith("triton") for engine in engines.values()):
            raise UsageError(
                f"--sweep times launches of the Triton kernels, and the engine is {'; '.join(engines.values())}"
            )
        mamba, why_mamba = mamba_scan(device)
        most = COMPARE[device.type] if options.compare is None else options.compare
        bench = Bench(device, options.backend, options.repeat, most_states=1e6 * most, mamba=mamba)
        machine, found = _machine(device)
        bench = replace(bench, card=found) if isinstance(found, Card) else replace(bench, gflops=found)
        results: dict[str, Any] = {
            "command": shlex.join(["medmambase-bench", *words]),
            "environment": machine,
            "engines": engines,
            "mamba_ssm": why_mamba,
        }
        _head(machine, engines, why_mamba)
        names = [
            *options.operator,
            *(
                name
                for name in OPERATORS
                if options.network and name != "selective_scan" and name not in options.operator
            ),
        ]
        verdicts = []
        for name in names:
            for dtype in dtypes:
                verdicts.append(check(name, dtype, device, options.backend))
                print(_verdict_line(verdicts[-1]), flush=True)
        wrong = {(v.operator, v.dtype) for v in verdicts if not v.passed}
        # JSON has no infinity: an error that is not a number becomes null.
        results["checks"] = [
            asdict(v) | {"error": v.error if math.isfinite(v.error) else None, "passed": v.passed} for v in verdicts
        ]
        every = cases(options.operator, options.size, options.stages, options.batch, dtypes)
        right = [case for case in every if (case.operator, name_of(case.dtype)) not in wrong]
        failed = bool(wrong)
        if options.sweep:
            results["sweep"] = list(_sweep(bench, right))
        else:
            shown = {"", device.type, *(["eager"] if most else []), *(["mamba"] if mamba else [])}
            rows = _table(COLUMNS, shown, (row for case in right for row in bench.rows(case)))
            results["rows"] = rows
            failed |= any(row["failed"] for row in rows)
            if options.network:
                sound = [
                    dtype
                    for dtype in dtypes
                    if not wrong & {(name, name_of(dtype)) for name in OPERATORS if name != "selective_scan"}
                ]
                results["network"] = _table(
                    NETWORK_COLUMNS, shown, network_rows(options.network, options.size, options.batch, sound, bench)
                )
                failed |= any(row["failed"] for row in results["network"])
    if options.json is not None:
        run_folder.write_json(options.json, results)
        print(_ascii(f"\nevery figure: {options.json}"))
    return 1 if failed else 0


def _sweep(bench: Bench, right: Sequence[Case]) -> Iterator[dict[str, Any]]:
    for case in right:
        if not case.rows:
            continue
        found = list(sweep(case, bench))
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
                    f"  {step:8} {'refused' if ms is None else _figure(ms):>8} "
                    f"{'' if ms is None else f'{chosen / ms:5.2f}x':6}  {launch}  {mark}".rstrip()
                )
        yield {
            "operator": case.operator, "height": case.height, "width": case.width, "channels": case.channels,
            "batch": case.batch, "dtype": name_of(case.dtype), "launches": [{"pass": step, "launch": launch,
            "ms": ms} for step, launch, ms in found],
        }  # fmt: skip  # one entry of the file


def _machine(device: torch.device) -> tuple[dict[str, Any], Card | float]:
    """What a figure may depend on; and the card, or the CPU's measured peak in GFLOP/s."""
    machine: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in ("medmambase", "torch", "triton", "triton-windows", "mamba-ssm"):
        try:
            machine[name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == "cpu":
        peak = matmul_peak()
        machine |= {
            "device": f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
            "peak_gflops": peak,
        }
        return machine, peak
    properties = torch.cuda.get_device_properties(device)
    driver, clock = nvidia_smi(properties)
    found = card(properties, clock)
    machine |= {
        "device": found.name,
        "driver": driver,
        "cuda": torch.version.cuda,
        "compute_capability": f"{properties.major}.{properties.minor}",
    }
    return machine | {
        "multiprocessors": found.processors,
        "clock_hz": found.clock,
        "bytes_per_s": found.bandwidth,
    }, found


def _head(machine: dict[str, Any], engines: dict[str, str], why_mamba: str) -> None:
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
    for dtype, engine in engines.items():
        print(f"engine: {engine} ({dtype})")
    print(f"mamba_ssm: {why_mamba}")


def _verdict_line(verdict: Verdict) -> str:
    result = "equals the definition" if verdict.passed else "IS WRONG and will not be timed"
    return _ascii(
        f"check: {verdict.operator} {verdict.dtype} {result}: largest error {verdict.error:.1e} of "
        f"{verdict.tolerance:.0e} ({verdict.where})"
    )


def _table(
    columns: Sequence[tuple[str, str, int, str]], shown: set[str], rows: Iterator[Row] | Iterator[NetworkRow]
) -> list[dict[str, Any]]:
    """Print a line as soon as it is measured, and return them all."""
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
        print(_ascii(f"{'  '.join(cells)}  {row.note}".rstrip()), flush=True)
    return lines


def _cell(field: str, value: Any) -> str:
    if value is None:
        return "-"
    if field.startswith("of_"):
        return f"{100 * value:.1f}"
    return _figure(value) if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    """Three or four digits, in eight places."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}" if value >= 0.1 or value == 0 else f"{value:#.3g}"


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode(
        "ascii"
    )  # an engine's message may hold letters that the console does not know


if __name__ == "__main__":
    sys.exit(main())
