"""Compile every Triton kernel for every supported GPU generation, without a GPU, and hold the
machine code to its budgets.

Prints a line per launch, input dtype and GPU generation: registers a thread, bytes spilled, bytes
of shared memory, and for the longest innermost loop of a scan the instructions, shuffles, barriers
and accesses of local memory, a state (one channel, one n, one step). Beside them stand the cycles
that a turn of the hot loops takes on an H200, predicted by sm_model.py with as many warps on a
multiprocessor as the budget says: instructions cannot see waiting. At the end stands a table of the
worst figures of each GPU generation. The exit code is 1 if anything does not compile, is over the
budget that kernel_budgets.toml gives it for this version of Triton, or is never launched, and if
the assembler's report cannot be read.

    python tools/kernels/compile_kernels.py --arch 89 90 --dtype bfloat16 --jobs 4
"""

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernel_budgets
import machine_code
from compiled_kernel import Usage, compile_launch, prepare
from kernel_budgets import Predicted, budget_of, over_budget
from kernel_launches import CALLS, MODULES, Launch, kernels_of, record
from sm_model import predict

ARCHITECTURES = (80, 86, 89, 90, 120)
ALSO = (75, 100)  # Turing, on which the engines do not choose Triton by themselves, and the servers' Blackwell
DTYPES = ("float32", "bfloat16", "float16")
MODELLED = 90  # the generation of sm_model.py's multiprocessor
WARPS = 6  # on a multiprocessor, where no budget says so: a batch of 64 at the first stage of ``tiny``
SWEEP = "backward"  # the kernels that spill by design
SCANS = ("sequence_forward.forward", "scan_forward.forward", "sequence_backward.backward", "scan_backward.backward")


def compile_and_predict(launch: Launch, arch: int, budget: dict[str, Any] | None, cache: Path | None) -> Predicted:
    """Compile a launch, and predict the cycles of its hot loops: those that the budget names, else
    the longest."""
    usage = compile_launch(launch, arch, cache)
    named, warps = (budget or {}).get("loops", [{}]), (budget or {}).get("warps", WARPS)
    hot = usage.loops[: len(named)] if arch == MODELLED else ()
    cycles = tuple(predict(loop.code, warps).cycles for loop in hot)
    counted = tuple(replace(loop, code=()) for loop in usage.loops)  # hundreds of instructions that nobody reads now
    return Predicted(replace(usage, loops=counted), cycles)


def _figures(launch: Launch, predicted: Predicted) -> str:
    usage = predicted.usage
    line = f"{usage.registers:9} {usage.spills:7} {usage.shared:7}"
    if not usage.loops:
        return line
    loop = usage.loops[0]
    counts = (loop.instructions, loop.shuffles, loop.barriers, loop.local, loop.exps, loop.memory)
    line += "".join(f" {figure / launch.states:8.2f}" for figure in counts)
    return f"{line} {'+'.join(f'{cycles:.0f}' for cycles in predicted.cycles) or '-':>10}"


def representative(launches: list[Launch], architectures: list[int], budgets: list[dict[str, Any]]) -> list[Launch]:
    """Pick the first launch of each kernel: in the first dtype, and in the others where its loops
    have a budget."""
    picked: dict[tuple[str, str], Launch] = {}
    counted = [budget for budget in budgets if budget.get("loops")]
    for launch in launches:
        if launch.dtype == launches[0].dtype or any(budget_of(launch, arch, counted) for arch in architectures):
            picked.setdefault((launch.name, launch.dtype), launch)
    return list(picked.values())


