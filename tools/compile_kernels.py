"""Compiles every Triton kernel for every supported GPU generation, ahead of time and with no GPU.

The launchers run on tensors without storage, with a recorder in the place of each kernel: what is compiled is what they would launch, for every row
of the launch tables. Prints a line per kernel, input dtype and GPU generation: registers a thread, bytes spilled, bytes of shared memory. The exit
code is 1 if anything does not compile, if a kernel is never launched, or if the assembler's report cannot be read (Triton 3.3 gives none).

    python tools/compile_kernels.py --arch 80 90 --dtype bfloat16 --jobs 4
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))  # runs from a bare clone; spawned processes come past here too

ARCHITECTURES = (80, 86, 89, 90, 120)
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # torch's name: Triton's
ENGINES = ("selective_scan_triton", "selective_scan_2d_triton", "squeeze_excite_triton")
SCAN_SIZES = ((16, 3), (16, 32), (1, 1), (32, 8), (64, 8))  # states, rank of delta: the usual, then the ends of the launch table's rows
GATE_SIZES = ((96, 8), (768, 48))  # channels, hidden units


@dataclass
class Launch:
    """One specialisation of one kernel, as Triton's own launch would make it."""

    engine: str
    kernel: str
    dtype: str
    case: str = field(compare=False)  # a label only: shapes that specialise alike are one launch
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[str, object] = field(default_factory=dict)
    multiples_of_16: list[int] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The kernel after its operator, as selective_scan.forward."""
        return f"{self.engine.removesuffix('_triton')}.{self.kernel.lstrip('_')}"


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel uses: registers a thread, bytes a thread spills, bytes of shared memory a program."""

    registers: int
    spills: int
    shared: int


class _Recorder:
    """Stands in for a kernel and notes how it is launched."""

    def __init__(self, kernel: Any, label: tuple[str, str, str, str], launches: list[Launch]) -> None:
        self.kernel, self.label, self.launches = kernel, label, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.note

    def note(self, *args: object, **options: object) -> None:
        launch = Launch(*self.label)
        given = dict(zip(self.kernel.arg_names, args, strict=False))  # the rest came by name
        for i, parameter in enumerate(self.kernel.params):
            _specialise(launch, i, parameter, given[parameter.name] if parameter.name in given else options.pop(parameter.name))
        launch.options = options
        self.launches.append(launch)


def _specialise(launch: Launch, i: int, parameter: Any, value: Any) -> None:
    """Notes an argument's type, and what the compiler may assume of it: that it is this constant, or a multiple of 16."""
    if hasattr(value, "dtype"):
        launch.signature[parameter.name] = "*" + DTYPES[str(value.dtype).removeprefix("torch.")]
        aligned = True  # as torch allocates
    elif parameter.is_constexpr or (isinstance(value, int) and value == 1):
        launch.signature[parameter.name] = "constexpr"
        launch.constants[parameter.name] = value
        aligned = False
    else:
        launch.signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, int) and value % 16 == 0
    if aligned and not parameter.do_not_specialize_on_alignment:
        launch.multiples_of_16.append(i)


