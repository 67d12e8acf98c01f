"""The folder of a run that is begun: created or taken, and locked."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from medmambase import run_folder
from medmambase.distributed import Ranks
from medmambase.run_folder import RunFolderError
from medmambase.training.plan import locked


@dataclass(frozen=True)
class Told(Ranks):
    """The second of two processes, which the first has told of a folder."""

    rank: int = 1
    count: int = 2
    told: str = ""

    def agree(self, text: str) -> str:
        """Return what the first process says."""
        assert text == ""
        return self.told


def not_asked() -> str:
    """Fail: the name of a folder that is there may not be known."""
    raise AssertionError


def test_a_new_run_gets_a_folder_and_one_that_goes_on_keeps_its_own_and_both_are_locked(tmp_path: Path) -> None:
    for resumed, name in ((None, lambda: "x"), (tmp_path / "runs" / "x-001", not_asked)):
        with locked(resumed, str(tmp_path / "runs"), name) as folder:
            assert folder == tmp_path / "runs" / "x-001"
            with pytest.raises(RunFolderError, match="is using it"), run_folder.held(folder):
                pass
        with run_folder.held(folder):
            pass  # it is free again
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["x-001"]


def test_of_several_processes_the_first_alone_creates_and_locks(tmp_path: Path) -> None:
    folder = run_folder.create(tmp_path, "x")
    with run_folder.held(folder), locked(None, str(tmp_path), not_asked, Told(told=str(folder))) as shared:
        assert shared == folder
    assert [path.name for path in tmp_path.iterdir()] == ["x-001"]
