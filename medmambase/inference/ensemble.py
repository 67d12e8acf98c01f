"""Let several networks predict together: the mean of their probabilities."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medmambase.model.classifier import Classifier, Trainable


class Ensemble(Classifier):
    """Several networks with the same classes and the same preparation of images, as one.

    ``forward`` maps images (b, in_chans, h, w) to logits float32 (b, num_classes), which are those
    of the mean of the networks' probabilities: each network's logits are divided by its own one of
    the ``temperatures`` before. It can be neither trained nor saved, and has no maps.
    """

    def __init__(self, networks: Sequence[Classifier], temperatures: Sequence[float]) -> None:
        first = networks[0]
        super().__init__(first.config, first.classes, first.preprocessing, features_only=False)
        self.networks = nn.ModuleList(networks)
        self.temperatures = tuple(temperatures)

    def forward(self, image: Tensor) -> Tensor:
        """image (b, in_chans, h, w) -> the logarithm of the mean probabilities (b,
        num_classes)."""
        found = [
            network(image).float() / temperature
            for network, temperature in zip(self.networks, self.temperatures, strict=True)
        ]
        return self.task.mean(torch.stack(found))

    def for_prediction(self) -> "Ensemble":
        """Make a copy of which each network only predicts; see ``MedMambaSE.for_prediction``."""
        networks = [cast(Trainable, network).for_prediction() for network in self.networks]
        return Ensemble(networks, self.temperatures)
