"""Say where the portable backend runs: on any device, with every operator."""

import torch

DEVICES: tuple[str, ...] = ()
OPERATORS = ("selective_scan", "selective_scan_2d", "squeeze_excite", "gated_norm", "depthwise_silu", "causal_conv1d")


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Nothing keeps PyTorch's own operations from running."""
    return None


def prepare() -> None:
    """Nothing is to be done."""
