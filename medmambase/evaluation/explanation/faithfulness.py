"""Test whether a map marks what the network uses: delete, or insert, the marked places first, and
compare with a random order.

Deletion and insertion are those of Petsiuk et al. (BMVC 2018); what is deleted is blurred beyond
recognition instead of blackened, since black places are an image the network has never seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy  # which imports its parts when they are first used: they are slow to import
import torch
from torch import Tensor
from torch.nn import functional

from medmambase.data.decoded.image_set import Progress, no_progress

FEWEST = 3  # images for a verdict
STEPS = 12  # equal parts of the image that are deleted, or inserted, one after the other
RANDOM = 4  # orders by chance, for each image
CELLS = 12  # places along a side, at the most
_BATCH = 48


@dataclass(frozen=True)
class Curves:
    """The class's probability, (images, STEPS + 1), while more and more of the image is deleted or
    inserted."""

    deletion: Tensor
    insertion: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """Mean probability on the way, (images,) each: low is good for deletion, high for
        insertion."""
        deletion, insertion = (torch.trapezoid(curve, dx=1 / STEPS, dim=1) for curve in (self.deletion, self.insertion))
        return deletion, insertion


Predict = Callable[[Tensor], Tensor]  # images (b, c, h, w) -> probabilities (b, classes)


def measure(
    predict: Predict, images: Tensor, maps: Tensor, targets: Tensor, seed: int = 0, progress: Progress = no_progress
) -> tuple[Curves, Curves]:
    """Measure the curves of the maps (b, h, w) and of random orders. images (b, c, h, w) as the
    network takes them; targets (b,) int64, whose probability is watched; ``progress`` may wrap the
    steps."""
    cells = min(CELLS, *images.shape[2:])
    scores = functional.adaptive_avg_pool2d(maps[:, None].float(), cells).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.cat([scores, torch.rand((RANDOM * len(scores), cells * cells), generator=generator)])
    every = _curves(predict, images.repeat(1 + RANDOM, 1, 1, 1), targets.repeat(1 + RANDOM), orders, progress)
    count = len(images)
    chance = [curve[count:].view(RANDOM, count, -1).mean(0) for curve in (every.deletion, every.insertion)]
    return Curves(every.deletion[:count], every.insertion[:count]), Curves(*chance)


def verdict(marked: Curves, chance: Curves) -> str:
    """Say in a sentence whether the maps mark what the class depends on, and only if that is no
    chance."""
    count = len(marked.deletion)
    if count < FEWEST:
        return (
            f"Nothing can be said from {'one image' if count == 1 else f'{count} images'} about whether the maps mark "
            f"what the network uses: at least {FEWEST} are needed, and more say more."
        )
    pairs = zip(chance.areas(), marked.areas(), (1.0, -1.0), strict=True)
    better = [_surely_above(sign * (by_chance - by_map)) for by_chance, by_map, sign in pairs]
    if all(better):
        return "The maps mark what the network uses: both are better than chance."
    if any(better):
        return (
            f"Only {'deletion' if better[0] else 'insertion'} is better than chance: the maps mark what the "
            f"network uses in part, or with much else."
        )
    return (
        f"Neither is better than chance on these {count} images: that does not show that the maps are wrong, but "
        f"nothing here shows that they mark what the network uses, so do not rely on them."
    )


def _surely_above(gains: Tensor) -> bool:
    """Whether the mean of (images,), FEWEST or more, lies above 0 by a one-sided test at 2.5 %."""
    values = gains.double()
    error = float(values.std()) / math.sqrt(len(values))
    return bool(values.mean() > 0) and (
        error == 0 or float(values.mean()) / error > float(scipy.stats.t.ppf(0.975, len(values) - 1))
    )


def _curves(predict: Predict, images: Tensor, targets: Tensor, scores: Tensor, progress: Progress) -> Curves:
    """By the order of the cells' scores (b, cells * cells), the highest first."""
    side = math.isqrt(scores.shape[1])
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(1).view(-1, 1, side, side)
    blurred = _blurred(images)
    rows = torch.arange(len(images))
    deletion: list[Tensor] = []
    insertion: list[Tensor] = []
    for step in progress(range(STEPS + 1), STEPS + 1, "testing the maps"):
        gone = (ranks < round(step * side * side / STEPS)).to(images)
        gone = functional.interpolate(gone, size=images.shape[2:], mode="nearest")
        for curve, (shown, hidden) in ((deletion, (images, blurred)), (insertion, (blurred, images))):
            changed = (shown * (1 - gone) + hidden * gone).split(_BATCH)
            curve.append(torch.cat([predict(part) for part in changed]).cpu().double()[rows, targets])
    return Curves(torch.stack(deletion, 1), torch.stack(insertion, 1))


def _blurred(images: Tensor) -> Tensor:
    """Twice the mean over a window of a third of the image."""
    reach = max(1, min(images.shape[2:]) // 6)
    for _ in range(2):
        images = functional.avg_pool2d(functional.pad(images, (reach,) * 4, mode="replicate"), 2 * reach + 1, stride=1)
    return images
