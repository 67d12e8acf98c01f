"""The one training loop, and prediction, which is the same pass without learning.

As data: ``data/folders.py`` images in memory -> ``data/augment.py`` -> ``model/network.py`` -> loss -> step; after each epoch the
validation split through ``evaluation/metrics.py``, a line of ``metrics.csv``, and the networks ``last/`` and, if better, ``best/``.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.config import ConfigError, ModelConfig, Precision, TrainConfig
from medmambase.data.augment import augment
from medmambase.data.decode import ImageSet
from medmambase.data.images import normalise
from medmambase.evaluation.metrics import Metrics, evaluate
from medmambase.model.layers import lay_out
from medmambase.model.network import MedMambaSE, last_map
from medmambase.training import run_folder

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


class TrainingError(Exception):
    """Training cannot go on; the message says at which step, why, and what to try."""


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.csv``; the figures of validation are None where there is nothing to measure."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    val_balanced_accuracy: float | None
    val_auc: float | None
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What training ended with: all epochs, and which one's network lies in ``best/`` with what score of which figure."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    best_score: float | None
    selected_by: str | None


def choose_precision(wish: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of matrix products and convolutions, and why; scans, norms and weights are float32 always."""
    if wish == "float32":
        return torch.float32, "asked for"
    if wish == "bfloat16":
        return torch.bfloat16, "asked for"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16, "the GPU computes bfloat16 at full speed"
    return torch.float32, "the safe choice on this device"


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Into how many batches of nearly equal size an epoch is cut: of at most ``batch_size`` images, but never of one where two were asked for.

    In a batch of one image BatchNorm sees that image alone, and nothing at all where its map is 1x1. So 5 images in batches of 2 become 3 and 2.
    """
    return max(1, min(math.ceil(images / batch_size), images // min(batch_size, 2)))


def check_batches(images: int, size: int, batch_size: int, model: ModelConfig) -> None:
    """Raises ConfigError where a batch of one image meets maps of 1x1, in which BatchNorm has no variance to measure."""
    if images // batches_per_epoch(images, batch_size) == 1 and last_map(model, size) == 1:
        why = "there is 1 training image" if images == 1 else f"batch_size is {batch_size}"
        what = "add training images" if images == 1 else "use --batch-size 2 or more"
        raise ConfigError(f"{why}, and images of {size} px shrink to maps of 1x1, where BatchNorm needs two; {what}, or a larger --image-size")


def train(
    network: MedMambaSE,
    training: ImageSet,
    validation: ImageSet,
    config: TrainConfig,
    run: Path,
    dtype: torch.dtype,
    progress: Progress,
    tell: Callable[[Epoch], object],
) -> Outcome:
    """Train ``network`` where it is, writing ``metrics.csv``, ``best/`` and ``last/`` into ``run`` after each epoch.

    The order of images depends on (seed, epoch) and augmentation on (seed, epoch, step), on nothing else. ``tell`` hears of
    each epoch. ``best/`` is the epoch with the highest selecting figure; among equals with the highest balanced accuracy, and then with
    the lowest loss, so that a figure that has reached its 1.0 does not hold on to the first epoch that did.

    Raises ConfigError where a batch of one image cannot be normalised, and TrainingError if the loss or the network's outputs are no
    longer numbers; ``best/`` and ``last/`` are then the last good ones.
    """
    check_batches(len(training.labels), training.images.shape[-1], config.batch_size, network.config)
    device = next(network.parameters()).device
    lay_out(network)
    optimizer = _optimizer(network, config)
    steps_per_epoch = batches_per_epoch(len(training.labels), config.batch_size)
    epochs: list[Epoch] = []
    best_epoch, best_score, selected_by = 0, None, None
    best_rank: tuple[float, ...] | None = None
    for number in range(1, config.epochs + 1):
        began = time.perf_counter()
        network.train()
        order = torch.randperm(len(training.labels), generator=_generator(config.seed, number))
        batches = order.tensor_split(steps_per_epoch)
        losses = torch.zeros(2, dtype=torch.float64)  # sum of losses, number of hits
        rate = config.lr
        for step, rows in enumerate(progress(batches, steps_per_epoch, f"epoch {number}/{config.epochs}")):
            rate = _learning_rate(config, (number - 1) + step / steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            labels = training.labels[rows].to(device)
            images = normalise(training.images[rows].to(device), network.preprocessing)
            images = augment(images, config.augmentation, _generator(config.seed, number, step))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = _logits(network, images)
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            if not torch.isfinite(loss):
                what = f"the loss is {loss.item()} at epoch {number}, step {step + 1} of {steps_per_epoch}"
                raise _diverged(what, rate, dtype, run if epochs else None)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            losses += torch.stack([loss.detach() * len(rows), (logits.detach().argmax(1) == labels).sum()]).double().cpu()
        # The last step of an epoch is judged by no loss, so the network is, before it takes the place of a good one.
        judged = validation if len(validation.labels) else training.rows(batches[-1].tolist())
        try:
            probabilities = predict(network, judged, config.batch_size, dtype)
            _check_finite(network)
        except TrainingError as error:
            raise _diverged(f"{error} after epoch {number}", rate, dtype, run if epochs else None) from None
        metrics, val_loss = _figures(validation.labels.numpy(), probabilities[: len(validation.labels)], network.classes)
        train_loss, train_accuracy = (losses / len(order)).tolist()
        epoch = Epoch(
            number, rate, train_loss, train_accuracy, val_loss, metrics.accuracy, metrics.balanced_accuracy, metrics.auc, time.perf_counter() - began
        )  # fmt: skip  # one line of the file
        epochs.append(epoch)
        run_folder.append_row(run / "metrics.csv", asdict(epoch))
        network.save(run / "last")
        figure, score = _score(metrics, config)
        rank = None if score is None else (score, metrics.balanced_accuracy or 0.0, -(val_loss or 0.0))
        if best_rank is None or (rank is not None and rank > best_rank):
            best_epoch, best_score, selected_by, best_rank = number, score, figure, rank
            network.save(run / "best")
        tell(epoch)
        if config.patience and number - best_epoch >= config.patience:
            break
    return Outcome(tuple(epochs), best_epoch, best_score, selected_by)


def predict(network: MedMambaSE, images: ImageSet, batch_size: int, dtype: torch.dtype) -> npt.NDArray[np.float64]:
    """Probabilities (n, classes), in the order of the images; the network is left in evaluation mode.

    Raises TrainingError naming the first image for which the network gives no numbers.
    """
    device = next(network.parameters()).device
    network.eval()
    parts = [np.empty((0, network.config.num_classes))]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in images.images.split(batch_size):
            logits = _logits(network, normalise(batch.to(device), network.preprocessing))
            parts.append(F.softmax(logits.double(), 1).cpu().numpy())
    probabilities = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if len(bad):
        raise TrainingError(f"the network's outputs for {images.samples[bad[0]].name} are no numbers")
    return probabilities


def _logits(network: MedMambaSE, images: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return logits.float()


def _check_finite(network: nn.Module) -> None:
    """Raises TrainingError naming a weight or running statistic that is no number: some of them do not show in the outputs yet."""
    for name, t in network.state_dict().items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise TrainingError(f"{name} is no longer finite")


def _diverged(what: str, rate: float, dtype: torch.dtype, run: Path | None) -> TrainingError:
    """``run`` holds a good network in ``last/``; None where no epoch was finished."""
    kept = f"the last good network lies in {run / 'last'}" if run else "no epoch was finished, so no network was kept"
    return TrainingError(f"{what} with learning rate {rate:.2g}; {kept}; try a smaller --lr{'' if dtype == torch.float32 else ' or --precision float32'}")


def _figures(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], classes: Sequence[str]) -> tuple[Metrics, float | None]:
    loss = None
    if len(labels):
        loss = float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300)).mean())
    return evaluate(labels, probabilities, classes), loss


def _score(metrics: Metrics, config: TrainConfig) -> tuple[str | None, float | None]:
    """The figure that selects; where it is undefined (one class in validation, say), the next one that is defined."""
    figures = ((name, getattr(metrics, name)) for name in (config.select, "balanced_accuracy", "accuracy"))
    return next(((name, figure) for name, figure in figures if figure is not None), (None, None))


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    # Decay pulls towards zero, which is a preference only for the weights of linear maps and convolutions.
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        spared = parameter.dim() < 2 or name.rsplit(".", 1)[-1] in ("A_log", "D", "dt_bias")
        (free if spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _learning_rate(config: TrainConfig, epoch: float) -> float:
    """The rate at a moment counted in epochs: linear warm-up, then constant or a half cosine to a hundredth."""
    warmup = min(config.warmup, config.epochs / 5)  # a short training is not spent on warming up
    if epoch < warmup:
        return config.lr * max(epoch / warmup, 0.01)
    if config.schedule == "constant":
        return config.lr
    done = (epoch - warmup) / (config.epochs - warmup)
    return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def _generator(*numbers: int) -> torch.Generator:
    """A generator that depends on the numbers alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
