"""Compile every Triton kernel for every supported GPU generation, without a GPU, and hold the
machine code to its budgets.

Prints a line per launch, input dtype and GPU generation: registers a thread, bytes spilled, bytes
of shared memory, and for the longest innermost loop of a scan the instructions, shuffles, barriers
and accesses of local memory, a state (one channel, one n, one step). The exit code is 1 if anything
does not compile, is over the budget of kernel_budgets.toml, or is never launched, and if the
assembler's report cannot be read (Triton 3.3 gives none).

    python tools/kernels/compile_kernels.py --arch 89 90 --dtype bfloat16 --jobs 4
"""

import argparse
import contextlib
import importlib.util
import io
import multiprocessing
import os
import re
import sys
import tempfile
import tomllib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import machine_code
from kernel_launches import MODULES, Launch, kernels_of, record

ARCHITECTURES = (80, 86, 89, 90, 120)
ALSO = (75, 100)  # Turing, on which the engines do not choose Triton by themselves, and the servers' Blackwell
DTYPES = ("float32", "bfloat16", "float16")
BUDGETS = Path(__file__).resolve().parent / "kernel_budgets.toml"


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel: registers a thread, bytes a thread spills, bytes of shared
    memory a program; and its innermost loops, the longest first."""

    registers: int
    spills: int
    shared: int
    loops: tuple[machine_code.Loop, ...] = ()


def compile_launch(launch: Launch, arch: int) -> Usage:
    """Compile one launch for one GPU generation. Raises what Triton raises, and RuntimeError if
    the assembler's report cannot be read."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(i,): [["tt.divisibility", 16]] for i in launch.multiples_of_16}
    source = ASTSource(
        fn=kernels_of(launch.module)[launch.kernel],
        signature=launch.signature,
        constexprs=launch.constants,
        attrs=attributes,
    )
    report = io.StringIO()
    with (
        tempfile.TemporaryDirectory(prefix="compile_kernels_") as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),  # empty: a kernel from the cache has no report
        contextlib.redirect_stdout(report),
    ):
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    program = machine_code.disassembler()
    loops = (
        machine_code.loops(machine_code.disassemble(compiled.asm["cubin"], program))
        if program and launch.states
        else []
    )
    return read_usage(report.getvalue(), compiled.metadata.shared, loops)


def read_usage(report: str, shared: int, loops: list[machine_code.Loop]) -> Usage:
    """Read registers and spills from the assembler's report. Raises RuntimeError if they are not in
    it."""
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    if registers is None or spills is None:
        raise RuntimeError(
            f"it compiled, but registers and spills cannot be read from the assembler's report {report[:200]!r}"
        )
    return Usage(int(registers[1]), int(spills[1]), shared, tuple(loops))


def over_budget(launch: Launch, arch: int, usage: Usage, budgets: list[dict[str, Any]]) -> list[str]:
    """Say of each figure that it is above what kernel_budgets.toml allows this launch; nothing
    where it has no budget or no loop could be counted."""
    sentences = []
    for budget in budgets:
        asked = (
            launch.name == budget["kernel"]
            and arch in budget["arch"]
            and launch.dtype in budget["dtype"]
            and launch.constants.get("N") == budget["n"]
        )
        if not (asked and usage.loops):
            continue
        # Where B or C is constant the second longest loop is the sweep over the last, odd steps,
        # not the one that rebuilds.
        varies = launch.constants.get("VARY_B", True) and launch.constants.get("VARY_C", True)
        if usage.spills > budget["spills"]:
            sentences.append(f"{usage.spills} bytes spilled, {budget['spills']} allowed")
        for rank, allowed in enumerate(budget["loops"] if varies else budget["loops"][:1]):
            loop = usage.loops[rank]
            sentences += [
                f"loop {allowed['name']}: {getattr(loop, figure) / launch.states:.2f} {figure} a state, {most} allowed"
                for figure, most in allowed.items()
                if figure != "name" and getattr(loop, figure) / launch.states > most
            ]
    return sentences


def _figures(launch: Launch, usage: Usage) -> str:
    line = f"{usage.registers:9} {usage.spills:7} {usage.shared:7}"
    if not usage.loops:
        return line
    loop = usage.loops[0]
    return line + "".join(
        f" {count / launch.states:8.2f}"
        for count in (loop.instructions, loop.shuffles, loop.barriers, loop.local, loop.exps, loop.memory)
    )


def _compile_all(architectures: list[int], dtypes: list[str], jobs: int, quick: bool, case: str | None) -> int:
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
    print(head + "".join(f" {name:>8}" for name in ("instr.", "shuffles", "barriers", "local", "exp", "memory")))
    if machine_code.disassembler() is None:
        print("no disassembler in this Triton: loops are not counted, and budgets not checked")
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [
            (launch, arch, pool.submit(compile_launch, launch, arch)) for launch in launches for arch in architectures
        ]
        for launch, arch, future in futures:
            line = f"{launch.name:26} {launch.case:20} {launch.dtype:9} sm_{arch:<3}"
            error = future.exception()
            if error is None:
                usage = future.result()
                over = over_budget(launch, arch, usage, budgets)
                print(f"{line} {_figures(launch, usage)}{'  OVER BUDGET' if over else ''}", flush=True)
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
    options = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: pip install triton (on Windows triton-windows)")
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    return _compile_all(options.arch, options.dtype, options.jobs, options.quick, options.case)


if __name__ == "__main__":
    sys.exit(main())
