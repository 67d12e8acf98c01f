"""Turn Pillow's images of any mode upright, and into 8-bit pixels."""

import re

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmambase.data.reading.bit_depth import limits, to_eight_bit

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def eight_bit(image: Image.Image, high_depth: str) -> npt.NDArray[np.uint8]:
    """Return an image of any mode as uint8 (h, w) or (h, w, 3), upright, transparency laid on
    black. Raises what Pillow does, nearly every type there is, where it cannot be decoded."""
    deep_colour = re.search(r"\b(RGBA?|LA);16[BLN]", repr(getattr(image, "tile", None))) is not None
    image.load()
    return _converted(_upright(image), high_depth, deep_colour)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF (or XMP) says. Ask after ``load``: a PNG may hold it behind the pixels, a
    TIFF turns itself."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # a damaged EXIF block says nothing about the pixels, and raises nearly every type there is
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _converted(image: Image.Image, high_depth: str, deep_colour: bool) -> npt.NDArray[np.uint8]:
    """A loaded image of any mode as uint8 (h, w) or (h, w, 3), transparency laid on black."""
    transparency = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        scaled = to_eight_bit(values, *limits(values, high_depth, (0.0, 1.0 if values.dtype.kind == "f" else 65535.0)))
        if isinstance(transparency, int):  # a PNG may name one 16-bit grey value as the transparent one
            scaled[values == transparency] = 0
        return scaled
    has_alpha = transparency is not None or image.mode in ("LA", "La", "RGBA", "RGBa", "PA")
    grey = image.mode in ("1", "L", "LA", "La")
    layers: npt.NDArray[np.uint8] = np.asarray(image.convert(("L" if grey else "RGB") + ("A" if has_alpha else "")))
    if has_alpha:
        alpha, layers = layers[..., -1].astype(np.uint16), layers[..., :-1].copy()
        for channel in range(layers.shape[-1]):  # one by one, since large images would fill the memory
            layers[..., channel] = (layers[..., channel] * alpha + 127) // 255
    if deep_colour and high_depth == "percentile":
        layers = to_eight_bit(layers, *limits(layers, high_depth, (0.0, 255.0)))
    return layers[..., 0] if layers.shape[-1] == 1 and layers.ndim == 3 else layers