def _calls(engine: str, dtype_name: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """Named calls of an engine's forward and backward, which between them reach each of its kernels."""
    import torch

    module = importlib.import_module(f"medmambase_kernels.{engine}")
    dtype = getattr(torch, dtype_name)
    new = partial(torch.empty, device="meta")
    if engine == "squeeze_excite_triton":
        for c, hidden in GATE_SIZES:
            x, squeeze, excite, row = new(2, 14, 14, c, dtype=dtype), new(hidden, c), new(c, hidden), new(2, c)
            yield f"c{c}", partial(module.forward, x, squeeze, excite, 2.0)
            yield f"c{c}", partial(module.backward, x, x, squeeze, excite, 2.0, row, row)
    elif engine == "selective_scan_2d_triton":
        for n, r in SCAN_SIZES:
            x, x_dbl = new(2, 14, 14, 96, dtype=dtype), new(2, 14, 14, 4, r + 2 * n, dtype=dtype)
            weights = (new(4, 96, r), new(4, 96), new(4, 96, n), new(4, 96))
            yield f"n{n} r{r}", partial(module.forward, x, x_dbl, *weights, dtype, True)
            yield f"n{n} r{r}", partial(module.backward, x, x, x_dbl, *weights, new(1))
    else:
        for n in dict(SCAN_SIZES):
            for label, B in (("B(l)", new(2, 1, n, 196, dtype=dtype)), ("B", new(96, n))):
                u, A, D, state = new(2, 96, 196, dtype=dtype), new(96, n), new(96), new(2, 96, n)
                yield f"n{n} {label}", partial(module.forward, u, u, A, B, B, D, D, True, state, dtype, True)
                yield f"n{n} {label}", partial(module.backward, u, state, u, u, A, B, B, D, D, True, state, new(1))


def kernels_of(engine: str) -> dict[str, Any]:
    """An engine's kernels by name. Kernels, unlike what they call, have parameters named like x_ptr."""
    members = vars(importlib.import_module(f"medmambase_kernels.{engine}"))
    return {name: f for name, f in members.items() if any(argument.endswith("_ptr") for argument in getattr(f, "arg_names", ()))}


def record(dtype: str) -> list[Launch]:
    """Every launch the engines make for inputs of dtype, each specialisation once."""
    launches: list[Launch] = []
    for engine in ENGINES:
        for case, call in _calls(engine, dtype):
            recorders = {name: _Recorder(kernel, (engine, name, dtype, case), launches) for name, kernel in kernels_of(engine).items()}
            with mock.patch.dict(vars(importlib.import_module(f"medmambase_kernels.{engine}")), recorders):
                call()
    return [launch for i, launch in enumerate(launches) if launch not in launches[:i]]


def compile_launch(launch: Launch, arch: int) -> Usage:
    """Compiles one launch for one GPU generation. Raises what Triton raises, and RuntimeError if the assembler's report cannot be read."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(i,): [["tt.divisibility", 16]] for i in launch.multiples_of_16}
    source = ASTSource(fn=kernels_of(launch.engine)[launch.kernel], signature=launch.signature, constexprs=launch.constants, attrs=attributes)
    report = io.StringIO()
    with (
        tempfile.TemporaryDirectory(prefix="compile_kernels_") as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),  # empty: a kernel from the cache has no report
        contextlib.redirect_stdout(report),
    ):
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    return read_usage(report.getvalue(), compiled.metadata.shared)


def read_usage(report: str, shared: int) -> Usage:
    """Registers and spills from the assembler's report. Raises RuntimeError if they are not in it."""
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    if registers is None or spills is None:
        raise RuntimeError(f"it compiled, but registers and spills cannot be read from the assembler's report {report[:200]!r}")
    return Usage(int(registers[1]), int(spills[1]), shared)


def _compile_all(architectures: list[int], dtypes: list[str], jobs: int, quick: bool) -> int:
    launches = [launch for dtype in dtypes for launch in record(dtype)]
    if quick:
        launches = list({(launch.name, launch.dtype): launch for launch in reversed(launches)}.values())[::-1]
    launched = {(launch.engine, launch.kernel) for launch in launches}
    missing = [f"{engine}.{kernel}" for engine in ENGINES for kernel in kernels_of(engine) if (engine, kernel) not in launched]
    failures = [f"{name}: no call in this tool launches it" for name in missing]
    print(f"{'kernel':26} {'case':9} {'dtype':9} {'arch':6} {'registers':>9} {'spills':>7} {'shared':>7}")
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [(launch, arch, pool.submit(compile_launch, launch, arch)) for launch in launches for arch in architectures]
        for launch, arch, future in futures:
            line = f"{launch.name:26} {launch.case:9} {launch.dtype:9} sm_{arch:<3}"
            error = future.exception()
            if error is None:
                usage = future.result()
                print(f"{line} {usage.registers:9} {usage.spills:7} {usage.shared:7}", flush=True)
            else:
                failures.append(f"{line}: {type(error).__name__}: {str(error).strip()[-500:]!a}")
                print(f"{line} FAILED", flush=True)
    print(f"{len(futures)} tried, {len(failures)} failures", *failures, sep="\n")
    return 1 if failures or not futures else 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel ahead of time, with no GPU.")
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHITECTURES, default=list(ARCHITECTURES), help="GPU generations, as 90 for sm_90")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="dtypes of the inputs")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 16), help="processes")
    parser.add_argument("--quick", action="store_true", help="one case of each kernel instead of all")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: pip install triton (on Windows triton-windows)")
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    return _compile_all(options.arch, options.dtype, options.jobs, options.quick)


if __name__ == "__main__":
    sys.exit(main())
