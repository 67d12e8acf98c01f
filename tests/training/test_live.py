"""The page of a training that runs says how far it is, and gives way to the report."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import interrupt_at, rows

from medmambase import Run, run_folder
from medmambase.commands import train
from medmambase.config import ConfigError, TrainConfig
from medmambase.evaluation.report import live_page
from medmambase.evaluation.report.live_page import write_live_page
from medmambase.run_folder import is_finished
from medmambase.training import live
from medmambase.training.history import Epoch
from medmambase.training.interrupt import Terminated
from medmambase.training.live import LivePage

CONFIG = TrainConfig(epochs=4, patience=0, select_after=0, live=True)
DESCRIBED = {
    "parameters": 1234, "device": "cpu", "engine": "cpu: <b>fast</b>", "precision": "float32", "start": "none",
    "training": CONFIG.to_dict(),
}  # fmt: skip  # a table
REFRESH = '<meta http-equiv="refresh"'


def epoch(number: int, auc: float | None = 0.5, seconds: float = 60.0) -> Epoch:
    return Epoch(number, 1e-3, 1 / number, 0.5, 0.7, 0.6, 0.55, auc, seconds)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "läufe").mkdir()
    return tmp_path / "läufe"


def page_of(run: Path, config: TrainConfig = CONFIG, said: Any = print, wanted: bool = True) -> LivePage:
    return LivePage(run, config, DESCRIBED, said, wanted)


def text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def status(run: Path) -> str:
    found = re.search(r'<p class="verdict">(.*)</p>', text(run))
    assert found is not None and f"<title>{run.name}: {found[1]}</title>" in text(run)
    return found[1]


def test_the_page_says_how_far_the_training_is_and_is_read_again_until_it_has_ended(run: Path) -> None:
    page = page_of(run)
    page.begin()
    assert status(run) == "Training, epoch 0 of 4" and "No epoch has ended yet" in text(run)
    page.after(epoch(1, seconds=240))
    assert status(run) == "Training, epoch 1 of 4, about 12 min left"
    page.after(epoch(2, auc=0.9, seconds=60))
    assert status(run) == "Training, epoch 2 of 4, about 5 min left"
    shown = text(run)
    assert REFRESH in shown and not is_finished(run) and "medmambase-train --resume RUN" in shown
    assert shown.index("2, kept so far") < shown.index('<th scope="row">1</th>') and "<td" in shown
    assert "&lt;b&gt;fast" in shown and "<b>" not in shown and "http" not in shown.replace("http-equiv", "")
    page.after(epoch(3, seconds=0))
    assert status(run) == "Training, epoch 3 of 4, about 2 min left"
    page.after(epoch(4))
    assert status(run) == "Trained, epoch 4 of 4: the network is tested and the report written" and REFRESH in text(run)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "2 h")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert live._in_words(seconds) == said


def test_with_patience_the_time_left_is_the_most_there_may_be_and_its_end_is_known(run: Path) -> None:
    page = page_of(run, replace(CONFIG, patience=2))
    page.begin()
    page.after(epoch(1, seconds=3600))
    assert status(run) == "Training, epoch 1 of 4, at most about 3 h left"
    page.after(epoch(2))
    page.after(epoch(3))
    assert status(run).startswith("Trained, epoch 3 of 4")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "Interrupted: epoch 1 of 4"),
        (Terminated(15), "Interrupted by SIGTERM: epoch 1 of 4"),
        (
            ValueError("the loss is nan in /home/ann/x"),
            "Ended by an error after epoch 1 of 4: the loss is nan in &lt;path&gt;",
        ),
    ],
)
def test_a_training_that_ends_early_leaves_a_page_that_says_so_and_how_to_go_on(
    error: BaseException, said: str, run: Path
) -> None:
    with pytest.raises(type(error)), page_of(run) as page:
        page.begin()
        page.after(epoch(1))
        raise error
    assert status(run) == said and REFRESH not in text(run) and not is_finished(run)
    assert "continues with" in text(run) and "medmambase-train --resume RUN" in text(run)


def test_of_a_fold_the_page_names_the_command_of_its_cross_validation(run: Path) -> None:
    (run.parent / run_folder.CROSSVAL).touch()
    page_of(run).begin()
    assert "medmambase-crossval" in text(run) and "--resume" not in text(run)


def test_nothing_is_written_that_is_not_wanted_nor_by_a_training_that_is_refused_nor_over_a_report(run: Path) -> None:
    unwanted = page_of(run, wanted=False)
    with pytest.raises(KeyboardInterrupt), unwanted:
        unwanted.begin()
        unwanted.after(epoch(1))
        raise KeyboardInterrupt
    with pytest.raises(ConfigError), page_of(run):
        raise ConfigError("other settings")
    assert list(run.iterdir()) == []
    with pytest.raises(BrokenPipeError), page_of(run) as page:
        page.begin()
        (run / "report.html").write_text("<!doctype html><html>the report", encoding="utf-8")
        raise BrokenPipeError  # nobody reads what is printed
    assert is_finished(run) and "the report" in text(run)


def test_a_page_that_cannot_be_written_ends_no_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "write_live_page", full)
    said: list[str] = []
    page = page_of(run, said=said.append)
    page.begin()
    page.after(epoch(1))
    (line,) = said
    assert "--live ends" in line and "No space left on device" in line


def test_curves_have_a_line_for_each_figure_that_is_known_with_gaps_where_it_is_not(run: Path) -> None:
    known = [{"epoch": n, "lr": 1e-3, "train_loss": 1 / n, "train_accuracy": 0.5, "val_auc": auc} for n, auc in
             enumerate((0.5, None, 0.75, 1.0), start=1)]  # fmt: skip  # a table
    loss, score, rate = live_page._panels(known)
    assert [line.name for line in loss.lines] == ["training"] and (loss.low, loss.high) == (0.25, 1.0)
    accuracy, auc = score.lines
    assert (accuracy.name, auc.name, auc.newest) == ("training accuracy", "validation AUC", 1.0)
    bottom, top = score.height - 22, 10
    dot, line = auc.parts
    assert dot == f"56.0,{bottom:.1f} 56.0,{bottom:.1f}" and line == f"437.3,{(top + bottom) / 2:.1f} 628.0,{top:.1f}"
    assert rate.low < 1e-3 < rate.high and live_page._panels([]) == []
    write_live_page(
        run,
        "x",
        [row | {"val_loss": None, "val_accuracy": None, "val_balanced_accuracy": None} for row in known],
        1,
        DESCRIBED,
    )
    assert text(run).count("<polyline") == 5 and text(run).count("<svg") == 3 and "n/a" in text(run)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "ctrl_c")
def test_a_training_with_a_live_page_has_the_bytes_of_one_without_and_ends_in_its_report(
    images: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.main([str(images), *small, "--name", "plain"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)  # of three an epoch
        assert train.main([str(images), *small, "--name", "live", "--live"]) == 130
    run = tmp_path / "live-001"
    assert status(run) == "Interrupted: epoch 1 of 3"
    with pytest.raises(run_folder.RunFolderError, match="not written yet"):
        _ = Run(run).report
    seen: list[str] = []
    Run(run).resume(live=True, on_epoch=lambda row: seen.append(status(run)), say=lambda line: None)
    assert seen[0].startswith("Training, epoch 2 of 3, at most about ") and seen[1].startswith("Trained, epoch 3 of 3")
    assert is_finished(run) and Run(run).report.is_file() and REFRESH not in text(run)
    assert "Test results" in text(run) and len(rows(run / "metrics.csv")) == 3
    for name in ("last/model.safetensors", "best/model.safetensors", "metrics.csv", "test/predictions.csv"):
        assert (run / name).read_bytes() == (tmp_path / "plain-001" / name).read_bytes(), name
