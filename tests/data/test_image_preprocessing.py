"""From a picture of any shape to the network's input: fitted to a square, digested, normalised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import colours
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.reading.images import fit, load, normalise


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (64, 64), (40, 100), (3, 2), (4000, 31)])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_shape_fits_a_square_and_keeps_its_grey(height: int, width: int, resize: str, channels: int) -> None:
    fitted = fit(np.full((height, width, channels), 200, dtype=np.uint8), 64, resize)
    assert fitted.shape == (64, 64, channels) and fitted.dtype == np.uint8
    inside = fitted[:, :, 0] > 0
    expected = (
        (64, 64)
        if resize == "stretch"
        else tuple(max(1, round(side * 64 / max(height, width))) for side in (height, width))
    )
    assert (inside.any(axis=1).sum(), inside.any(axis=0).sum()) == expected
    assert np.all(fitted[inside] == 200)
    if resize == "letterbox":
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        assert abs(rows[0] - (63 - rows[-1])) <= 1 and abs(columns[0] - (63 - columns[-1])) <= 1


def test_shrinking_smooths_and_the_right_size_changes_nothing() -> None:
    checks = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert np.abs(fit(checks, 64, "letterbox").astype(int) - 127).max() <= 2
    assert np.array_equal(fit(checks, 512, "letterbox"), checks)


@pytest.mark.parametrize("channels", [1, 3])
def test_load_and_normalise_give_the_networks_input(tmp_path: Path, channels: int) -> None:
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).save(tmp_path / "a.png")
    preprocessing = Preprocessing(size=2, channels=channels)
    image, _ = load(tmp_path / "a.png", preprocessing)
    assert image.shape == (channels, 2, 2) and image.dtype == torch.uint8 and image.is_contiguous()
    assert normalise(image[None], preprocessing).tolist() == [[[[-1.0, 1.0], [1.0, -1.0]]] * channels]
    assert image.max() == 255  # the stored image is untouched


def test_facts_tell_what_a_file_was_before_it_was_made_to_fit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours()).save(
        tmp_path / "a.tif", exif=exif, save_all=True, append_images=[Image.new("L", (4, 4))]
    )
    facts = load(tmp_path / "a.tif", Preprocessing(size=8))[1]
    assert (facts.width, facts.height, facts.mode, facts.frames, facts.patient) == (24, 32, "RGB", 2, "")
    assert len(bytes.fromhex(facts.digest)) == 16


def test_the_digest_is_of_the_pixels_whatever_the_file_and_of_their_shape(tmp_path: Path) -> None:
    grey = colours()[:, :, 0]
    pictures = {
        "a.png": grey,
        "b.bmp": grey,
        "colour.png": np.repeat(grey[:, :, None], 3, axis=2),
        "tall.png": grey.reshape(32, 24),
        "other.png": grey + 1,
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
    digest = {name: load(tmp_path / name, Preprocessing(size=size))[1].digest for name in pictures for size in (8, 16)}
    assert digest["a.png"] == digest["b.bmp"] == digest["colour.png"]
    assert len({digest["a.png"], digest["tall.png"], digest["other.png"]}) == 3


def test_pixels_given_are_as_pixels_read(tmp_path: Path) -> None:
    for pixels in (colours(), colours()[:, :, 1]):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        image, facts = load(tmp_path / "none.npz", Preprocessing(size=16), pixels)
        read, read_facts = load(tmp_path / "a.png", Preprocessing(size=16))
        assert torch.equal(image, read) and facts == read_facts
    for wrong in (colours().astype(np.uint16), colours()[:, :, :2], np.zeros((0, 4), dtype=np.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            load(tmp_path / "none.npz", Preprocessing(), wrong)
