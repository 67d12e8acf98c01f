"""A small network whose answers depend on the image, though it has learned nothing."""

import torch

from medmambase import MedMambaSE, ModelConfig, Preprocessing


def small_network(classes: tuple[str, ...], channels: int = 1) -> MedMambaSE:
    """Of images of 16 pixels, with random weights."""
    config = ModelConfig(dims=(8, 16), depths=(1, 1), in_chans=channels, num_classes=len(classes))
    return MedMambaSE(config, classes=classes, preprocessing=Preprocessing(size=16, channels=channels)).eval()


def sharp_network(classes: tuple[str, ...]) -> MedMambaSE:
    """The same one each time, of grey images, with so large weights in its head that an image
    matters."""
    torch.manual_seed(0)
    network = small_network(classes)
    with torch.no_grad():
        network.head.weight.mul_(30)
    return network
