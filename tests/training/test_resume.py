"""``medmambase-train`` from end to end: files of settings, other kinds of data, leaks, and runs
that were interrupted."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL, interrupt_at, leave_out_pictures
from PIL import Image

import medmambase
from medmambase import run_folder
from medmambase.commands import train
from medmambase.commands.train_flags import AUTO, parse
from medmambase.config import PRESETS, Preprocessing
from medmambase.model.network import MedMambaSE
from medmambase.training import history, session

pytestmark = pytest.mark.usefixtures("no_pictures", "ctrl_c")
RESULTS = (
    "last/model.safetensors",
    "best/model.safetensors",
    "metrics.csv",
    "test/predictions.csv",
    "config.json",
    "splits.csv",
    "data_report.json",
)


def same(first: Path, second: Path) -> list[str]:
    """The results that differ between two runs."""
    return [name for name in RESULTS if (first / name).read_bytes() != (second / name).read_bytes()]


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the flags of ``small``, trained in one go; never changed."""
    place = tmp_path_factory.mktemp("whole")
    (place / "small.toml").write_text(SMALL, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        assert train.main([str(images), "--config", str(place / "small.toml"), "--runs", str(place)]) == 0
    return next(place.glob("*-001"))


@pytest.mark.slow
def test_the_config_of_a_run_repeats_it_and_flags_win_over_the_file(
    images: Path, small: list[str], tmp_path: Path
) -> None:
    assert train.main([str(images), *small, "--name", "a", "--epochs", "2", "--ema", "0.5"]) == 0
    assert len((tmp_path / "a-001" / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert train.main(["--config", str(tmp_path / "a-001" / "config.toml")]) == 0
    assert same(tmp_path / "a-001", tmp_path / "a-002") == []
    assert (tmp_path / "a-001" / "config.toml").read_bytes() == (tmp_path / "a-002" / "config.toml").read_bytes()
    assert train.main([str(images), "--config", str(tmp_path / "a-001" / "config.toml"), "--seed", "1"]) == 0
    assert "last/model.safetensors" in same(tmp_path / "a-001", tmp_path / "a-003")


def test_an_unknown_key_is_found_before_anything_is_made(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(f"{SMALL}ephocs = 3\n", encoding="utf-8")
    assert train.main([str(images), *small]) == 2
    assert "small.toml: there is no setting 'ephocs'; the nearest is 'epochs'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 6])  # of three an epoch
def test_after_ctrl_c_a_run_goes_on_to_the_same_bytes(
    step: int,
    images: Path,
    small: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        assert train.main([str(images), *small, "--name", "cut"]) == 130
    run = tmp_path / "cut-001"
    said = capsys.readouterr().err.strip()
    assert said.startswith("interrupted: saved up to ") and said.endswith(
        f"continue with medmambase-train --resume {run}"
    )
    assert {1: "to step 2 of epoch 1;", 5: "to step 3 of epoch 2;", 6: "to epoch 2;"}[
        step
    ] in said  # the step after the one that had just ended is done, too
    assert train.main(["--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "resuming from epoch" in said and ("epoch   1  train" in said) == (
        step == 1
    )  # what was done is not done again
    assert same(whole, run) == []
    assert (run / "command.txt").read_text(encoding="utf-8").splitlines()[1].startswith("medmambase-train --resume")
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_the_same_command_with_resume_auto_goes_on_by_itself(
    images: Path,
    small: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(images), *small, "--name", "cut", "--resume", "auto"]
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main(command) == 130  # nothing was there: it began anew
    (tmp_path / "cut-002").mkdir()  # of a run that was killed before it wrote anything
    assert train.main([*command, "--epochs", "1"]) == 0  # another command
    assert train.main([*command, "--save-every", "1"]) == 0  # which changes no result
    said = capsys.readouterr().out
    assert "cut-001/last has no" not in said.replace("\\", "/") and "resuming from epoch 2" in said
    assert sorted(path.name for path in tmp_path.glob("cut-*")) == ["cut-001", "cut-002", "cut-003"]
    assert same(whole, tmp_path / "cut-001") == ["config.json"]  # which tells of --save-every
    before = (tmp_path / "cut-001" / "test_access_log.csv").read_bytes()
    assert train.main(command) == 0
    assert "cut-001 is finished: nothing is left to do" in capsys.readouterr().out
    assert (tmp_path / "cut-001" / "test_access_log.csv").read_bytes() == before
    assert medmambase.train(images, config=tmp_path / "small.toml", runs=tmp_path, name="cut", resume=True).folder == (
        tmp_path / "cut-001"
    )
    assert len(list(tmp_path.glob("cut-*"))) == 3


def test_damaged_commands_of_before_are_kept_when_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "command.txt").write_bytes(b"medmambase-train \xff\n")
    session.write_command(tmp_path, "medmambase-train --resume x", goes_on=True)
    assert (tmp_path / "command.txt").read_bytes() == b"medmambase-train \xff\nmedmambase-train --resume x\n"


def test_resume_auto_stands_beside_a_file_of_settings_and_a_folder_does_not(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse([*small, "--resume", "auto"])[1:] == (Path(small[1]), AUTO)
    assert parse(["--resume", "./auto"])[2] == Path("auto") and isinstance(parse(["--resume", "./auto"])[2], Path)
    with pytest.raises(SystemExit):
        parse([*small, "--resume", "./auto"])
    assert "--resume takes its settings from ./auto; leave out --config" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_never_came_to_a_checkpoint_begins_again(
    images: Path, small: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "take_in", killed)
        assert train.main([str(images), *small, "--name", "cut"]) == 130
    assert train.main(["--resume", str(tmp_path / "cut-001")]) == 0
    assert same(whole, tmp_path / "cut-001") == []


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_it_started_from(
    images: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = replace(PRESETS["nano"], depths=(1, 1, 1, 2), num_classes=6, in_chans=1)
    MedMambaSE(shape, preprocessing=Preprocessing(channels=1)).save(tmp_path / "start")
    (tmp_path / "small.toml").write_text(
        SMALL.replace('model = "nano"\ndepths = [1, 1, 1, 1]', f"weights = '{tmp_path / 'start'}'"), encoding="utf-8"
    )
    assert train.main([str(images), *small, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([str(images), *small, "--name", "cut"]) == 130
    shutil.rmtree(tmp_path / "start")
    assert train.main(["--resume", str(tmp_path / "cut-001")]) == 0
    assert same(tmp_path / "whole-001", tmp_path / "cut-001") == []
    assert MedMambaSE.load(tmp_path / "cut-001" / "best").config == shape


def change_pixels(data: Path) -> str:
    path = min((data / "train").rglob("*.png"))
    Image.effect_noise((32, 32), 50).save(path)
    return f"1 with different pixels ({path.relative_to(data).as_posix()})"


def add_image(data: Path) -> str:
    Image.effect_noise((32, 32), 50).save(data / "train" / "brain" / "zz.png")
    return "1 new (train/brain/zz.png)"


def relabel(data: Path) -> str:
    path = min((data / "val" / "brain").rglob("*.png"))
    path.rename(data / "val" / "femur" / path.name)
    return "1 gone (val/brain/"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [add_image, *(pytest.param(one, marks=pytest.mark.slow) for one in (change_pixels, relabel))]
)
def test_a_run_does_not_go_on_with_other_data_or_settings(
    change: Callable[[Path], str],
    images: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(images, tmp_path / "data")
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train.main([str(tmp_path / "data"), *small, "--name", "cut"]) == 130
    run = tmp_path / "cut-001"
    before = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix in (".csv", ".json", ".toml", ".txt", ".safetensors")
    }
    assert train.main(["--resume", str(run), "--epochs", "9"]) == 2
    assert "--epochs is 9 and was 3" in capsys.readouterr().err
    difference = change(tmp_path / "data")
    assert train.main(["--resume", str(run)]) == 3
    assert difference in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before  # what it has done is still told as it was
    # Where the data lies now is no difference.
    shutil.copytree(images, tmp_path / "moved")
    assert train.main([str(tmp_path / "moved"), "--resume", str(run), "--cache", "disk", "--save-every", "1"]) == 0
    assert list((tmp_path / "cache").rglob("*.shard"))
    commands = (run / "command.txt").read_text(encoding="utf-8").splitlines()
    assert len(commands) == 2 and "--save-every 1" in commands[1]  # those that were refused did not go on with it


def test_a_run_that_another_process_holds_is_left_alone(
    images: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(images), *small, "--name", "a", "--epochs", "1"]) == 0
    (tmp_path / "a-001" / "report.html").unlink()  # which comes last: without it the run is not finished
    with run_folder.held(tmp_path / "a-001"):
        assert train.main(["--resume", str(tmp_path / "a-001")]) == 4
    assert "a-001: another run (process" in capsys.readouterr().err


@pytest.mark.slow
def test_data_that_vanishes_in_the_middle_costs_no_finished_epoch(
    images: Path,
    small: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(images, tmp_path / "data")
    original = history.line

    def vanish(epoch):
        if epoch.epoch == 2:
            (tmp_path / "data").rename(tmp_path / "away")
        return original(epoch)

    with monkeypatch.context() as patch:
        patch.setattr(history, "line", vanish)
        assert train.main([str(tmp_path / "data"), *small, "--name", "cut", "--cache", "off"]) == 3
    run = tmp_path / "cut-001"
    assert capsys.readouterr().err.rstrip().endswith(f"; then continue with medmambase-train --resume {run}")
    assert train.main(["--resume", str(run)]) == 3
    assert f"data: the data of {run} was not found; give its new place" in capsys.readouterr().err
    (tmp_path / "away").rename(tmp_path / "data")
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
