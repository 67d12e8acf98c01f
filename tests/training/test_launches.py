"""A training step and a prediction are held to a number of GPU launches: at small batches the GPU
waits for each."""

from dataclasses import replace

import pytest
import torch
from conftest import HAS_TRITON
from launches import Launches, launches_of

from medmambase import PRESETS, MedMambaSE
from medmambase.config import TrainConfig
from medmambase.data.decoded.image_set import ImageSet
from medmambase.distributed import ALONE
from medmambase.model.layers import lay_out
from medmambase.training.checkpoint import Learning
from medmambase.training.optimise import Average, make_optimizer
from medmambase.training.step import Step

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
BATCH, SIZE, CLASSES = 16, 128, 6
A_STEP, A_PREDICTION = 597, 120  # what they make now: lower these when they make fewer


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Leave memory as it is: there is none."""


def network() -> MedMambaSE:
    with torch.device("meta"):
        return MedMambaSE(replace(PRESETS["tiny"], num_classes=CLASSES))


def a_training_step() -> Launches:
    """The second step of a training, from the batch on the device on."""
    config, learner = TrainConfig(image_size=SIZE), network().train()
    lay_out(learner)
    average = Average(learner, config.ema)
    pixels = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(BATCH, dtype=torch.int64), (), ())
    learning = Learning(learner, make_optimizer(learner, config), average)
    step = Step(learning, learner, images, config, torch.float32, torch.ones(CLASSES), ALONE)
    batch = step.batch(torch.arange(BATCH), 1, BATCH).to(step.device)

    def take() -> None:
        step.whole(batch)
        average.follow(1)

    launches_of(take)
    return launches_of(take)


def test_a_training_step_of_tiny_keeps_to_its_number_of_launches() -> None:
    launches = a_training_step()
    assert launches.total <= A_STEP, launches.counts.most_common()


def test_a_prediction_of_tiny_keeps_to_its_number_of_launches() -> None:
    predictor = network().eval().for_prediction()
    with torch.inference_mode():
        launches = launches_of(lambda: predictor(torch.empty(1, 3, SIZE, SIZE, device="meta")))
    assert launches.total <= A_PREDICTION, launches.counts.most_common()


def test_lists_are_counted_as_the_kernels_that_pytorch_cuts_them_into() -> None:
    few, many = ([torch.empty((), device="meta") for _ in range(count)] for count in (64, 65))
    assert launches_of(lambda: torch._foreach_copy_(few, few)).total == 1
    assert launches_of(lambda: torch._foreach_copy_(many, many)).total == 2
    large = [torch.empty(65536 * 321, device="meta")]
    assert launches_of(lambda: torch._foreach_add_(large, 1)).total == 2


def test_views_and_allocations_are_no_launches_and_a_convolution_adds_its_bias() -> None:
    x, weight, bias = (torch.empty(shape, device="meta") for shape in ((1, 2, 4, 4), (3, 2, 3, 3), (3,)))
    assert launches_of(lambda: torch.empty_like(x).transpose(1, 2)[0]).total == 0
    assert launches_of(lambda: torch.conv2d(x, weight)).total == 1
    assert launches_of(lambda: torch.conv2d(x, weight, bias)).total == 2
