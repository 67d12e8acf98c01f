"""Every kernel compiles for every GPU generation, with no GPU: tools/kernels/compile_kernels.py,
run as a person runs it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import compile_kernels
from kernel_launches import Launch
from machine_code import Loop, disassembler, loops

triton = pytest.importorskip("triton")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kernels" / "compile_kernels.py"
KERNELS = {
    "scan_forward.forward",
    "scan_forward.carry",
    "scan_forward.project",
    "scan_backward.backward",
    "scan_backward.adjoint_ends",
    "image_pack.pack",
    "image_pack.unpack",
    "image_pack.totals",
    "sequence_pack.pack",
    "sequence_pack.unpack",
    "sequence_pack.totals",
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
    "squeeze_excite.weights",
    "squeeze_excite.scale",
    "squeeze_excite.scale_back",
    "gated_norm.norm",
    "gated_norm.norm_back",
    "depthwise_silu.stencil",
    "depthwise_silu.slope",
}
has_report = pytest.mark.skipif(
    triton.__version__.startswith("3.3."), reason="Triton 3.3 throws the assembler's report away"
)

has_disassembler = pytest.mark.skipif(disassembler() is None, reason="this Triton brings no disassembler")


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
def test_every_kernel_compiles_for_every_gpu_generation_without_a_gpu() -> None:
    code, rows, printed = _run("--dtype", "float32", "bfloat16", "--quick", "--jobs", "2")
    assert code == 0, printed
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120"):
        for dtype in ("float32", "bfloat16"):
            assert {row[0] for row in rows if arch in row and dtype in row} == KERNELS, printed
    assert "OVER BUDGET" not in printed


@pytest.mark.slow
@has_report
@has_disassembler
def test_the_scans_keep_to_their_budgets_on_both_generations_that_have_one() -> None:
    code, rows, printed = _run("--arch", "89", "90", "--dtype", "float32", "bfloat16", "--case", "n16", "--jobs", "2")
    assert code == 0, printed
    scans = [row for row in rows if row[0] in ("scan_forward.forward", "scan_backward.backward")]
    assert len(scans) >= 40, printed
    for row in scans:
        instructions, shuffles, barriers = (float(figure) for figure in row[-6:-3])
        if row[0] == "scan_forward.forward":
            assert instructions <= 10.6 and shuffles == 0 and barriers <= 0.04, row
        elif "l49" not in row:  # there C is constant
            assert instructions <= 27.0 and shuffles <= 2.6, row


@pytest.mark.parametrize(
    ("loop", "spills", "sentence"),
    [
        (Loop(679, 0, 2, 0, 68, 44), 0, "10.61 instructions a state, 10.6 allowed"),
        (Loop(512, 1, 0, 0, 68, 44), 0, "0.02 shuffles a state, 0 allowed"),
        (Loop(512, 0, 0, 2, 68, 44), 0, "0.03 local a state, 0 allowed"),
        (Loop(512, 0, 0, 0, 68, 44), 4, "4 bytes spilled, 0 allowed"),
        (Loop(512, 0, 3, 0, 68, 44), 0, "0.05 barriers a state, 0.04 allowed"),
        (Loop(512, 0, 2, 0, 68, 44), 0, None),
    ],
)
def test_a_launch_over_its_budget_is_named_with_figure_and_limit(loop: Loop, spills: int, sentence: str | None) -> None:
    launch = Launch("scan_forward", "forward", "float32", "n16", constants={"STEPS": 4, "N": 16, "BD": 32})
    budgets = tomllib.loads(compile_kernels.BUDGETS.read_text(encoding="utf-8"))["budget"]
    found = compile_kernels.over_budget(launch, 89, compile_kernels.Usage(100, spills, 0, (loop,)), budgets)
    assert [one.removeprefix("loop steps: ") for one in found] == ([sentence] if sentence else [])


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


@pytest.mark.slow
@has_report
def test_a_kernel_that_does_not_compile_or_is_never_launched_costs_the_exit_code_and_no_other_kernel(
    tmp_path: Path,
) -> None:
    for folder in ("tools", "kernels"):
        shutil.copytree(TOOL.parents[2] / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / "kernels" / "medmambase_kernels" / "_triton" / "squeeze_excite.py"
    source = broken.read_text(encoding="utf-8")
    source = source.replace("total += values", "total += values.no_such_thing")
    broken.write_text(
        source + "\n\n@triton.jit\ndef _spare(x_ptr):\n    tl.store(x_ptr, 0.0)\n", encoding="utf-8", newline="\n"
    )
    code, rows, printed = _run(
        "--arch", "90", "--dtype", "float32", "--quick", "--jobs", "2", tool=tmp_path / "tools" / "kernels" / TOOL.name
    )
    assert code == 1, printed
    assert {row[0] for row in rows if row[-1] == "FAILED"} == {"squeeze_excite.pool"}
    assert {row[0] for row in rows} == KERNELS
    assert "squeeze_excite._spare: no call in kernel_launches.py launches it" in printed


def test_an_assembler_report_that_cannot_be_read_is_a_failure() -> None:
    assert compile_kernels.read_usage(
        "Used 40 registers\n8 bytes stack frame, 4 bytes spill stores", 0, []
    ) == compile_kernels.Usage(40, 4, 0)
    with pytest.raises(RuntimeError, match="cannot be read"):
        compile_kernels.read_usage("Used 40 registers", 0, [])
