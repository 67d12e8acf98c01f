"""The cache: the same images as without it, whatever happens to its files."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.decoded import disk_cache as cache_file
from medmambase.data.decoded import image_set as decode_file
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.manifest.folders import Sample
from medmambase.data.reading.images import Facts, load

COLOUR = Preprocessing(size=8)
ROOT = Path(__file__).resolve().parents[2]


def pictures(folder: Path, count: int = 12, colour: bool = False) -> tuple[Sample, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shape = (9, 12, 3) if colour else (9, 12)
        Image.fromarray(np.random.default_rng([number, colour]).integers(0, 256, shape, dtype=np.uint8)).save(
            folder / f"{number:04d}.png"
        )
    return tuple(Sample(path, 0, "train", path.name) for path in sorted(folder.iterdir()))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.shard"))


class Decoded:
    """Counts the files that ``images.load`` is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        monkeypatch.setattr(decode_file, "load", self)

    def __call__(self, path: Path, preprocessing: Preprocessing, pixels: Any = None) -> tuple[torch.Tensor, Facts]:
        self.paths.append(path.name)
        return load(path, preprocessing, pixels)

    def since(self) -> list[str]:
        names, self.paths = sorted(self.paths), []
        return names


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    return Decoded(monkeypatch)


def same(first: ImageSet, second: ImageSet) -> bool:
    return torch.equal(first.images, second.images) and first.samples == second.samples and first.facts == second.facts


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_second_run_decodes_nothing_and_gets_the_same(
    tmp_path: Path, decoded: Decoded, colour: bool, channels: int
) -> None:
    samples, how = pictures(tmp_path / "data", colour=colour), replace(COLOUR, channels=channels)
    plain, _ = decode(samples, how)
    first, _ = decode(samples, how, cache=Cache(tmp_path / "cache"))
    decoded.since()
    second, errors = decode(samples, how, cache=Cache(tmp_path / "cache"))
    assert decoded.since() == [] and not errors
    assert same(first, plain) and same(second, plain)
    second.images[0] = 0  # memory of its own
    assert same(decode(samples, how, cache=Cache(tmp_path / "cache"))[0], plain)


def test_names_with_blanks_and_letters_of_any_script_are_fine_and_the_data_is_left_alone(
    tmp_path: Path, decoded: Decoded
) -> None:
    data = tmp_path / "da ta é 肺"
    samples = pictures(data)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in data.iterdir())
    cache = Cache(tmp_path / "ca che é 肺" / "deep")
    assert same(decode(samples, COLOUR, cache=cache)[0], decode(samples, COLOUR)[0])
    decoded.since()
    decode(samples, COLOUR, cache=cache)
    assert decoded.since() == [] and cache.notes == []
    assert sorted((path.name, path.stat().st_mtime_ns) for path in data.iterdir()) == before


