"""``--resume``: which run goes on, and what is said of one that ended early."""

from pathlib import Path
from typing import Any

import pytest

from medmambase.commands import console, resume
from medmambase.commands.setting_flags import AUTO
from medmambase.config import ConfigError
from medmambase.data.drawn_ahead import DrawingError

FILE = Path("my.toml")


def to_do(wish: Any, newest: Path | None = None, again: tuple[str, ...] = ()) -> object:
    """What is to be done, with settings that are a text."""
    return resume.to_do(
        ({"seed": 1}, FILE, wish),
        lambda given, file: f"{given} over {file}",
        lambda settings: newest if settings == "{'seed': 1} over my.toml" else None,
        lambda run, given: f"{given} over {run.name}",
        "train",
        again,
        lambda run: console.say(f"the figures of {run.name}"),
    )


def test_a_folder_goes_on_and_auto_goes_on_with_the_newest_that_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anew, same = (None, "{'seed': 1} over my.toml"), (tmp_path, f"{{'seed': 1}} over {tmp_path.name}")
    assert (to_do(None, tmp_path), to_do(AUTO), to_do(AUTO, tmp_path), to_do(tmp_path)) == (anew, anew, same, same)
    assert capsys.readouterr().out == ""
    (tmp_path / "report.html").touch()
    assert to_do(AUTO, tmp_path) is None
    figures = f"the figures of {tmp_path.name}\n"
    said = capsys.readouterr().out
    assert said == f"{tmp_path} is finished: nothing is left to do; leave out --resume auto to train anew\n{figures}"
    assert to_do(tmp_path) is None  # test images that are looked at again are no longer new
    said = capsys.readouterr().out
    assert said == f"{tmp_path} is finished: nothing is left to do; leave out --resume to train anew\n{figures}"
    assert to_do(tmp_path, again=("half", "seed")) == same and capsys.readouterr().out == ""
    assert to_do(AUTO, tmp_path, ("seed",)) is None


def test_after_an_interruption_the_line_says_what_is_saved_and_how_the_run_continues(tmp_path: Path) -> None:
    again = f"medmambase-train --resume {tmp_path}"
    said = [resume.interrupted("medmambase-train", run, lambda _: None) for run in (None, tmp_path)]
    assert said == ["interrupted before a run folder was created"] * 2
    (tmp_path / "config.toml").touch()
    assert resume.interrupted("medmambase-train", tmp_path, lambda _: None) == (
        f"interrupted before the first step was saved; delete {tmp_path}, or start it again with {again}"
    )
    assert resume.interrupted("medmambase-train", tmp_path, lambda _: "step 3") == (
        f"interrupted: saved up to step 3; continue with {again}"
    )


def test_an_error_that_can_be_put_right_says_how_a_run_with_saved_steps_continues(tmp_path: Path) -> None:
    again = f"; then continue with medmambase-pretrain --resume {tmp_path}"
    for run, saved, error, advice in (
        (tmp_path, "step 3", OSError(), again),
        (tmp_path, "step 3", DrawingError(), again),
        (tmp_path, "step 3", ConfigError(), ""),  # with other settings it would be another run
        (tmp_path, None, OSError(), ""),
        (None, "step 3", OSError(), ""),
    ):
        assert resume.advice("medmambase-pretrain", run, lambda _, saved=saved: saved, error) == advice
