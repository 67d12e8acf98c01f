"""Keep what passes through a network while it predicts: its pictures in a few numbers, and what its
head gets and gives."""

from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from medmambase.inference.ensemble import Ensemble
from medmambase.model.classifier import Classifier

LEVELS = 16
BANDS = 4  # of a picture, from top to bottom
DIRECTIONS = 8
SIDE = 64  # pixels at most of a picture whose edges are looked at: as much, and so as fast, at any size
NUMBERS = LEVELS + 4 + 2 * BANDS + DIRECTIONS  # that describe a picture
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What was seen of n images: ``pictures`` (n, 36) as ``describe`` makes them, and of each of
    the networks ``features`` before the head (n, d) and ``logits`` (n, classes)."""

    pictures: Floats
    features: tuple[Floats, ...]
    logits: tuple[Floats, ...]


class Watch:
    """Watch a network, or all of an ``Ensemble``: ``with Watch(network) as watch:`` predict, then
    ``watch.take()``. Networks may be frozen, or opponents: a head is the last linear layer. What
    other threads predict meanwhile with the same network is theirs, and is not seen."""

    def __init__(self, network: Classifier) -> None:
        self.network = network
        members = list(network.networks) if isinstance(network, Ensemble) else [network]
        self._heads = [[one for one in member.modules() if isinstance(one, nn.Linear)][-1] for member in members]
        self._pictures: list[Tensor] = []
        self._features: list[list[Tensor]] = [[] for _ in members]
        self._logits: list[list[Tensor]] = [[] for _ in members]
        self._hooks = ExitStack()
        self._thread = get_ident()

    @property
    def widths(self) -> tuple[int, ...]:
        """How many features the head of each network gets."""
        return tuple(head.in_features for head in self._heads)

    def __enter__(self) -> Self:
        self._thread = get_ident()  # a stream may go on in another one
        handles = [self.network.register_forward_pre_hook(self._picture)]
        for number, head in enumerate(self._heads):
            handles.append(head.register_forward_hook(self._of_head(number)))
        for handle in handles:
            self._hooks.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def take(self) -> Seen:
        """Return what was seen since it was taken last, in the order in which it came."""
        found = Seen(_joined(self._pictures), tuple(map(_joined, self._features)), tuple(map(_joined, self._logits)))
        for kept in (self._pictures, *self._features, *self._logits):
            kept.clear()
        return found

    def _picture(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if get_ident() != self._thread:
            return
        preprocessing = self.network.preprocessing
        self._pictures.append(describe(given[0] * preprocessing.std + preprocessing.mean).cpu())

    def _of_head(self, number: int) -> Any:
        def keep(_: nn.Module, given: tuple[Any, ...], logits: Tensor) -> None:
            if get_ident() != self._thread:
                return
            self._features[number].append(given[0].detach().float().cpu())
            self._logits[number].append(logits.detach().float().cpu())

        return keep


def describe(images: Tensor) -> Tensor:
    """Describe pictures (b, channels, h, w), black 0 and white 1, in float32 (b, 36): the square
    roots of the shares of their pixels at 16 grey levels, how much these differ from each other,
    and how much neighbours do: across, down, and down by their second difference.

    The last 16 tell which way is up: how much neighbours differ across and down in each of four
    bands, from top to bottom, and the square roots of the shares that each of eight directions has
    of all edges, by their strength, where the picture has 64 pixels a side."""
    grey = images.float().mean(1)
    places = (grey * LEVELS).long().clamp(0, LEVELS - 1).flatten(1)
    shares = torch.zeros(len(grey), LEVELS, device=grey.device)
    shares.scatter_add_(1, places, torch.full_like(grey, 1 / places.shape[1]).flatten(1))
    level = 255 * grey
    across, down = level.diff(dim=2), level.diff(dim=1)
    texture = [one.abs().flatten(1).mean(1).log1p() for one in (across, down, level.diff(n=2, dim=1))]
    bands = [adaptive_avg_pool2d(one.abs()[:, None], (BANDS, 1)).flatten(1).log1p() for one in (across, down)]
    spread = level.flatten(1).std(1, correction=0)[:, None] / 64
    return torch.cat([shares.sqrt(), spread, torch.stack(texture, 1), *bands, _directions(level)], 1)


def _directions(level: Tensor) -> Tensor:
    """The square roots of the shares that directions have of the edges of (b, h, w): (b,
    DIRECTIONS)."""
    size = min(SIDE, level.shape[1]), min(SIDE, level.shape[2])
    small = adaptive_avg_pool2d(level[:, None], size)[:, 0]
    across, down = small.diff(dim=2)[:, :-1], small.diff(dim=1)[:, :, :-1]
    strength = torch.hypot(across, down)
    towards = (torch.atan2(down, across) * (DIRECTIONS / (2 * torch.pi))).round().long() % DIRECTIONS
    # Sums of a mask, not scatter_add_, whose order and so rounding changes on a GPU.
    sums = torch.stack([(strength * (towards == one)).flatten(1).sum(1) for one in range(DIRECTIONS)], 1)
    return (sums / sums.sum(1, keepdim=True).clamp(min=1e-6)).sqrt()


def _joined(parts: list[Tensor]) -> Floats:
    return torch.cat(parts).double().numpy() if parts else np.zeros((0, 0))
