"""How many steps there are, and progress that is damaged."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medmambase.pretraining import loop, tasks
from medmambase.pretraining.loop import Course, Round
from medmambase.pretraining.settings import PretrainSettings
from medmambase.training.checkpoint import CheckpointError
from medmambase.training.dry_run import Rehearsal
from medmambase.training.loop import TrainingError


def test_minutes_become_steps_by_what_a_step_takes() -> None:
    settings, rehearsed = PretrainSettings(drawn=True, minutes=2.0), Rehearsal(1.0, 0.5, 10**6, None)
    drawn = tasks.DrawnPictures(settings, None, (), 2, None)  # type: ignore[arg-type]  # only its processes count
    assert loop._steps(settings, rehearsed, 0.4, drawn) == 240
    assert loop._steps(settings, rehearsed, 2.0, drawn) == 120  # two processes draw a batch in a second
    assert loop._steps(settings, rehearsed, 0.3, replace(drawn, workers=0)) == 150
    assert loop._steps(PretrainSettings(drawn=True), rehearsed, 0.3, drawn) == 3000
    assert loop._steps(PretrainSettings(drawn=True, minutes=0.001), rehearsed, 0.3, drawn) == 1
    assert loop._steps(PretrainSettings(drawn=True, minutes=1e308), rehearsed, 0.3, drawn) == 10**9


def test_a_network_that_is_no_longer_numbers_says_where_the_last_state_lies(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    loop._check(network, 4, tmp_path)  # type: ignore[arg-type]  # any module has parameters
    with torch.no_grad():
        network.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="bias is non-finite after step 4; no state was saved yet; try a smaller"):
        loop._check(network, 4, tmp_path)  # type: ignore[arg-type]  # as above
    state = tmp_path / "last" / "state.safetensors"
    state.parent.mkdir()
    state.touch()
    with pytest.raises(TrainingError, match=rf"; the last state that was saved is {re.escape(str(state))}; try a"):
        loop._check(network, 4, tmp_path)  # type: ignore[arg-type]  # as above


def test_progress_that_contradicts_itself_is_refused() -> None:
    one = Round(2, 0.1, {}, {}, None, 1.0)
    Course(steps=4, step=2, rounds=[one]).check()
    for wrong in (Course(steps=4, step=3, since=0, rounds=[one]), Course(steps=2, step=3, since=3)):
        with pytest.raises(ValueError, match="does not follow"):
            wrong.check()
    other = Round(2, 0.1, {"echo": 1.0}, {"edges": 1.0}, None, 1.0)
    echo = Round(2, 0.1, {"echo": 1.0}, {"echo": 1.0}, None, 1.0)
    with pytest.raises(ValueError, match="losses of different names"):
        Course(steps=4, step=2, rounds=[other]).check()
    for sums in ((), (1.0, 2.0)):
        with pytest.raises(ValueError, match="losses of 1 step"):
            Course(steps=4, step=3, sums=sums, since=1, rounds=[echo]).check()
    good = Course(steps=4, step=3, sums=(1.0,), since=1, rounds=[echo])
    good.check()
    good.check_targets(Path("state"), ("echo",), 4)
    good.check_targets(Path("state"), ("echo",), None)
    for course, targets, steps in (
        (good, ("edges",), 4),
        (good, ("echo",), 5),
        (good, ("echo", "edges"), 4),
        (Course(steps=4, step=1, sums=(1.0, 2.0), since=1), ("echo",), 4),
    ):
        with pytest.raises(CheckpointError, match="state: damaged: it has 4 steps"):
            course.check_targets(Path("state"), targets, steps)
