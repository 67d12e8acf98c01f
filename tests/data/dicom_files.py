"""Write DICOM files for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmambase.data.reading.images import ImageError, read_image

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="the extra dicom is not installed")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402  # after it is known to be there
from pydicom.encaps import encapsulate  # noqa: E402  # after it is known to be there

LITTLE, BIG, RLE, DEFLATED = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1.99",
)
JPEG, JPEG_12, LOSSLESS, LOSSLESS_1, JPEG_LS, JPEG_2000, HIGH_THROUGHPUT = (
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 90, 201)
)  # fmt: skip  # in the order of their names
RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
PHOTO = np.stack([(np.indices((48, 64)).sum(axis=0) * step) % 256 // 2 for step in (1, 2, 3)], axis=2).astype(np.uint8)


def write(
    path: Path, values: np.ndarray, syntax: str = LITTLE, frames: list[bytes] | None = None, **elements: Any
) -> Path:
    """A DICOM file of these stored values: (h, w), or (h, w, 3) for colour; ``frames`` are the
    same, compressed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        pydicom.uid.UltrasoundImageStorage,
        pydicom.uid.generate_uid(),
    )
    file = FileDataset(
        path, {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=False, is_little_endian=syntax != BIG
    )
    file.SOPClassUID, file.SOPInstanceUID, file.Modality, file.PatientID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
        "US",
        "P 7",
    )
    colour = values.ndim == 3
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = (
        bits,
        bits,
        bits - 1,
        int(values.dtype.kind == "i"),
    )
    for name, value in elements.items():
        setattr(file, name, value)
    file.HighBit = file.BitsStored - 1
    file.PixelData = (
        encapsulate(frames)
        if frames
        else values.astype(values.dtype.newbyteorder(">" if syntax == BIG else "<")).tobytes()
    )
    file["PixelData"].VR = "OB" if frames or (bits == 8 and syntax != BIG) else "OW"
    if syntax == BIG and bits == 8:
        file.PixelData = np.frombuffer(file.PixelData, "<u2").astype(">u2").tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path, high_depth: str = "percentile") -> np.ndarray:
    return read_image(path, 1, high_depth)[:, :, 0].astype(int)


def window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, 3)
    assert "\n" not in str(caught.value) and len(caught.value.reason) < 300
    return caught.value.reason