def test_content_decides_not_name_place_or_time(tmp_path: Path, decoded: Decoded) -> None:
    samples = pictures(tmp_path / "data")
    cache = Cache(tmp_path / "cache")
    decode(samples, COLOUR, cache=cache)
    decoded.since()
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "data", moved)
    renamed = [replace(sample, path=moved / f"new{sample.path.name}") for sample in samples]
    for sample, new in zip(samples, renamed, strict=True):
        (moved / sample.path.name).rename(new.path)
        os.utime(new.path, (1, 1))
    decode(renamed, COLOUR, cache=cache)
    assert decoded.since() == []
    status = renamed[3].path.stat()
    content = bytearray(renamed[3].path.read_bytes())
    shutil.copyfile(renamed[5].path, renamed[3].path)
    os.utime(renamed[3].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    images, _ = decode(renamed, COLOUR, cache=cache)
    assert torch.equal(images.images[3], images.images[5]) and decoded.since() == []
    content[60] ^= 1  # in the compressed pixels: the time is kept, the size too
    renamed[3].path.write_bytes(content)
    os.utime(renamed[3].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(decode(renamed, COLOUR, cache=cache)[0], decode(renamed, COLOUR)[0])
    assert "new0003.png" in decoded.since()


def test_every_way_of_preparing_is_kept_apart_and_so_is_every_version_of_the_code(
    tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "data" / "deep.tif"
    pictures(tmp_path / "data", 2)
    Image.fromarray(np.linspace(5000, 9000, 108).reshape(9, 12).astype(np.uint16)).save(deep)
    samples = tuple(Sample(path, 0, "train", path.name) for path in sorted((tmp_path / "data").iterdir()))
    cache = Cache(tmp_path / "cache")
    ways = [
        COLOUR,
        replace(COLOUR, channels=1),
        replace(COLOUR, size=9),
        replace(COLOUR, resize="stretch"),
        replace(COLOUR, high_depth="range"),
    ]
    for how in ways * 2:
        assert same(decode(samples, how, cache=cache)[0], decode(samples, how)[0])
    decoded.since()
    decode(samples, replace(COLOUR, mean=0.4, std=0.2), cache=cache)
    assert decoded.since() == [], "normalising comes later"
    version = cache_file._code_version()
    monkeypatch.setattr(cache_file, "_code_version", lambda: version[::-1])
    decode(samples, COLOUR, cache=cache)
    assert len(decoded.since()) == 3


def test_the_version_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images.py", "dicom.py", "fitted.py"):
        shutil.copy(ROOT / "medmambase" / "data" / "reading" / name, tmp_path)
    monkeypatch.setattr(cache_file, "files", lambda package: tmp_path)
    before = cache_file._code_version()
    assert cache_file._code_version() == before and len(before) == 12
    source = tmp_path / "fitted.py"
    source.write_text(source.read_text(encoding="utf-8").replace("BILINEAR", "BICUBIC"), encoding="utf-8")
    assert cache_file._code_version() != before


def test_grey_pictures_read_as_colour_take_a_third_and_all_lie_in_one_file(tmp_path: Path) -> None:
    decode(pictures(tmp_path / "grey", 40), COLOUR, cache=Cache(tmp_path / "cache"))
    (shard,) = shards(tmp_path / "cache")
    assert shard.stat().st_size == 40 * (2560 + 64)
    decode(pictures(tmp_path / "colour", 40, colour=True), COLOUR, cache=Cache(tmp_path / "cache"))
    assert sorted(path.stat().st_size for path in shards(tmp_path / "cache")) == [40 * (2560 + 64), 40 * (2560 + 192)]


def test_a_picture_with_a_tint_in_one_channel_keeps_it(tmp_path: Path) -> None:
    for channel in range(3):
        tinted = np.full((8, 8, 3), 90, dtype=np.uint8)
        tinted[3, 3, channel] += 1
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(tinted).save(tmp_path / "data" / f"{channel}.png")
    samples = tuple(Sample(path, 0, "train", path.name) for path in sorted((tmp_path / "data").iterdir()))
    plain, _ = decode(samples, COLOUR)
    for _ in range(2):
        images, _ = decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
        assert same(images, plain) and not images.is_grey()


def test_a_shelf_gives_what_decoding_gives_in_shape_too(tmp_path: Path) -> None:
    (sample,) = pictures(tmp_path / "data", 1)
    for _ in range(2):
        with Cache(tmp_path / "cache").shelf(COLOUR, 1) as shelf:
            image, facts = shelf.fetch(sample.path, None, lambda: load(sample.path, COLOUR))
        plain, plain_facts = load(sample.path, COLOUR)
        assert torch.equal(image, plain) and facts == plain_facts


def test_equal_files_are_stored_once(tmp_path: Path) -> None:
    samples = pictures(tmp_path / "data", 3)
    decode(samples * 30, COLOUR, cache=Cache(tmp_path / "cache"))
    assert [path.stat().st_size for path in shards(tmp_path / "cache")] == [3 * (2560 + 64)]


def test_a_broken_file_gives_its_line_in_every_run(tmp_path: Path) -> None:
    samples = pictures(tmp_path / "data")
    samples[2].path.write_bytes(samples[2].path.read_bytes()[:50])
    samples[7].path.unlink()
    lines = [str(error) for error in decode(samples, COLOUR)[1]]
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        images, errors = decode(samples, COLOUR, cache=cache)
        assert [str(error) for error in errors] == lines and len(lines) == 2 and len(images.images) == 10
    assert cache.notes == []


def test_new_files_are_added_and_old_ones_are_not_decoded_again(tmp_path: Path, decoded: Decoded) -> None:
    decode(pictures(tmp_path / "data", 5), COLOUR, cache=Cache(tmp_path / "cache"))
    samples = pictures(tmp_path / "data", 9)
    decoded.since()
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    assert decoded.since() == ["0005.png", "0006.png", "0007.png", "0008.png"]
    assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], decode(samples, COLOUR)[0])


@pytest.mark.parametrize("patient", ["", "Ä 肺 \n\udcff", "x" * 64])
def test_facts_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: str) -> None:
    facts = Facts("0f" * 16, 1234, 7, "DICOM MONOCHROME2", 12, patient, "US", 0.0625, bytes(range(256)) * 8)
    monkeypatch.setattr(
        decode_file, "load", lambda path, preprocessing, pixels=None: (load(path, preprocessing)[0], facts)
    )
    samples = pictures(tmp_path / "data", 1)
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    monkeypatch.setattr(decode_file, "load", None)
    assert decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0].facts == (facts,)


