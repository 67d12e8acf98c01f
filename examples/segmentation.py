"""Use the network as a backbone, here for segmentation: python examples/segmentation.py

With ``features_only`` the network returns the maps of its four stages; a head of your own does the
rest. ``MedMambaSE.load("runs/data-001/best", features_only=True)`` starts from a trained network.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase import MedMambaSE, ModelConfig


class Segmenter(nn.Module):
    """Map images (batch, 1, height, width) to logits of each pixel (batch, classes, height,
    width)."""

    def __init__(self, backbone: MedMambaSE, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Conv2d(width, classes, kernel_size=1) for width in backbone.config.dims)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.backbone(image)
        logits = [
            F.interpolate(head(found), image.shape[-2:], mode="bilinear")
            for head, found in zip(self.heads, maps, strict=True)
        ]
        return torch.stack(logits).sum(dim=0)


def main() -> Tensor:
    """Take one training step on random images; print the shapes and return the logits."""
    torch.manual_seed(0)
    config = ModelConfig(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), in_chans=1)
    model = Segmenter(MedMambaSE(config, features_only=True), classes=3)
    image, mask = torch.randn(2, 1, 64, 64), torch.randint(3, (2, 64, 64))
    logits: Tensor = model(image)
    F.cross_entropy(logits, mask).backward()
    print(f"images {tuple(image.shape)} -> logits {tuple(logits.shape)}")
    return logits


def command(words: Sequence[str]) -> None:
    """Read the command line, which takes --help alone, and run."""
    parser = argparse.ArgumentParser(description="Take one training step of a segmentation network on random images.")
    parser.parse_args(words)
    main()


if __name__ == "__main__":
    command(sys.argv[1:])
