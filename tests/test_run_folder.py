"""The folders of runs: their names, and which of them a command goes on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmambase import run_folder
from medmambase.pretraining import run as pretraining_run
from medmambase.pretraining import settings as pretraining_settings
from medmambase.settings import of_crossval, resolve
from medmambase.training import run as training_run
from medmambase.training.crossval import run as crossval_run


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("a/b:c", "a-b-c"),
        ("CON", "run-CON"),
        ("com¹.a", "run-com¹.a"),
        (" .. ", "run"),
        ("Lunge ü 肺", "Lunge ü 肺"),
        ("x.", "x"),
    ],
)
def test_run_folders_have_names_that_windows_takes(name: str, legal: str) -> None:
    assert run_folder.legal_name(name) == legal


def test_two_runs_of_one_name_get_two_folders(tmp_path: Path) -> None:
    assert [run_folder.create(tmp_path, "x").name for _ in range(3)] == ["x-001", "x-002", "x-003"]
    with pytest.raises(run_folder.RunFolderError, match="cannot create a folder"):
        (tmp_path / "file").write_text("", encoding="utf-8")
        run_folder.create(tmp_path / "file" / "runs", "x")


@pytest.mark.parametrize(
    ("latest", "resolve", "file", "anew"),
    [
        (training_run.latest, resolve, "config.toml", "train anew, choose another --name, or leave out --resume auto"),
        (crossval_run.latest, of_crossval, "crossval.toml", "train anew, choose another --name"),
        (
            pretraining_run.latest, pretraining_settings.resolve, "config.toml",
            "pretrain anew, choose another --name, or leave out --resume auto",
        ),
    ],
    ids=["training", "cross-validation", "pretraining"],
)  # fmt: skip  # a table
def test_a_run_that_may_be_the_one_to_continue_is_not_passed_over(
    latest: Callable[[Any], Path | None],
    resolve: Callable[[dict[str, str]], Any],
    file: str,
    anew: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = resolve({"data": "/home/ann/busi", "runs": str(tmp_path), "name": "busi"})
    for name in ("busi-001", "busi-002"):
        (tmp_path / name).mkdir()
        settings_of_run = settings.to_toml(leave_out=("data",))
        (tmp_path / name / file).write_text(settings_of_run, encoding="utf-8", newline="\n")
        run_folder.write_private(tmp_path / name, {"data": "/home/ann/busi"})
    (tmp_path / "busi-001" / "do_not_share.toml").write_text("data =\n", encoding="utf-8")
    assert latest(settings) == tmp_path / "busi-002"
    told = rf"do_not_share\.toml: cannot be read \(.*\); {{}}; .*to {anew}$"
    (tmp_path / "busi-002" / "do_not_share.toml").unlink()  # then it is known not to be the one
    with pytest.raises(run_folder.RunFolderError, match=f"busi-001.{told.format('restore it')}"):
        latest(settings)
    read = Path.read_text

    def closed(path: Path, encoding: str) -> str:
        if path.name == "do_not_share.toml":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", closed)
    with pytest.raises(run_folder.RunFolderError, match=told.format("make it readable for this account")):
        latest(settings)
