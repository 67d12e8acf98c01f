"""Looks: a copy that was changed a little is known by them, another picture is not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data import looks, phantom
from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.manifest.folders import DataError, Sample
from medmambase.data.manifest.sources import read_manifest


def decoded(folder: Path) -> ImageSet:
    return decode(read_manifest(folder, seed=0, allow_leak=True).samples, Preprocessing(32, 1), keep=False)[0]


def decode_one(path: Path) -> ImageSet:
    return decode([Sample(path, 0, "test", path.name)], Preprocessing(32, 1), keep=False)[0]


def changed(picture: Image.Image, kind: str) -> Image.Image:
    grey = np.asarray(picture, dtype=np.float32)
    if kind == "jpeg":
        picture.save(saved := io.BytesIO(), "JPEG", quality=60)
        return Image.open(saved)
    return {
        "smaller": lambda: picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)),
        "larger": lambda: picture.resize((picture.width * 3 // 2, picture.height * 3 // 2), Image.Resampling.BICUBIC),
        "bright": lambda: Image.fromarray((grey * 1.3).clip(0, 255).astype(np.uint8)),
        "gamma": lambda: Image.fromarray((255 * (grey / 255) ** 1.4).astype(np.uint8)),
    }[kind]()


def test_a_changed_copy_is_known_by_its_look_and_no_other_picture_is(tmp_path: Path) -> None:
    images = decoded(phantom.write_phantom(tmp_path / "data", images_per_class=20, seed=1))
    looks.write(tmp_path / "looks.csv", images)
    known = looks.Known.read([tmp_path / "looks.csv"])
    tested = [row for row, sample in enumerate(images.samples) if sample.split == "test"]
    learned = [row for row, sample in enumerate(images.samples) if sample.split != "test"]
    assert sorted(known.whose) == sorted((images.samples[row].split, images.samples[row].name) for row in learned)
    assert known.nearest(images.rows(tested).facts) == {}
    for row, kind in zip(learned, ("smaller", "larger", "bright", "gamma", "jpeg") * 3, strict=False):
        sample = images.samples[row]
        to = tmp_path / kind / str(row) / "a" / "x.png"
        to.parent.mkdir(parents=True)
        changed(Image.open(sample.path).convert("L"), kind).save(to)
        assert known.nearest(decode_one(to).facts) == {0: (sample.split, sample.name)}, kind


def test_a_picture_with_nothing_in_it_has_no_look(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 90).save(tmp_path / "even.png")
    images = decode_one(tmp_path / "even.png")
    (tmp_path / "looks.csv").write_text(f"path,split,look\na.png,train,{'0' * 64}\n", encoding="utf-8")
    known = looks.Known.read([tmp_path / "looks.csv"])
    assert looks.looks(images.facts) == [""] and known.whose and known.nearest(images.facts) == {}


def test_a_look_is_the_same_for_ever(tmp_path: Path) -> None:
    """What an earlier version has written is compared with what this one computes."""
    Image.fromarray((np.add.outer(np.arange(64) ** 2, 7 * np.arange(64)) % 251).astype(np.uint8)).save(
        tmp_path / "x.png"
    )
    (found,) = looks.looks(decode_one(tmp_path / "x.png").facts)
    then = "c26c9270189ec588d878583872e00669b61d09c7e9c777f9d967d9b9b90f798e"
    assert bin(int(found, 16) ^ int(then, 16)).count("1") <= 2  # a processor may round a sum at a plane otherwise


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("path,split,look\nx,train,12\n", "'12' is not 64 hex digits"),
        ("path,split\nx,train\n", "its columns are not path, split, look"),
        ("", "its columns are not path, split, look"),
        ("path,split,look\nx\n", "'' is not 64 hex digits"),
        (f"path,split,look\nx,tset,{'0' * 64}\n", "split is 'tset'; it must be train or val"),
    ],
)
def test_a_damaged_list_of_looks_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "looks.csv").write_text(text, encoding="utf-8")
    wanted = rf"looks\.csv: cannot be read \({why}\); restore it, or delete it: then near"
    with pytest.raises(DataError, match=wanted):
        looks.Known.read([tmp_path / "looks.csv"])
