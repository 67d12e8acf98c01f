"""Count the instructions in a compiled kernel's loops, with NVIDIA's disassembler, which Triton's
Linux wheel brings along.

compile_kernels.py brings the compiled kernel, and holds the counts to budgets.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 20  # instructions; shorter loops are the trap at a kernel's end and the like


@dataclass(frozen=True)
class Loop:
    """One innermost loop, counted once through: all its instructions, and those of a kind."""

    instructions: int
    shuffles: int
    barriers: int
    local: int  # loads and stores of local memory: spilled registers
    exps: int  # and the other operations of the special function unit
    memory: int  # loads and stores of global memory


def disassembler() -> Path | None:
    """Find NVIDIA's nvdisasm; None where Triton brings none (on Windows)."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return program if program.is_file() else None


def disassemble(cubin: bytes, program: Path) -> str:
    """Disassemble the machine code."""
    with tempfile.TemporaryDirectory(prefix="machine_code_") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([program, "-c", path], capture_output=True, check=True, encoding="utf-8").stdout


def loops(text: str) -> list[Loop]:
    """Find the innermost loops of a disassembly, the longest first."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\S+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    spans = set()
    for end, instruction in enumerate(instructions):
        jump = re.search(r"\bBRA\b.*?`\((\.L\S+)\)", instruction)
        if jump and labels.get(jump[1], end + 1) <= end:
            spans.add((labels[jump[1]], end + 1))
    inner = [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    counted = [_count(instructions[begin:end]) for begin, end in inner if end - begin >= SHORTEST]
    return sorted(counted, key=lambda loop: -loop.instructions)


def _count(instructions: list[str]) -> Loop:
    kinds = Counter(re.sub(r"^@!?\w+\s+", "", instruction).split()[0].split(".")[0] for instruction in instructions)
    return Loop(
        instructions=len(instructions),
        shuffles=kinds["SHFL"],
        barriers=kinds["BAR"],
        local=kinds["LDL"] + kinds["STL"],
        exps=kinds["MUFU"],
        memory=kinds["LDG"] + kinds["STG"],
    )
