"""Ctrl-C in a training: the first one saves the step in work, the second one leaves at once, and
where it is ignored the training goes on."""

import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kill_test import CONFIG, at_step, at_work, differing, finish, start, train
from medmambase.training import checkpoint, history, interrupt, loop
from medmambase.training.interrupt import first_interrupt_waits

SHORT = replace(CONFIG, epochs=2)
STEPS = 4  # an epoch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of SHORT, trained in one go."""
    run = tmp_path_factory.mktemp("undisturbed")
    train(run, SHORT)
    return run


@pytest.mark.usefixtures("ctrl_c")
def test_the_first_ctrl_c_finishes_the_step_and_saves_it(tmp_path: Path, undisturbed: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    for number in (0, STEPS - 1, STEPS + 1):
        run = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            train(run, SHORT, at_step(number, lambda: signal.raise_signal(signal.SIGINT)))
        assert checkpoint.position(run / "last") == (1 + number // STEPS, number % STEPS + 1)
        assert signal.getsignal(signal.SIGINT) is before
        train(run, SHORT)
        assert differing(run, undisturbed) == [], number


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_validation_waits_for_the_end_of_the_epoch(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = loop.predict

    def interrupted(*arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return predict(*arguments)

    monkeypatch.setattr(loop, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, SHORT)
    monkeypatch.undo()
    assert checkpoint.position(tmp_path / "last") == (2, 0)
    train(tmp_path, SHORT)
    assert differing(tmp_path, undisturbed) == []


@pytest.mark.usefixtures("ctrl_c")
def test_the_second_ctrl_c_leaves_at_once_but_not_the_echo_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with first_interrupt_waits() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.4
        signal.raise_signal(signal.SIGINT)  # as torchrun hands on what the terminal sent already
        assert interrupted()
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ignored_ctrl_c")
def test_a_training_goes_on_where_ctrl_c_is_ignored(tmp_path: Path, undisturbed: Path) -> None:
    try:
        train(tmp_path, SHORT, at_step(STEPS - 1, lambda: signal.raise_signal(signal.SIGINT)))
    except KeyboardInterrupt:  # which would end all tests
        pytest.fail("the training ended")
    assert differing(tmp_path, undisturbed) == []
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there a process can send Ctrl-C to a whole console only")
@pytest.mark.parametrize(("disposition", "code"), [("ctrl_c", -signal.SIGINT), ("ignored_ctrl_c", 0)])
def test_a_process_ends_at_ctrl_c_unless_it_was_started_with_ctrl_c_ignored(
    disposition: str, code: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(disposition)
    run = tmp_path / "run"
    process = start(run, 0, hold=5)
    at_work(process)
    process.send_signal(signal.SIGINT)
    assert finish(process) == code
    assert checkpoint.position(run / "last") == ((2, 2) if code else (5, 0))


def test_elsewhere_than_in_the_main_thread_ctrl_c_is_left_alone(tmp_path: Path) -> None:
    outcomes: list[history.Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(train(tmp_path, SHORT)))
    thread.start()
    thread.join()
    assert len(outcomes[0].epochs) == 2
