"""The settings of an opponent: a recipe of its own, and what it cannot do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medmambase.config import RECIPES, ConfigError, OpponentConfig
from medmambase.opponent_recipes import OPPONENT_RECIPES
from medmambase.settings import resolve


@pytest.mark.parametrize("name", OPPONENT_RECIPES)
def test_an_opponent_has_a_recipe_of_its_own_unless_another_is_asked_for(name: str, tmp_path: Path) -> None:
    own = resolve({"model": name})
    assert own.training == OPPONENT_RECIPES[name] and own.training.recipe == name == own.opponent
    assert own.network() == OpponentConfig.from_dict({"opponent": name})
    file = tmp_path / "own.toml"
    file.write_text(own.to_toml(), encoding="utf-8", newline="\n")
    assert resolve({}, file) == own
    assert resolve({"model": name, "recipe": "readme"}).training == RECIPES["readme"]
    shown = resolve({"model": name, "demo": True}).training
    assert shown == replace(OPPONENT_RECIPES[name], image_size=48, epochs=6)
    assert resolve({"model": "nano"}).opponent is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"se": "off"}, "--se is 'off', but resnet18 has no gates of ours to take out; leave it out"),
        ({"backbone_lr_factor": 0.1}, "--backbone-lr-factor is 0.1, but resnet18 has no parts that could learn at"),
        ({"freeze": "backbone"}, "--freeze is 'backbone', but resnet18 has no parts that could be frozen; leave it"),
        ({"recompute": True}, "--recompute is True, but resnet18 has no blocks that could be computed again; leave"),
        ({"backend": "cpu"}, "--backend is 'cpu', but resnet18 has no scan, and PyTorch computes it; leave it out"),
        ({"image_size": 31}, "--image-size is 31, but resnet18 makes images 32 times smaller; it must be at least 32"),
        ({"recipe": "notebook"}, "but resnet18 has the depths that were published; leave it out, or choose a recipe"),
        ({"start": "x"}, "--model is 'resnet18', but the weights define the size of their network"),
    ],
)
def test_what_an_opponent_cannot_do_is_refused_with_the_reason(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve({"model": "resnet18", **given})
