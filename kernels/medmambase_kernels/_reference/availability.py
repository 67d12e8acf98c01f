"""Say where the definitions run: on any device. They stand in ``reference.py``, which the operators
call themselves."""

import torch

DEVICES: tuple[str, ...] = ()
OPERATORS = ("selective_scan", "selective_scan_2d", "squeeze_excite", "gated_norm", "depthwise_silu", "causal_conv1d")


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Nothing keeps PyTorch's own operations from running."""
    return None


def prepare() -> None:
    """Nothing is to be done."""
