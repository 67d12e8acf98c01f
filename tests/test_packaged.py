"""The words of --start: which weights they stand for, and what is said where there are none."""

import re
from pathlib import Path
from typing import Any

import pytest

from medmambase import packaged
from medmambase.config import ConfigError
from medmambase.packaged import AUTO, DRAWN, NONE
from medmambase.pretraining import settings as pretraining
from medmambase.settings import Settings, is_same, resolve
from medmambase.training.python_api import given_settings
from medmambase.training.table.settings import lines


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has weights for nano and tiny."""
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    for model in ("tiny", "nano"):
        packaged.path_of(model).touch()
    return tmp_path


def test_the_model_chooses_which_drawn_weights_and_a_run_records_both(there: Path) -> None:
    assert packaged.models() == ("nano", "tiny") and list(packaged.names()) == ["nano-drawn", "tiny-drawn"]
    assert resolve({"data": "x", "start": DRAWN}).weights == str(there / "nano-drawn.safetensors")
    tiny = resolve({"data": "x", "start": DRAWN, "model": "tiny"})
    assert tiny.weights == str(there / "tiny-drawn.safetensors")
    assert 'start = "drawn"' in tiny.to_toml() and 'model = "nano"' in resolve({"start": DRAWN}).to_toml()
    file = there / "x.toml"
    file.write_text(tiny.to_toml(), encoding="utf-8", newline="\n")
    assert resolve({}, file) == tiny and resolve({"start": "w"}, file).model is None
    with pytest.raises(ConfigError, match="no weights for micro"):  # not passed over for another network by flag
        resolve({"model": "micro"}, file)
    assert [line.trainings[0].start for line in lines(("resnet18", "nano"), 1, {}, file)] == [NONE, DRAWN]
    file.write_text(resolve({"data": "x", "start": NONE}).to_toml(), encoding="utf-8", newline="\n")
    assert resolve({"model": "nano"}, file).start == NONE
    run = there / "config.toml"  # of a run of before, which names no weights
    run.write_text(resolve({"model": "nano"}, file).to_toml().replace('start = "none"\n', ""), encoding="utf-8")
    assert resolve({}, run).start == NONE
    assert resolve({"demo": True, "start": DRAWN}).training.depths is None  # those of the weights
    first = pretraining.resolve({"drawn": True, "start": DRAWN, "model": "tiny"})
    assert first.weights == tiny.weights and pretraining.resolve({"drawn": True, "start": DRAWN}).model == "nano"


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"model": "nano"}, DRAWN),
        ({"model": "nano", "se": "off"}, DRAWN),
        ({}, DRAWN),  # nano
        ({"model": "micro"}, NONE),
        ({"model": "nano", "depths": (1, 1, 1, 1)}, NONE),
        ({"model": "nano", "recipe": "readme"}, NONE),  # as it was published
        ({"model": "resnet18"}, NONE),
        ({"demo": True}, NONE),
    ],
)
@pytest.mark.usefixtures("there")
def test_auto_takes_drawn_weights_where_they_fit(given: dict[str, Any], start: str) -> None:
    found, new = resolve({"start": AUTO, **given}), resolve({"start": NONE, **given})
    assert (found.start, found.model) == (start, new.model) and found.training == new.training
    assert resolve(given) == (found if packaged.START == AUTO else new)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "micro"}, "--start is 'drawn', and no weights for micro come with this version, only for nano and "
                             "tiny; choose one of these with --model, or learn others (medmambase-pretrain --drawn "
                             "--model micro) and give their folder"),
        ({"model": "resnet18"}, "only for nano and tiny; choose one of these with --model, or leave out --start"),
        ({"depths": (1, 1, 1, 1)}, "--depths is (1, 1, 1, 1), but the weights define it; leave out depths"),
    ],
)  # fmt: skip  # a table
@pytest.mark.usefixtures("there")
def test_what_drawn_weights_do_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve({"start": DRAWN, **given})


def test_without_any_weights_it_is_said_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    for resolved in (resolve, pretraining.resolve):
        with pytest.raises(ConfigError, match=r"--start is 'drawn', and no weights come with this version; make them"):
            resolved({"drawn": True, "start": DRAWN} if resolved is pretraining.resolve else {"start": DRAWN})
    assert packaged.hint("nano-drawn") == "and no weights come with this version"
    assert resolve({"start": AUTO, "model": "nano"}).start == NONE


@pytest.mark.usefixtures("there")
def test_a_file_that_is_called_like_a_word_is_told_and_given_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert packaged.notes(DRAWN) == packaged.notes("./drawn") == []
    (tmp_path / DRAWN).mkdir()
    (note,) = packaged.notes(DRAWN)
    assert "not the folder of that name in the current folder; give './drawn' for that" in note
    assert packaged.notes(NONE) == packaged.notes("./drawn") == []
    assert resolve({"start": "./drawn"}).weights == "./drawn"
    given = given_settings({"start": Path(DRAWN)}, {"start": str})  # in Python a path is a path
    assert resolve(given).weights == "./drawn" and given_settings({"start": DRAWN}, {"start": str})["start"] == DRAWN
    assert not is_same("start", DRAWN, "./drawn") and Settings(start=DRAWN).weights != "./drawn"


@pytest.mark.usefixtures("there")
def test_in_a_table_the_networks_of_ours_start_from_drawn_weights() -> None:
    found = lines(("resnet18", "nano"), 1, {"data": "x", "start": DRAWN})
    assert [line.trainings[0].start for line in found] == [NONE, DRAWN]
    with pytest.raises(ConfigError, match="no weights for micro come with this version"):
        lines(("resnet18", "micro"), 1, {"data": "x", "start": DRAWN})
    with pytest.raises(ConfigError, match="--start is 'w', but the networks of a table have no weights in common"):
        lines(("resnet18",), 1, {"data": "x", "start": "w"})
