"""The defaults: recipes and presets say what they say, and refuse what cannot be meant."""

from dataclasses import replace

import pytest

from medmambase.config import PRESETS, RECIPES, ConfigError, ModelConfig, Preprocessing, TrainConfig


@pytest.mark.parametrize("config", [*PRESETS.values(), *RECIPES.values(), Preprocessing()])
def test_every_config_survives_the_way_through_a_file(config: ModelConfig | TrainConfig | Preprocessing) -> None:
    import json

    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no field 'batchsize'; its fields are .*batch_size"):
        TrainConfig.from_dict({"batchsize": 4})


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
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        replace(TrainConfig(), **{name: value})


def test_the_recipes_are_what_their_sources_did() -> None:
    readme, notebook, medmamba, ours = (RECIPES[name] for name in ("readme", "notebook", "medmamba", "ultrasound"))
    assert (readme.optimizer, readme.lr, readme.weight_decay, readme.epochs, readme.batch_size, readme.image_size) == ("adam", 1e-3, 1e-4, 20, 16, 128)
    assert (notebook.lr, notebook.weight_decay, notebook.epochs, notebook.patience, notebook.augmentation) == (1e-4, 0, 30, 10, "crop_flip")
    assert (medmamba.lr, medmamba.epochs, medmamba.batch_size, medmamba.image_size) == (1e-4, 100, 32, 224)
    assert (ours.optimizer, ours.select, ours.resize, ours.epochs) == ("adamw", "auc", "letterbox", 50)
    assert all(RECIPES[name].recipe == name for name in RECIPES)


def test_a_recipe_brings_its_network_and_a_change_comes_last() -> None:
    model = RECIPES["notebook"].model(PRESETS["tiny"], num_classes=4)
    assert (model.block, model.depths, model.num_classes) == ("notebook", (2, 2, 2, 2), 4)
    assert RECIPES["ultrasound"].model(PRESETS["nano"]) == PRESETS["nano"]
