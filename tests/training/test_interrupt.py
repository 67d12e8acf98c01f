"""Ctrl-C, SIGTERM and SIGHUP in a training: the first one saves the step in work, the second one
leaves at once, and where it is ignored the training goes on."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PATIENCE, UNDER_WINE

from kill_test import CONFIG, at_step, at_work, differing, finish, start, train
from medmambase.training import checkpoint, history, interrupt, loop
from medmambase.training.interrupt import Terminated, console_asks, first_interrupt_waits, termination_raises

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


def test_the_system_is_obeyed_as_ctrl_c_is(end: signal.Signals, tmp_path: Path, undisturbed: Path) -> None:
    for number in (0, STEPS + 1):
        run = tmp_path / str(number)
        with termination_raises():
            outside = signal.getsignal(end)
            assert outside is not signal.SIG_DFL  # which would end all tests
            with pytest.raises(KeyboardInterrupt, match=end.name) as caught:
                train(run, SHORT, at_step(number, lambda: signal.raise_signal(end)))
            assert isinstance(caught.value, Terminated) and caught.value.number == end
            assert signal.getsignal(end) is outside
        assert checkpoint.position(run / "last") == (1 + number // STEPS, number % STEPS + 1)
        assert signal.getsignal(end) is signal.SIG_DFL
        train(run, SHORT)
        assert differing(run, undisturbed) == [], number


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("first", [True, False])
def test_of_two_requests_of_whatever_kind_the_second_ends_at_once(
    first: bool, end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, numbers = [100.0], (end, signal.SIGINT) if first else (signal.SIGINT, end)
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with termination_raises(), first_interrupt_waits() as interrupted:
        assert interrupted() == 0 and signal.getsignal(end) is not signal.SIG_DFL
        signal.raise_signal(numbers[0])
        now[0] += 0.4
        signal.raise_signal(numbers[1])  # as a cluster sends both
        assert interrupted() == numbers[0]
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(numbers[1])
        assert isinstance(caught.value, Terminated) != first


def test_outside_of_the_steps_the_system_is_obeyed_at_once(end: signal.Signals) -> None:
    with termination_raises(), pytest.raises(Terminated, match=end.name):
        assert signal.getsignal(end) is not signal.SIG_DFL
        signal.raise_signal(end)
    assert signal.getsignal(end) is signal.SIG_DFL


class Ended:
    """Sends itself a signal, or fails, when it is no longer needed."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


@pytest.mark.parametrize("context", [termination_raises, first_interrupt_waits])
def test_an_interruption_that_cannot_leave_a_finaliser_is_raised_a_moment_later(
    context: Callable[[], AbstractContextManager[object]], end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(found.exc_value))
    monkeypatch.setattr(interrupt, "_SECOND", -1.0)  # so the first one is also the second
    hook = sys.unraisablehook
    patience = time.monotonic() + PATIENCE
    with pytest.raises(Terminated, match=end.name), context():
        Ended(lambda: signal.raise_signal(end))
        while not unraisable and time.monotonic() < patience:
            time.sleep(0.01)
    assert unraisable == [] and sys.unraisablehook is hook
    with context():
        Ended(lambda: 1 / 0)
    assert list(map(type, unraisable)) == [ZeroDivisionError]


def test_what_is_ignored_and_what_another_program_handles_is_left_alone(end: signal.Signals) -> None:
    heard: list[int] = []

    def handle(number: int, frame: object) -> None:
        heard.append(number)

    for handler, count in ((signal.SIG_IGN, 0), (handle, 1)):
        signal.signal(end, handler)
        with termination_raises(), first_interrupt_waits() as interrupted:
            assert signal.getsignal(end) is handler
            signal.raise_signal(end)
            assert (interrupted(), len(heard)) == (0, count)
        assert signal.getsignal(end) is handler


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot be sent these signals")
@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_process_ends_with_the_code_of_the_signal_unless_that_is_ignored(
    ignored: bool, end: signal.Signals, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if ignored:
        request.getfixturevalue("ignored_end")
    run = tmp_path / "run"
    process = start(run, 0, hold=5)
    at_work(process)
    process.send_signal(end)
    assert finish(process) == (0 if ignored else 128 + end)
    assert checkpoint.position(run / "last") == ((5, 0) if ignored else (2, 2))


@pytest.mark.skipif(sys.platform != "win32" or UNDER_WINE, reason="Ctrl-Break is sent to a console of Windows")
def test_a_process_ends_at_ctrl_break(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, 0, hold=5)
    at_work(process)
    process.send_signal(signal.CTRL_BREAK_EVENT)
    assert finish(process) == 143
    assert checkpoint.position(run / "last") == (2, 2)


@pytest.mark.parametrize(("event", "waits"), [(1, []), (2, [60.0]), (5, [60.0]), (6, [60.0])])
def test_what_the_console_of_windows_tells_of_is_sigterm_and_time_to_save(event: int, waits: list[float]) -> None:
    before, waited = signal.signal(signal.SIGTERM, signal.SIG_DFL), list[float]()
    try:
        with termination_raises(), first_interrupt_waits() as interrupted:
            thread = threading.Thread(target=lambda: console_asks(event, waited.append))  # one of Windows' own
            thread.start()
            thread.join()
            assert (interrupted(), waited) == (signal.SIGTERM, waits)
            assert not console_asks(0)  # Ctrl-C: Python's own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_elsewhere_than_in_the_main_thread_ctrl_c_is_left_alone(tmp_path: Path) -> None:
    outcomes: list[history.Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(train(tmp_path, SHORT)))
    thread.start()
    thread.join()
    assert len(outcomes[0].epochs) == 2
