"""Find NaN or infinity, and the first tensor that holds one.

Called by ``loop.py`` before a network is kept, and where a step went wrong.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_nonfinite(network: nn.Module) -> str | None:
    """Return the name of the first non-finite weight or running statistic; not every one shows in
    the outputs yet."""
    return next((name for name, t in network.state_dict().items() if _is_bad(t)), None)


def first_bad_tensor(network: nn.Module, again: Callable[[], object]) -> str:
    """Describe the first non-finite tensor of a step: a weight, the output of a module when
    ``again`` computes the step once more, or a gradient that ``again`` leaves.

    BatchNorm's statistics are not asked: they are spoiled by what came before them.
    """
    for name, parameter in network.named_parameters():
        if _is_bad(parameter):
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and _is_bad(output):
                arrived = any(isinstance(t, Tensor) and _is_bad(t) for t in inputs)
                found.append(f"the {'input' if arrived else 'output'} of {name or 'the network'}")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules()]
    try:
        again()
    finally:
        for handle in handles:
            handle.remove()
    found += [
        f"the gradient of {name}" for name, p in network.named_parameters() if p.grad is not None and _is_bad(p.grad)
    ]
    return found[0] if found else "the loss itself"


def _is_bad(t: Tensor) -> bool:
    return t.is_floating_point() and not bool(torch.isfinite(t).all())
