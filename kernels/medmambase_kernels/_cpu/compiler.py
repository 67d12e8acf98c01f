"""Compile vector kernels for the processor at hand, and launch them on torch's threads.

A kernel takes LLVM 0.05 to 0.2 s to compile, once a process: there is no cache on disk, hence none
that is stale, shared or cannot be written.

Why llvmlite: four directions of 16 images, 96 channels, 32x32, 16 states took, on one machine with
2 cores and AVX-512, forward / forward and backward, 50 / 202 ms through numba, whose vectoriser
gives up beyond a few arrays and which compiles for 9 s, and 16 / 50 ms as LLVM vector code, which a
small language makes as readable. The kernels here take a fifth less than that.
"""

import ctypes
import functools
import sys
from dataclasses import dataclass
from itertools import chain
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

from medmambase_kernels._cpu import openmp
from medmambase_kernels._cpu.capture import Capture
from medmambase_kernels._cpu.language import (
    ARGUMENTS,
    NEXT_TASK,
    NEXT_THREAD,
    SCRATCH,
    SCRATCH_FLOATS,
    TASKS,
    Kernel,
    word,
)
from medmambase_kernels._cpu.values import FLOAT, INDEX, POINTER
from medmambase_kernels.process import forked

_LINE = 16  # floats of a cache line
_HUGE, _MADV_HUGEPAGE = 1 << 21, 14


