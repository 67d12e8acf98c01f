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
import importlib.util
import multiprocessing
import os
import sys
import tomllib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import machine_code
from compiled_kernel import Usage, compile_launch
from kernel_launches import MODULES, Launch, kernels_of, record
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
    """Find the budget that kernel_budgets.toml gives this launch on this GPU generation."""
    for budget in budgets:
        if (
            launch.name == budget["kernel"]
            and arch in budget["arch"]
            and launch.dtype in budget["dtype"]
            and launch.constants.get("N") == budget["n"]
        ):
            return budget
    return None


def compile_and_predict(launch: Launch, arch: int, budget: dict[str, Any] | None, cache: Path | None) -> Predicted:
    """Compile a launch, and predict the cycles of its hot loops: those that the budget names, else
    the longest."""
    usage = compile_launch(launch, arch, cache)
    hot = usage.loops[: len(budget["loops"]) if budget else 1] if arch == MODELLED else ()
    warps = budget["warps"] if budget else WARPS
    cycles = tuple(predict(loop.code, warps).cycles for loop in hot)
    counted = tuple(replace(loop, code=()) for loop in usage.loops)  # hundreds of instructions that nobody reads now
    return Predicted(replace(usage, loops=counted), cycles)


def over_budget(launch: Launch, predicted: Predicted, budget: dict[str, Any] | None) -> list[str]:
    """Say of each figure that it is above what the budget allows; nothing where there is no budget
    or no loop could be counted."""
    usage = predicted.usage
    if budget is None or not usage.loops:
        return []
    # Where B or C is constant the second longest loop is the sweep over the last, odd steps, not
    # the one that rebuilds.
    varies = launch.constants.get("VARY_B", True) and launch.constants.get("VARY_C", True)
    named = budget["loops"] if varies else budget["loops"][:1]
    sentences = [
        f"{figure} bytes {what}, {budget[limit]} allowed"
        for figure, what, limit in (
            (usage.spills, "spilled", "spills"),
            (usage.shared, "of shared memory", "shared"),
        )
        if figure > budget[limit]
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


def _compile_all(
    architectures: list[int], dtypes: list[str], jobs: int, quick: bool, case: str | None, cache: Path | None
) -> int:
    budgets = tomllib.loads(BUDGETS.read_text(encoding="utf-8"))["budget"]
    launches = [launch for dtype in dtypes for launch in record(dtype)]
    if case is not None:
        launches = [launch for launch in launches if case in launch.case]
    if quick:
        launches = list({(launch.name, launch.dtype): launch for launch in reversed(launches)}.values())[::-1]
    launched = {(launch.module, launch.kernel) for launch in launches}
    missing = [
        f"{module}.{kernel}"
        for module in MODULES
        for kernel in kernels_of(module)
        if case is None and (module, kernel) not in launched
    ]
    failures = [f"{name}: no call in kernel_launches.py launches it" for name in missing]
    head = f"{'kernel':26} {'case':20} {'dtype':9} {'arch':6} {'registers':>9} {'spills':>7} {'shared':>7}"
    print(
        head
        + "".join(f" {name:>8}" for name in ("instr.", "shuffles", "barriers", "local", "exp", "memory"))
        + f" {'cycles':>10}"
    )
    print("instr. to memory: a state of the longest loop; cycles: a turn of the hot loops on an H200, PREDICTED")
    if machine_code.disassembler() is None:
        print("no disassembler in this Triton: loops are not counted, and budgets not checked")
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [
            (launch, arch, pool.submit(compile_and_predict, launch, arch, budget_of(launch, arch, budgets), cache))
            for launch in launches
            for arch in architectures
        ]
        for launch, arch, future in futures:
            line = f"{launch.name:26} {launch.case:20} {launch.dtype:9} sm_{arch:<3}"
            error = future.exception()
            if error is None:
                predicted = future.result()
                over = over_budget(launch, predicted, budget_of(launch, arch, budgets))
                print(f"{line} {_figures(launch, predicted)}{'  OVER BUDGET' if over else ''}", flush=True)
                failures += [f"{line}: {sentence}" for sentence in over]
            else:
                failures.append(f"{line}: {type(error).__name__}: {str(error).strip()[-500:]!a}")
                print(f"{line} FAILED", flush=True)
    print(f"{len(futures)} tried, {len(failures)} failures", *failures, sep="\n")
    return 1 if failures or not futures else 0


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
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 16), help="processes")
    parser.add_argument("--quick", action="store_true", help="one case of each kernel instead of all")
    parser.add_argument("--case", help="only launches whose case has this text in it, as pair")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep what was compiled there, and read it again")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: pip install triton (on Windows triton-windows)")
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    return _compile_all(options.arch, options.dtype, options.jobs, options.quick, options.case, options.cache)


if __name__ == "__main__":
    sys.exit(main())
