"""``python -m medmambase_kernels.drop_in``: run code whose Mamba imports are answered here."""

import argparse
import importlib.util
import multiprocessing.spawn
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from medmambase_kernels import __version__, drop_in
from medmambase_kernels.drop_in import _worker

# How torch says that it has no GPU. What else names CUDA, such as a misspelt device, or a script
# that asks torch.cuda.is_available(), fails with --cpu too.
_NO_GPU = re.compile(
    "not compiled with CUDA|no NVIDIA driver|No CUDA GPUs|no CUDA-capable device|is_available\\(\\) is False|"
    "has no attribute '_cuda_|'CUDA' backend|not linked with support for cuda|accelerator (?:device|backend)|"
    "Pinned memory requires CUDA|ATen_cuda library",
    re.IGNORECASE,
)


def main(words: list[str] | None = None) -> int:
    """Run what the command line names. Returns 0, or 1 where there is no such module; what the
    script exits with passes through."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        prog="python -m medmambase_kernels.drop_in",
        description="Run a Python file whose imports of mamba_ssm, causal_conv1d and selective_scan are answered here.",
    )
    parser.add_argument("--version", action="version", version=f"medmambase-kernels {__version__}")
    parser.add_argument("--list", action="store_true", help="print every name that is answered, and run nothing")
    parser.add_argument("--instead", action="store_true", help="answer also for packages that are installed")
    parser.add_argument("--cpu", action="store_true", help='let "cuda" mean the CPU in the script')
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m does")
    parser.add_argument("script", nargs="?", type=Path, help="the file to run; what follows it are its own arguments")
    own, rest = _split(words)
    options = parser.parse_args(own)
    if options.list and (surplus := options.script or options.module):
        parser.error(f"--list prints names and runs nothing; leave out {surplus}")
    if options.list:
        print(drop_in.listing())
        return 0
    if options.module is None and options.script is None:
        parser.error("give a Python file, or -m and a module")
    if options.script is not None and options.script.is_dir():
        parser.error(f"{options.script} is a folder; give the Python file in it that is to run")
    if options.script is not None and not options.script.is_file():
        parser.error(f"{options.script}: there is no such file")
    name = options.module or str(options.script)
    sys.argv = [name, *rest]
    sys.path[0] = str(Path.cwd() if options.module else options.script.resolve().parent)
    drop_in.install(instead=options.instead, cpu=options.cpu)
    _prepare_workers(options.instead, options.cpu)
    if options.module and (absent := _absent(options.module)):
        print(f"{parser.prog}: there is no module {absent}", file=sys.stderr)
        return 1  # as python -m does
    try:
        if options.module:
            runpy.run_module(options.module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except (AssertionError, AttributeError, RuntimeError, ValueError) as error:  # which torch raises for a GPU's sake
        if _NO_GPU.search(str(error)) and not options.cpu and not torch.cuda.is_available():
            error.add_note('There is no GPU that torch can use. With --cpu before the file, "cuda" means the CPU.')
        raise
    return 0


def _absent(module: str) -> str:
    """Which part of a module's name is not there to be run, or "" for none. What the packages
    raise that it lies in, which are imported for that, passes through."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:  # a package
            module = f"{module}.__main__"
            spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        return str(error.name)
    return module if spec is None else ""


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our words, up to the script or the module, and its own."""
    for i, word in enumerate(words):
        if word == "-m":
            return words[: i + 2], words[i + 2 :]
        if not word.startswith("-"):
            return words[: i + 1], words[i + 1 :]
    return words, []


def _prepare_workers(instead: bool, cpu: bool) -> None:
    """Let processes that the script spawns, such as a DataLoader's on Windows, answer the same
    imports before they import the script."""
    original = multiprocessing.spawn.get_preparation_data

    def preparation(name: str) -> dict[str, Any]:
        data = original(name)
        for kind in ("init_main_from_name", "init_main_from_path"):
            if kind in data:
                os.environ[_worker.MAIN] = f"{kind}={data.pop(kind)}"
                os.environ[_worker.INSTEAD] = "1" if instead else ""
                os.environ[_worker.CPU] = "1" if cpu else ""
                data["init_main_from_name"] = _worker.__name__
                break
        return data

    multiprocessing.spawn.get_preparation_data = preparation  # type: ignore[attr-defined,unused-ignore]  # a function of the module


if __name__ == "__main__":
    sys.exit(main())
