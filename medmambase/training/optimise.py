"""Choose which weights learn, the optimiser, the learning rate, and the moving average of weights.

Every default is in ``config.py``.
"""

import math
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medmambase.config import Optimizer, TrainConfig
from medmambase.model.classifier import Classifier

# How many tensors of a weight's size the optimiser keeps of it: Adam a mean and a mean square.
MOMENTS: dict[Optimizer, int] = {"adamw": 2, "adam": 2}


# What is no weight of a linear map or a convolution, though it has two axes.
_FREE = ("A_log", "D", "dt_bias", "relative_position_bias_table")


def freeze(network: Classifier, config: TrainConfig) -> list[nn.Module]:
    """Freeze the parts that ``config.freeze`` names, and return them; their parameters get no
    gradient."""
    names = {"none": (), "embedding": ("embedding",), "backbone": ("embedding", "stages")}[config.freeze]
    parts: list[nn.Module] = [getattr(network, name) for name in names]
    for part in parts:
        part.requires_grad_(False)
    return parts


def set_training(network: nn.Module, frozen: list[nn.Module]) -> None:
    """Set training mode except for frozen parts, where BatchNorm keeps its statistics and no path
    is dropped."""
    network.train()
    for part in frozen:
        part.eval()


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimiser, Adam or AdamW, of the parameters that are not frozen. Of parameters that
    learn at another rate the group has the ``factor``."""
    # Decay pulls towards zero, which is a preference only for the weights of linear maps and
    # convolutions.
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        spared = parameter.dim() < 2 or name.rsplit(".", 1)[-1] in _FREE
        if parameter.requires_grad:
            (free if spared else decayed).append(parameter)
    if config.optimizer == "adam":
        learning = [p for p in network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": learning, "weight_decay": config.weight_decay}]
    else:
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
    if config.backbone_lr_factor != 1:
        groups = _apart(groups, network, config.backbone_lr_factor)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    made: torch.optim.Optimizer = kind(groups, lr=config.lr, fused=True)
    device = next(network.parameters()).device
    if device.type in ("cuda", "meta"):  # meta: tensors without numbers, which stand for those of a GPU
        # A CUDA graph would go on with a Python number as it was, so the rate is a tensor; with or
        # without a graph, because it is rounded to float32 by that.
        for group in made.param_groups:
            group.update(lr=torch.tensor(config.lr, dtype=torch.float32).to(device), capturable=True)
    return made


def _apart(groups: list[dict[str, Any]], network: nn.Module, factor: float) -> list[dict[str, Any]]:
    """Return the groups with the parameters of the classifier apart from all others, whose learning
    rate is multiplied by ``factor``."""
    head = {id(p) for name, p in network.named_parameters() if name.startswith("head.")}
    found = []
    for group in groups:
        of_head, others = ([p for p in group["params"] if (id(p) in head) == wanted] for wanted in (True, False))
        found += [group | {"params": of_head}, group | {"params": others, "factor": factor}]
    return [group for group in found if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, and where a group has a ``factor`` so many times
    that."""
    for group in optimizer.param_groups:
        own = rate * group.get("factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def warm_up(config: TrainConfig) -> float:
    """Return how many epochs the learning rate rises: a short training is not spent on warming
    up."""
    return min(config.warmup, config.epochs / 5)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Return the learning rate at a moment counted in epochs: linear warm-up, then constant, a half
    cosine to a hundredth, or a tenth after a half and a hundredth after three quarters of the
    epochs."""
    warmup = warm_up(config)
    if epoch < warmup:
        return config.lr * max(epoch / warmup, 0.01)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        return config.lr * 0.1 ** ((epoch >= config.epochs / 2) + (epoch >= config.epochs * 0.75))
    done = (epoch - warmup) / (config.epochs - warmup)
    return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


N = TypeVar("N", bound=nn.Module)


class Average(Generic[N]):
    """The exponential moving average of a network's weights, as a network in evaluation mode.

    BatchNorm's running statistics are averaged like the weights: so they belong to weights of the
    same age. Its counter is copied.
    """

    def __init__(self, network: N, decay: float) -> None:
        self.network: N = deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        # Asked for once: of both networks only the values change.
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Update the average after a step; ``steps`` are done. Early on it looks back less far, or
        it would long be an average of random weights."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay)([mine for mine, _ in self._floats], [theirs for _, theirs in self._floats], 0)
        if self._counters:
            torch._foreach_copy_([mine for mine, _ in self._counters], [theirs for _, theirs in self._counters])
