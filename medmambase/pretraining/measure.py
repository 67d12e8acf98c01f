"""Measure on pictures that are held out what a pretraining has learned: the losses, and how well
each structure is told from its absence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medmambase.evaluation import delong
from medmambase.pretraining.network import Predicted, Pretrained, predict
from medmambase.pretraining.tasks import Batch, Task, losses


@dataclass(frozen=True)
class Structure:
    """How well one structure is found: the AUC with its 95 % interval, None where no picture or
    every picture shows it, and how many of ``pictures`` do."""

    name: str
    auc: float | None
    low: float | None
    high: float | None
    present: int
    pictures: int


@dataclass(frozen=True)
class Measured:
    """``losses`` by the name of their target, means over all pictures; ``structures``; the 95 %
    ``interval`` of ``auc``, None where there is none; and of the first batch what was predicted, on
    the CPU."""

    losses: dict[str, float]
    structures: tuple[Structure, ...]
    interval: tuple[float, float] | None
    first: Predicted

    @property
    def auc(self) -> float | None:
        """The mean AUC of the structures that have one; None where none has."""
        known = [one.auc for one in self.structures if one.auc is not None]
        return sum(known) / len(known) if known else None


def measure(network: Pretrained, task: Task, held_out: Sequence[Batch], dtype: torch.dtype) -> Measured:
    """Measure a network in evaluation mode; it is left so."""
    device = next(network.parameters()).device
    network.eval()
    sums, pictures = torch.zeros(len(task.targets), dtype=torch.float64), 0
    found: list[Predicted] = []
    with torch.inference_mode():
        for batch in held_out:
            there = batch.to(device)
            predicted = predict(network, there.inputs, dtype)
            sums += losses(predicted, there, task.targets).double().cpu() * len(batch.inputs)
            pictures += len(batch.inputs)
            kept = predicted if not found else Predicted(predicted.structures, None)
            found.append(Predicted(*(None if t is None else t.cpu() for t in kept)))
    means = dict(zip(task.targets, (sums / pictures).tolist(), strict=True))
    if not task.structures:
        return Measured(means, (), None, found[0])
    present = _together([batch.structures for batch in held_out]) > 0.5
    scores = _together([one.structures for one in found])
    each = tuple(_structure(name, present[:, at], scores[:, at]) for at, name in enumerate(task.structures))
    return Measured(means, each, delong.mean_interval(present, scores), found[0])


def _together(parts: Sequence[Tensor | None]) -> np.ndarray:
    joined: np.ndarray = torch.cat([part for part in parts if part is not None]).double().numpy()
    return joined


def _structure(name: str, present: np.ndarray, scores: np.ndarray) -> Structure:
    count = int(present.sum())
    auc = float(delong.areas(present, scores[None])[0][0])
    if math.isnan(auc):
        return Structure(name, None, None, None, count, len(present))
    low, high = delong.interval(present, scores)
    return Structure(name, auc, low, high, count, len(present))
