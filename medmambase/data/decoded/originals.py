"""Read a few images again as they are, for a person to look at: at a network's size nobody can tell
whether two pictures are the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.manifest.folders import Sample
from medmambase.data.manifest.published import forget, pixels_of, room_of
from medmambase.data.reading.fitted import fit, in_channels
from medmambase.data.reading.images import ImageError, read_image

LONGEST = 400  # pixels of the longer side that are kept: more than a page shows


def originals(images: ImageSet, rows: Sequence[int]) -> list[Tensor]:
    """Return the images of these rows as their files have them, torch.uint8 (3, s, s) with black
    bars, no larger than LONGEST. One whose file has gone is returned as the network takes it,
    torch.uint8 (c, size, size)."""
    found: dict[int, Tensor] = {}
    for row in sorted(set(rows)):  # in this order an array file is unpacked once, picture by picture
        original = _original(images.samples[row])
        found[row] = images.images[[row]][0] if original is None else original
    forget()
    return [found[row] for row in rows]


def _original(sample: Sample) -> Tensor | None:
    try:
        with room_of(sample):
            if sample.row is None:
                pixels = read_image(sample.path, 3, frame=sample.frame or 0)
            else:
                pixels = in_channels(pixels_of(sample), 3)
    except ImageError:
        return None
    return torch.from_numpy(fit(pixels, min(LONGEST, max(pixels.shape[:2])), "letterbox")).permute(2, 0, 1)
