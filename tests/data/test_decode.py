"""What a file holds, decoded in memory, is what the file is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.reading.images import Decoded, ImageError, decode, load


def same(path: Path) -> Decoded:
    """Decode what a file holds, of which an image and its facts must be those of the file."""
    found = decode(path.read_bytes(), "percentile")
    preprocessing = Preprocessing(size=16)
    image, facts = load(Path("nowhere"), preprocessing, found)
    right, of_file = load(path, preprocessing)
    assert image.equal(right) and facts == of_file
    return found


def test_what_an_image_file_holds_is_decoded_as_the_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 60000, (20, 30, 2))
    pictures = [Image.fromarray(values[..., 0].astype(kind)) for kind in (np.uint16, np.float32, np.uint8)]
    for name, picture in zip(("a.png", "b.tif", "c.jpg"), pictures, strict=True):
        picture.save(tmp_path / name)
        assert same(tmp_path / name).pixels.shape == (20, 30)
    pictures[2].save(tmp_path / "d.gif", save_all=True, append_images=[Image.fromarray(values[..., 1] > 9)])
    assert same(tmp_path / "d.gif").frames == 2


def test_what_a_dicom_file_holds_is_decoded_with_all_that_it_tells(tmp_path: Path) -> None:
    files = pytest.importorskip("dicom_files")
    jpeg = files.imagecodecs.jpeg_encode(files.PHOTO, lossless=True)
    for path in (
        files.write(tmp_path / "plain.dcm", files.PHOTO),
        files.write(tmp_path / "compressed.dcm", files.PHOTO, files.LOSSLESS_1, [jpeg]),
    ):
        found = same(path)
        assert (found.mode, found.patient, found.modality) == ("DICOM RGB", "P 7", "US")


def test_what_is_no_image_costs_one_line_and_names_no_file() -> None:
    for content, words in (
        (b"", "empty, not a known"),
        (b"no picture", "empty, not a known"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "damaged"),
        (bytes(128) + b"DICM" + bytes(99), "DICOM|damaged"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            decode(content, "percentile")
        assert caught.value.path == Path() and "\n" not in caught.value.reason
