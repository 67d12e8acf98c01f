"""Scale values of any bit depth to 8 bits: which become black and white, and the scaling
between."""

from typing import Any

import numpy as np
import numpy.typing as npt


def limits(values: npt.NDArray[Any], high_depth: str, full: tuple[float, float]) -> tuple[float, float]:
    """Choose the values that become black and white.

    ``high_depth`` "percentile" takes the 0.1 and 99.9 percentiles of ``values``, "range" takes
    ``full``, or the values' own extremes where they leave it. What is not finite does not count.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    if high_depth == "percentile":
        dark, bright = (float(v) for v in np.percentile(finite, (0.1, 99.9)))
        # Few bright dots on an even ground: both percentiles are the ground, and the dots are all
        # there is to see.
        return (dark, bright) if dark < bright else (low, high)
    return full if full[0] <= low and high <= full[1] else (low, high)


def to_eight_bit(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Scale ``low`` to 0 and ``high`` to 255, linearly and clipped; all black where there is no
    contrast; NaN is black."""
    if not low < high:
        return np.zeros(values.shape, dtype=np.uint8)
    # float32 is exact for 8 and 16 bits; 32-bit values far from zero would lose their differences
    # in it.
    scaled = np.subtract(values, low, dtype=np.float32 if values.dtype.itemsize <= 2 else np.float64)
    np.multiply(scaled, 255 / (high - low), out=scaled)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0, 255, out=scaled)
    eight_bit: npt.NDArray[np.uint8] = np.rint(scaled, out=scaled).astype(np.uint8)
    return eight_bit
