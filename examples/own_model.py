"""Put a selective scan into a model of your own: python examples/own_model.py

A sequence of zeros has a single 1 or -1 at a random place. The model sees its last position only,
so the scan must carry the sign there.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import SelectiveScan


class SignOfTheSpike(nn.Module):
    """Classify sequences (batch, length) into two classes: logits (batch, 2)."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, channels)
        self.scan = SelectiveScan(channels, state=8)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.scan(self.embedding(x[..., None]))  # (batch, length, channels)
        return self.head(hidden[:, -1])


def spikes(count: int, length: int = 24) -> tuple[Tensor, Tensor]:
    """Return sequences (count, length) and their classes (count,)."""
    label = torch.randint(2, (count,))
    x = torch.zeros(count, length)
    x[torch.arange(count), torch.randint(length, (count,))] = label * 2.0 - 1
    return x, label


def main() -> float:
    """Train for a few steps; print and return the accuracy on new sequences."""
    torch.manual_seed(0)
    model = SignOfTheSpike()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(40):
        x, label = spikes(64)
        loss = F.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, label = spikes(256)
    accuracy = (model(x).argmax(1) == label).float().mean().item()
    print(f"accuracy on new sequences {accuracy:.3f} (guessing: 0.500)")
    return accuracy


def command(words: Sequence[str]) -> None:
    """Read the command line, which takes --help alone, and run."""
    parser = argparse.ArgumentParser(description="Train a small model around a selective scan, and print its accuracy.")
    parser.parse_args(words)
    main()


if __name__ == "__main__":
    command(sys.argv[1:])
