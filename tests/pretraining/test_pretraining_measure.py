"""The figures on pictures held out: means over pictures, whatever their batches, and areas under
the curve that are those of scikit-learn."""

from dataclasses import dataclass

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from medmambase import MedMambaSE, ModelConfig
from medmambase.pretraining.measure import measure
from medmambase.pretraining.network import Pretrained, predict
from medmambase.pretraining.tasks import Batch, losses


@dataclass
class Asked:
    targets = ("structures", "echo")
    structures = ("always", "never", "often")
    pictures = 1


def batch(count: int, present: Tensor) -> Batch:
    return Batch(torch.randn(count, 1, 16, 16), present, torch.rand(count, 1, 16, 16))


def test_losses_are_means_over_pictures_and_areas_those_of_scikit_learn() -> None:
    network = Pretrained(MedMambaSE(ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1), features_only=True), 3, 1)
    often = (torch.arange(15) % 2).float()
    present = torch.stack([torch.ones(15), torch.zeros(15), often], 1)
    held_out = [batch(12, present[:12]), batch(3, present[12:])]
    found = measure(network, Asked(), held_out, torch.float32)
    assert not network.training
    together = Batch(*(torch.cat(parts) for parts in zip(*held_out, strict=True)))
    with torch.no_grad():
        whole = predict(network, together.inputs, torch.float32)
    each = losses(whole, together, Asked.targets)
    assert found.losses == pytest.approx({"structures": each[0].item(), "echo": each[1].item()}, rel=1e-5)
    always, never, other = found.structures
    assert (always.auc, never.auc, always.low, always.present, never.present) == (None, None, None, 15, 0)
    assert other.auc == pytest.approx(roc_auc_score(often, whole.structures[:, 2])) == found.auc
    assert 0 <= other.low <= other.auc <= other.high <= 1 and (other.present, other.pictures) == (7, 15)
    assert found.interval == pytest.approx((other.low, other.high))  # of the one structure that has an area
    assert found.first.pictures.shape == (12, 1, 16, 16)


def test_without_structures_there_is_no_area() -> None:
    network = Pretrained(MedMambaSE(ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1), features_only=True), 0, 1)
    asked = Asked()
    asked.targets, asked.structures = ("echo",), ()
    found = measure(
        network, asked, [Batch(*batch(3, torch.zeros(3, 1))[:1], None, torch.rand(3, 1, 16, 16))], torch.float32
    )
    assert found.auc is None and found.interval is None and found.structures == () and found.losses["echo"] > 0