@dataclass(frozen=True)
class Program:
    """A compiled kernel: its entries, the names of its arguments in their order, and the floats of
    scratch memory a thread needs."""

    entries: openmp.Entries
    arguments: tuple[str, ...]
    scratch_floats: int
    engine: Any  # owns the machine code

    def launch(self, tasks: int, more_scratch: int = 0, /, **arguments: Tensor | int | None) -> None:
        """Run all tasks; returns when they are done. ``more_scratch``: floats beyond what the
        kernel asked for by ``scratch``.

        A tensor passes its address (None: 0), so it must be contiguous, float32 or int32, and
        alive.
        """
        if missing := set(self.arguments) ^ set(arguments):
            raise TypeError(
                f"arguments that the kernel has and the call has not, or the other way round: {sorted(missing)}"
            )
        if not tasks:
            return
        capture, most = Capture.current(), torch.get_num_threads()
        threads = min(most, tasks) if capture is None else most
        floats = self.scratch_floats + -(-more_scratch // _LINE) * _LINE + _LINE
        needed = threads * floats + _LINE
        scratch = torch.empty(needed, dtype=torch.float32, device="cpu") if capture is None else capture.scratch(needed)
        values = [arguments[name] for name in self.arguments]
        table = (ctypes.c_int64 * (ARGUMENTS + len(values)))()
        start = _address(scratch)
        table[TASKS], table[SCRATCH], table[SCRATCH_FLOATS] = tasks, start + -start % 64, floats
        table[ARGUMENTS:] = [_address(value) if isinstance(value, Tensor) else value or 0 for value in values]
        openmp.run(self.entries, ctypes.addressof(table), threads)
        if capture is not None:
            last = capture.last()
            launches = (
                last if isinstance(last, _Launches) and last.threads == threads else capture.add(_Launches(threads))
            )
            launches.append(_Launch(self.entries, table, (self, scratch, *values)))


@dataclass(frozen=True)
class _Launch:
    """A launch that was made, to be made again on the same memory, which it keeps."""

    entries: openmp.Entries
    table: Any
    memory: tuple[object, ...]

    def begin(self) -> None:
        """Before it is made again: no thread has come, no task is taken."""
        self.table[NEXT_TASK] = self.table[NEXT_THREAD] = 0


class _Launches:
    """Launches that followed each other, made again as one: between two kernels the threads wait
    for each other, which is sooner done than to be called anew.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._launches: list[_Launch] = []
        self._list: Any = None

    def append(self, launch: _Launch) -> None:
        """One more."""
        launch.begin()
        self._launches.append(launch)
        pairs = [(each.entries.plain, ctypes.addressof(each.table)) for each in self._launches]
        self._list = (ctypes.c_int64 * (_LAUNCHES + 2 * len(pairs)))(0, len(pairs), 0, 0, *chain.from_iterable(pairs))

    def __call__(self) -> None:
        alone = self.threads <= 1 or forked()
        barrier = (0, 0) if alone else openmp.barrier()
        if barrier is None:
            for launch in self._launches:
                openmp.run(launch.entries, ctypes.addressof(launch.table), self.threads)
                launch.begin()
            return
        self._list[0] = 0
        self._list[2:_LAUNCHES] = barrier
        openmp.run(_replay().entries, ctypes.addressof(self._list), 1 if alone else self.threads)


# The threads that came, how many launches, the address of the barrier or 0, and of what it takes;
# then of each launch its kernel's entry and its table.
_LAUNCHES = 4
_REPLAY = """
define void @{name}({parameters}) {{
  %thread = atomicrmw add ptr %list, i64 1 monotonic
  %first = icmp eq i64 %thread, 0
  %count.at = getelementptr i64, ptr %list, i64 1
  %count = load i64, ptr %count.at
  %barrier.at = getelementptr i64, ptr %list, i64 2
  %barrier = load ptr, ptr %barrier.at
  %alone = icmp eq ptr %barrier, null
  %identity.at = getelementptr i64, ptr %list, i64 3
  %identity = load ptr, ptr %identity.at
  %launches = getelementptr i64, ptr %list, i64 {launches}
  br label %launch
launch:
  %i = phi i64 [ 0, %0 ], [ %next, %done ]
  %place = shl i64 %i, 1
  %kernel.at = getelementptr i64, ptr %launches, i64 %place
  %kernel = load ptr, ptr %kernel.at
  %table.at = getelementptr i64, ptr %kernel.at, i64 1
  %table = load ptr, ptr %table.at
  call void %kernel(ptr %table)
  br i1 %alone, label %together, label %wait
wait:
  {wait}
  br label %together
together:
  br i1 %first, label %begin, label %done
begin:
  store <2 x i64> zeroinitializer, ptr %table, align 8
  br label %done
done:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %launch, label %end
end:
  ret void
}}
"""


@functools.cache
def _replay() -> Program:
    """What every thread does of `_Launches`. The first one sets back both counters of a table, its
    first two words, once nobody takes tasks of it."""
    plain = _REPLAY.format(name="replay", parameters="ptr %list", launches=_LAUNCHES, wait="call void %barrier()")
    number = "%number = load i32, ptr %me\n  call void %barrier(ptr %identity, i32 %number)"
    return _compile(
        "replay",
        plain
        + _REPLAY.format(
            name="replay_kmp", parameters="ptr %me, ptr %team, ptr %list", launches=_LAUNCHES, wait=number
        ),
    )


def _address(t: Tensor) -> int:
    if t.dtype not in (torch.float32, torch.int32):
        raise TypeError(f"a {t.dtype} of shape {tuple(t.shape)}, where kernels read and write float32 and int32 only")
    address = t.data_ptr()
    if not address and t.numel():
        raise RuntimeError(
            f"a {type(t).__name__} of shape {tuple(t.shape)} on {t.device} has no memory to compute with; give a "
            f"tensor with values"
        )
    return address


@functools.cache
def lanes() -> int:
    """Float32 lanes of this processor's registers: 16 with AVX-512, 8 with AVX2, else 4."""
    features = llvm.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


@functools.cache
def target() -> Any:
    """This processor, as LLVM's code generator knows it. Raises ImportError where it does not."""
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        processor = llvm.Target.from_triple(llvm.get_process_triple())
    except RuntimeError as error:
        raise ImportError(f"LLVM cannot generate code for this processor: {error}") from error
    # glibc learns from the largest block that was freed how much memory to keep for the next:
    # having seen this one, it gives none up to 62 MB back to Linux, which would clear it, page by
    # page, before every other operator. Nobody writes to the block, so it costs nothing.
    torch.empty(31 << 18, dtype=torch.float32, device="cpu")
    return processor


def check() -> None:
    """Compile the smallest kernel. Raises ImportError, OSError or RuntimeError where this machine,
    or its rules, do not let machine code be made."""
    kernel = Kernel("nothing", [], [], lanes())
    with kernel.tasks():
        pass
    compiled(kernel)


def empty(*shape: int) -> Tensor:
    """Float32 memory that nobody has written. Linux is asked for large memory in pages of 2 MB: in
    pages of 4 KB it takes longer to get than to fill."""
    t = torch.empty(shape, dtype=torch.float32, device="cpu")
    advise, start = _advise(), -(-t.data_ptr() // _HUGE) * _HUGE
    size = (t.data_ptr() + t.nbytes - start) // _HUGE * _HUGE
    if advise is not None and size > 0:
        advise(start, size, _MADV_HUGEPAGE)
    return t


@functools.cache
def _advise() -> Any:
    """Linux's madvise."""
    if not sys.platform.startswith("linux"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


def rows(t: Tensor) -> Tensor:
    """(..., d) as float32 (rows, d) whose rows are contiguous, wherever they stand: a view, if it
    can be one."""
    flat = t.float().reshape(-1, t.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _finish(kernel: Kernel) -> str:
    """The code of a kernel and of its two entries: ``name(table)``, and ``name_kmp(_, _, table)``
    as LLVM's and Intel's OpenMP call it."""
    kernel.builder.ret_void()
    entry = ir.Function(kernel.module, ir.FunctionType(ir.VoidType(), [POINTER]), kernel.name)
    builder, (table,) = ir.IRBuilder(entry.append_basic_block("entry")), entry.args
    thread = builder.atomic_rmw("add", word(builder, table, NEXT_THREAD), INDEX(1), "monotonic")
    floats, scratch = (
        builder.load(word(builder, table, place), typ=kind)
        for place, kind in ((SCRATCH_FLOATS, INDEX), (SCRATCH, POINTER))
    )
    mine = builder.gep(scratch, [builder.mul(thread, floats)], source_etype=FLOAT)
    kinds = [argument.type for argument in kernel.function.args[2:]]
    arguments = [builder.load(word(builder, table, ARGUMENTS + i), typ=kind) for i, kind in enumerate(kinds)]
    builder.call(kernel.function, [table, mine, *arguments])
    builder.ret_void()
    kmp = ir.Function(kernel.module, ir.FunctionType(ir.VoidType(), [POINTER] * 3), f"{kernel.name}_kmp")
    builder = ir.IRBuilder(kmp.append_basic_block("entry"))
    builder.call(entry, [kmp.args[2]])
    builder.ret_void()
    return str(kernel.module)


def compiled(kernel: Kernel) -> Program:
    """Finish a kernel and compile it."""
    return _compile(kernel.name, _finish(kernel), kernel.arguments, kernel.scratch_floats)


def _compile(name: str, code: str, arguments: tuple[str, ...] = (), scratch_floats: int = 0) -> Program:
    """A function and its other entry, ``{name}_kmp``, for this processor."""
    machine = target().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(code)
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = (
        False  # the kernels are unrolled and vectors as they are written
    )
    llvm.create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, options)
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    entries = openmp.Entries(engine.get_function_address(name), engine.get_function_address(f"{name}_kmp"))
    return Program(entries, arguments, scratch_floats, engine)
