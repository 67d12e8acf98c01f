"""What squeeze-and-excitation did to one batch: maps before and after, and the gates between them.

Before: a trained network from ``model/``. Next stop: ``figures.recalibration`` draws it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medmambase_kernels import SqueezeExcite


@dataclass(frozen=True)
class Recalibration:
    """The last SqueezeExcite of one stage (counted from 1) on b images; float32 on the CPU.

    ``before`` and ``after`` (b, h, w): mean absolute activation over the channels. ``gates`` (b, c): what each channel
    was multiplied by.
    """

    stage: int
    before: Tensor
    after: Tensor
    gates: Tensor


def recalibration(model: nn.Module, images: Tensor) -> list[Recalibration]:
    """One Recalibration a stage that has squeeze-and-excitation, so an empty list for a network without.

    images (b, c, h, w), normalised, on the model's device. ``model.stages`` holds the stages in order. The model is run
    in eval mode without gradient and left as it was found. Raises TypeError for a model without stages.
    """
    stages = getattr(model, "stages", None)
    if not isinstance(stages, nn.ModuleList | nn.Sequential):
        raise TypeError(f"model is a {type(model).__name__} without stages; wanted a network of medmambase.model, which has them")
    modes = {module: module.training for module in model.modules()}  # each its own: part of a network may be frozen in eval mode
    found: dict[int, Recalibration] = {}
    hooks = []
    try:
        for number, stage in enumerate(stages, start=1):
            modules = [module for module in stage.modules() if isinstance(module, SqueezeExcite)]
            if modules:
                hooks.append(modules[-1].register_forward_hook(_keep(found, number)))
        if hooks:
            model.eval()
            with torch.no_grad():
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return [found[number] for number in sorted(found)]


def _keep(found: dict[int, Recalibration], number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, SqueezeExcite)
        (x,) = inputs
        before, after = (t.float().abs().mean(-1).cpu() for t in (x, output))
        found[number] = Recalibration(stage=number, before=before, after=after, gates=module.gate(x).float().cpu())

    return hook
