"""A checkpoint belongs to the settings that its training began with."""

from pathlib import Path

import pytest

from medmambase.config import ConfigError
from medmambase.training import checkpoint


def test_settings_are_compared_by_value_so_that_a_whole_number_is_the_same_as_before(tmp_path: Path) -> None:
    checkpoint._same_settings(tmp_path / "x", {"warmup": 0, "depths": [1, 2]}, {"warmup": 0.0, "depths": [1, 2]})
    checkpoint._same_settings(tmp_path / "x", {}, {"model.se_hidden": None})  # a setting that did not exist yet
    for then, now, message in (
        ({"warmup": 0}, {"warmup": 0.5}, "warmup was 0 and is 0.5"),
        ({"block": "medmamba"}, {"block": None}, 'block was "medmamba" and is null'),
        ({}, {"lr": 1.0}, "lr was not set and is 1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            checkpoint._same_settings(tmp_path / "x", then, now)
