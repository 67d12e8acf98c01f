"""A fold of a cross-validation that is killed ends as if nothing had happened: from files, through
splits, to predictions and figures."""

from dataclasses import replace
from pathlib import Path

import pytest

import kill_folds
from kill_test import COMPARED, COMPARED_OF_A_FOLD, CONFIG, FOLD, at_step, differing
from medmambase import run_folder
from medmambase.training import checkpoint


class Killed(BaseException):
    """Stands for a kill where the process must live on: nothing in the project catches it."""


def die() -> None:
    raise Killed


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_fold_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, save_every=1)
    kill_folds.prepare(tmp_path)
    kill_folds.train(tmp_path / "whole", FOLD, config, (1, 3), lambda items, total, text: items)
    with pytest.raises(Killed):  # when 36 images are read, and two of three steps done
        kill_folds.train(tmp_path / "cut", FOLD, config, (1, 3), at_step(36 + 2, die))
    (run,) = run_folder.existing(tmp_path / "cut", FOLD)
    position = checkpoint.position(run / "last")
    assert position == (1, 2)
    kill_folds.train(tmp_path / "cut", FOLD, config, (1, 3), lambda items, total, text: items)
    (whole,) = run_folder.existing(tmp_path / "whole", FOLD)
    assert differing(run, whole, (*COMPARED, *COMPARED_OF_A_FOLD)) == []
