"""Say whether our vector code can run: on CPU tensors, where llvmlite can make machine code."""

import functools
import importlib.util

import torch

DEVICES = ("cpu",)
OPERATORS = ("selective_scan", "selective_scan_2d", "squeeze_excite", "gated_norm", "depthwise_silu", "causal_conv1d")


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the vector code from running, as one clause; None: nothing. It takes every dtype
    in float32."""
    return f"the tensors are on {device}" if device.type != "cpu" else _missing()


def prepare() -> None:
    """Nothing is to be done."""


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed (pip install llvmlite)"
    try:
        from medmambase_kernels._cpu import compiler

        compiler.check()
    except (
        ImportError,
        OSError,
        RuntimeError,
        AttributeError,
    ) as error:  # a broken or ancient llvmlite; a processor that its LLVM does not know
        return f"llvmlite does not work here: {error}"
    return None
