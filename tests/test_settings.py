"""What a person sets: a flag wins over the file, the file over the recipe, and whatever cannot be
meant is named with its place."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from medmambase.commands import train_flags
from medmambase.config import (
    CAME_LATER,
    PRESETS,
    RECIPES,
    ConfigError,
    ModelConfig,
    Opponent,
    TrainConfig,
)
from medmambase.model.network import MedMambaSE
from medmambase.opponent_recipes import OPPONENT_RECIPES
from medmambase.run_folder import CONFIG
from medmambase.settings import DEMO, MAY_CHANGE, TYPES, Engine, Model, Preset, Settings, is_run_of, of_run, resolve
from medmambase.training import checkpoint
from medmambase_kernels import BACKENDS


def written(folder: Path, text: str) -> Path:
    path = folder / "my ü.toml"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_a_flag_wins_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = written(tmp_path, 'recipe = "readme"\nepochs = 7\nlr = 0.5\nname = "file"\nallow_leak = true\n')
    settings = resolve({"epochs": 9, "allow_leak": False, "data": "x"}, file)
    assert (settings.training.epochs, settings.training.lr, settings.training.augmentation) == (
        9,
        0.5,
        RECIPES["readme"].augmentation,
    )
    assert (settings.name, settings.allow_leak, settings.data, settings.training.recipe) == (
        "file",
        False,
        "x",
        "readme",
    )
    assert resolve({"epochs": 9, "lr": 0.5, "recipe": "readme", "name": "file", "data": "x"}) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3\nbatchsize = 4", "there is no setting 'batchsize'; the nearest is 'batch_size'"),
        ("batch-size = 4", "there is no setting 'batch-size'; the nearest is 'batch_size'"),
        ("depths = [1, 2]", "depths: depths (1, 2) and dims (48, 96, 192, 384) must have the same length"),
        ("folds = 1", "folds is 1; it must be at least 2"),
        ("fold = 2", "fold is 2; give --folds too"),
        ("group_regex = '('", "group_regex is '(', which is not a valid regular expression"),
        ("freeze = 'backbone'\nstart = 'none'", "freeze is 'backbone', but a new network has learned nothing to keep"),
        (f"epochs = {'9' * 5000}", "is not TOML (Exceeds the limit"),
        (f"depths = {'[' * 5000}", "is not TOML (maximum recursion depth exceeded"),
        ("[training]\nepochs = 3", "[training] is a table; write settings outside tables"),
        ('epochs = "3"', "epochs is '3'; it must be a whole number"),
        ("epochs = 0", "epochs is 0; it must be at least 1"),
        ("demo = 1", "demo is 1; it must be true or false"),
        ("depths = [2, 2.5]", "depths[1] is 2.5; it must be a whole number"),
        ("on_bad = 'ignore'", "on_bad is 'ignore'; it must be one of 'skip' or 'error'"),
        ("recipe = 'fast'", "recipe is 'fast'; it must be one of 'ultrasound', 'readme', 'notebook', 'medmamba'"),
        ("demo = true\ndata = 'x'", "data is 'x', but --demo makes its own images; leave out one of data and demo"),
        ("demo = true\nkeep_duplicates_together = true", "keep_duplicates_together is True, but --demo makes its own"),
        ("demo = true\nfolds = 3", "folds is 3, but --demo makes its own images, classes and splits; leave out one"),
        ("demo = true\ngroup_regex = 'x'", "group_regex is 'x', but --demo makes its own images, classes and splits"),
        ("weights = 'x'\nmodel = 'nano'", "model is 'nano', but the weights define the size of their network"),
        (
            "epochs 3",
            "is not TOML (Expected '=' after a key in a key/value pair (at line 1, column 8)); wanted lines such as "
            "batch_size = 32",
        ),
        ('epochs = 3\ndata = "C:\\Users\\x"', r"put a path with backslashes in single quotes: data = 'C:\images'"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_the_file(text: str, message: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: .*{re.escape(message)}"):
        resolve({}, file)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: there is no such file"):
        resolve({}, tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="is a folder; give a TOML file of settings"):
        resolve({}, tmp_path)
    (tmp_path / "a.toml").write_bytes("epochs = 3".encode("utf-16"))  # what PowerShell's > writes
    with pytest.raises(ConfigError, match=r"a\.toml: is not UTF-8 text; save it as UTF-8"):
        resolve({}, tmp_path / "a.toml")


def test_a_file_from_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes("epochs = 3\r\nname = 'ü'\r\n".encode("utf-8-sig"))
    assert resolve({}, tmp_path / "a.toml").name == "ü"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_written_file_gives_the_same_settings_again(recipe: str, tmp_path: Path) -> None:
    by_hand = {
        "data": r"C:\Bilder ü\"neu\" 肺",
        "group_regex": r"(patient\d+)\.",
        "folds": 5,
        "fold": 4,
        "ema": 0.999,
        "lr": 1e-12,
        "warmup": 0,
        "device": "cpu",
    }
    settings = resolve({"recipe": recipe, **by_hand})
    assert resolve({}, written(tmp_path, settings.to_toml())) == settings
    assert resolve({"model": "nano"}, written(tmp_path, settings.to_toml())) == replace(settings, model="nano")


def test_a_path_that_is_no_unicode_is_left_out_of_the_file_instead_of_spoiling_it() -> None:
    assert "data" not in tomllib.loads(resolve({"data": "bad\udcff", "name": "x"}).to_toml())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"recipe": "fast"}, "--recipe is 'fast'; it must be one of"),
        ({"folds": -1}, "--folds is -1; it must be at least 0"),
        ({"epochs": "3"}, "--epochs is '3'; it must be a whole number"),
        ({"batchsize": 3}, "there is no setting 'batchsize'; the nearest is 'batch_size'"),
        ({"folds": 1}, "--folds is 1; it must be at least 2, or 0 for none"),
        ({"folds": 5, "fold": 5}, "--fold is 5; with --folds 5 it must be 0 to 4"),
        ({"fold": 1}, "--fold is 1; give --folds too"),
        ({"group_regex": "("}, "--group-regex is '(', which is not a valid regular expression"),
        (
            {"freeze": "backbone", "start": "none"},
            "--freeze is 'backbone', but a new network has learned nothing to keep",
        ),
        (
            {"backbone_lr_factor": 0.1, "start": "none"},
            "--backbone-lr-factor is 0.1, but a new network has learned nothing to keep",
        ),
        ({"data": "x", "demo": True}, "leave out one of data and demo"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_flag(flags: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(flags)


def test_one_of_a_pair_by_flag_takes_back_the_other_of_the_file(tmp_path: Path) -> None:
    assert resolve({"data": "x"}, written(tmp_path, "demo = true\nepochs = 2")).demo is False
    assert resolve({"demo": True}, written(tmp_path, "data = 'x'")).data is None
    plain = resolve({"demo": False}, written(tmp_path, "demo = true")).training
    assert plain == TrainConfig()  # nothing of the demo's own
    assert resolve({"weights": "w"}, written(tmp_path, "model = 'nano'")).model is None
    assert resolve({"model": "small"}, written(tmp_path, "weights = 'w'")).weights is None


def test_a_recipe_by_flag_does_not_only_rename_what_the_file_sets(tmp_path: Path) -> None:
    file = written(tmp_path, resolve({"data": "x"}).to_toml())
    with pytest.raises(
        ConfigError,
        match=r"--recipe is 'readme', and .* has recipe 'ultrasound', whose other settings would override it",
    ):
        resolve({"recipe": "readme"}, file)
    assert resolve({"recipe": "readme"}, written(tmp_path, "epochs = 2")).training == replace(
        RECIPES["readme"], epochs=2
    )


@pytest.mark.parametrize(
    ("flags", "depths", "recipe", "changes"),
    [
        ({}, (1, 1, 2, 1), "ultrasound", {"lr": 3e-3, "augmentation": "none"}),
        ({"model": "tiny"}, None, "ultrasound", {"lr": 3e-3, "augmentation": "none"}),
        ({"recipe": "notebook"}, (2, 2, 2, 2), "notebook", {}),
        ({"recipe": "ultrasound"}, None, "ultrasound", {}),
        (
            {"lr": 0.5, "epochs": 2, "image_size": 96},
            (1, 1, 2, 1),
            "ultrasound",
            {"lr": 0.5, "augmentation": "none", "epochs": 2, "image_size": 96},
        ),
    ],
)
def test_the_demo_gives_way_to_whatever_is_given_by_hand(
    flags: dict[str, Any], depths: tuple[int, ...] | None, recipe: str, changes: dict[str, Any]
) -> None:
    settings = resolve({"demo": True, **flags})
    assert settings.network().dims == PRESETS[flags.get("model", "nano")].dims
    assert settings.network().depths == (depths or PRESETS["nano"].depths)
    assert settings.in_chans == DEMO["in_chans"]
    assert settings.training == replace(RECIPES[recipe], **{"image_size": 48, "epochs": 6} | changes, depths=depths)


def test_the_demo_gives_way_to_a_file_too(tmp_path: Path) -> None:
    settings = resolve({}, written(tmp_path, "demo = true\nepochs = 2\nlr = 0.5\nmodel = 'tiny'"))
    assert (settings.training.epochs, settings.training.lr, settings.model) == (2, 0.5, "tiny")
    assert settings.training.image_size == DEMO["image_size"]


def test_a_run_that_goes_on_keeps_its_settings_and_tells_what_differs(tmp_path: Path) -> None:
    begun = resolve({"data": "x", "epochs": 5, "recipe": "notebook"})
    (tmp_path / CONFIG).write_text(begun.to_toml(), encoding="utf-8")
    assert of_run(tmp_path, {}) == begun
    assert of_run(tmp_path, {"epochs": 5, "data": "elsewhere"}) == replace(begun, data="elsewhere")
    begun_with_depths = resolve({"data": "x", "depths": [1, 1, 1, 1]})
    (tmp_path / CONFIG).write_text(begun_with_depths.to_toml(), encoding="utf-8")
    assert of_run(tmp_path, {"depths": [1, 1, 1, 1]}) == begun_with_depths  # as a caller in Python writes them
    with pytest.raises(ConfigError, match=r"--depths is \(1, 1, 2, 1\) and was \(1, 1, 1, 1\)"):
        of_run(tmp_path, {"depths": [1, 1, 2, 1]})
    (tmp_path / CONFIG).write_text(begun.to_toml(), encoding="utf-8")
    with pytest.raises(
        ConfigError,
        match="was started with other settings: --epochs is 6 and was 5; --name is 'y' and was not set; leave them "
        "out, or start a new run",
    ):
        of_run(tmp_path, {"epochs": 6, "name": "y", "data": "x"})
    network = MedMambaSE(ModelConfig(dims=(4, 8), depths=(1, 1)))
    described = checkpoint.describe(TrainConfig(), network, torch.float32, 1)
    # what the checkpoint itself lets pass, or names only where it asks for something
    assert {*MAY_CHANGE} & {*TrainConfig().to_dict()} == {*TrainConfig().to_dict()} - {*described, *CAME_LATER}


def test_a_run_is_one_of_the_settings_that_it_was_started_with_and_of_no_others(tmp_path: Path) -> None:
    given = {"data": "x", "folds": 3, "fold": 1, "epochs": 5}
    (tmp_path / CONFIG).write_text(resolve(given).to_toml(), encoding="utf-8")
    for change in ({}, {"device": "cpu"}, {"save_every": 1}, {"cache": "disk"}):
        assert is_run_of(tmp_path, resolve(given | change)), change
    for change in ({"data": "x/"}, {"data": "./x"}, {"data": "./x//"}, {"runs": "./runs/"}):
        assert is_run_of(tmp_path, resolve(given | change)), change  # however the same path is written
    others = (
        {"data": "y"},
        {"data": "x/y"},
        {"start": "none/"},
        {"fold": 2},
        {"folds": 4},
        {"split_seed": 1},
        {"seed": 1},
        {"name": "z"},
        {"plain_patients": True},
        {"keep_duplicates_together": True},
    )
    for change in others:
        assert not is_run_of(tmp_path, resolve(given | change)), change
    assert not is_run_of(tmp_path / "empty", resolve(given))


@pytest.mark.parametrize(
    ("folder", "message"),
    [("gone", "there is no such folder"), (".", "not a run folder: config.toml is missing")],
)
def test_only_a_run_can_go_on(folder: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--resume .*: {message}; give the folder of a run"):
        of_run(tmp_path / folder, {})


def test_start_is_what_was_called_weights_before_and_none_is_no_start(tmp_path: Path) -> None:
    assert resolve({"weights": "w"}) == resolve({"start": "w"}) == resolve({}, written(tmp_path, "weights = 'w'"))
    assert train_flags.parse(["x", "--weights", "w"])[0] == train_flags.parse(["x", "--start", "w"])[0]
    none = resolve({"start": "none", "model": "nano"})
    assert (none.start, none.weights, none.model) == ("none", None, "nano")
    assert resolve({"start": "none"}, written(tmp_path, "weights = 'w'")).weights is None
    assert 'start = "w"' in resolve({"weights": "w"}).to_toml()
    for given, message in (
        ({"weights": "v", "start": "w"}, "weights is the earlier name of start, and both are given"),
        ({"start": "w", "depths": (1, 1, 1, 1)}, r"--depths is \(1, 1, 1, 1\), but the weights define it; leave out"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve(given)


def test_every_setting_has_a_flag_but_those_of_a_published_network() -> None:
    flags = [name for group in train_flags.GROUPS.values() for name in group]
    assert len(flags) == len(set(flags))
    assert set(TYPES) - set(flags) == {"data", "block", "depths"}


def test_a_choice_that_is_offered_is_one_that_exists() -> None:
    assert get_args(Preset) == tuple(PRESETS)
    assert get_args(Opponent) == tuple(OPPONENT_RECIPES)
    assert get_args(Model) == (*PRESETS, *OPPONENT_RECIPES)
    assert set(get_args(Engine)) == set(BACKENDS)


def test_the_help_tells_each_default() -> None:
    text = " ".join(train_flags.parser().format_help().split())
    assert "--epochs N maximum number of passes over the training images (50)" in text
    assert "--select auc|balanced_accuracy|accuracy validation metric that chooses the best epoch (auc)" in text
    assert Settings().training == TrainConfig() == RECIPES["ultrasound"]


def test_flags_become_what_their_settings_are() -> None:
    given, config, resume = train_flags.parse(
        ["data", "--lr", "1", "--seed=3", "--laterality", "--no-allow-leak", "--name", "5", "--in-chans", "1"]
    )
    assert given == {
        "data": "data",
        "lr": 1.0,
        "seed": 3,
        "laterality": True,
        "allow_leak": False,
        "name": "5",
        "in_chans": "1",
    }
    assert isinstance(given["lr"], float) and config is None and resume is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "huge"],
            "--model is 'huge'; it must be one of 'nano', 'micro', 'tiny', 'small', 'base', 'resnet18', "
            "'densenet121', 'swin_tiny' or 'efficientnet_lite0'",
        ),
        (["--seed", "1e23"], "--seed is '1e23'; it must be a whole number"),
        (["--lr", ""], "--lr is ''; it must be a number"),
        (["--backend", "cuda"], "--backend is 'cuda'; it must be one of"),
    ],
)
def test_a_flag_of_another_type_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train_flags.parse(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--epoch", "3"], "there is no flag --epoch; the nearest is --epochs"),
        (["x", "--batchsize=3"], "there is no flag --batchsize; the nearest is --batch-size"),
        (["x", "y"], "give one DATA only; 'y' is a second one"),
        (["x", "--epochs"], "--epochs: expected one argument"),
        (["--resume", "x", "--config", "y"], "--resume takes its settings from x; leave out --config y"),
    ],
)
def test_words_that_are_no_flags_end_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train_flags.parse(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and len(said.splitlines()) == 1
