"""imagecodecs as a decoding plugin of pydicom, for the compressed kinds that Pillow cannot read.

pydicom asks a plugin's module for ``is_available`` and ``DECODER_DEPENDENCIES``, and calls the
function by which it was added with a compressed frame; colours, signs and unused bits it then sees
to itself.
"""

import threading
from typing import Any

import numpy as np

LABEL = "medmambase"  # beside whatever plugins a program has added itself
# JPEG of 12 bits, lossless JPEG, high-throughput JPEG 2000.
SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70, 201, 202, 203))
_LOSSY = "1.2.840.10008.1.2.4.51"  # of which the decoder would turn the colours round
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))
_adding = threading.Lock()


def is_available(syntax: str) -> bool:
    """Whether this plugin decodes a transfer syntax; imagecodecs is there once one is added."""
    return syntax in SYNTAXES


def add_to_pydicom(syntax: str) -> None:
    """Let pydicom decode a transfer syntax of ``SYNTAXES`` by the plugin ``LABEL``; again does
    nothing. Raises ImportError where imagecodecs is not installed."""
    import imagecodecs  # noqa: F401  # the plugin needs it, and pydicom would only log that it is not there
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(syntax)
    with _adding:  # pydicom's own table is not made for threads
        if LABEL not in decoder.available_plugins:
            decoder.add_plugin(LABEL, (__name__, "decode"))


def decode(frame: bytes, runner: Any) -> bytes:
    """A JPEG or JPEG 2000 frame as stored, row by row and pixel by pixel, as pydicom wants it."""
    from imagecodecs import jpeg2k_decode, jpeg_decode

    mode = str(runner.photometric_interpretation)
    if not frame.startswith(b"\xff\xd8"):
        values = jpeg2k_decode(frame)
        if mode in ("YBR_ICT", "YBR_RCT"):  # the decoder has turned it round
            runner.set_option("photometric_interpretation", "RGB")
    elif runner.transfer_syntax == _LOSSY and runner.samples_per_pixel == 3:
        space = "YCBCR" if mode.startswith("YBR") else "RGB"
        values = jpeg_decode(frame, colorspace=space, outcolorspace=space)  # from one to the same: as it is
    else:
        values = jpeg_decode(frame)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(values).tobytes()
