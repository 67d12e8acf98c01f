"""The lines that train a network again train the same network, on the same split."""

import shlex
from pathlib import Path

import pytest

from medmambase.commands import next_steps, train_flags
from medmambase.commands.trained_again import other_seeds, trained_again
from medmambase.settings import Settings, resolve


@pytest.fixture(autouse=True)
def _posix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_steps, "WINDOWS", False)


def run_of(folder: Path, **settings: object) -> Settings:
    (folder / "config.toml").write_text(resolve(settings).to_toml(), encoding="utf-8", newline="\n")
    return resolve({}, folder / "config.toml")


def parsed(command: str) -> Settings:
    given, file, _ = train_flags.parse(shlex.split(command)[1:])
    return resolve(given, file)


@pytest.mark.parametrize(
    "settings",
    [
        {"data": "data", "model": "nano", "epochs": 3, "seed": 4},
        {"data": "data", "split_seed": 2, "seed": 7, "name": "x"},
    ],
)
def test_only_the_seed_differs(settings: dict[str, object], tmp_path: Path) -> None:
    before = run_of(tmp_path, **settings)
    ((what, command),) = trained_again(tmp_path)
    after = parsed(command)
    assert "another seed" in what and after.training.seed == before.training.seed + 1
    assert after.seed_of_splits == before.seed_of_splits
    unchanged = after.changed("seed", before.training.seed).changed("split_seed", before.split_seed)
    assert unchanged == before


def test_several_other_seeds_follow_each_other(tmp_path: Path) -> None:
    before = run_of(tmp_path, data="data", seed=4)
    after = [parsed(command) for command in other_seeds(tmp_path, 2)]
    assert [one.training.seed for one in after] == [5, 6] and {one.seed_of_splits for one in after} == {4}
    assert after[1].changed("seed", 4).changed("split_seed", before.split_seed) == before


def test_the_next_fold_is_proposed_while_there_is_one(tmp_path: Path) -> None:
    before = run_of(tmp_path, data="data", folds=3, fold=1)
    (what, command), _ = trained_again(tmp_path)
    assert what == "train on the next fold" and parsed(command) == before.changed("fold", 2)
    run_of(tmp_path, data="data", folds=3, fold=2)
    assert len(trained_again(tmp_path)) == 1


def test_the_demo_is_trained_again_on_the_images_that_it_has_drawn(tmp_path: Path) -> None:
    before = run_of(tmp_path, demo=True)
    after = parsed(trained_again(tmp_path)[0][1])
    assert after.data == str(tmp_path / "phantom") and not after.demo
    assert after.network() == before.network() and after.training.epochs == before.training.epochs


def test_where_no_settings_are_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert trained_again(tmp_path) == [] == trained_again(tmp_path / "predictions.csv")


def test_of_settings_that_cannot_be_read_nothing_is_said(tmp_path: Path) -> None:
    run_of(tmp_path, data="data")
    (tmp_path / "do_not_share.toml").write_text("no TOML", encoding="utf-8", newline="\n")
    assert trained_again(tmp_path) == []
