"""A trained network from pixels to probabilities, as one module that can be exported."""

import torch
from torch import Tensor, nn

from medmambase.data.reading.images import normalise
from medmambase.inference.ensemble import Ensemble
from medmambase.model.classifier import Classifier, Trainable


class PortableNetwork(nn.Module):
    """``forward`` maps images uint8 (b, size, size, channels), as ``data/reading/fitted.py`` makes
    them, to probabilities float32 (b, classes): normalisation, network, temperature and activation.
    """

    def __init__(self, network: Trainable | Ensemble, temperature: float) -> None:
        super().__init__()
        self.network: Classifier = network
        self.temperature = temperature
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """image uint8 (b, size, size, channels) -> probabilities float32 (b, classes)."""
        prepared = normalise(image.permute(0, 3, 1, 2), self.network.preprocessing)
        logits = self.network(prepared)
        assert isinstance(logits, Tensor)  # it has a head
        return self.network.task.activate(logits.float() / self.temperature)

    def example(self) -> Tensor:
        """Two images of its size, uint8 (2, size, size, channels): the same ones each time."""
        how = self.network.preprocessing
        drawn = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (2, how.size, how.size, how.channels), dtype=torch.uint8, generator=drawn)
