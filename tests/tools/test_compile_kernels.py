"""Every kernel compiles, with no GPU: tools/kernels/compile_kernels.py, run as a person runs it."""

import ast
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import compile_kernels
import compiled_kernel
import machine_code
from compiled_kernel import Usage
from kernel_launches import Launch
from machine_code import Instruction, Loop, count, disassembler, loops

triton = pytest.importorskip("triton")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kernels" / "compile_kernels.py"
KERNELS = {
    "scan_forward.forward",
    "scan_forward.carry",
    "scan_backward.backward",
    "scan_backward.adjoint_ends",
    "image_pack.pack",
    "image_pack.unpack",
    "image_pack.totals",
    "sequence_pack.pack",
    "sequence_pack.unpack",
    "sequence_pack.totals",
    "partial_sums.add",
    "sequence_pack.lengthwise",
    "sequence_forward.forward",
    "sequence_forward.carry",
    "sequence_backward.backward",
    "sequence_backward.adjoint_ends",
    "augment.sector",
    "augment.vary",
    "squeeze_excite.pool",
    "squeeze_excite.gate",
    "squeeze_excite.gate_back",
    "squeeze_excite.scale",
    "squeeze_excite.scale_back",
    "squeeze_excite_image.whole",
    "batch_norm.norm",
    "batch_norm.norm_back",
    "normed_product.product",
    "gated_norm.norm",
    "gated_norm.norm_back",
    "depthwise_silu.stencil",
    "depthwise_silu.stencil_back",
    "depthwise_silu.slope",
    "causal_conv1d.convolve",
    "causal_conv1d.slope",
}
BUDGETED = {name for name in KERNELS if name.partition(".")[2] in ("forward", "carry", "adjoint_ends", "backward")}
EVERY = ("75", "80", "86", "89", "90", "100", "120")
has_report = pytest.mark.skipif(
    triton.__version__.startswith("3.3.") and disassembler() is None,
    reason="Triton 3.3 throws the assembler's report away, and on Windows it cannot be had once more",
)


