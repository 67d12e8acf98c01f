"""Compute class probabilities: the project's only softmax, and the precision of its inputs.

``predict`` is for images that are decoded already, such as the validation split after an epoch;
``stream.py`` is for files and arrays of any number.
"""

import numpy as np
import numpy.typing as npt
import scipy  # which imports its parts when they are first used: they are slow to import
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase.config import Precision
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.reading.images import normalise
from medmambase.distributed import ALONE, Ranks
from medmambase.model.classifier import Classifier

_LEAST = np.finfo(np.float64).tiny


class InferenceError(Exception):
    """A network cannot be used for prediction, or its outputs are non-finite; the message says
    which and what to do."""


def choose_precision(wish: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the dtype of matrix products and convolutions, and why; scans, norms and weights are
    always float32."""
    if wish == "float32":
        return torch.float32, "requested"
    if wish == "bfloat16":
        return torch.bfloat16, "requested"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16, "the GPU computes bfloat16 at full speed"
    return torch.float32, "the default on this device"


def logits_of(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Run a network on normalised images (b, c, h, w) with matrix products in ``dtype``:
    torch.float32 (b, classes)."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits: Tensor = network(images)
    return logits.float()


def softmax(logits: Tensor) -> Tensor:
    """Turn logits (..., classes) into probabilities, torch.float64 on the CPU."""
    return F.softmax(logits.cpu().double(), -1)


def log_probabilities(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logits of probabilities (..., classes), up to a constant that does not change a
    softmax."""
    logits: npt.NDArray[np.float64] = np.log(np.maximum(probabilities, _LEAST))
    return logits


def apply_temperature(probabilities: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """Divide the logits of probabilities (..., classes) by ``temperature``: above 1 they become
    less sure. The most probable class stays the same, but for ties in the last digit."""
    warmer: npt.NDArray[np.float64] = scipy.special.softmax(log_probabilities(probabilities) / temperature, axis=-1)
    return warmer


def predict(
    network: Classifier, images: ImageSet, batch_size: int, dtype: torch.dtype, ranks: Ranks = ALONE
) -> npt.NDArray[np.float64]:
    """Predict every image of a set: probabilities (n, classes), in the order of the images.

    The network is left in evaluation mode. Several ``ranks`` share the images. Raises
    InferenceError naming the first image for which the network's outputs are not numbers.
    """
    device = next(network.parameters()).device
    network.eval()
    found = torch.zeros(len(images.labels), network.config.num_classes, dtype=torch.float64)
    mine = ranks.share(torch.arange(len(found)))
    images.expect(mine)
    with torch.inference_mode():
        for rows in mine.split(batch_size):
            batch = normalise(images.images[rows].to(device), network.preprocessing)
            found[rows] = softmax(logits_of(network, batch, dtype))
    probabilities: npt.NDArray[np.float64] = ranks.sum(found).numpy()
    bad = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if len(bad):
        raise InferenceError(f"the network's outputs for {images.samples[bad[0]].name} are non-finite")
    return probabilities
