"""Read a frame of a DICOM file as a viewer shows it. Needs the extra ``dicom``; imported by
``images.py`` when it meets such a file.

Grey goes through rescale, then the file's own first window (VOI LUT or centre and width), then to 8
bits. Without a window 8-bit values stay as they are and deeper ones are scaled as any 16-bit image
is. MONOCHROME1 is inverted, padding is black, YBR and palettes become RGB.
"""

import io
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medmambase.data.reading import dicom_decoder
from medmambase.data.reading.bit_depth import limits, to_eight_bit
from medmambase.files import check_regular

_TAGS = (
    "SpecificCharacterSet", "SOPClassUID", "Modality", "PatientID", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope",
    "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", *(f"{kind}{colour}PaletteColorLookupTable{part}" for kind,
    part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
      for colour in ("Red", "Green", "Blue")),
)  # fmt: skip  # a list of names, to be read as one
NEEDS_PYDICOM = 'a DICOM file; to read it: pip install "medmambase[dicom]"'
_NO_PICTURES = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose grid",
    "RTSTRUCT": "contours",
    "RTPLAN": "a treatment plan",
    "SR": "a report",
    "KO": "a list of keys",
}
# The first would be unpacked whole, whatever its size; of the others, damaged data was seen to keep
# the decoder, CharLS, busy for seconds a pixel.
_DEFLATED = "1.2.840.10008.1.2.1.99"
_REFUSED = {
    _DEFLATED: "deflated",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
}
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class _Bounded(io.BufferedReader):
    """A file that never reads more than it has: a damaged length field may say 4 GB, and so much
    would be allocated before reading."""

    def __init__(self, path: Path) -> None:
        check_regular(path)
        super().__init__(io.FileIO(str(path)))
        self._size = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def read(
    source: Path | bytes, high_depth: str, room_for: Callable[..., AbstractContextManager[object]], frame: int = 0
) -> tuple[npt.NDArray[np.uint8], str, int, str, str]:
    """Read a frame of a file, or of what a file holds, as uint8 (h, w) or (h, w, 3); also
    return "DICOM MONOCHROME2" or the like, the number of frames, PatientID, and Modality ("US").

    ``room_for(width, height, scans=1)`` is entered while it is decoded, or raises. Otherwise raises
    OSError with a reason for what is known, and nearly every type there is for a damaged file.
    """
    try:
        from pydicom.filereader import dcmread
    except ImportError as error:
        raise OSError(NEEDS_PYDICOM) from error
    with io.BytesIO(source) if isinstance(source, bytes) else _Bounded(source) as stream:
        syntax = _syntax(stream)
        if syntax in _REFUSED:
            raise OSError(f"a DICOM file stored as {_REFUSED[syntax]}, which is not read; save it uncompressed")
        header = dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
        kind = str(header.get("Modality", ""))
        kind = kind if kind.isascii() and kind.isalnum() else ""
        if kind in _NO_PICTURES or not header.get("Rows") or not header.get("Columns"):
            raise OSError(
                f"a DICOM file that holds {_NO_PICTURES.get(kind, 'no picture')}{f' ({kind})' if kind else ''}: not "
                f"an image"
            )
        _flatten(header, frame)
        height, width = int(header.Rows), int(header.Columns)
        mode = str(header.PhotometricInterpretation)
        with room_for(width, height):
            values = _frame(stream, header, syntax, room_for, frame)
            if values.shape not in ((height, width), (height, width, 3)):
                raise OSError(f"a DICOM file whose pixels are {values.shape}, not {height} x {width}")
            picture = (_colour if values.ndim == 3 or mode == "PALETTE COLOR" else _grey)(
                values, header, mode, high_depth
            )
    return picture, f"DICOM {mode}", int(header.get("NumberOfFrames") or 1), _patient(header), kind


def frames_of(source: Path | bytes) -> int:
    """Count the frames of a file, or of what a file holds, as the header tells them. Raises nearly
    every type there is for what cannot be read."""
    from pydicom.filereader import dcmread

    with io.BytesIO(source) if isinstance(source, bytes) else _Bounded(source) as stream:
        if _syntax(stream) == _DEFLATED:
            return 1
        return int(dcmread(stream, stop_before_pixels=True, specific_tags=["NumberOfFrames"]).NumberOfFrames)


def patient_of(path: Path) -> str:
    """Read PatientID without decoding the picture; "" where the file has none or cannot be read."""
    try:
        from pydicom.filereader import dcmread

        with _Bounded(path) as stream:
            if _syntax(stream) == _DEFLATED:
                return ""
            return _patient(
                dcmread(stream, stop_before_pixels=True, specific_tags=["SpecificCharacterSet", "PatientID"])
            )
    except Exception:  # noqa: BLE001  # damaged files raise nearly every type there is; what is wrong is said when the picture is read
        return ""


def _syntax(stream: BinaryIO) -> str:
    """How the file stores what follows; the stream is at its start again."""
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(stream, force=False)
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
    stream.seek(0)
    return str(meta.get("TransferSyntaxUID") or "")


def _patient(header: Any) -> str:
    return " ".join(str(header.get("PatientID") or "").split())


