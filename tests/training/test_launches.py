"""A training step and a prediction are held to a number of GPU launches: at small batches the GPU
waits for each."""

from dataclasses import replace

import pytest
import torch
from conftest import HAS_TRITON
from launches import Launches, launches_of
from torch import nn

from medmambase import PRESETS, MedMambaSE
from medmambase.config import TrainConfig
from medmambase.data.decoded.image_set import ImageSet
from medmambase.distributed import ALONE
from medmambase.training.loop import _Course
from medmambase.training.optimise import Average, make_optimizer

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
BATCH, SIZE, CLASSES = 16, 128, 6
A_STEP, A_PREDICTION = Traceback, 360


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Leave memory as it is: there is none."""


def network() -> MedMambaSE:
    with torch.device("meta"):
        return MedMambaSE(replace(PRESETS["tiny"], num_classes=CLASSES))


def a_training_step() -> Launches:
    """The second step of a training, from the gathered images on."""
    config, learner = TrainConfig(image_size=SIZE), network()
    average, optimizer = Average(learner, config.ema), make_optimizer(learner, config)
    pixels = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(BATCH, dtype=torch.int64), (), ())
    course = _Course(learner, learner, images, config, torch.float32, torch.ones(CLASSES), ALONE)

    def step() -> None:
        sums = torch.zeros(2, device="meta")
        loss, hits = course.loss(torch.arange(BATCH), 1)
        (loss * (1 / BATCH)).backward()
        sums += torch.stack([loss.detach(), hits])
        norm = nn.utils.get_total_norm([p.grad for p in learner.parameters() if p.grad is not None])
        nn.utils.clip_grads_with_norm_(learner.parameters(), config.clip_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.follow(1)

    launches_of(step)
    return launches_of(step)


def test_a_training_step_of_tiny_keeps_to_its_number_of_launches() -> None:
    launches = a_training_step()
    assert launches.total <= A_STEP, launches.counts.most_common()


def test_a_prediction_of_tiny_keeps_to_its_number_of_launches() -> None:
    predictor = network().eval().for_prediction()
    with torch.inference_mode():
        launches = launches_of(lambda: predictor(torch.empty(1, 3, SIZE, SIZE, device="meta")))
    assert launches.total <= A_PREDICTION, launches.counts.most_common()
