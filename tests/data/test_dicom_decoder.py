"""The plugin that lets pydicom read what Pillow cannot: colours and signs come out right, and what
a host program has added stays."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dicom_files import JPEG_12, LOSSLESS, LOSSLESS_1, PHOTO, RAMP, grey, reason, write
from PIL import Image

from medmambase.data.reading import dicom_decoder
from medmambase.data.reading.images import read_image

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="the extra dicom is not installed")
from pydicom.pixels.decoders.base import get_decoder  # noqa: E402  # after it is known to be there

GREY = np.ascontiguousarray(PHOTO[..., 0])
LIGHT = np.ascontiguousarray(Image.fromarray(PHOTO).convert("YCbCr"))


@pytest.mark.parametrize("syntax", [LOSSLESS, LOSSLESS_1])
@pytest.mark.parametrize("mode", ["YBR_FULL", "YBR_FULL_422"])
def test_lossless_colours_stored_as_light_and_colour_become_rgb(tmp_path: Path, syntax: str, mode: str) -> None:
    frame = imagecodecs.jpeg_encode(LIGHT, lossless=True, colorspace="YCBCR", outcolorspace="YCBCR")
    path = write(tmp_path / "a.dcm", LIGHT, syntax, [frame], PhotometricInterpretation=mode)
    assert np.abs(read_image(path, 3).astype(int) - PHOTO).max() <= 3


@pytest.mark.parametrize("stored", ["YCBCR", "RGB"])
def test_colours_of_extended_jpeg_are_turned_round_once(tmp_path: Path, stored: str) -> None:
    values = LIGHT if stored == "YCBCR" else np.ascontiguousarray(PHOTO)
    frame = imagecodecs.jpeg_encode(values, level=98, subsampling="444", colorspace=stored, outcolorspace=stored)
    mode = "YBR_FULL" if stored == "YCBCR" else "RGB"
    path = write(tmp_path / "a.dcm", values, JPEG_12, [frame], PhotometricInterpretation=mode)
    assert np.abs(read_image(path, 3).astype(int) - PHOTO).max() <= 8


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_keep_their_sign_at_any_depth(tmp_path: Path, bits: int) -> None:
    values = RAMP.astype(np.int16) - 2048
    stored = values.view(np.uint16) & (2**bits - 1)
    frame = imagecodecs.jpeg_encode(stored, lossless=True, bitspersample=bits)
    path = write(tmp_path / "a.dcm", values, LOSSLESS_1, [frame], BitsStored=bits, WindowCenter=0, WindowWidth=4096)
    assert np.abs(grey(path) - np.rint(RAMP / 4095 * 255)).max() <= 1


def test_what_a_host_program_has_added_stays_and_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = get_decoder(LOSSLESS_1)
    monkeypatch.setattr(decoder, "_available", {"imagecodecs": lambda frame, runner: b"its own"})
    path = write(tmp_path / "a.dcm", GREY, LOSSLESS_1, [imagecodecs.jpeg_encode(GREY, lossless=True)])
    for _ in range(2):
        assert np.array_equal(grey(path), GREY)
    assert list(decoder.available_plugins) == ["imagecodecs", dicom_decoder.LABEL]
    assert decoder._available["imagecodecs"](b"", None) == b"its own"


def test_many_threads_may_meet_their_first_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_decoder(LOSSLESS_1), "_available", {})
    path = write(tmp_path / "a.dcm", GREY, LOSSLESS_1, [imagecodecs.jpeg_encode(GREY, lossless=True)])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: grey(path), range(32)))
    assert all(np.array_equal(one, GREY) for one in found)


def test_a_frame_that_is_cut_short_costs_one_line(tmp_path: Path) -> None:
    frame = imagecodecs.jpeg_encode(RAMP, lossless=True, bitspersample=16)
    assert "damaged" in reason(write(tmp_path / "a.dcm", RAMP, LOSSLESS_1, [frame[:40]]))


def test_nothing_is_added_before_the_first_file_is_read() -> None:
    code = (
        "from medmambase.data.reading import dicom, dicom_decoder\n"
        "from pydicom.pixels.decoders.base import get_decoder\n"
        "assert not any(dicom_decoder.LABEL in get_decoder(s).available_plugins for s in dicom_decoder.SYNTAXES)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
