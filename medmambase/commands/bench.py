"""``medmambase-bench``: check the operators on this machine, and measure how fast they are and how
fast they could be.

Parse, call, print. ``medmambase_kernels.bench`` measures the operators, ``model/measure.py`` a
network. Every time is printed beside its spread (the interquartile range) and its number of
repetitions.
"""

import argparse
import itertools
import math
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from medmambase import run_folder
from medmambase.commands import bench_flags, bench_tables, console, guard
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import PRESETS, ConfigError
from medmambase.doctor.torch_build import driver_and_clock
from medmambase.machine import environment, load
from medmambase.model.measure import network_rows, new_network, operators_of
from medmambase.plural import count_of
from medmambase_kernels import describe_backend, use_backend
from medmambase_kernels.bench.cases import SIZES, Case, cases, reduced
from medmambase_kernels.bench.floors import Card, card, matmul_peak
from medmambase_kernels.bench.measure import Bench, Verdict, check, name_of
from medmambase_kernels.bench.original import mamba_scan
from medmambase_kernels.bench.sweep import sweep

DTYPES = {name_of(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
# --quick: seconds on a laptop; a flag given by hand still wins.
QUICK = {"size": [128], "stages": [2, 4], "batch": [1], "repeat": 5}
FULL = {"size": list(SIZES), "stages": [1, 2, 3, 4], "batch": [1, 16, 64], "repeat": None}
# Million state elements up to which the original's loop is timed: about 1.3 GB of memory and
# seconds a repetition on a CPU, 20 GB on a GPU.
COMPARE = {"cpu": 32.0, "cuda": 512.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 a check failed, 2 usage, 4
    environment, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = bench_flags.parse(words)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return console.guarded("medmambase-bench", lambda: _bench(options, words))


def _bench(options: argparse.Namespace, words: Sequence[str]) -> int:
    if options.json is not None:
        guard.check_file("--json", options.json)
    for name, value in (("--network", options.network), ("--compare", options.compare)) if options.sweep else ():
        if value is not None:
            raise ConfigError(f"{name} is {value}, but --sweep times other launches of the scans alone; leave out one")
    device = _device(options.device)
    standard = ["float32", "bfloat16"] if device.type == "cuda" else ["float32"]
    dtypes = [DTYPES[name] for name in options.dtype or standard]
    with use_backend(options.backend or "auto", "--backend"):
        backends = {name_of(dtype): describe_backend(device, dtype) for dtype in dtypes}
        _check_backends(backends, options.sweep)
        mamba, why_mamba = mamba_scan(device)
        most = COMPARE[device.type] if options.compare is None else options.compare
        bench = Bench(device, options.backend, options.repeat, most_states=1e6 * most, mamba=mamba)
        machine, found = _machine(device)
        bench = replace(bench, card=found) if isinstance(found, Card) else replace(bench, gflops=found)
        bench_tables.print_head(machine, backends, why_mamba)
        timed = cases(options.operator, options.size, options.stages, options.batch, dtypes)
        network = None if not options.network else new_network(PRESETS[options.network], device)
        called: list[Case] = []
        if network is not None:
            for dtype, size in itertools.product(dtypes, options.size):
                called += operators_of(network, size, dtype)
        names = dict.fromkeys([*options.operator, *(case.operator for case in called)])
        verdicts = list(_verdicts(names, dtypes, called, bench))
        wrong = {(v.operator, v.dtype) for v in verdicts if not v.passed}
        results: dict[str, Any] = {
            "command": shlex.join(["medmambase-bench", *words]),
            "environment": machine,
            "backends": backends,
            "mamba_ssm": why_mamba,
            # JSON has no infinity: an error that is not a number becomes null.
            "checks": [
                asdict(v) | {"error": v.error if math.isfinite(v.error) else None, "passed": v.passed} for v in verdicts
            ],
        }
        right = [case for case in timed if (case.operator, name_of(case.dtype)) not in wrong]
        if options.sweep:
            results["sweep"] = list(_sweep(bench, right))
        else:
            shown = {"", device.type, *(["eager"] if most else []), *(["mamba"] if mamba else [])}
            rows = (row for case in right for row in bench.rows(case))
            results["rows"] = _printed(bench_tables.COLUMNS, shown, rows)
            if network is not None:
                unsound = {case.dtype for case in called if (case.operator, name_of(case.dtype)) in wrong}
                sound = [dtype for dtype in dtypes if dtype not in unsound]
                times = network_rows(options.network, network, options.size, options.batch, sound, bench)
                results["network"] = _printed(bench_tables.NETWORK_COLUMNS, shown, times)
    if options.json is not None:
        run_folder.write_json(options.json, results)
        print(bench_tables.ascii_only(f"\nall measurements: {options.json}"))
    if options.network is None and not options.sweep:
        say_next(("time a whole network too", pasted("medmambase-bench", *words, "--network", "tiny")))
    elif options.json is None:
        say_next(("keep all measurements in a file", pasted("medmambase-bench", *words, "--json", "bench.json")))
    failed = any(row["failed"] for table in ("rows", "network") for row in results.get(table, ()))
    return 1 if wrong or failed else 0


def _printed(columns: Any, shown: set[str], rows: Iterator[Any]) -> list[dict[str, Any]]:
    """Print a table, and below it what its columns mean."""
    if found := bench_tables.print_table(columns, shown, rows):
        bench_tables.print_meanings(columns, shown)
    return found


def _device(wish: str | None) -> torch.device:
    device = console.device(wish)
    if device.type not in COMPARE:
        raise ConfigError(f"cannot time --device {wish} here; give cpu or cuda")
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _check_backends(backends: dict[str, str], sweep: bool) -> None:
    triton = [backend.startswith("triton") for backend in backends.values()]
    if os.environ.get("TRITON_INTERPRET") == "1" and any(triton):
        raise ConfigError("TRITON_INTERPRET=1 runs the kernels in Python, so times are meaningless; unset it")
    if sweep and not all(triton):
        raise ConfigError(
            f"--sweep times launches of the Triton kernels, and the backend is {'; '.join(backends.values())}; leave "
            f"--sweep out, or give --device cuda"
        )


def _verdicts(
    names: Iterable[str], dtypes: Sequence[torch.dtype], called: Sequence[Case], bench: Bench
) -> Iterator[Verdict]:
    for name in names:
        for dtype in dtypes:
            maps = dict.fromkeys(case for case in called if (case.operator, case.dtype) == (name, dtype))
            verdict = check([*reduced(name, dtype), *maps], bench.device, bench.backend)
            bench_tables.print_verdict(verdict)
            yield verdict


def _sweep(bench: Bench, right: Sequence[Case]) -> Iterator[dict[str, Any]]:
    for case in right:
        if not case.rows:
            continue
        found = list(sweep(case, bench))
        bench_tables.print_sweep(case, found)
        launches = [{"pass": step, "launch": launch, "ms": ms} for step, launch, ms in found]
        yield {
            "operator": case.operator, "height": case.height, "width": case.width, "channels": case.channels,
            "batch": case.batch, "dtype": name_of(case.dtype), "launches": launches,
        }  # fmt: skip  # one entry of the file


def _machine(device: torch.device) -> tuple[dict[str, Any], Card | float]:
    """Describe what a measurement may depend on; return the card too, or the CPU's measured peak in
    GFLOP/s."""
    machine: dict[str, Any] = dict(environment(device))
    machine |= {"threads": torch.get_num_threads(), "processors": os.cpu_count(), "load": load()}
    with suppress(PackageNotFoundError):
        machine["mamba-ssm"] = version("mamba-ssm")
    if device.type == "cpu":
        peak = matmul_peak()
        name = f"CPU, {count_of(torch.get_num_threads(), 'thread')}, {torch.backends.cpu.get_cpu_capability()}"
        return machine | {"device": name, "peak_gflops": peak}, peak
    properties = torch.cuda.get_device_properties(device)
    driver, clock = driver_and_clock(str(getattr(properties, "uuid", "")))
    found = card(properties, clock)
    return machine | {
        "device": found.name, "driver": driver, "cuda": torch.version.cuda,
        "compute_capability": f"{properties.major}.{properties.minor}", "multiprocessors": found.processors,
        "clock_hz": found.clock, "bytes_per_s": found.bandwidth,
    }, found  # fmt: skip  # one entry of the file


if __name__ == "__main__":
    sys.exit(main())
