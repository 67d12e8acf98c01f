"""The cache survives what happens to disks and processes: the same images as without it."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE
from test_disk_cache import COLOUR, Decoded, pictures, same, shards

from medmambase.data.decoded.disk_cache import Cache, Shelf
from medmambase.data.decoded.image_set import decode

ROOT = Path(__file__).resolve().parents[2]
FILL = """
import sys, pathlib
sys.path[:0] = {folders!r}
from medmambase.config import Preprocessing
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.image_set import decode
from medmambase.data.manifest.folders import Sample
if __name__ == "__main__":
    data, folder = map(pathlib.Path, sys.argv[1:])
    samples = [Sample(path, 0, "train", path.name) for path in sorted(data.iterdir())]
    print("ready", flush=True)
    sys.stdin.readline()
    images, errors = decode(samples, Preprocessing(size=8), cache=Cache(folder))
    print(len(errors), images.fingerprint, int(images.images.sum()), flush=True)
"""


@pytest.mark.parametrize("place", [0, 15, 16, 31, 32, 60, 400, 511, 512, 513, 2559, 2560, 2561, 2623])
def test_a_byte_flipped_anywhere_is_noticed_and_the_image_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    decoded = Decoded(monkeypatch)
    samples = pictures(tmp_path / "data")
    plain, _ = decode(samples, COLOUR)
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    (shard,) = shards(tmp_path / "cache")
    content = bytearray(shard.read_bytes())
    content[5 * (2560 + 64) + place] ^= 1 << (place % 8)
    shard.write_bytes(content)
    decoded.since()
    assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], plain)
    assert len(decoded.since()) == 1
    assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], plain)
    assert decoded.since() == [], "the new entry is found behind the bad one"


def test_a_shard_cut_spliced_or_scrambled_at_random_never_gives_a_wrong_image(tmp_path: Path) -> None:
    samples = pictures(tmp_path / "data")
    plain, _ = decode(samples, COLOUR)
    decode(samples, COLOUR, cache=Cache(tmp_path / "whole"))
    (shard,) = shards(tmp_path / "whole")
    content, chance = shard.read_bytes(), random.Random(0)
    for _ in range(60):
        a, b, c = sorted(chance.randrange(len(content)) for _ in range(3))
        spoiled = chance.choice(
            [
                content[:a],
                content[:a] + content[b:],
                content[:a] + bytes(b - a) + content[b:],
                content[b:c] + content[:a],
                b"",
            ]
        )
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        (tmp_path / "cache" / shard.parent.name).mkdir(parents=True)
        (tmp_path / "cache" / shard.parent.name / shard.name).write_bytes(spoiled)
        assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], plain)


def test_files_that_are_none_of_ours_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Decoded(monkeypatch)
    samples = pictures(tmp_path / "data")
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    folder = shards(tmp_path / "cache")[0].parent
    for name in ("x.shard", "-.shard", "7-2.shard", "notes.txt"):
        (folder / name).write_bytes(b"\xff" * 5000)
    (folder / "folder-1.shard").mkdir()
    decoded.since()
    cache = Cache(tmp_path / "cache")
    assert same(decode(samples, COLOUR, cache=cache)[0], decode(samples, COLOUR)[0]) and cache.notes == []
    assert len(decoded.since()) == len(samples), "only the plain run decoded"


class _Full:
    """A file on a disk with room for a few bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room, self.name = file, room, file.name

    def write(self, record: bytes) -> int:
        self.file.write(record[: self.room])
        if len(record) > self.room:
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(record)
        return len(record)

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 576, 3000, 576 * 11 + 575])
def test_a_disk_that_fills_up_costs_the_cache_and_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    samples = pictures(tmp_path / "data")
    original = Shelf._writer

    def writer(self: Shelf, channels: int) -> Any:
        if channels not in self.writers:
            self.writers[channels] = _Full(original(self, channels), room)  # type: ignore[assignment]  # it stands in for a file
        return self.writers[channels]

    monkeypatch.setattr(Shelf, "_writer", writer)
    cache = Cache(tmp_path / "cache")
    images, errors = decode(samples, COLOUR, cache=cache)
    assert same(images, decode(samples, COLOUR)[0]) and not errors
    (note,) = cache.notes
    assert (
        note.startswith(f"{tmp_path / 'cache'}: decoded images are not kept on disk (No space left on device")
        and "free some space there" in note
    )
    assert shards(tmp_path / "cache") == [], "the room is given back to the run"


