"""What lies in a folder and is no image, or cannot be read: folders without permission, devices,
pipes, names that no file has. None of it is lost in silence, and none of it hangs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.commands import check
from medmambase.config import Preprocessing
from medmambase.data.decoded import disk_cache
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.image_set import decode
from medmambase.data.manifest.folders import DataError, Sample, image_files
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.reading.dicom import patient_of
from medmambase.data.reading.images import ImageError, load

SHUT = "a folder that cannot be listed (Permission denied): whatever is in it is missing"
Shut = Callable[[Path], None]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Shut:
    """Take the permission to read from a folder or a file, also where the tests run as an
    administrator."""
    closed: set[str] = set()

    def refusing(original: Callable[..., object]) -> Callable[..., object]:
        def asked(path: object = ".", *rest: object, **named: object) -> object:
            if not isinstance(path, int) and os.fspath(path) in closed:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return original(path, *rest, **named)

        return asked

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr("io.open", refusing(open))
    return lambda path: closed.add(os.fspath(path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of eight images, two of each in a folder of their own."""
    rng = np.random.default_rng(0)
    for name in "ab":
        for row in range(8):
            path = tmp_path / "data" / name / ("deeper" if row > 5 else ".") / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    return tmp_path / "data"


def test_a_folder_that_cannot_be_listed_is_named_and_counts_as_a_problem(
    data: Path, shut: Shut, capsys: pytest.CaptureFixture[str]
) -> None:
    shut(data / "a" / "deeper")
    found = read_manifest(data, seed=0)
    assert len(found.samples) == 14 and [str(error) for error in found.unlisted] == [f"{data / 'a' / 'deeper'}: {SHUT}"]
    assert check.main([str(data), "--runs", str(data.parent / "runs")]) == check.FOUND
    said = capsys.readouterr().out
    assert f"skipped: {data / 'a' / 'deeper'}: {SHUT}" in said and "problems found" in said
    report = (data.parent / "runs" / "data-check-001" / "data_report.json").read_text(encoding="utf-8")
    assert '"path": "a/deeper"' in report


def test_a_class_or_a_split_that_cannot_be_listed_is_refused(data: Path, shut: Shut) -> None:
    shut(data / "b")
    with pytest.raises(DataError, match=r"b: a folder that cannot be listed .*, and so is class 'b'; make it readable"):
        read_manifest(data, seed=0)
    shut(data)
    with pytest.raises(DataError, match=r"data: a folder that cannot be listed \(Permission denied\).*make it read"):
        read_manifest(data, seed=0)


def test_a_folder_beside_the_splits_that_cannot_be_listed_is_only_ignored(data: Path, shut: Shut) -> None:
    split = data.parent / "split"
    split.mkdir()
    data.rename(split / "train")
    (split / "private").mkdir()
    shut(split / "private")
    assert read_manifest(split, seed=0).notes[0] == "ignored beside the splits: private"


def test_who_reads_every_image_of_a_folder_is_given_those_that_cannot_be_listed_too(data: Path, shut: Shut) -> None:
    shut(data / "b" / "deeper")
    (data / "b" / "IM0001").write_bytes(bytes(128) + b"DICM")
    shut(data / "b" / "IM0001")
    files = list(image_files(data))
    assert len(files) == 16 and {data / "b" / "deeper", data / "b" / "IM0001"} < set(files)
    with pytest.raises(ImageError) as caught:
        load(data / "b" / "deeper", Preprocessing(size=16))
    assert caught.value.reason == SHUT
    with pytest.raises(ImageError, match="a folder, not an image"):
        load(data / "a" / "deeper", Preprocessing(size=16))


def decoded(path: Path, folder: Path) -> str:
    """Why a file cannot be decoded, with images kept on disk."""
    images, bad = decode([Sample(path, 0, "train", "x")], Preprocessing(size=16), cache=Cache(folder))
    assert not len(images.labels)
    return bad[0].reason


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither devices nor pipes among its files")
def test_devices_and_pipes_are_never_opened(data: Path, tmp_path: Path) -> None:
    (data / "a" / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(data / "a" / "pipe.png")
    os.mkfifo(data / "a" / "PIPE")  # without a suffix, as scanners name their files
    os.mkfifo(data / "a" / "pipe.dcm")
    for name in ("endless.png", "pipe.png", "pipe.dcm"):
        assert decoded(data / "a" / name, tmp_path / "cache") == "a folder, a device or a pipe, not a regular file"
    assert patient_of(data / "a" / "pipe.dcm") == ""
    names = {sample.name for sample in read_manifest(data, seed=0).samples}
    assert {"a/endless.png", "a/pipe.png", "a/pipe.dcm"} < names and "a/PIPE" not in names


def test_a_file_that_claims_to_be_huge_is_not_read_to_know_it_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_LARGEST", 10)
    monkeypatch.setattr(disk_cache, "_key", None)  # to call it would be an error
    images, bad = decode(read_manifest(data, seed=0).samples, Preprocessing(size=16), cache=Cache(tmp_path / "cache"))
    assert len(images.labels) == 16 and not bad


def test_a_name_that_no_file_has_is_one_unreadable_image(tmp_path: Path) -> None:
    assert "null" in decoded(tmp_path / "a\0b.png", tmp_path / "cache")
