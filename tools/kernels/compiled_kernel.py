"""Compile one launch of a Triton kernel for one GPU generation, without a GPU, and read what the
assembler made of it: registers, spills, shared memory, and the innermost loops.

A folder given as ``cache`` keeps what was read of each compiled launch, under a name that its
source, its specialisation, the compiler and these programs make up: the same is compiled once.
"""

import contextlib
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import machine_code
from kernel_launches import Launch, kernels_of


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel: registers a thread, bytes a thread spills, bytes of shared
    memory a program; and its innermost loops, the longest first."""

    registers: int
    spills: int
    shared: int
    loops: tuple[machine_code.Loop, ...] = ()


def prepare() -> str | None:
    """Let the kernels of this process, and of those it starts, be compiled rather than interpreted,
    with the assembler's report: called before the first kernel is imported.

    Returns what is missing, and None if nothing is.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton (on Windows triton-windows)"
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    return None


def compile_launch(launch: Launch, arch: int, cache: Path | None = None) -> Usage:
    """Compile one launch for one GPU generation. Raises what Triton raises, and RuntimeError if
    the assembler's report cannot be read."""
    kept = None if cache is None else cache / f"{_name(launch, arch)}.json.gz"
    if kept is not None and kept.is_file():
        return _read(kept)
    usage = _compile(launch, arch)
    if kept is not None:
        _write(kept, usage)
    return usage


def _compile(launch: Launch, arch: int) -> Usage:
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
    # Triton 3.3 throws the assembler's report away.
    said = report.getvalue() or machine_code.report_of(compiled.asm["ptx"], arch)
    return read_usage(said, compiled.metadata.shared, loops)


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


def _name(launch: Launch, arch: int) -> str:
    """A name that changes with everything that the result depends on."""
    import triton

    kernel = kernels_of(launch.module)[launch.kernel]  # its key: its source's, and that of what it calls and reads
    programs = [Path(module).read_bytes() for module in (__file__, machine_code.__file__)]
    parts = (triton.__version__, arch, kernel.cache_key, launch.specialisation)
    return hashlib.sha256(repr(parts).encode() + b"".join(programs)).hexdigest()


def _write(path: Path, usage: Usage) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    loops = [
        [[[one.text, one.stall, one.write, one.read, one.wait] for one in loop.code], loop.skipped]
        for loop in usage.loops
    ]
    text = json.dumps([usage.registers, usage.spills, usage.shared, loops])
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix="unfinished_")
    with os.fdopen(handle, "wb") as file:
        file.write(gzip.compress(text.encode("utf-8"), mtime=0))
    os.replace(beside, path)


def _read(path: Path) -> Usage:
    registers, spills, shared, loops = json.loads(gzip.decompress(path.read_bytes()))
    counted = [
        machine_code.count([machine_code.Instruction(*one) for one in code], tuple((a, b) for a, b in skipped))
        for code, skipped in loops
    ]
    return Usage(registers, spills, shared, tuple(counted))
