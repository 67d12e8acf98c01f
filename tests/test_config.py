"""The defaults: recipes and presets say what they say, and refuse what cannot be meant."""

import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from medmambase.config import (
    PRESETS,
    RECIPES,
    ConfigError,
    ModelConfig,
    OpponentConfig,
    Preprocessing,
    TrainConfig,
    network_config,
)
from medmambase.model.network import MedMambaSE
from medmambase.opponent_recipes import OPPONENT_RECIPES


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
        ("recipe", 3, "text"),
        ("depths", 3, "a list"),
        ("depths", {2, 3}, "a list"),
        ("block", "resnet", "one of 'medmambase', 'medmamba', 'notebook' or 'medmamba_v0'"),
        ("optimizer", None, "one of 'adamw' or 'adam'"),
    ],
)
@pytest.mark.parametrize("make", [TrainConfig.from_dict, lambda values: replace(TrainConfig(), **values)])
def test_a_value_of_another_type_is_refused_with_the_type_that_is_wanted(
    name: str, value: object, wanted: str, make: Callable[[dict[str, object]], TrainConfig]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}; it must be {wanted}") + "$"):
        make({name: value})


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([2, "2"], "depths[1] is '2'; it must be a whole number"),
        ([True, 2], "depths[0] is True; it must be a whole number"),
        ([2, 2, 0], "depths[2] is 0; it must be at least 1"),
    ],
)
def test_what_is_wrong_inside_a_list_is_named_with_its_place(depths: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        TrainConfig.from_dict({"depths": depths})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dims": [96, 190]}, "dims is (96, 190); it must be widths that double from stage to stage"),
        ({"dims": [3, 6], "depths": [1, 1]}, "dims is (3, 6); it must be even widths"),
        ({"dims": [0, 0]}, "dims[0] is 0; it must be at least 2"),
        ({"dims": [96, 192]}, "depths (2, 2, 4, 2) and dims (96, 192) must have the same length"),
        ({"dims": [], "depths": []}, "depths is (); it must be a list of at least 1"),
        ({"in_chans": 2}, "in_chans is 2; it must be 1 (grey) or 3 (RGB)"),
        ({"in_chans": True}, "in_chans is True; it must be a whole number"),
        ({"se_scale": 0}, "se_scale is 0; it must be above 0"),
        ({"se_scale": math.nan}, "se_scale is nan; it must be a finite number"),
        ({"drop_path": 1}, "drop_path is 1; it must be below 1"),
        ({"state": 0}, "state is 0; it must be at least 1"),
        ({"odd": "keep"}, "odd is 'keep'; it must be one of 'pad' or 'crop'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        ModelConfig.from_dict(values)


def test_a_network_is_known_by_its_values_whichever_it_is() -> None:
    for config in (PRESETS["nano"], OpponentConfig("swin_tiny", num_classes=3, in_chans=1)):
        assert network_config(config.to_dict()) == config
    for values, message in (
        ({"opponent": "vgg"}, "opponent is 'vgg'; it must be one of 'resnet18', 'densenet121', "),
        ({"opponent": "resnet18", "dims": [8, 16]}, "OpponentConfig has no field 'dims'; the nearest is "),
        ({"opponent": "resnet18", "in_chans": 2}, "in_chans is 2; it must be 1 (grey) or 3 (RGB)"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            network_config(values)


@pytest.mark.parametrize("values", [{"channels": 4}, {"std": 0}, {"size": 0}, {"mean": math.inf}, {"resize": "cut"}])
def test_preprocessing_that_cannot_be_meant_is_refused(values: dict[str, object]) -> None:
    name, value = next(iter(values.items()))
    with pytest.raises(ConfigError, match=f"^{name} is {value!r}; it must be "):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize("config", [PRESETS["nano"], RECIPES["notebook"], Preprocessing(channels=1)])
def test_a_config_is_a_plain_frozen_dataclass(config: ModelConfig | TrainConfig | Preprocessing) -> None:
    again = pickle.loads(pickle.dumps(config))  # noqa: S301  # its own bytes, as worker processes get them
    assert again == config and hash(again) == hash(config) and replace(config) == config
    assert type(config)(**asdict(config)) == config
    with pytest.raises(FrozenInstanceError):
        config.size = 3  # type: ignore[misc, union-attr]  # what must not pass


def test_a_whole_number_will_do_where_any_number_does_and_a_list_for_a_tuple() -> None:
    config = TrainConfig.from_dict({"lr": 1, "depths": [1, 2], "block": None})
    assert (config.lr, config.depths, config.block) == (1, (1, 2), None) and isinstance(config.lr, float)


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
        ("mixup", -0.1),
        ("mixup", math.inf),
        ("backbone_lr_factor", 0.0),
        ("augmentation", "trivialaugment"),
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
        ("graphs", "on"),
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
    assert all(recipe.recipe == name for name, recipe in (RECIPES | OPPONENT_RECIPES).items())
    assert not [recipe.recipe for recipe in OPPONENT_RECIPES.values() if recipe.block or recipe.depths]
    for original in (readme, notebook, medmamba):  # they had none of what came later
        assert (original.ema, original.balance, original.accumulate, original.freeze, original.clip_norm) == (
            0,
            "none",
            1,
            "none",
            0,
        )
        assert (original.mixup, original.backbone_lr_factor) == (0, 1)


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
