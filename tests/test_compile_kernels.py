"""Every kernel compiles for every GPU generation, with no GPU: tools/compile_kernels.py, run as a person runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compile_kernels

triton = pytest.importorskip("triton")

TOOL = Path(__file__).resolve().parent.parent / "tools" / "compile_kernels.py"
KERNELS = {
    "selective_scan.forward",
    "selective_scan.backward",
    "selective_scan_2d.forward",
    "selective_scan_2d.backward",
    "squeeze_excite.pool",
    "squeeze_excite.gate",
    "squeeze_excite.gate_back",
    "squeeze_excite.scale",
}
has_report = pytest.mark.skipif(triton.__version__.startswith("3.3."), reason="Triton 3.3 throws the assembler's report away")


def _run(*arguments: str, tool: Path = TOOL) -> tuple[int, list[list[str]], str]:
    """Exit code, the table's rows as words, and everything printed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONIOENCODING": "utf-8"}  # set by the interpreter's tests: the tool must drop it
    done = subprocess.run([sys.executable, str(tool), *arguments], capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
    table = done.stdout.partition(" tried, ")[0]
    rows = [line.split() for line in table.splitlines() if " sm_" in line]
    return done.returncode, rows, done.stdout + done.stderr


@has_report
def test_every_kernel_compiles_for_every_gpu_generation_without_a_gpu() -> None:
    code, rows, printed = _run("--dtype", "float32", "bfloat16", "--quick", "--jobs", "2")
    assert code == 0, printed
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120"):
        for dtype in ("float32", "bfloat16"):
            assert {row[0] for row in rows if arch in row and dtype in row} == KERNELS, printed
    assert all(16 <= int(row[-3]) <= 255 for row in rows), printed


@has_report
def test_a_kernel_that_does_not_compile_or_is_never_launched_costs_the_exit_code_and_no_other_kernel(tmp_path: Path) -> None:
    for folder in ("tools", "kernels"):
        shutil.copytree(TOOL.parent.parent / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / "kernels" / "medmambase_kernels" / "squeeze_excite_triton.py"
    source = broken.read_text(encoding="utf-8")
    source = source.replace("total += values", "total += values.no_such_thing")
    broken.write_text(source + "\n\n@triton.jit\ndef _spare(x_ptr):\n    tl.store(x_ptr, 0.0)\n", encoding="utf-8", newline="\n")
    code, rows, printed = _run("--arch", "90", "--dtype", "float32", "--quick", "--jobs", "2", tool=tmp_path / "tools" / TOOL.name)
    assert code == 1, printed
    assert {row[0] for row in rows if row[-1] == "FAILED"} == {"squeeze_excite.pool"}
    assert {row[0] for row in rows} == KERNELS
    assert "squeeze_excite_triton._spare: no call in this tool launches it" in printed


def test_an_assembler_report_that_cannot_be_read_is_a_failure() -> None:
    assert compile_kernels.read_usage("Used 40 registers\n8 bytes stack frame, 4 bytes spill stores", 0) == compile_kernels.Usage(40, 4, 0)
    with pytest.raises(RuntimeError, match="cannot be read"):
        compile_kernels.read_usage("Used 40 registers", 0)
