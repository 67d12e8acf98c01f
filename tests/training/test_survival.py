"""A training that is killed, interrupted, or out of disk space ends as if nothing had happened; and
what it must not go on from is refused."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from kill_test import (
    CONFIG,
    FULL,
    MOMENTS,
    WAYS,
    Kill,
    ask,
    at_step,
    at_work,
    differing,
    expected,
    finish,
    image_set,
    readable,
    start,
    train,
)
from medmambase import run_folder
from medmambase.config import ConfigError, TrainConfig
from medmambase.data.manifest.folders import DataError
from medmambase.training import checkpoint

SHORT = replace(CONFIG, epochs=2)
STEPS = 4  # an epoch


class Killed(BaseException):
    """Stands for a kill where the process must live on: nothing in the project catches it."""


def die() -> None:
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of SHORT, trained in one go."""
    run = tmp_path_factory.mktemp("undisturbed")
    train(run, SHORT)
    return run


@pytest.mark.slow
def test_a_training_killed_inside_any_write_ends_with_the_same_bytes(tmp_path: Path, undisturbed: Path) -> None:
    config, write, struck = replace(SHORT, save_every=2), 0, True
    while struck:
        for moment in MOMENTS:
            run = tmp_path / f"{write} {moment}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", os.fsync)
                patch.setattr(os, "replace", os.replace)
                Kill(write, moment, die).arm()
                try:
                    train(run, config)
                    struck = False
                except Killed:
                    assert readable(run) is None
            train(run, config)
            assert differing(run, undisturbed) == [], (write, moment)
            shutil.rmtree(run)
        write += 1
    assert write > 16


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0, 1, 3])
def test_a_training_killed_at_any_step_ends_with_the_same_bytes(
    save_every: int, tmp_path: Path, undisturbed: Path
) -> None:
    config = replace(SHORT, save_every=save_every)
    for number in range(2 * STEPS):
        run = tmp_path / str(number)
        with pytest.raises(Killed):
            train(run, config, at_step(number, die))
        if number in (1, 4):  # and once more, a little later
            with pytest.raises(Killed):
                train(run, config, at_step(1, die))
        outcome = train(run, config)
        assert differing(run, undisturbed) == [], number
        assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]


@pytest.mark.slow
def test_a_process_that_is_killed_gives_its_folder_free_and_its_work_is_finished_by_the_next(tmp_path: Path) -> None:
    run = tmp_path / "run ü"
    process = start(run, 1, hold=6)
    at_work(process)
    assert checkpoint.position(run / "last") is not None
    with pytest.raises(
        run_folder.RunFolderError,
        match=rf"another run \(process {process.pid}, since .*\) is using it; wait until it ends",
    ):
        train(run, CONFIG)
    process.kill()
    assert finish(process) != 0
    assert finish(start(run, 1, Kill(5, MOMENTS[0], int))) != 0
    assert readable(run) is None and checkpoint.position(run / "last") is not None
    train(run, replace(CONFIG, save_every=1))
    train(tmp_path / "undisturbed", CONFIG)
    assert differing(run, tmp_path / "undisturbed") == []


def failing(number: int, code: int) -> Callable[[int], None]:
    """An ``os.fsync`` that fails from its ``number``-th call on, with half of the file written."""
    calls, real = iter(range(1_000_000)), os.fsync

    def fails(file: int) -> None:
        if next(calls) >= number:
            os.ftruncate(file, os.fstat(file).st_size // 2)
            raise OSError(code, os.strerror(code))
        real(file)

    return fails


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_one_line_and_no_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    config = replace(SHORT, save_every=1)
    for number in range(8, 18):
        run = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", failing(number, errno.ENOSPC))
            with pytest.raises(
                run_folder.RunFolderError,
                match=r": cannot be written \(No space left on device\); .*free some space there",
            ) as caught:
                train(run, config)
        assert len(str(caught.value).splitlines()) == 1 and str(run) in str(caught.value)
        assert readable(run) is None and checkpoint.position(run / "last") is not None
        train(run, config)
        assert differing(run, undisturbed) == [], number


def test_a_folder_that_refuses_files_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "last" / "model.safetensors").mkdir(parents=True)  # whose place no file takes
    with pytest.raises(
        run_folder.RunFolderError,
        match=r"model.safetensors: cannot be written \(.*\); the previous version is unchanged; make sure that its",
    ):
        train(tmp_path, SHORT)


