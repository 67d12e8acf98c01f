"""Compute what a network does to one batch: maps before and after squeeze-and-excitation with the
gates between, Grad-CAM, and delta of each scan."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmambase.model.layers import SS2D, PatchEmbedding, SSConvSSM
from medmambase_kernels import SqueezeExcite


@dataclass(frozen=True)
class Recalibration:
    """The last SqueezeExcite of one stage (counted from 1) on b images; float32 on the CPU.

    ``before`` and ``after`` (b, h, w): mean absolute activation over the channels. ``gates`` (b,
    c): what each channel was multiplied by.
    """

    stage: int
    before: Tensor
    after: Tensor
    gates: Tensor


def recalibration(model: nn.Module, images: Tensor) -> list[Recalibration]:
    """Record one Recalibration for each stage that has squeeze-and-excitation; an empty list for a
    network without.

    images (b, c, h, w), normalised, on the model's device. ``model.stages`` holds the stages in
    order. The model is run in eval mode without gradient and left as it was found. Raises TypeError
    for a model without stages.
    """
    found: dict[int, Recalibration] = {}
    modules = {
        number: [m for m in stage.modules() if isinstance(m, SqueezeExcite)]
        for number, stage in enumerate(_stages(model), start=1)
    }
    with (
        _watched(
            model, [(of_stage[-1], _keep(found, number)) for number, of_stage in modules.items() if of_stage]
        ) as hooks,
        torch.no_grad(),
    ):
        if hooks:
            model(images)
    return [found[number] for number in sorted(found)]


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Compute where the evidence for a class lies, from the outputs of the SS-Conv-SSM blocks:
    float32 (b, h, w) on the CPU, 0 to 1.

    images (b, c, h, w), normalised, on the model's device; targets (b,) int64. Grad-CAM (Selvaraju
    et al. 2017) with the gradient of the class's logit taken place by place (HiResCAM, Draelos and
    Carin 2020), of the last stage whose map has at least 3 x 3 places; what speaks for the class
    alone. Four scans carry evidence across the whole image, so that it also arrives where it does
    not come from: the map is multiplied with that of the patches before the first scan, there
    against each image's mean patch, and the root is taken. With a mark in the corner as the only
    difference between two classes, the map is highest at the mark; Grad-CAM's own mean of the
    gradient over the places was highest elsewhere. The model is left as it was found.
    """
    outputs: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    last = [
        next(block for block in reversed(list(stage.modules())) if isinstance(block, SSConvSSM))
        for stage in _stages(model)
    ]
    patches = next(module for module in model.modules() if isinstance(module, PatchEmbedding))
    with _watched(model, [(module, hook) for module in (patches, *last)]), torch.enable_grad():
        logits = model(images.detach().requires_grad_())
        logits.gather(1, targets[:, None].to(logits.device)).sum().backward()
    first, *stages = outputs
    late = next((output for output in reversed(stages) if min(output.shape[1:3]) >= 3), stages[0])
    values = first.detach() - first.detach().mean((1, 2), keepdim=True), late.detach()
    maps = []
    for value, output in zip(values, (first, late), strict=True):
        assert output.grad is not None
        evidence = (value * output.grad).sum(-1).clamp_min(0)[:, None].float()
        maps.append(
            _scaled(functional.interpolate(evidence, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0])
        )
    model.zero_grad(set_to_none=True)
    return _scaled((maps[0] * maps[1]).sqrt()).cpu()


def _scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def deltas(model: nn.Module, images: Tensor) -> Tensor:
    """Compute by how much each scan lets a place in: delta of the first stage's last block, mean
    over its channels, float32 (b, directions, h, w) on the CPU.

    images as in ``grad_cam``. Directions: by rows, by columns, and both reversed. Where delta is
    large the state takes the place's content and forgets.
    """
    found: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, SS2D)
        found.append(module.delta(inputs[0]).mean(-1).float().cpu())

    branch = [module for module in _stages(model)[0].modules() if isinstance(module, SS2D)][-1]
    with _watched(model, [(branch, hook)]), torch.no_grad():
        model(images)
    return found[0].permute(0, 3, 1, 2)


def _stages(model: nn.Module) -> nn.ModuleList | nn.Sequential:
    stages = getattr(model, "stages", None)
    if not isinstance(stages, nn.ModuleList | nn.Sequential):
        raise TypeError(
            f"model is a {type(model).__name__} without stages; wanted a network of medmambase.model, which has them"
        )
    return stages


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@contextmanager
def _watched(model: nn.Module, hooks: list[tuple[nn.Module, Hook]]) -> Iterator[list[tuple[nn.Module, Hook]]]:
    """The model in evaluation mode with hooks on some of its modules; then as it was."""
    modes = {
        module: module.training for module in model.modules()
    }  # each its own: part of a network may be frozen in eval mode
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        model.eval()
        yield hooks
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _keep(found: dict[int, Recalibration], number: int) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, SqueezeExcite)
        x = inputs[0]
        if len(inputs) > 2:  # the two halves of the channels come apart
            x = torch.cat([x.relu(), inputs[2]], -1)
        gates = module.gate(x)  # the output may be shuffled and added to the block's input
        before, after = (t.float().abs().mean(-1).cpu() for t in (x, x * gates[:, None, None]))
        found[number] = Recalibration(stage=number, before=before, after=after, gates=gates.float().cpu())

    return hook