def test_facts_too_long_for_a_record_are_right_though_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts("0f" * 16, 1, 1, "L", 1, "patient" * 100, thumbnail=bytes(2048))
    monkeypatch.setattr(
        decode_file, "load", lambda path, preprocessing, pixels=None: (load(path, preprocessing)[0], facts)
    )
    for _ in range(2):
        assert decode(pictures(tmp_path / "data", 1), COLOUR, cache=Cache(tmp_path / "cache"))[0].facts == (facts,)
    assert shards(tmp_path / "cache") == []


def test_a_file_that_changes_between_hashing_and_decoding_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = pictures(tmp_path / "data", 2)
    other = samples[1].path.read_bytes()

    def overtaken(path: Path, preprocessing: Preprocessing, pixels: Any = None) -> tuple[torch.Tensor, Facts]:
        samples[0].path.write_bytes(other)
        os.utime(samples[0].path, (99, 99))
        return load(path, preprocessing)

    original = samples[0].path.read_bytes()
    monkeypatch.setattr(decode_file, "load", overtaken)
    decode(samples[:1], COLOUR, cache=Cache(tmp_path / "cache"))
    monkeypatch.undo()
    samples[0].path.write_bytes(original)
    assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], decode(samples, COLOUR)[0])


def test_a_file_that_goes_while_it_is_decoded_is_still_the_image_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sample,) = pictures(tmp_path / "data", 1)
    plain, _ = decode([sample], COLOUR)

    def last_time(path: Path, preprocessing: Preprocessing, pixels: Any = None) -> tuple[torch.Tensor, Facts]:
        image = load(path, preprocessing)
        path.unlink()
        return image

    monkeypatch.setattr(decode_file, "load", last_time)
    assert (
        same(decode([sample], COLOUR, cache=Cache(tmp_path / "cache"))[0], plain) and shards(tmp_path / "cache") == []
    )


def test_rows_of_an_array_file_are_kept_by_their_pixels(
    tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 6, 8), dtype=np.uint8)
    (tmp_path / "set.npz").write_bytes(b"")
    samples = tuple(Sample(tmp_path / "set.npz", 0, "train", f"{row}", row=row) for row in range(4))
    monkeypatch.setattr(decode_file, "pixels_of", lambda sample: rows[sample.row])
    first, _ = decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    decoded.since()
    assert same(decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))[0], first) and decoded.since() == []
    rows = rows.reshape(4, 8, 6)  # the same bytes in another shape
    decode(samples, COLOUR, cache=Cache(tmp_path / "cache"))
    assert len(decoded.since()) == 4