def test_a_file_that_a_scanner_holds_for_a_moment_is_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals, pauses = os.replace, [1, 2, 3], []

    def refuses(source: Path, target: Path) -> None:
        if refusals:
            refusals.pop()
            raise PermissionError(errno.EACCES, "Access is denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuses)
    monkeypatch.setattr(time, "sleep", pauses.append)
    run_folder.write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "a" and len(pauses) == 3
    refusals += [1, 2, 3, 4]
    with pytest.raises(
        run_folder.RunFolderError,
        match=r"a\.txt: cannot be written \(Access is denied\); the previous version is unchanged",
    ):
        run_folder.write_text(tmp_path / "a.txt", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text(
        encoding="utf-8"
    ) == "a"


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        run_folder.held(tmp_path),
        pytest.raises(run_folder.RunFolderError, match=rf"process {os.getpid()}, since"),
        run_folder.held(tmp_path),
    ):
        pass
    with run_folder.held(tmp_path):
        pass
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(run_folder.RunFolderError, match="cannot be written"), run_folder.held(tmp_path / "file"):
        pass


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The run folder of SHORT, stopped in its second epoch."""
    with pytest.raises(Killed):
        train(tmp_path, SHORT, at_step(STEPS + 1, die))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 0.02}, "lr was 0.01 and is 0.02"),
        ({"epochs": 3, "seed": 1}, "epochs was 2 and is 3; seed was 0 and is 1"),
        ({"ema": 0.0}, "ema was 0.9 and is 0.0"),
    ],
)
def test_other_settings_are_refused_and_named(changes: dict[str, object], said: str, stopped: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"last: the settings differ from those of the start: {re.escape(said)}; restore what changed, "
        rf"or start a new run",
    ):
        train(stopped, replace(SHORT, **changes))
    assert checkpoint.position(stopped / "last") == (2, 0)


def test_settings_that_change_no_result_may_change(stopped: Path, undisturbed: Path) -> None:
    train(stopped, replace(SHORT, save_every=2, cache="off"))
    assert differing(stopped, undisturbed) == []


def refused(run: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., object]) -> str:
    import kill_test

    monkeypatch.setattr(kill_test, "image_set", change)
    with pytest.raises(DataError, match=r"last: the images differ from those of the start: ") as caught:
        train(run, SHORT)
    return str(caught.value)


def test_other_images_are_refused_and_named(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_pixels(count: int, split: str, size: int = 16):
        images = image_set(count, split, size)
        return replace(images, facts=(*images.facts[:3], replace(images.facts[3], digest="other"), *images.facts[4:]))

    def fewer(count: int, split: str, size: int = 16):
        return (
            image_set(count, split, size).rows(range(0, count - 2)) if split == "val" else image_set(count, split, size)
        )

    def another_order(count: int, split: str, size: int = 16):
        return image_set(count, split, size).rows([1, 0, *range(2, count)])

    assert "of the start: 2 with different pixels (train/3.png, val/3.png); restore" in refused(
        stopped, monkeypatch, other_pixels
    )
    assert "of the start: 2 gone (val/9.png, val/10.png); restore" in refused(stopped, monkeypatch, fewer)
    assert "of the start: their order differs; restore" in refused(stopped, monkeypatch, another_order)
    listed = stopped / "last" / run_folder.IMAGES
    listed.write_text("split,name,label,pixels\ntrain,train/3.png\n", "utf-8")
    assert "of the start: which ones is unknown; restore" in refused(stopped, monkeypatch, other_pixels)
    listed.unlink()
    assert "of the start: which ones is unknown; restore" in refused(stopped, monkeypatch, fewer)


def test_a_damaged_checkpoint_is_one_line(stopped: Path) -> None:
    path = stopped / "last" / run_folder.STATE
    good = path.read_bytes()
    words = checkpoint._words(good)
    del words["checksum"]  # which would find each of these
    tensors = load(good)
    other = {name: t for name, t in tensors.items() if name != "network.head.weight"}
    for content in (
        b"",
        b"x" * 100,
        good[:1000],
        good[:-1],
        save(tensors),
        save(other, {"training": checkpoint.json.dumps(words)}),
    ):
        path.write_bytes(content)
        with pytest.raises(
            checkpoint.CheckpointError,
            match=rf"{re.escape(str(path))}: not a checkpoint of this training, or damaged .*; delete it",
        ) as caught:
            train(stopped, SHORT)
        assert len(str(caught.value).splitlines()) == 1
    path.write_bytes(save(tensors, {"training": checkpoint.json.dumps({**words, "format": 99})}))
    with pytest.raises(checkpoint.CheckpointError, match="format is 99; this version reads format 1"):
        train(stopped, SHORT)


def test_a_finished_training_has_nothing_left_to_do(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(undisturbed, run)
    outcome = train(run, SHORT, at_step(0, die))
    assert len(outcome.epochs) == 2 and outcome.best_epoch in (1, 2)
    assert differing(run, undisturbed) == []


def test_the_file_of_figures_holds_no_clock(undisturbed: Path) -> None:
    header = (undisturbed / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,val_balanced_accuracy,val_auc"


def test_a_checkpoint_holds_everything_that_was_learned(undisturbed: Path) -> None:
    tensors = load((undisturbed / "last" / run_folder.STATE).read_bytes())
    network = {name.partition(".")[2] for name in tensors if name.startswith("network.")}
    assert {name.partition(".")[2] for name in tensors if name.startswith("average.")} == network
    learned = {name for name in network if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert {name for name in tensors if name.startswith("optimizer.")} == {
        f"optimizer.{name}.{what}" for name in learned for what in ("step", "exp_avg", "exp_avg_sq")
    }
    assert isinstance(SHORT, TrainConfig) and all(t.dtype in (torch.float32, torch.int64) for t in tensors.values())


@pytest.mark.parametrize(
    ("way", "code", "right"),
    [
        ("SIGKILL", -9, True),
        ("SIGTERM", 143, True),
        ("SIGTERM", -15, False),
        ("SIGTERM", 1, False),
        ("SIGTERM twice", 143, True),
        ("SIGTERM twice", -15, True),
        ("SIGTERM twice", 1, False),
        ("the disk is full", 4, True),
        ("the disk is full", 1, False),
    ],
)
def test_the_stress_test_knows_which_exit_code_each_end_has(way: str, code: int, right: bool) -> None:
    assert expected(way, code) == right


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "SIGKILL"])  # which has a test of its own
def test_a_process_that_ends_in_one_of_the_other_ways_is_finished_by_the_next(way: str, tmp_path: Path) -> None:
    run, kill = tmp_path / "run ü", Kill(5, FULL, int) if way == FULL else None
    process = start(run, 1, kill, pause=1.8 if way == "SIGTERM twice" else None, hold=None if kill else 6)
    if kill is None:
        at_work(process)
        ask(process)
    if way == "SIGTERM twice":
        time.sleep(0.6)
        ask(process)
    code = finish(process)
    assert expected(way, code), code
    assert readable(run) is None and checkpoint.position(run / "last") is not None
    train(run, replace(CONFIG, save_every=1))
    train(tmp_path / "undisturbed", CONFIG)
    assert differing(run, tmp_path / "undisturbed") == []
