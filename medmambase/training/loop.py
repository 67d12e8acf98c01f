"""The one training loop, and prediction, which is the same pass without learning.

As data: ``data/folders.py`` images in memory -> ``data/augment.py`` -> ``model/network.py`` -> loss -> step; after each epoch the
validation split through ``evaluation/metrics.py``, a line of ``metrics.csv``, and the networks ``last/`` and, if better, ``best/``.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.config import Precision, TrainConfig
from medmambase.data.augment import augment
from medmambase.data.folders import ImageSet
from medmambase.data.images import normalise
from medmambase.evaluation.metrics import Metrics, evaluate
from medmambase.model.network import MedMambaSE
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
    each epoch. Raises TrainingError if the loss is no longer a number; ``best/`` and ``last/`` are then the last good ones.
    """
    device = next(network.parameters()).device
    optimizer = _optimizer(network, config)
    steps_per_epoch = math.ceil(len(training.labels) / config.batch_size)
    epochs: list[Epoch] = []
    best_epoch, best_score, selected_by = 0, None, None
    for number in range(1, config.epochs + 1):
        began = time.perf_counter()
        network.train()
        order = torch.randperm(len(training.labels), generator=_generator(config.seed, number))
        # Batches of nearly equal size: a last batch of one image would have no variance for BatchNorm.
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
                raise TrainingError(
                    f"the loss is {loss.item()} at epoch {number}, step {step + 1} of {steps_per_epoch} with learning rate {rate:.2g}; "
                    f"the last good network lies in {run / 'last'}; try a smaller --lr or --precision float32"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            losses += torch.stack([loss.detach() * len(rows), (logits.detach().argmax(1) == labels).sum()]).double().cpu()
        metrics, val_loss = _validate(network, validation, config.batch_size, dtype)
        train_loss, train_accuracy = (losses / len(order)).tolist()
        epoch = Epoch(
            number, rate, train_loss, train_accuracy, val_loss, metrics.accuracy, metrics.balanced_accuracy, metrics.auc, time.perf_counter() - began
        )  # fmt: skip  # one line of the file
        epochs.append(epoch)
        run_folder.append_row(run / "metrics.csv", asdict(epoch))
        network.save(run / "last")
        figure, score = _score(metrics, config)
        if best_score is None or (score is not None and score > best_score):
            best_epoch, best_score, selected_by = number, score, figure
            network.save(run / "best")
        tell(epoch)
        if config.patience and number - best_epoch >= config.patience:
            break
    return Outcome(tuple(epochs), best_epoch, best_score, selected_by)


def predict(network: MedMambaSE, images: ImageSet, batch_size: int, dtype: torch.dtype) -> npt.NDArray[np.float64]:
    """Probabilities (n, classes), in the order of the images; the network is left in evaluation mode."""
    device = next(network.parameters()).device
    network.eval()
    parts = [np.empty((0, network.config.num_classes))]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in images.images.split(batch_size):
            logits = _logits(network, normalise(batch.to(device), network.preprocessing))
            parts.append(F.softmax(logits.double(), 1).cpu().numpy())
    return np.concatenate(parts)


def _logits(network: MedMambaSE, images: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return logits.float()


def _validate(network: MedMambaSE, validation: ImageSet, batch_size: int, dtype: torch.dtype) -> tuple[Metrics, float | None]:
    probabilities = predict(network, validation, batch_size, dtype)
    labels = validation.labels.numpy()
    loss = None
    if len(labels):
        loss = float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300)).mean())
    return evaluate(labels, probabilities, network.classes), loss


def _score(metrics: Metrics, config: TrainConfig) -> tuple[str | None, float | None]:
    """The figure that selects; where it is undefined (one class in validation, say), the next one that is defined."""
    figures = ((name, getattr(metrics, name)) for name in (config.select, "balanced_accuracy", "accuracy"))
    return next(((name, figure) for name, figure in figures if figure is not None), (None, None))


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    # Decay pulls towards zero, which is a preference only for the weights of linear maps and convolutions.
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        spared = parameter.dim() < 2 or name.rsplit(".", 1)[-1] in ("A_log", "D", "dt_bias")
        (free if spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


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
