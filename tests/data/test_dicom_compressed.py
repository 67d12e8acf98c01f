"""DICOM with compressed frames or in big endian shows the same picture as plain DICOM, at the same
depth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import (
    BIG,
    HIGH_THROUGHPUT,
    JPEG,
    JPEG_12,
    JPEG_2000,
    LOSSLESS,
    LOSSLESS_1,
    PHOTO,
    RAMP,
    RLE,
    grey,
    reason,
    window,
    write,
)

from medmambase.data.reading.images import read_image

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="the extra dicom is not installed")


def jpeg(values: np.ndarray) -> bytes:
    return (
        imagecodecs.jpeg_encode(values, level=98, subsampling="444")
        if values.ndim == 3
        else imagecodecs.jpeg_encode(values, level=98)
    )


@pytest.mark.parametrize(
    ("syntax", "compress", "error"),
    [
        (JPEG, jpeg, 8),
        (LOSSLESS, lambda v: imagecodecs.jpeg_encode(v, lossless=True), 0),
        (LOSSLESS_1, lambda v: imagecodecs.jpeg_encode(v, lossless=True), 0),
        (JPEG_2000, lambda v: imagecodecs.jpeg2k_encode(v, level=0, codecformat="j2k"), 0),
        (HIGH_THROUGHPUT, getattr(imagecodecs, "htj2k_encode", None), 0),
        (RLE, pydicom.pixels.encoders.native._encode_frame, 0),
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_compressed_files_show_what_uncompressed_ones_do(
    tmp_path: Path, syntax: str, compress: Any, error: int, colour: bool
) -> None:
    values = PHOTO if colour else PHOTO[..., 2]
    mode = (
        {} if not colour else {"PhotometricInterpretation": {JPEG: "YBR_FULL", JPEG_2000: "YBR_RCT"}.get(syntax, "RGB")}
    )
    if syntax == RLE:
        path = write(tmp_path / "a.dcm", values, **mode)
        file = pydicom.dcmread(path)
        file.compress(RLE)
        file.save_as(path)
    else:
        path = write(tmp_path / "a.dcm", values, syntax, [compress(np.ascontiguousarray(values))], **mode)
    assert np.abs(read_image(path, 3).astype(int) - (PHOTO if colour else values[..., None])).max() <= error


@pytest.mark.parametrize(
    ("syntax", "compress", "bits"),
    [
        (JPEG_12, lambda v: imagecodecs.jpeg_encode(v, level=100, bitspersample=12), 12),
        (LOSSLESS_1, lambda v: imagecodecs.jpeg_encode(v, lossless=True, bitspersample=16), 16),
        (JPEG_2000, lambda v: imagecodecs.jpeg2k_encode(v, level=0, codecformat="j2k"), 16),
    ],
)
def test_compressed_files_keep_their_depth(tmp_path: Path, syntax: str, compress: Any, bits: int) -> None:
    path = write(
        tmp_path / "a.dcm", RAMP, syntax, [compress(RAMP)], BitsStored=bits, WindowCenter=1000, WindowWidth=401
    )
    assert np.abs(grey(path) - window(RAMP, 799.5, 1199.5)).max() <= (2 if syntax == JPEG_12 else 1)


def test_negative_values_survive_lossless_jpeg(tmp_path: Path) -> None:
    values = RAMP.astype(np.int16) - 2048
    frame = imagecodecs.jpeg_encode((values & 0xFFF).astype(np.uint16), lossless=True, bitspersample=12)
    assert np.array_equal(
        grey(write(tmp_path / "a.dcm", values, LOSSLESS_1, [frame], BitsStored=12), "range"), np.rint(RAMP / 4095 * 255)
    )


@pytest.mark.parametrize("values", [RAMP, PHOTO, PHOTO[..., 0]])
def test_big_endian_files_are_read(tmp_path: Path, values: np.ndarray) -> None:
    assert np.array_equal(
        read_image(write(tmp_path / "a", values, BIG), 3), read_image(write(tmp_path / "b", values), 3)
    )


@pytest.mark.parametrize("syntax", [JPEG, LOSSLESS_1, JPEG_2000])
def test_a_frame_of_another_size_than_the_file_says_is_not_decoded(tmp_path: Path, syntax: str) -> None:
    values = np.zeros((600, 700), dtype=np.uint8)
    frame = {
        JPEG: imagecodecs.jpeg_encode, LOSSLESS_1: lambda v: imagecodecs.jpeg_encode(v, lossless=True),
        JPEG_2000: lambda v: imagecodecs.jpeg2k_encode(v, codecformat="j2k"),
    }[syntax](values)  # fmt: skip  # one compressor each
    assert "8 x 8 pixels whose compressed frame has 600 x 700" in reason(
        write(tmp_path / "a.dcm", values[:8, :8], syntax, [frame])
    )
