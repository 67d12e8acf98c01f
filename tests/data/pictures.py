"""Draw the picture that the tests of reading share."""

import numpy as np


def colours() -> np.ndarray:
    """A picture whose turns and mirrors all differ: (24, 32, 3), smooth, so that JPEG keeps it."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([x * 8, y * 10, np.where(x + y < 20, 200, 30)], axis=2).astype(np.uint8)