def test_a_disk_that_the_images_would_fill_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = pictures(tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    cache = Cache(tmp_path / "cache")
    assert same(decode(samples, COLOUR, cache=cache)[0], decode(samples, COLOUR)[0])
    assert (
        len(cache.notes) == 1
        and "(1.1 GB are free there; they take up to 0.0 GB" in cache.notes[0]
        and shards(tmp_path / "cache") == []
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30 + 12 * (2560 + 192)))
    cache = Cache(tmp_path / "cache")
    decode(samples, COLOUR, cache=cache)
    assert cache.notes == [] and len(shards(tmp_path / "cache")) == 1


def test_a_folder_that_cannot_be_written_costs_one_note_and_what_is_there_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = Decoded(monkeypatch)
    samples = pictures(tmp_path / "data")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    cache = Cache(tmp_path / "file")
    assert same(decode(samples, COLOUR, cache=cache)[0], decode(samples, COLOUR)[0])
    assert (
        len(cache.notes) == 1
        and str(tmp_path / "file") in cache.notes[0]
        and "make the folder writable" in cache.notes[0]
    )

    decode(samples[:8], COLOUR, cache=Cache(tmp_path / "cache"))

    def refused(self: Shelf, channels: int) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Shelf, "_writer", refused)
    decoded.since()
    cache = Cache(tmp_path / "cache")
    decode(samples, COLOUR, cache=cache)
    assert decoded.since() == [sample.path.name for sample in samples[8:]] and len(cache.notes) == 1
    cache = Cache(tmp_path / "cache")
    decode(samples[:8], COLOUR, cache=cache)
    assert cache.notes == [], "nothing was to be written"


def test_an_interrupt_keeps_what_was_decoded_and_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = Decoded(monkeypatch)
    samples = pictures(tmp_path / "data", 200)
    decode(samples[:3], COLOUR, cache=Cache(tmp_path / "cache"))
    shelves: list[Shelf] = []
    original = Cache.shelf
    monkeypatch.setattr(Cache, "shelf", lambda self, *given: shelves.append(original(self, *given)) or shelves[-1])

    def interrupted(results: Iterable[Any], total: int) -> Iterator[Any]:
        for number, result in enumerate(results):
            if number == 100:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        decode(samples, COLOUR, interrupted, Cache(tmp_path / "cache"))
    (shelf,) = shelves
    assert all(file.closed for file in shelf.writers.values()) and shelf.writers
    assert all(shard.file.closed for shard in shelf.open_shards) and shelf.open_shards
    decoded.since()
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    assert len(decoded.since()) <= 99


def test_a_shelf_reads_through_one_open_file_from_many_threads(tmp_path: Path) -> None:
    samples = pictures(tmp_path / "data", 50) * 20
    plain, _ = decode(samples, COLOUR)
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    for _ in range(3):
        assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], plain)


def child(data: Path, folder: Path) -> subprocess.Popen[str]:
    code = FILL.format(folders=[str(ROOT), str(ROOT / "kernels")])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def started(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    return process


@pytest.mark.slow
def test_two_runs_at_once_share_a_cache_that_neither_spoils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Decoded(monkeypatch)
    samples = pictures(tmp_path / "data", 400)
    plain, _ = decode(samples, COLOUR)
    children = [child(tmp_path / "data", tmp_path / "cache é") for _ in range(2)]
    for process in children:  # both are at work before either is waited for
        started(process)
    answers = [process.communicate(timeout=PATIENCE)[0].strip() for process in children]
    assert answers == [f"0 {plain.fingerprint} {int(plain.images.sum())}"] * 2 and [
        process.returncode for process in children
    ] == [0, 0]
    decoded.since()
    assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache é"))[0], plain) and decoded.since() == []


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_cache_that_is_right_and_keeps_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = Decoded(monkeypatch)
    samples = pictures(tmp_path / "data", 600)
    plain, _ = decode(samples, COLOUR)
    chance = random.Random(0)
    found = []
    waiting = [child(tmp_path / "data", tmp_path / f"cache {number}") for number in range(6)]
    for number, process in enumerate(waiting):
        folder = tmp_path / f"cache {number}"
        with process:
            started(process)
            # Every other one is killed in the writing, however busy the machine is.
            while number % 2 and not shards(folder) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.02 if number % 2 else 0.25))
            process.kill()
        decoded.since()
        before = len(shards(folder))
        images, errors = decode(samples[number * 10 :], COLOUR, cache=Cache(folder))
        assert torch.equal(images.images, plain.images[number * 10 :]) and not errors
        found.append((before, len(decoded.since())))
    assert any(before for before, _ in found), f"no kill fell into the writing: {found}"
