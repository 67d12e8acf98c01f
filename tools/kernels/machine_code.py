"""Read a compiled kernel's loops, with NVIDIA's disassembler, which Triton's Linux wheel brings
along: every instruction with the control bits that the assembler gave it.

compile_kernels.py brings the compiled kernel and holds the counts to budgets; sm_model.py predicts
from the control bits how long a turn of a loop takes.

An instruction is a word of 128 bits; its bits 105 to 125 steer the scheduler: after how many cycles
the warp's next instruction may follow (4 bits), a hint (1), the barrier that its result releases
(3), the barrier that is released once its operands are read (3), and the barriers that it waits for
(6, a mask). A warp has six barriers; 7 stands for none. These bits are undocumented; they are as
published by those who took the machine code apart.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

SHORTEST = 20  # instructions; shorter loops are the trap at a kernel's end and the like
NO_BARRIER = 7


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text, and when its warp may go on: ``stall`` cycles later, with the
    barrier that its result releases, the one that its reading releases, and a mask of those it
    waits for."""

    text: str
    stall: int = 1
    write: int = NO_BARRIER
    read: int = NO_BARRIER
    wait: int = 0

    @cached_property
    def opcode(self) -> str:
        """With its modifiers, as LDG.E.128."""
        words = self.text.split()
        return words[words[0].startswith("@")]

    @cached_property
    def name(self) -> str:
        """Without them, as LDG."""
        return self.opcode.split(".")[0]

    @property
    def never(self) -> bool:
        """Whether it only fills a slot: its predicate is never true."""
        return self.text.startswith("@!PT ")

    @cached_property
    def bits(self) -> int:
        """Width of a lane's access to memory."""
        modifiers = self.opcode.split(".")[1:]
        wide = [int(m) for m in modifiers if m in ("128", "64")]
        return wide[0] if wide else 16 if {"U16", "S16", "16"} & set(modifiers) else 32


@dataclass(frozen=True)
class Loop:
    """One innermost loop, counted once through: all its instructions, and those of a kind; the
    instructions themselves; and the spans of them that a branch may jump over."""

    instructions: int
    shuffles: int
    barriers: int
    local: int  # loads and stores of local memory: spilled registers
    exps: int  # and the other operations of the special function unit
    memory: int  # loads and stores of global memory, copies of it into shared memory among them
    code: tuple[Instruction, ...] = field(default=(), compare=False, repr=False)
    skipped: tuple[tuple[int, int], ...] = ()

    @property
    def shortest(self) -> tuple[Instruction, ...]:
        """The instructions of a turn that takes every jump."""
        over = {i for begin, end in self.skipped for i in range(begin, end)}
        return tuple(one for i, one in enumerate(self.code) if i not in over)


def disassembler() -> Path | None:
    """Find NVIDIA's nvdisasm; None where Triton brings none (on Windows)."""
    return _program("nvdisasm")


def _program(name: str) -> Path | None:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return program if program.is_file() else None


def report_of(assembly: str, arch: int) -> str:
    """Assemble a kernel once more, for the assembler's report; nothing where Triton brings no
    assembler."""
    program, target = _program("ptxas-blackwell" if arch >= 100 else "ptxas"), re.search(r"\.target (\w+)", assembly)
    if program is None or target is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="machine_code_") as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(assembly, encoding="utf-8", newline="\n")
        how = [str(program), "-v", f"--gpu-name={target[1]}", str(path), "-o", str(path.with_suffix(".cubin"))]
        return subprocess.run(how, capture_output=True, check=True, encoding="utf-8").stderr


def disassemble(cubin: bytes, program: Path) -> str:
    """Disassemble the machine code, with each instruction's word in hexadecimal digits."""
    with tempfile.TemporaryDirectory(prefix="machine_code_") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([program, "-c", "-hex", path], capture_output=True, check=True, encoding="utf-8").stdout


def loops(text: str) -> list[Loop]:
    """Find the innermost loops of a disassembly, the longest first."""
    instructions, labels = _read(text)
    spans, ahead = set(), []
    for end, instruction in enumerate(instructions):
        jump = re.search(r"\bBRA\b.*?`\((\.L\S+)\)", instruction.text)
        if jump and labels.get(jump[1], end + 1) <= end:
            spans.add((labels[jump[1]], end + 1))
        elif jump and jump[1] in labels:
            ahead.append((end + 1, labels[jump[1]]))
    inner = [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    counted = [
        count(
            instructions[begin:end],
            tuple((first - begin, last - begin) for first, last in ahead if begin < first and last < end),
        )
        for begin, end in sorted(inner)
        if end - begin >= SHORTEST
    ]
    return sorted(counted, key=lambda loop: -loop.instructions)


def _read(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Every instruction, and the index of the one that follows each label. A word's first half
    stands on the instruction's line, and the half with the control bits on the next."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\S+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(Instruction(found[1]))
        elif instructions and (half := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)):
            control = int(half[1], 16) >> (105 - 64)
            instructions[-1] = Instruction(
                instructions[-1].text, control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
            )
    return instructions, labels


def count(code: list[Instruction], skipped: tuple[tuple[int, int], ...] = ()) -> Loop:
    """Count a loop's instructions, those that a branch may jump over among them."""
    kinds = Counter(instruction.name for instruction in code)
    return Loop(
        instructions=len(code),
        shuffles=kinds["SHFL"],
        barriers=kinds["BAR"],
        local=kinds["LDL"] + kinds["STL"],
        exps=kinds["MUFU"],
        memory=kinds["LDG"] + kinds["STG"] + kinds["LDGSTS"],
        code=tuple(code),
        skipped=skipped,
    )
