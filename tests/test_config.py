"""The defaults: recipes and presets say what they say, and refuse what cannot be meant."""

import json
import re
from dataclasses import replace

import pytest

from medmambase.config import PRESETS, RECIPES, ConfigError, ModelConfig, Preprocessing, TrainConfig
from medmambase.model.network import MedMambaSE


@pytest.mark.parametrize("config", [*PRESETS.values(), *RECIPES.values(), Preprocessing()])
def test_every_config_survives_the_way_through_a_file(config: ModelConfig | TrainConfig | Preprocessing) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_is_an_error_that_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="TrainConfig has no field 'batchsize'; the nearest is 'batch_size'"):
        TrainConfig.from_dict({"batchsize": 4})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", 2.5, "a whole number"),
        ("epochs", "3", "a whole number"),
        ("epochs", True, "a whole number"),
        ("lr", "fast", "a number"),
        ("lr", False, "a number"),
        ("laterality", 1, "true or false"),
        ("recipe", 3, "a text"),
        ("depths", 3, "a list, each of it a whole number"),
        ("depths", [2, "2"], "a list, each of it a whole number"),
        ("block", "resnet", "one of 'medmambase', 'medmamba', 'notebook', 'medmamba_v0'"),
        ("optimizer", None, "one of 'adamw', 'adam'"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_that_is_wanted(name: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}; it must be {wanted}") + "$"):
        TrainConfig.from_dict({name: value})


def test_a_whole_number_will_do_where_any_number_does_and_a_list_for_a_tuple() -> None:
    config = TrainConfig.from_dict({"lr": 1, "depths": [1, 2], "block": None})
    assert (config.lr, config.depths, config.block) == (1, (1, 2), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("weight_decay", float("inf")),
        ("seed", -1),
        ("seed", 10**23),
        ("epochs", 0),
        ("batch_size", 0),
        ("image_size", 0),
        ("label_smoothing", 1.0),
        ("optimizer", "sgd"),
        ("select", "f1"),
        ("clip_norm", -1.0),
        ("accumulate", 0),
        ("ema", 1.0),
        ("ema", -0.1),
        ("balance", "oversample"),
        ("freeze", "all"),
        ("cache", "tape"),
        ("high_depth", "window"),
        ("schedule", "step"),
        ("save_every", -1),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}; it must be")):
        replace(TrainConfig(), **{name: value})


def test_the_recipes_are_what_their_sources_did() -> None:
    readme, notebook, medmamba, ours = (RECIPES[name] for name in ("readme", "notebook", "medmamba", "ultrasound"))
    assert (readme.optimizer, readme.lr, readme.weight_decay, readme.epochs, readme.batch_size, readme.image_size) == (
        "adam",
        1e-3,
        1e-4,
        20,
        16,
        128,
    )
    assert (notebook.lr, notebook.weight_decay, notebook.epochs, notebook.patience, notebook.augmentation) == (
        1e-4,
        0,
        30,
        10,
        "crop_flip",
    )
    assert (medmamba.lr, medmamba.epochs, medmamba.batch_size, medmamba.image_size) == (1e-4, 100, 32, 224)
    assert (ours.optimizer, ours.select, ours.resize, ours.epochs) == ("adamw", "auc", "letterbox", 50)
    assert all(RECIPES[name].recipe == name for name in RECIPES)
    for original in (readme, notebook, medmamba):  # they had none of what came later
        assert (original.ema, original.balance, original.accumulate, original.freeze, original.clip_norm) == (
            0,
            "none",
            1,
            "none",
            0,
        )


def test_a_recipe_brings_its_network_and_a_change_comes_last() -> None:
    model = RECIPES["notebook"].model(PRESETS["tiny"], num_classes=4)
    assert (model.block, model.depths, model.num_classes) == ("notebook", (2, 2, 2, 2), 4)
    assert RECIPES["ultrasound"].model(PRESETS["nano"]) == PRESETS["nano"]


@pytest.mark.parametrize(
    ("recipe", "without"),
    [("ultrasound", "medmamba"), ("readme", "medmamba"), ("notebook", "medmamba_v0"), ("medmamba", "medmamba")],
)
def test_se_off_takes_the_gates_out_and_changes_nothing_else(recipe: str, without: str) -> None:
    on, off = (replace(RECIPES[recipe], se=se).model(PRESETS["nano"]) for se in ("on", "off"))
    assert off == replace(on, block=without)
    names = {name for name, _ in MedMambaSE(off).named_parameters()}
    assert {name for name, _ in MedMambaSE(on).named_parameters() if ".se." not in name} == names
