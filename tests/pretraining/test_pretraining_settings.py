"""The settings of a pretraining: what cannot be meant is named, and every one has a flag."""

import re
from pathlib import Path
from typing import Any

import pytest

from medmambase.commands import pretrain_flags
from medmambase.config import ConfigError, TrainConfig
from medmambase.pretraining.settings import MAY_CHANGE, TYPES, PretrainSettings, is_run_of, of_run, resolve
from medmambase.run_folder import CONFIG
from medmambase.training.optimise import learning_rate, warm_up


def test_every_setting_has_a_flag_but_depths_as_in_a_training() -> None:
    flags = [name for group in pretrain_flags.GROUPS.values() for name in group]
    assert len(flags) == len(set(flags))
    assert set(TYPES) - set(flags) == {"data", "depths"}
    text = " ".join(pretrain_flags.parser().format_help().split())
    assert "--batch-size N pictures per step (32)" in text and "--weights" not in text


def test_lists_are_typed_with_commas() -> None:
    given, _, _ = pretrain_flags.parse(["--drawn", "--targets", "echo, edges", "--image-size", "64,96", "--no-speckle"])
    assert given == {"drawn": True, "targets": ("echo", "edges"), "image_size": (64, 96), "speckle": False}
    assert resolve(given).predicted() == ("echo", "edges")
    assert resolve({"drawn": True, "targets": ("edges", "structures"), "image_size": 64}).image_size == (64,)
    assert resolve({"drawn": True, "targets": ("edges", "structures")}).predicted() == ("structures", "edges")
    assert resolve({"data": "x"}).predicted() == ("picture",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give a folder of images, or --drawn"),
        ({"drawn": True, "data": "x"}, "DATA is 'x', but --drawn makes its own pictures"),
        ({"drawn": True, "steps": 3, "minutes": 1.0}, "--steps is 3, but --minutes decides how many there are"),
        ({"drawn": True, "start": "w", "model": "nano"}, "--model is 'nano', but the weights define the size"),
        ({"drawn": True, "start": "w", "depths": (1, 1, 1, 1)}, "--depths is (1, 1, 1, 1), but the weights define it"),
        ({"drawn": True, "start": "drawn", "model": "tiny"}, "--start is 'drawn', and no weights "),
        ({"drawn": True, "start": "drawn", "depths": (1, 1, 1, 1)}, "--depths is (1, 1, 1, 1), but the weights def"),
        ({"drawn": True, "noise": 0.1}, "--noise is 0.1, which is about images alone"),
        ({"data": "x", "speckle": False}, "--speckle is False, which is about drawn pictures alone"),
        ({"data": "x", "hidden": 0.0, "noise": 0.0}, "--hidden and --noise are 0, so there would be nothing"),
        ({"drawn": True, "batch_size": 1}, "--batch-size is 1; it must be at least 2"),
        ({"drawn": True, "steps": 10**9 + 1}, "--steps is 1000000001; it must be at most 1000000000"),
        ({"drawn": True, "workers": 62}, "--workers is 62; it must be at most 61"),
        ({"drawn": True, "targets": ("echos",)}, "--targets[0] is 'echos'; it must be one of"),
        ({"drawn": True, "depths": (1,)}, "--depths: depths (1,) and dims"),
    ],
)
def test_what_cannot_be_meant_is_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(flags)


def test_a_file_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("steps = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"my\.toml: give a folder of images, or --drawn"):
        resolve({}, tmp_path / "my.toml")


def test_the_file_of_a_run_repeats_it_and_only_what_changes_no_result_may_change(tmp_path: Path) -> None:
    settings = resolve({"drawn": True, "scenes": ("heart",), "image_size": (32, 48), "weights": "w", "minutes": 2.0})
    (tmp_path / CONFIG).write_text(settings.to_toml({}), encoding="utf-8", newline="\n")
    assert resolve({}, tmp_path / CONFIG) == settings and settings.start == "w"
    assert resolve({"steps": 5}, tmp_path / CONFIG).minutes is None  # a flag takes back the other of the pair
    assert of_run(tmp_path, {"half": True, "workers": 3}).half
    assert of_run(tmp_path, {"image_size": list(settings.image_size), "targets": list(settings.targets)}) == settings
    assert is_run_of(tmp_path, resolve({"half": True}, tmp_path / CONFIG))
    assert is_run_of(tmp_path, resolve({"runs": "./runs/"}, tmp_path / CONFIG))
    assert not is_run_of(tmp_path, resolve({"seed": 1}, tmp_path / CONFIG)) and not is_run_of(tmp_path / "x", settings)
    with pytest.raises(ConfigError, match="--seed is 1 and was 0; leave them out"):
        of_run(tmp_path, {"seed": 1})
    with pytest.raises(ConfigError, match=r"DATA is 'x', but .* draws its pictures"):
        of_run(tmp_path, {"data": "x"})
    (tmp_path / "my.toml").write_text("drawn = true\nepochs = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"my\.toml: there is no setting 'epochs'"):
        resolve({}, tmp_path / "my.toml")


def test_what_decides_the_result_is_compared_on_resume_and_nothing_else() -> None:
    aside = {"precision", "backend", "runs", "name", "splits", "start", "minutes", "steps"}
    assert set(PretrainSettings().deciding()) == set(TYPES) - set(MAY_CHANGE) - aside


def test_the_rate_rises_over_its_part_of_the_steps() -> None:
    config = PretrainSettings(drawn=True, warmup=0.1, lr=1.0, weight_decay=0.3).optimisation(200)
    assert isinstance(config, TrainConfig) and (config.weight_decay, warm_up(config)) == (0.3, 20)
    assert learning_rate(config, 10) == 0.5 and learning_rate(config, 20) == 1.0
    assert learning_rate(config, 199) < 0.011
