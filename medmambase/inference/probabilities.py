"""Run networks on images, in a precision, up to the probabilities that ``model/task.py`` makes of
logits.

``predict`` is for images that are decoded already, such as the validation split after an epoch;
``stream.py`` is for files and arrays of any number.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medmambase.config import Precision
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.reading.images import normalise
from medmambase.distributed import ALONE, Ranks
from medmambase.model.classifier import Classifier


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
            found[rows] = network.task.probabilities(logits_of(network, batch, dtype))
    probabilities: npt.NDArray[np.float64] = ranks.sum(found).numpy()
    bad = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if len(bad):
        raise InferenceError(f"the network's outputs for {images.samples[bad[0]].name} are non-finite")
    return probabilities