def _flatten(header: Any, frame: int) -> None:
    """Rescale and window of enhanced files lie in functional groups, of all frames or of each: the
    frame's are put where the old ones are."""
    for groups, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        for group in list(header.get(groups) or [])[place : place + 1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for found in list(group.get(name) or [])[:1]:
                    header.update(found)


def _frame(stream: BinaryIO, header: Any, syntax: str, room_for: Callable[..., object], frame: int) -> npt.NDArray[Any]:
    """As stored: (h, w) or (h, w, 3), YBR turned into RGB, bits above those stored cut off."""
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    if UID(syntax).is_transfer_syntax and UID(syntax).is_encapsulated:
        _check_frame(stream, header, room_for, frame)
    if syntax in dicom_decoder.SYNTAXES:
        try:
            dicom_decoder.add_to_pydicom(syntax)
        except ImportError as error:
            raise OSError('a compressed DICOM file; to read it: pip install "medmambase[dicom]"') from error
    try:
        return pixel_array(
            stream, index=frame, decoding_plugin=dicom_decoder.LABEL if syntax in dicom_decoder.SYNTAXES else ""
        )
    except (ValueError, RuntimeError, AttributeError) as error:
        raise OSError(
            f"a DICOM file whose pixels are damaged, cut short or of a kind that is not read ({error})"
        ) from error


def _check_frame(stream: BinaryIO, header: Any, room_for: Callable[..., object], number: int) -> None:
    """A compressed frame has a header of its own: one of another size than the file's is
    damage, or meant to fill the memory. Raises OSError. The stream stays where it is."""
    from pydicom.encaps import get_frame

    start = stream.tell()
    stream.seek(start + 12)  # tag, VR, length: compressed files are always explicit
    tables = (header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths"))
    frames = int(header.get("NumberOfFrames") or 1)
    frame = get_frame(stream, number, number_of_frames=frames, extended_offsets=tables if all(tables) else None)
    stream.seek(start)
    size, coded = (int(header.Rows), int(header.Columns)), _coded_size(frame)
    room_for(*size, scans=frame.count(b"\xff\xda"))
    if coded is not None and coded != size:
        raise OSError(
            f"a DICOM file of {size[0]} x {size[1]} pixels whose compressed frame has {coded[0]} x {coded[1]}"
        )


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Height and width in the header of a JPEG or JPEG 2000 frame; None for run lengths, which have
    none."""
    if frame.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = struct.unpack(">4I", frame[8:24])
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(frame):
        marker = frame[place + 1]
        if frame[place] != 0xFF or marker == 0xFF:
            place += 1
        elif marker in _FRAME_HEADERS:
            height, width = struct.unpack(">HH", frame[place + 5 : place + 9])
            return height, width
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise OSError("a DICOM file whose compressed frame is damaged")


def _grey(values: npt.NDArray[Any], header: Any, mode: str, high_depth: str) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut

    if mode not in ("MONOCHROME1", "MONOCHROME2"):
        raise OSError(f"a DICOM file whose photometric interpretation, {mode!r}, is not read")
    padding = np.zeros(values.shape, dtype=bool)
    if header.get("PixelPaddingValue") is not None:
        ends = sorted(
            (int(header.PixelPaddingValue), int(header.get("PixelPaddingRangeLimit") or header.PixelPaddingValue))
        )
        padding = (values >= ends[0]) & (values <= ends[1])
    bits = int(header.BitsStored)
    full = np.array([0, 2**bits - 1] if header.PixelRepresentation == 0 else [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    values, full = (apply_modality_lut(v, header).astype(np.float64) for v in (values, full))
    values[padding] = np.nan
    shown, window = _window(values, header)
    picture = _scaled(shown, window, padding, mode) if window else None
    if picture is None or picture.min() == picture.max():  # a window that shows nothing is a mistake
        ends = sorted(full.tolist())
        picture = _scaled(
            values, (ends[0], ends[1]) if bits <= 8 else limits(values, high_depth, (ends[0], ends[1])), padding, mode
        )
    return picture


def _scaled(
    values: npt.NDArray[Any], ends: tuple[float, float], padding: npt.NDArray[np.bool_], mode: str
) -> npt.NDArray[np.uint8]:
    picture = to_eight_bit(-values, -ends[1], -ends[0]) if mode == "MONOCHROME1" else to_eight_bit(values, *ends)
    picture[padding] = 0
    return picture


def _window(values: npt.NDArray[Any], header: Any) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
    """The values through the file's first window, and what of them is black and white; None where
    the file has no window that makes sense."""
    from pydicom.pixels.processing import apply_voi

    if header.get("VOILUTSequence"):
        return apply_voi(np.nan_to_num(values), header), (
            0.0,
            2.0 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1,
        )
    centre, width = (_first_number(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    kind = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or not width > (1 if kind == "LINEAR" else 0):
        return values, None
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60))), (0.0, 1.0)
    if kind == "LINEAR":  # as the standard has it: the ends are centres of steps
        centre, width = centre - 0.5, width - 1
    return values, (centre - width / 2, centre + width / 2)


def _first_number(value: Any) -> float | None:
    """Of a value, several values, or nothing."""
    if value is None or value == "":
        return None
    return float(value[0]) if hasattr(value, "__len__") and not isinstance(value, str) else float(value)


def _colour(values: npt.NDArray[Any], header: Any, mode: str, high_depth: str) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    bits = int(header.BitsStored)
    if mode == "PALETTE COLOR":
        values, bits = apply_color_lut(values, header)[..., :3], int(header.RedPaletteColorLookupTableDescriptor[2])
        high_depth = "range"  # the entries are colours, not measurements
    elif mode != "RGB" and not mode.startswith("YBR_"):
        raise OSError(f"a DICOM file whose photometric interpretation, {mode!r}, is not read")
    full = (0.0, 2.0**bits - 1)
    return to_eight_bit(values, *(full if bits <= 8 else limits(values, high_depth, full)))
