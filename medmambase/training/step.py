"""Take one training step: from a batch to the loss, its gradients, and new weights.

``gradients`` and ``update`` are functions of tensors that stay in their places. On a GPU nothing in
them waits for a result, copies from the host, or depends on a Python number that differs from step
to step. So the same two functions are a step of their own, and what ``graph.py`` captures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medmambase.config import TrainConfig
from medmambase.data.augment import augment_by_keys, keys_of, mixup_share
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.reading.images import normalise
from medmambase.distributed import Ranks, local_gradients
from medmambase.inference.probabilities import logits_of
from medmambase.model.classifier import Trainable
from medmambase.training.batches import seed_of
from medmambase.training.checkpoint import Learning


class Batch(NamedTuple):
    """Everything that a step gets from the host: images torch.uint8 (b, c, s, s); labels
    torch.int64 (b,), of several classes (b, classes); keys torch.int64 (b,), from which
    augmentation draws; torch.float32 (), the factor by which the sum of the losses is multiplied
    before its gradients are taken; the soft labels torch.float32 (b, classes), (b, 0) where the
    labels alone are learned from; and torch.float32 (1,), the share of each image in its mixture,
    (0,) where none is mixed."""

    images: Tensor
    labels: Tensor
    keys: Tensor
    factor: Tensor
    soft: Tensor
    share: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on ``device``."""
        return Batch(*(t.to(device) for t in self))


class Outcome(NamedTuple):
    """What became of a step, summed over all processes: the weighted losses, the correct
    predictions, and how many processes are to stop; and the norm of the gradients."""

    loss: float
    hits: float
    stops: float
    norm: float


def update(network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, sums: Tensor) -> Tensor:
    """Update the weights by their gradients, and take these away; leave the weights as they are if
    a sum or the norm of the gradients is non-finite.

    ``sums``, torch.float32 (k,), are known to all processes. Returns torch.float32 (k + 1,): the
    sums and the norm.
    """
    norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    if clip_norm:
        # The fused optimiser divides gradients by this as it reads them.
        optimizer.grad_scale = (norm / clip_norm).clamp_(min=1).float()  # type: ignore[attr-defined]  # as torch.amp does
    found = torch.cat([sums, norm[None]])
    # The fused optimiser skips its step by itself where this is 1: no host has to be asked. Any
    # number times 0 is 0, but neither an infinite one nor NaN.
    optimizer.found_inf = (found * 0).sum().ne_(0).float()  # type: ignore[attr-defined]  # as torch.amp does
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found


