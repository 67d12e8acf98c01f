"""Compile every Triton kernel for every supported GPU generation, without a GPU, and hold the
machine code to its budgets.

Prints a line per launch, input dtype and GPU generation: registers a thread, bytes spilled, bytes
of shared memory, and for the longest innermost loop of a scan the instructions, shuffles, barriers
and accesses of local memory, a state (one channel, one n, one step). Beside them stand the cycles
that a turn of the hot loops takes on an H200, predicted by sm_model.py with as many warps on a
multiprocessor as the budget says: instructions cannot see waiting. The exit code is 1 if anything
does not compile, is over the budget of kernel_budgets.toml, or is never launched, and if the
assembler's report cannot be read (Triton 3.3 gives none).

    python tools/kernels/compile_kernels.py --arch 89 90 --dtype bfloat16 --jobs 4
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import tomllib
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import machine_code
from compiled_kernel import Usage, compile_launch, prepare
from kernel_launches import CALLS, MODULES, Launch, kernels_of, record
from sm_model import predict

ARCHITECTURES = (80, 86, 89, 90, 120)
ALSO = (75, 100)  # Turing, on which the engines do not choose Triton by themselves, and the servers' Blackwell
DTYPES = ("float32", "bfloat16", "float16")
MODELLED = 90  # the generation of sm_model.py's multiprocessor
WARPS = 6  # on a multiprocessor, where no budget says so: a batch of 64 at the first stage of ``tiny``
BUDGETS = Path(__file__).resolve().parent / "kernel_budgets.toml"


@dataclass(frozen=True)
class Predicted:
    """What compiling a launch showed, and the cycles that a turn of its hot loops takes by
    sm_model.py; none where the model knows nothing of the GPU generation."""

    usage: Usage
    cycles: tuple[float, ...] = ()


def budget_of(launch: Launch, arch: int, budgets: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Find the first budget that kernel_budgets.toml gives this launch on this GPU generation. One
    without GPU generations, dtypes, number of states or rank of delta is for all of them."""
    this = {"kernel": launch.name, "arch": arch, "dtype": launch.dtype}
    this |= {"n": launch.constants.get("N"), "rank": launch.constants.get("RANK")}
    for budget in budgets:
        if all(
            value in (budget[name] if name in ("arch", "dtype") else [budget[name]])
            for name, value in this.items()
            if name in budget
        ):
            return budget
    return None


def compile_and_predict(launch: Launch, arch: int, budget: dict[str, Any] | None, cache: Path | None) -> Predicted:
    """Compile a launch, and predict the cycles of its hot loops: those that the budget names, else
    the longest."""
    usage = compile_launch(launch, arch, cache)
    named, warps = (budget["loops"], budget["warps"]) if budget and budget.get("loops") else ([{}], WARPS)
    hot = usage.loops[: len(named)] if arch == MODELLED else ()
    cycles = tuple(predict(loop.code, warps).cycles for loop in hot)
    counted = tuple(replace(loop, code=()) for loop in usage.loops)  # hundreds of instructions that nobody reads now
    return Predicted(replace(usage, loops=counted), cycles)


def over_budget(launch: Launch, predicted: Predicted, budget: dict[str, Any] | None) -> list[str]:
    """Say of each figure that it is above what the budget allows; nothing of loops where none could
    be counted."""
    usage = predicted.usage
    if budget is None:
        return []
    # Where B or C is constant the second longest loop is the sweep over the last, odd steps, not
    # the one that rebuilds.
    varies = launch.constants.get("VARY_B", True) and launch.constants.get("VARY_C", True)
    named = budget.get("loops", []) if usage.loops else []
    named = named if varies else named[:1]
    sentences = [
        f"{figure} bytes {what}, {budget[limit]} allowed"
        for figure, what, limit in (
            (usage.spills, "spilled", "spills"),
            (usage.shared, "of shared memory", "shared"),
        )
        if figure > budget.get(limit, figure)
    ]
    for rank, allowed in enumerate(named):
        loop = usage.loops[rank]
        sentences += [
            f"loop {allowed['name']}: {getattr(loop, figure) / launch.states:.2f} {figure} a state, {most} allowed"
            for figure, most in allowed.items()
            if figure not in ("name", "cycles") and getattr(loop, figure) / launch.states > most
        ]
    sentences += [
        f"loop {allowed['name']}: {cycles:.0f} cycles a turn predicted, {allowed['cycles']} allowed"
        for allowed, cycles in zip(named, predicted.cycles, strict=False)
        if "cycles" in allowed and cycles > allowed["cycles"]
    ]
    return sentences


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


def _compile_all(options: argparse.Namespace) -> int:
    budgets = tomllib.loads(BUDGETS.read_text(encoding="utf-8"))["budget"]
    recorded = {dtype: record(dtype, options.operator) for dtype in dict.fromkeys(["float32", *options.dtype])}
    launched = {(launch.module, launch.kernel) for launch in recorded["float32"]}
    failures = [
        f"{module}.{kernel}: no call in kernel_launches.py launches it"
        for module in (sorted({module for module, _ in launched}) if options.operator else MODULES)
        for kernel in kernels_of(module)
        if (module, kernel) not in launched
    ]
    launches = [launch for dtype in options.dtype for launch in recorded[dtype] if options.case in launch.case]
    if options.quick:
        launches = representative(launches, options.arch, budgets)
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
        rows = []
        for launch, arch in itertools.product(launches, options.arch):
            budget = budget_of(launch, arch, budgets)
            alike = repr((launch.specialisation, arch, budget))
            if alike not in compiled:
                compiled[alike] = pool.submit(compile_and_predict, launch, arch, budget, options.cache)
            rows.append((launch, arch, budget, compiled[alike]))
        for launch, arch, budget, future in rows:
            line = f"{launch.name:26} {launch.case:20} {launch.dtype:9} sm_{arch:<3}"
            error = future.exception()
            if error is None:
                predicted = future.result()
                over = over_budget(launch, predicted, budget)
                print(f"{line} {_figures(launch, predicted)}{'  OVER BUDGET' if over else ''}", flush=True)
                failures += [f"{line}: {sentence}" for sentence in over]
            else:
                failures.append(f"{line}: {type(error).__name__}: {str(error).strip()[-500:]!a}")
                print(f"{line} FAILED", flush=True)
    print(f"{len(rows)} tried, {len(failures)} failures", *failures, sep="\n")
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
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep what was compiled there, and read it again")
    options = parser.parse_args(argv)
    if (missing := prepare()) is not None:
        parser.error(missing)
    return _compile_all(options)


if __name__ == "__main__":
    sys.exit(main())
