"""Images that look unlike those that a network was chosen on get a note, and the others none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.images import Facts, load
from medmambase.inference.appearance import Appearance


@pytest.fixture(scope="module")
def known(images: Path) -> list[Facts]:
    """What the drawn images are, as if they were ultrasound in DICOM files."""
    facts = [load(path, Preprocessing(16, 1))[1] for path in sorted(images.rglob("*.png"))]
    return [replace(one, modality="US") for one in facts]


def of(picture: np.ndarray) -> Facts:
    return load(Path(), Preprocessing(16, 1), picture)[1]


def test_its_own_images_have_no_note_and_strange_ones_say_what_is_strange(known: list[Facts]) -> None:
    found = Appearance.of(known)
    assert found.images == len(known) and found.modalities == {"US": len(known)} and found.colour == 0
    assert abs(sum(found.levels) - 1) < 1e-4 and [found.note(one) for one in known] == [""] * len(known)
    assert found.note(replace(known[0], modality="CT")) == "modality CT, not US"
    assert found.note(replace(known[0], modality="")) == ""  # a file of another kind does not say
    white = np.full((40, 40), 250, dtype=np.uint8)
    assert found.note(of(white)) == "grey levels unlike those of the validation images"
    red = np.zeros((40, 40, 3), dtype=np.uint8)
    red[..., 0] = 200
    assert found.note(of(red)).startswith("more colour than the validation images")
    assert Appearance.of(known[:5]).note(of(white)) == ""  # of so few nobody knows what is usual


def test_that_of_several_parts_gives_none_of_their_images_a_note(known: list[Facts]) -> None:
    parts = [known[::3], known[1::3], [replace(one, modality="") for one in known[2::3]]]
    found = Appearance.of_all([Appearance.of(part) for part in parts])
    whole = Appearance.of([one for part in parts for one in part])
    assert (found.images, found.colour, found.modalities) == (whole.images, whole.colour, whole.modalities)
    assert np.abs(np.array(found.levels) - whole.levels).max() < 1e-5
    assert found.distance >= whole.distance - 1e-5 and [found.note(one) for one in known] == [""] * len(known)
    assert found.note(of(np.full((40, 40), 250, dtype=np.uint8))) != ""
    assert Appearance.of_all([whole]) == whole


def test_it_comes_back_as_it_was_written_and_damage_is_named(known: list[Facts], tmp_path: Path) -> None:
    path, found = tmp_path / "appearance.json", Appearance.of(known)
    assert Appearance.read(path) is None
    path.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    assert Appearance.read(path) == found
    for damaged in (
        "{",
        "[]",
        json.dumps(found.to_dict() | {"levels": [1.0]}),
        json.dumps({"images": 3}),
        json.dumps(found.to_dict() | {"images": 0}),
    ):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match="appearance"):
            Appearance.read(path)


def test_a_thumbnail_is_the_same_grey_picture_whatever_the_size_and_colour_is_measured(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((640, 640), Image.Resampling.NEAREST))
    one, other = of(small), of(np.repeat(large[:, :, None], 3, axis=2))
    assert one.thumbnail == other.thumbnail and one.colour == other.colour == 0
    levels = np.frombuffer(one.thumbnail, dtype="<u2").reshape(32, 32)
    assert np.array_equal(levels, small.astype(int) * 16)
    wide = np.frombuffer(of(np.full((10, 20), 255, dtype=np.uint8)).thumbnail, dtype="<u2").reshape(32, 32)
    assert (wide[8:24] == 4080).all() and not wide[:8].any() and not wide[24:].any()
    half = np.zeros((8, 8, 3), dtype=np.uint8)
    half[:4, :, 1] = 255
    assert of(half).colour == 0.5
