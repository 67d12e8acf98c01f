"""Whether a file computes what the network does, and how fast."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from medmambase.data.reading.images import normalise
from medmambase.inference.predictor import Predictor
from medmambase.inference.probabilities import logits_of
from medmambase.model.task import HALF

BATCHES = (1, 3, 16)  # images at a time, in turns
MOST_OFF = 1e-5  # of a probability
_ROUNDS, _WARM = 15, 3

Run = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """A file beside the network: images compared, the largest difference of a probability, the
    share of images called alike, and milliseconds for one image by the file and here, on so many
    threads."""

    images: int
    difference: float
    equal: float
    file_ms: float
    own_ms: float
    threads: int

    @property
    def holds(self) -> bool:
        """Whether the file may stay."""
        return self.difference <= MOST_OFF and self.equal == 1.0


def compare(predictor: Predictor, run: Run, images: npt.NDArray[np.uint8]) -> Parity:
    """Compare what ``run`` makes of images uint8 (n, size, size, channels), in batches of 1, 3 and
    16, with the calibrated probabilities of ``predictor``."""
    expected = np.stack([one.probabilities for one in predictor(images) if one.probabilities is not None])
    found = in_batches(run, images)
    difference = float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")
    task, thresholds = predictor.network.task, HALF if predictor.thresholds is None else predictor.thresholds
    same = task.called(found, thresholds) == task.called(expected, thresholds)
    equal = float(same.reshape(len(images), -1).all(1).mean())
    return Parity(len(images), difference, equal, *_times(predictor, run, images[:1]), torch.get_num_threads())


def in_batches(run: Run, images: npt.NDArray[np.uint8]) -> Floats:
    """Return the probabilities (n, classes) of images, in batches whose sizes take turns."""
    found, done, sizes = [], 0, cycle(BATCHES)
    while done < len(images):
        size = next(sizes)
        found.append(run(images[done : done + size]))
        done += size
    return np.concatenate(found).astype(np.float64)


def _times(predictor: Predictor, run: Run, image: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Milliseconds for one image, by the file and by the network: medians of calls in turns."""
    batch = torch.from_numpy(image).permute(0, 3, 1, 2)

    def by_file() -> None:
        run(image)

    def by_us() -> None:
        with torch.inference_mode():
            how = predictor.network.preprocessing
            predictor.network.task.probabilities(logits_of(predictor.network, normalise(batch, how), torch.float32))

    taken: tuple[list[float], list[float]] = [], []
    for _ in range(_WARM + _ROUNDS):
        for times, call in zip(taken, (by_file, by_us), strict=True):
            begun = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - begun))
    return median(taken[0][_WARM:]), median(taken[1][_WARM:])
