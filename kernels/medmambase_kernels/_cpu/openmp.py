"""Run compiled code on torch's own threads.

torch's OpenMP threads wait actively for a moment after each operator: a pool of ours would fight
them for the cores. So the code runs as a parallel region of the very OpenMP library that torch
loaded: GNU's on Linux, Intel's on Windows, LLVM's on macOS. Where none is found, as in a torch
built otherwise, a small pool of Python threads does it, 6 to 40 % slower. In a forked child
OpenMP's threads are gone and a new region hangs, so there the calling thread does all the work of
our kernels; PyTorch's own operators hang there all the same, unless the child calls
torch.set_num_threads(1), as data workers do.
"""

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medmambase_kernels.process import forked

_LIBRARIES = (
    "lib/libgomp*.so*",
    "lib/libiomp5*.so*",
    "lib/libomp*.so*",
    "lib/libiomp5md.dll",
    "lib/libomp*.dylib",
    "../torch.libs/libgomp*.so*",
)
_call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(frozen=True)
class Entries:
    """Addresses of one function: as ``f(table)``, and as ``f(_, _, table)``."""

    plain: int
    kmp: int


class _Identity(ctypes.Structure):
    """The ident_t of LLVM's OpenMP: where in its source a region stands."""

    _fields_ = (
        ("reserved_1", ctypes.c_int32), ("flags", ctypes.c_int32), ("reserved_2", ctypes.c_int32),
        ("reserved_3", ctypes.c_int32), ("source", ctypes.c_char_p),
    )  # fmt: skip  # its layout, on one line


@dataclass(frozen=True)
class Team:
    """``region(entries, table, threads)``, and the address of the function by which threads within
    it wait for each other, with that of its identity; 0: they cannot.
    """

    region: Callable[[Entries, int, int], None]
    barrier: int = 0
    identity: int = 0


def run(entries: Entries, table: int, threads: int) -> None:
    """Call the function on so many threads at once, the calling one among them, and wait for
    all."""
    if threads <= 1 or forked():
        _call(entries.plain)(table)
    else:
        _team().region(entries, table, threads)


def barrier() -> tuple[int, int] | None:
    """Where several threads of `run` find a barrier: ``f()`` from an entry that is plain, else
    ``f(identity, *me)``. None: they have none."""
    return (_team().barrier, _team().identity) if _team().barrier else None


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch brought, and has loaded: opening it again only counts a
    reference."""
    folder = Path(torch.__file__).parent
    for pattern in _LIBRARIES:
        for path in sorted(folder.glob(pattern)):
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                continue
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _team() -> Team:
    library = _openmp()
    if library is not None and hasattr(library, "GOMP_parallel"):
        return _gnu(library)
    if library is not None and hasattr(library, "__kmpc_fork_call"):
        return _kmp(library)
    return _pool()


def _gnu(library: ctypes.CDLL) -> Team:
    parallel = library.GOMP_parallel
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None

    def region(entries: Entries, table: int, threads: int) -> None:
        parallel(entries.plain, table, threads, 0)

    return Team(region, _address(library.GOMP_barrier))


def _kmp(library: ctypes.CDLL) -> Team:
    fork, me, ask = library["__kmpc_fork_call"], library["__kmpc_global_thread_num"], library["__kmpc_push_num_threads"]
    # What goes on to the function is variadic, which Apple's processors pass otherwise: an argument
    # beyond argtypes is passed so.
    fork.argtypes, fork.restype = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p], None
    me.argtypes, me.restype = [ctypes.c_void_p], ctypes.c_int32
    ask.argtypes, ask.restype = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32], None
    identity = _Identity(0, 2, 0, 0, b";medmambase;kernel;0;0;;")

    def region(entries: Entries, table: int, threads: int) -> None:
        here = ctypes.addressof(identity)
        ask(here, me(here), threads)
        fork(here, 1, entries.kmp, ctypes.c_void_p(table))

    return Team(region, _address(library["__kmpc_barrier"]), ctypes.addressof(identity))


def _pool() -> Team:
    @functools.cache
    def workers(count: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(count, "medmambase")

    def region(entries: Entries, table: int, threads: int) -> None:
        function = _call(entries.plain)
        others: list[Future[None]] = []
        interrupted: KeyboardInterrupt | None = None
        try:
            for _ in range(threads - 1):
                others.append(workers(threads - 1).submit(function, table))
            function(table)
        except KeyboardInterrupt as error:
            interrupted = error
        while wait_again := [
            other for other in others if not other.done()
        ]:  # they write to memory that the caller is about to give back
            try:
                wait(wait_again)
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    return Team(region)
