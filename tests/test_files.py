"""A file is written whole or not at all: beside its place, on the disk, only then moved there."""

import os
from pathlib import Path

import pytest

from medmambase import files


def test_bytes_are_on_the_disk_beside_their_place_before_they_are_moved_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "new folder" / "x.json", []
    fsync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        done.append(("synced", os.fstat(file).st_size, path.exists()))
        fsync(file)

    def moved(source: Path, target: Path) -> None:
        done.append(("moved", source.read_bytes(), target == path and source.parent == path.parent))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    files.write_bytes(path, b"12345")
    assert done == [("synced", 5, False), ("moved", b"12345", True)]
    assert [one.name for one in path.parent.iterdir()] == ["x.json"] and path.read_bytes() == b"12345"


def test_what_cannot_be_written_leaves_the_previous_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    files.write_text(path, "before")

    def full(file: int) -> None:
        os.ftruncate(file, 2)
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_text(path, "afterwards")
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"] and path.read_text(encoding="utf-8") == "before"