def _run(*arguments: str, tool: Path = TOOL) -> tuple[int, list[list[str]], str]:
    """Exit code, the table's rows as words, and everything printed."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONIOENCODING": "utf-8",
    }  # set by the interpreter's tests: the tool must drop it
    done = subprocess.run(
        [sys.executable, str(tool), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    table = done.stdout.partition(" tried, ")[0]
    rows = [line.split() for line in table.splitlines() if " sm_" in line]
    return done.returncode, rows, done.stdout + done.stderr


@pytest.mark.slow
@has_report
def test_every_kernel_compiles_without_a_gpu_and_keeps_to_its_budget(request: pytest.FixtureRequest, kept: str) -> None:
    """One launch of each kernel for one GPU generation; with --all-architectures everything that
    the command can compile."""
    every = request.config.getoption("--all-architectures")
    architectures = EVERY if every else ("90",)
    dtypes = ("float32", "bfloat16", "float16") if every else ("float32", "bfloat16")
    how = ("--arch", *architectures, "--dtype", *dtypes, *(() if every else ("--quick",)))
    code, rows, printed = _run(*how, "--jobs", "2", "--cache", kept)
    assert code == 0 and "OVER BUDGET" not in printed, printed
    for arch, dtype in itertools.product(architectures, dtypes):
        expected = KERNELS if every or dtype == "float32" else BUDGETED
        if dtype != "float32":
            expected = {name for name in expected if not name.startswith("augment.")}  # in float32 alone
        assert {row[0] for row in rows if f"sm_{arch}" in row and dtype in row} == expected, printed
    if disassembler() is None or not triton.__version__.startswith("3.7."):
        return
    counted = [row for row in rows if {"sm_89", "sm_90"} & set(row) and row[1] == "n16"]
    scans = [row for row in counted if row[0] in ("scan_forward.forward", "scan_backward.backward")]
    assert len(scans) >= (40 if every else 4), printed
    for row in scans:
        instructions, shuffles, barriers = (float(figure) for figure in row[-7:-4])
        if row[0] == "scan_forward.forward":
            assert instructions <= 10.6 and shuffles == 0 and barriers <= 0.04, row
        elif "l49" not in row:  # there C is constant
            assert instructions <= 27.0 and shuffles <= 2.6, row
        cycles = [float(figure) for figure in row[-1].split("+")] if row[-1] != "-" else []
        loops_of_a_row = 1 if row[0] == "scan_forward.forward" else 2
        assert len(cycles) == (loops_of_a_row if "sm_90" in row else 0), row
        assert all(figure > 500 for figure in cycles), row  # the exponentials of 6 warps: 16 a cycle


def test_the_table_has_the_worst_figures_of_each_generation() -> None:
    def launched(kernel: str, n: int = 16) -> Launch:
        module, name = kernel.split(".")
        return Launch(module, name, "float32", "", constants={"STEPS": 4, "N": n, "BD": 32})

    loop = Loop(512, 0, 0, 0, 68, 44)
    compiled: list[tuple[Launch, int, Usage | None]] = [
        (launched("sequence_forward.forward"), 75, Usage(168, 4, 512, (loop, loop))),
        (launched("sequence_forward.forward"), 75, Usage(168, 0, 6144, (replace(loop, instructions=640), loop))),
        (launched("sequence_forward.forward", 8), 75, Usage(168, 0, 0, (replace(loop, instructions=900),))),
        (launched("scan_backward.backward"), 75, Usage(255, 644, 96, (replace(loop, instructions=1536), loop))),
        (launched("gated_norm.norm"), 75, Usage(40, 0, 64)),
        (launched("scan_forward.forward"), 120, None),
        (launched("gated_norm.norm"), 120, Usage(40, 0, 64)),
    ]
    head, line, *rows = compile_kernels.table("3.9.0", compiled)
    assert head.count("|") == line.count("|") == 11
    assert rows == [
        "| 3.9.0 | 7.5 | 5 of 5 | 644 | 4 | 6144 | 10.0 | - | - | 24.0 |",
        "| 3.9.0 | 12.0 | 1 of 2 | - | 0 | 64 | - | - | - | - |",
    ]


def test_what_was_compiled_is_read_again_and_anything_else_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[Launch, int]] = []
    keys = {"forward": "the source"}
    code = [Instruction("FFMA R1, R2, R3, R4", 4, 7, 2, 5)] * 20

    def compile_one(launch: Launch, arch: int) -> Usage:
        compiled.append((launch, arch))
        return Usage(40 + len(compiled), 8, 128, (count(code, ((3, 5),)),))

    monkeypatch.setattr(compiled_kernel, "_compile", compile_one)
    monkeypatch.setattr(
        compiled_kernel, "kernels_of", lambda module: {"forward": SimpleNamespace(cache_key=keys["forward"])}
    )
    launch = Launch("scan_forward", "forward", "float32", "n16", constants={"N": 16})
    first = compiled_kernel.compile_launch(launch, 90, tmp_path / "kept")
    again = compiled_kernel.compile_launch(launch, 90, tmp_path / "kept")
    assert again == first == Usage(41, 8, 128, (count(code, ((3, 5),)),)) and len(compiled) == 1
    assert again.loops[0].code == tuple(code)
    compiled_kernel.compile_launch(launch, 90)  # nothing kept, nothing read
    compiled_kernel.compile_launch(launch, 89, tmp_path / "kept")
    compiled_kernel.compile_launch(replace(launch, constants={"N": 8}), 90, tmp_path / "kept")
    compiled_kernel.compile_launch(replace(launch, multiples_of_16=[0]), 90, tmp_path / "kept")
    keys["forward"] = "an edited source"
    compiled_kernel.compile_launch(launch, 90, tmp_path / "kept")
    assert len(compiled) == 6


def test_innermost_loops_are_counted_and_outer_ones_are_not() -> None:
    line = "        /*{:04x}*/                   {} ;"
    body = [
        "FFMA R1, R2, R3, R4",
        "MUFU.EX2 R1, R2",
        "@P0 LDG.E R1, [R2.64]",
        "SHFL.BFLY PT, R1, R2, 0x1, 0x1f",
        "STL [R1], R2",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
    ]
    inner = [
        ".L_x_2:",
        *[line.format(i, text) for i, text in enumerate(body * 4)],
        line.format(99, "@!P1 BRA `(.L_x_2)"),
    ]
    text = "\n".join([".L_x_1:", line.format(0, "MOV R1, R2"), *inner, line.format(100, "@P2 BRA `(.L_x_1)")])
    assert loops(text) == [Loop(instructions=25, shuffles=4, barriers=4, local=4, exps=4, memory=4)]


def test_what_a_branch_jumps_over_within_a_loop_is_counted_and_known() -> None:
    line = "        /*{:04x}*/                   {} ;"
    before, over, after = ["FFMA R1, R2, R3, R4"] * 18, ["@!P1 STG.E [R2.64], R1"] * 3, ["FMUL R1, R2, R3"] * 2
    lines = [line.format(i, text) for i, text in enumerate([*before, "@P2 BRA `(.L_x_3)", *over])]
    text = "\n".join([
        line.format(0, "@P0 BRA `(.L_x_9)"), ".L_x_2:", *lines, ".L_x_3:",
        *[line.format(50 + i, text) for i, text in enumerate([*after, "@P4 BRA `(.L_x_9)", "@!P1 BRA `(.L_x_2)"])],
        line.format(99, "MOV R1, R2"), ".L_x_9:", line.format(100, "EXIT"),
    ])  # fmt: skip  # the loop, between a jump past it and its end
    (loop,) = loops(text)
    assert loop.instructions == 26 and loop.memory == 3
    assert loop.skipped == ((19, 22),)  # the jumps out of the loop pass over none of its turns
    assert [one.name for one in loop.shortest] == ["FFMA"] * 18 + ["BRA"] + ["FMUL"] * 2 + ["BRA"] * 2


@pytest.mark.slow
@has_report
def test_a_kernel_that_does_not_compile_or_is_never_launched_costs_the_exit_code_and_no_other_kernel(
    tmp_path: Path, kept: str
) -> None:
    for folder in ("tools", "kernels"):
        shutil.copytree(TOOL.parents[2] / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / "kernels" / "medmambase_kernels" / "_triton" / "squeeze_excite.py"
    source = broken.read_text(encoding="utf-8")
    source = source.replace("total += values", "total += values.no_such_thing")
    broken.write_text(
        source + "\n\n@triton.jit\ndef _spare(x_ptr):\n    tl.store(x_ptr, 0.0)\n", encoding="utf-8", newline="\n"
    )
    tool = tmp_path / "tools" / "kernels" / TOOL.name
    code, rows, printed = _run(
        "--arch", "90", "--dtype", "float32", "--operator", "squeeze_excite", "--quick", "--jobs", "1", "--cache", kept,
        tool=tool,
    )  # fmt: skip  # flags
    assert code == 1, printed
    assert {row[0] for row in rows if row[-1] == "FAILED"} == {"squeeze_excite.pool"}
    assert {row[0] for row in rows} == {name for name in KERNELS if name.startswith("squeeze_excite")}
    assert "squeeze_excite._spare: no call in kernel_launches.py launches it" in printed


def test_no_function_of_a_kernel_calls_itself_since_triton_3_3_takes_none() -> None:
    folder = TOOL.parents[2] / "kernels" / "medmambase_kernels" / "_triton"
    functions = [
        (path.name, node)
        for path in sorted(folder.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(how) for how in node.decorator_list)
    ]
    assert len(functions) > 50
    for name, function in functions:
        called = {
            node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and hasattr(node.func, "id")
        }
        assert function.name not in called, f"{name}: {function.name}"


def test_a_report_that_triton_throws_away_is_had_by_assembling_once_more() -> None:
    assembly = """
.version 7.0
.target sm_75
.address_size 64
.visible .entry kernel(.param .u64 x)
{
    ret;
}
"""
    if disassembler() is None:
        assert machine_code.report_of(assembly, 75) == ""
        return
    said = machine_code.report_of(assembly, 75)
    usage = compiled_kernel.read_usage(said, 0, [])
    assert usage.spills == 0 and usage.registers > 0
    assert "sm_75" in said and machine_code.report_of("no assembly", 75) == ""


def test_an_assembler_report_that_cannot_be_read_is_a_failure() -> None:
    assert compiled_kernel.read_usage(
        "Used 40 registers\n8 bytes stack frame, 4 bytes spill stores", 0, []
    ) == compiled_kernel.Usage(40, 4, 0)
    with pytest.raises(RuntimeError, match="cannot be read"):
        compiled_kernel.read_usage("Used 40 registers", 0, [])
