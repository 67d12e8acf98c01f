"""What logits mean is decided in one place, for images of one class and for multi-label ones."""

import numpy as np
import pytest
import torch
from torch import nn

from medmambase import MedMambaSE, ModelConfig
from medmambase.config import OpponentConfig, network_config
from medmambase.model.task import MULTI_LABEL, SINGLE_LABEL, task_of, task_of_labels

LOGITS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) * 3
ONE = torch.arange(40) % 4
SEVERAL = (torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) < 0.3).long()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_one_class_is_cross_entropy_and_of_several_the_binary_one(smoothing: float) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 0.25])
    table = SINGLE_LABEL.table(weights, smoothing)
    found = SINGLE_LABEL.loss(LOGITS, SINGLE_LABEL.targets(table, ONE))
    wanted = nn.functional.cross_entropy(LOGITS, ONE, weights, label_smoothing=smoothing, reduction="sum")
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)

    weights = torch.stack([weights, weights + 1])
    found = MULTI_LABEL.loss(LOGITS, MULTI_LABEL.targets(MULTI_LABEL.table(weights, smoothing), SEVERAL))
    smoothed = SEVERAL * (1 - smoothing) + smoothing / 2
    wanted = nn.functional.binary_cross_entropy_with_logits(
        LOGITS, smoothed, weights.gather(0, SEVERAL), reduction="sum"
    )
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert MULTI_LABEL.weight_of(SEVERAL, weights) == pytest.approx(weights.gather(0, SEVERAL).sum().item())


def test_balanced_weights_give_a_class_and_its_absence_the_same_part_of_the_loss() -> None:
    labels = SEVERAL.clone()
    labels[:, 3] = 1  # of which nothing can be balanced
    weights = MULTI_LABEL.class_weights(labels, 4, balanced=True)
    of_each = weights.gather(0, labels)
    for column in range(3):
        there = labels[:, column] == 1
        assert of_each[there, column].sum().item() == pytest.approx(20)
        assert of_each[~there, column].sum().item() == pytest.approx(20)
    assert torch.equal(weights[:, 3], torch.ones(2))
    assert torch.equal(MULTI_LABEL.class_weights(labels, 4, balanced=False), torch.ones(2, 4))


def test_probabilities_are_a_softmax_or_a_sigmoid_each_and_a_temperature_divides_their_logits() -> None:
    one, several = (task.probabilities(LOGITS).numpy() for task in (SINGLE_LABEL, MULTI_LABEL))
    assert np.allclose(one.sum(1), 1) and SINGLE_LABEL.well_formed(one).all()
    assert np.allclose(several, 1 / (1 + np.exp(-LOGITS.double().numpy())))
    assert MULTI_LABEL.well_formed(several).all() and not SINGLE_LABEL.well_formed(several).any()
    for task, probabilities in ((SINGLE_LABEL, one), (MULTI_LABEL, several)):
        assert np.allclose(
            task.apply_temperature(probabilities, 2.5), task.probabilities(LOGITS.double() / 2.5).numpy(), atol=1e-12
        )
    assert not MULTI_LABEL.well_formed(np.array([[0.5, np.nan], [1.1, 0.0], [-0.1, 0.0]])).any()


def test_the_loss_of_probabilities_is_that_of_their_logits() -> None:
    for task, labels, wanted in (
        (SINGLE_LABEL, ONE, nn.functional.cross_entropy(LOGITS.double() / 1.7, ONE, reduction="none")),
        (
            MULTI_LABEL,
            SEVERAL,
            nn.functional.binary_cross_entropy_with_logits(
                LOGITS.double() / 1.7, SEVERAL.double(), reduction="none"
            ).mean(1),
        ),
    ):
        found = task.losses(task.probabilities(LOGITS).numpy(), labels.numpy(), 1.7)
        assert np.allclose(found, wanted.numpy(), atol=1e-12)


def test_what_is_called_is_the_most_probable_class_or_each_that_reaches_its_threshold() -> None:
    rows = np.array([[0.2, 0.4, 0.4], [0.9, 0.05, 0.05]])
    assert SINGLE_LABEL.called(rows).tolist() == [1, 0]
    assert MULTI_LABEL.called(rows).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert MULTI_LABEL.called(rows, np.array([0.2, 0.41, 0.05])).tolist() == [[1, 0, 1], [1, 0, 1]]
    assert MULTI_LABEL.hits(LOGITS, (LOGITS >= 0).long()).item() == 40
    assert MULTI_LABEL.hits(LOGITS, torch.ones(40, 4).long()).item() == (LOGITS >= 0).all(1).sum().item()
    assert SINGLE_LABEL.is_of(np.array([0, 2]), 2).tolist() == [False, True]
    assert MULTI_LABEL.is_of(np.array([[1, 0], [1, 1]]), 1).tolist() == [False, True]


def test_several_networks_together_say_the_mean_of_their_probabilities() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0) * 4])
    for task in (SINGLE_LABEL, MULTI_LABEL):
        assert torch.allclose(task.activate(task.mean(logits)), task.activate(logits).mean(0), atol=1e-6)


def test_a_network_knows_its_task_and_one_of_single_labels_is_described_as_before() -> None:
    config = ModelConfig(dims=(8, 16), depths=(1, 1), num_classes=2, multi_label=True)
    assert MedMambaSE(config).task is MULTI_LABEL and MedMambaSE(config).for_prediction().task is MULTI_LABEL
    for one in (config, OpponentConfig("resnet18", multi_label=True)):
        assert network_config(one.to_dict()) == one and task_of(one) is MULTI_LABEL
        assert one.words().endswith(", multi-label")
    assert "multi_label" not in ModelConfig().to_dict() and task_of(ModelConfig()) is SINGLE_LABEL
    assert task_of_labels(SEVERAL) is MULTI_LABEL and task_of_labels(ONE) is SINGLE_LABEL
