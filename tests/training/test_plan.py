"""The folder of a run that is begun: created or taken, and locked."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from medmambase import MedMambaSE, ModelConfig, run_folder
from medmambase.data.reading.images import ImageError
from medmambase.distributed import Ranks
from medmambase.model.starting import Origin, write_origin
from medmambase.run_folder import RunFolderError
from medmambase.settings import Settings
from medmambase.training.plan import Plan, describe, locked
from medmambase.training.session import MOST_LINES, say_skipped


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


def test_log_and_config_say_what_a_network_starts_from_and_where_it_is_computed(tmp_path: Path) -> None:
    config = ModelConfig(dims=(4, 8), depths=(1, 1), state=2, num_classes=2)
    with torch.device("meta"):
        whole, backbone = (MedMambaSE(config, features_only=only) for only in (False, True))
    cpu = torch.device("cpu")
    new, started = (
        Plan(Settings(start=start), config, None, None, cpu, torch.float32, "float32: exact", "torch: at /home/ann/x")
        for start in ("none", "w")
    )
    said: list[str] = []
    told = describe(whole, new, tmp_path, said.append, 3)
    parameters = sum(p.numel() for p in whole.parameters())
    assert said[0].endswith(f" {parameters / 1e6:.2f} M parameters") and said[2].endswith(" and 3 more")
    assert said[1::2] == ["start:     none: new weights", "backend:   torch: at /home/ann/x"]
    assert told["parameters"] == parameters and told["precision"] == "float32: exact" == said[4][11:]
    assert told["start"] == "none: new weights" and "ann" not in told["engine"] and "more" not in told["device"]
    assert describe(backbone, started, tmp_path, said.append)["start"] == "not recorded"
    assert said[5].endswith(" M parameters without a head") and "more" not in said[7]
    write_origin(tmp_path, Origin("w", "0" * 64))
    assert describe(backbone, started, tmp_path, said.append)["start"].startswith("w (SHA-256 000")


def test_some_images_that_cannot_be_read_are_told_and_where_the_others_are_listed(tmp_path: Path) -> None:
    for more in (0, 1):
        said: list[str] = []
        say_skipped([ImageError(Path("a.png"), "cut short")] * (MOST_LINES + more), tmp_path, said.append)
        rest = [f"skipped: 1 more, all listed in {tmp_path / 'data_report.json'}"] * more
        assert said == ["skipped: a.png: cut short"] * MOST_LINES + rest
