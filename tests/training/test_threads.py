"""The number of threads that train on a CPU: whichever is faster now, and in a resumed epoch the
one that it began with."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kill_test import COMPARED, CONFIG, at_step, image_set
from medmambase import MedMambaSE, ModelConfig, run_folder
from medmambase.config import Preprocessing
from medmambase.distributed import ALONE
from medmambase.training import checkpoint, loop, threads
from medmambase.training.dry_run import Rehearsal
from medmambase.training.threads import Crew, crew_of

CPU, SHORT = torch.device("cpu"), replace(CONFIG, epochs=3, batch_size=8)
STEPS = 2  # an epoch


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Torch has two threads, however many it has elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rehearsal(alone: float, together: float) -> Callable[[], Rehearsal]:
    """A dry run that takes so many seconds with one thread, and with more."""
    return lambda: Rehearsal(1.0, alone if torch.get_num_threads() == 1 else together, 1, None)


@pytest.mark.parametrize(
    ("alone", "together", "count"), [(1.0, 50.0, 1), (2.0, 1.0, 2), (0.99, 1.0, 2), (0.81, 1.0, 2), (0.79, 1.0, 1)]
)
def test_the_number_that_is_clearly_faster_is_taken_and_told(alone: float, together: float, count: int) -> None:
    with crew_of(CPU, ALONE) as crew:
        found = crew.begin(0, rehearsal(alone, together))
        assert crew.count == torch.get_num_threads() == count
        assert found.seconds == (alone if count == 1 else together)  # of which the length of an epoch is foretold
        (line,) = crew.told()
        assert line.startswith(f"threads: {count} of 2: a batch takes {alone:.2g} s with one and {together:.2g} s with")
        assert ("keeps this machine busy" in line) == (count == 1)
        assert crew.told() == []
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("device", "present"), [(CPU, 1), (torch.device("cuda"), 2)])
def test_where_there_is_nothing_to_choose_one_dry_run_is_enough(device: torch.device, present: int) -> None:
    torch.set_num_threads(present)
    runs: list[int] = []
    with crew_of(device, ALONE) as crew:
        crew.begin(0, lambda: runs.append(1) or Rehearsal(1.0, 1.0, 1, None))
        crew.again()
        assert (len(runs), torch.get_num_threads(), crew.told()) == (1, present, [])
        assert crew.count == (present if device == CPU else 0)


@pytest.mark.parametrize(("recorded", "count", "noted"), [(1, 1, False), (2, 2, False), (6, 2, True)])
def test_a_resumed_epoch_goes_on_with_the_number_it_began_with(recorded: int, count: int, noted: bool) -> None:
    with crew_of(CPU, ALONE) as crew:
        crew.begin(recorded, rehearsal(3.0, 2.0) if count == 1 else rehearsal(2.0, 3.0))
        assert crew.count == torch.get_num_threads() == count
        lines = crew.told()
        assert len(lines) == noted and all("began with 6 threads and goes on with 2" in line for line in lines)


def test_the_end_of_an_epoch_looks_again_where_that_is_a_small_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, alone, together, looks = [100.0], [1.0], [5.0], []

    def dry_run() -> Rehearsal:
        seconds = (alone if torch.get_num_threads() == 1 else together)[0]
        now[0] += seconds
        looks.append(torch.get_num_threads())
        return Rehearsal(1.0, seconds, 1, None)

    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    with crew_of(CPU, ALONE) as crew:
        crew.begin(0, dry_run)
        assert (crew.count, crew.told() != [], looks) == (1, True, [2, 1])
        now[0] += 20 * 6 - 1  # the look took 6 seconds
        crew.again()
        assert looks == [2, 1]
        now[0], together[0] = now[0] + 1, 0.9  # no longer busy, and still not clearly faster
        crew.again()
        assert (crew.count, crew.told(), looks) == (1, [], [2, 1] * 2)
        now[0], together[0] = now[0] + 1000, 0.5
        crew.again()
        assert (crew.count, torch.get_num_threads()) == (2, 2) and crew.told()[0].startswith("threads: 2 of 2: ")


def train(run: Path, progress: loop.Progress = lambda items, total, text: items) -> list[str]:
    """Train on images that are large enough for two threads to share; returns what was said."""
    torch.manual_seed(0)
    network = MedMambaSE(
        ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(8, 16)),
        preprocessing=Preprocessing(size=32, channels=1),
    )
    data, said = (image_set(29, "train", 32), image_set(11, "val", 32)), list[str]()
    run.mkdir(exist_ok=True)
    with run_folder.held(run):
        loop.train(
            network, *data, SHORT, run, torch.float32, progress, lambda epoch: said.append(f"epoch {epoch.epoch}"),
            resume=True, say=said.append,
        )  # fmt: skip  # by idea
    return said


@pytest.mark.slow
def test_a_resumed_training_has_the_bytes_of_the_whole_one_though_the_machine_is_no_longer_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    busy = [True]
    monkeypatch.setattr(
        loop, "rehearse", lambda *_: rehearsal(*((1.0, 9.0) if busy[0] else (9.0, 1.0)))()
    )  # no clock decides here
    monkeypatch.setattr(Crew, "again", lambda crew: None)
    runs = {name: tmp_path / name for name in ("busy", "cut", "idle")}
    said = train(runs["busy"])
    assert said[2].startswith("threads: 1 of 2") and said.index("epoch 1") > 2
    with pytest.raises(KeyboardInterrupt):
        train(runs["cut"], at_step(STEPS + 1, stop))
    assert checkpoint.position(runs["cut"] / run_folder.LAST) == (2, 0)
    busy[0] = False
    train(runs["cut"])
    train(runs["idle"])

    def bytes_of(name: str) -> list[bytes]:
        return [(runs[name] / file).read_bytes() for file in COMPARED]

    assert bytes_of("cut") == bytes_of("busy")
    assert bytes_of("idle") != bytes_of("busy")  # torch's own sums do depend on the number of threads
    assert torch.get_num_threads() == 2


def test_a_choice_made_at_the_end_of_an_epoch_is_kept_with_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def turns(crew: Crew) -> None:
        crew.count = 3 - crew.count
        torch.set_num_threads(crew.count)

    monkeypatch.setattr(loop, "rehearse", lambda *_: rehearsal(9.0, 1.0)())
    monkeypatch.setattr(Crew, "again", turns)
    save = checkpoint.save

    def seen(folder: Path, learning: object, state: checkpoint.State, *rest: object) -> None:
        used.append(state.threads)
        save(folder, learning, state, *rest)

    monkeypatch.setattr(checkpoint, "save", seen)
    train(tmp_path / "run")
    assert used == [1, 2, 2]  # after the last epoch nothing is left to choose for