@dataclass(frozen=True)
class Step:
    """Everything that stays the same from step to step. ``learner`` is the network or its wrapper
    that averages gradients; ``weights``, on the CPU, are those of the task's loss. ``soft``
    torch.float32 (n, classes): for each training image what is learned in the place of its label,
    rows that sum to 1; None: the labels, smoothed."""

    learning: Learning[Trainable]
    learner: nn.Module
    training: ImageSet
    config: TrainConfig
    dtype: torch.dtype
    weights: Tensor
    ranks: Ranks
    soft: Tensor | None = None

    @property
    def network(self) -> Trainable:
        """The network that learns."""
        return self.learning.network

    @cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @cached_property
    def _targets(self) -> Tensor:
        """By what the loss of a label multiplies the logarithms of probabilities: torch.float32, on
        the network's device."""
        return self.network.task.table(self.weights, self.config.label_smoothing).to(self.device)

    @cached_property
    def _soft_weights(self) -> Tensor:
        """The same of soft labels: torch.float32 (classes,), by which they are multiplied."""
        return self.weights.neg().to(self.device)

    def weight_of(self, rows: Tensor) -> float:
        """Return the sum of the weights of a batch over all processes."""
        labels = self.training.labels[rows % len(self.training.labels)]
        return self.network.task.weight_of(labels, self.weights)

    def batch(self, rows: Tensor, epoch: int, whole: float) -> Batch:
        """Gather this process's share of a batch, on the CPU. ``whole``: the weight of the images
        of the whole step; its loss is their mean."""
        mine = self.ranks.share(rows)
        places = mine % len(self.training.labels)
        # DDP divides by the count of processes.
        factor = torch.tensor(self.ranks.count / whole, dtype=torch.float32)
        keys = keys_of(self.config.seed, epoch, mine)
        soft = torch.zeros(len(places), 0) if self.soft is None else self.soft[places]
        mixup = self.config.mixup  # one share a batch, of all processes
        share = mixup_share(keys_of(self.config.seed, epoch, rows[:1]), mixup) if mixup else torch.zeros(0)
        return Batch(self.training.images[places], self.training.labels[places], keys, factor, soft, share)

    def gradients(self, batch: Batch) -> Tensor:
        """Add the gradients of a batch on the network's device. Returns torch.float32 (2,): the
        weighted sum of its losses, and the number of correct predictions.

        With mixup (Zhang et al., ICLR 2018) each image is mixed with the one before it, whose place
        in the epoch is drawn, and so is what it is learned by; a prediction is then correct by the
        share of its class. Each image has the same part in the whole, so the losses are divided by
        the same weight as without.
        """
        images = augment_by_keys(
            normalise(batch.images, self.network.preprocessing), self.config.augmentation, batch.keys,
            laterality=self.config.laterality,
        )  # fmt: skip  # one call in another
        task, hard = self.network.task, self.soft is None
        targets = task.targets(self._targets, batch.labels) if hard else self._soft_weights * batch.soft
        if self.config.mixup:
            images, targets = (torch.lerp(t.roll(1, 0), t, batch.share) for t in (images, targets))
        logits = logits_of(self.learner, images, self.dtype)
        loss = task.loss(logits, targets)
        loss.backward(batch.factor)
        hits = task.hits(logits.detach(), batch.labels)
        if self.config.mixup:
            hits = torch.lerp(task.hits(logits.detach(), batch.labels.roll(1, 0)), hits, batch.share[0])
        return torch.stack([loss.detach(), hits])

    def update(self, sums: Tensor) -> Tensor:
        """Update the weights as the function ``update`` does."""
        return update(self.network, self.learning.optimizer, self.config.clip_norm, sums)

    def whole(self, batch: Batch) -> Tensor:
        """Take a step of one batch on one process. Returns torch.float32 (3,): the weighted sum of
        the losses, the number of correct predictions, the norm of the gradients."""
        return self.update(self.gradients(batch))

    def take(self, batches: Sequence[Tensor], epoch: int, whole: float, interrupted: Callable[[], int]) -> Outcome:
        """Take a step of the rows of one batch or several. Every process learns the same of it, and
        decides the same."""
        sums = self._sums(batches, epoch, whole)
        # One exchange, and one wait for the GPU, a step.
        sums = self.ranks.sum(torch.cat([sums, sums.new_tensor([bool(interrupted())])]))
        return Outcome(*self.update(sums).tolist())

    def again(self, batches: Sequence[Tensor], epoch: int, step: int, whole: float) -> None:
        """Repeat the forward and backward passes of a step that was not taken."""
        torch.manual_seed(seed_of(self.config.seed, epoch, step, self.ranks.rank))
        self._sums(batches, epoch, whole)

    def rehearse(self, rows: Tensor) -> float:
        """Add the gradients of a batch in the dry run; return its mean loss."""
        whole = self.weight_of(rows)
        return self.ranks.sum(self._sums([rows], 0, whole)[0]).item() / whole

    def _sums(self, batches: Sequence[Tensor], epoch: int, whole: float) -> Tensor:
        sums = torch.zeros(2, device=self.device)
        for rows in batches:
            with local_gradients(self.learner, wanted=rows is not batches[-1]):
                sums += self.gradients(self.batch(rows, epoch, whole).to(self.device))
        return sums