def table(version: str, compiled: Sequence[tuple[Launch, int, Usage | None]]) -> list[str]:
    """A table in Markdown: of each GPU generation how many launches compiled, and their worst
    figures; instructions with 16 states, of the longest loop."""
    lines = [
        "| Triton | compute capability | compiled | bytes spilled: sweeps | all others | shared memory "
        "| instructions a state: forward 1-D | 2-D | sweep 1-D | 2-D |",
        "|---" * 10 + "|",
    ]
    for arch in dict.fromkeys(arch for _, arch, _ in compiled):
        tried = [(launch, usage) for launch, at, usage in compiled if at == arch]
        read = [(launch, usage) for launch, usage in tried if usage is not None]
        counted = [(launch, usage) for launch, usage in read if usage.loops and launch.constants.get("N") == 16]
        columns: list[list[float]] = [
            [usage.spills for launch, usage in read if launch.kernel == SWEEP],
            [usage.spills for launch, usage in read if launch.kernel != SWEEP],
            [usage.shared for _, usage in read],
            *([usage.loops[0].instructions / launch.states for launch, usage in counted if launch.name == name]
              for name in SCANS),
        ]  # fmt: skip  # figures of a row
        worst = (f"{max(figures):.{1 if rank > 2 else 0}f}" if figures else "-" for rank, figures in enumerate(columns))
        cells = (version, f"{arch // 10}.{arch % 10}", f"{len(read)} of {len(tried)}", *worst)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _compile_all(options: argparse.Namespace) -> int:
    import triton

    file = kernel_budgets.read()
    budgets, said = kernel_budgets.budgets_for(triton.__version__, file)
    print(said)
    recorded = {dtype: record(dtype, options.operator) for dtype in dict.fromkeys(["float32", *options.dtype])}
    launched = {(launch.module, launch.kernel) for launch in recorded["float32"]}
    failures = [
        f"{module}.{kernel}: no call in kernel_launches.py launches it"
        for module in (sorted({module for module, _ in launched}) if options.operator else MODULES)
        for kernel in kernels_of(module)
        if (module, kernel) not in launched
    ]
    launches = [
        launch
        for dtype in options.dtype
        for launch in recorded[dtype]
        if options.case in launch.case and options.kernel in launch.name
    ]
    if options.quick:
        launches = representative(launches, options.arch, file["budget"])
    head = f"{'kernel':26} {'case':20} {'dtype':9} {'arch':6} {'registers':>9} {'spills':>7} {'shared':>7}"
    print(
        head
        + "".join(f" {name:>8}" for name in ("instr.", "shuffles", "barriers", "local", "exp", "memory"))
        + f" {'cycles':>10}"
    )
    print("instr. to memory: a state of the longest loop; cycles: a turn of the hot loops on an H200, PREDICTED")
    if machine_code.disassembler() is None:
        print("no disassembler in this Triton: loops are not counted, and their budgets not checked")
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled: dict[str, Future[Predicted]] = {}  # dtypes may share one: the scan of images widens what it reads
        rows: list[tuple[Launch, int, dict[str, Any] | None, Future[Predicted]]] = []
        read: list[tuple[Launch, int, Usage | None]] = []
        for launch, arch in itertools.product(launches, options.arch):
            budget = budget_of(launch, arch, budgets)
            alike = repr((launch.specialisation, arch, budget))
            if alike not in compiled:
                compiled[alike] = pool.submit(compile_and_predict, launch, arch, budget, options.cache)
            rows.append((launch, arch, budget, compiled[alike]))
        for launch, arch, budget, future in rows:
            line = f"{launch.name:26} {launch.case:20} {launch.dtype:9} sm_{arch:<3}"
            error = future.exception()
            read.append((launch, arch, None if error else future.result().usage))
            if error is None:
                predicted = future.result()
                over = over_budget(launch, predicted, budget)
                print(f"{line} {_figures(launch, predicted)}{'  OVER BUDGET' if over else ''}", flush=True)
                failures += [f"{line}: {sentence}" for sentence in over]
            else:
                failures.append(f"{line}: {type(error).__name__}: {str(error).strip()[-500:]!a}")
                print(f"{line} FAILED", flush=True)
    print(f"{len(rows)} tried, {len(failures)} failures", *failures, *table(triton.__version__, read), sep="\n")
    return 1 if failures or not rows else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel ahead of time, with no GPU.")
    parser.add_argument(
        "--arch",
        nargs="+",
        type=int,
        choices=sorted(ARCHITECTURES + ALSO),
        default=list(ARCHITECTURES),
        help="GPU generations, as 90 for sm_90",
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="dtypes of the inputs")
    parser.add_argument("--operator", nargs="+", choices=CALLS, default=[], help="whose kernels (default: all)")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 16), help="processes")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one launch of each kernel: in the first dtype, and in the others if its loops have a budget",
    )
    parser.add_argument("--case", default="", help="only launches whose case has this text in it, as pair")
    parser.add_argument("--kernel", default="", help="only kernels whose name has this text in it, as scan_forward")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep what was compiled there, and read it again")
    options = parser.parse_args(argv)
    if (missing := prepare()) is not None:
        parser.error(missing)
    return _compile_all(options)


if __name__ == "__main__":
    sys.exit(main())
