"""Predict a stream of images of any length, with only a few batches in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmambase.data.decoded.on_demand import threads
from medmambase.data.reading.images import normalise
from medmambase.inference.limits import Limits
from medmambase.inference.probabilities import logits_of
from medmambase.inference.watch import Seen, Watch
from medmambase.model.classifier import Classifier
from medmambase_kernels import use_backend

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Found:
    """What is found of an image: ``probabilities`` float64 (classes,), its ``distance`` from the
    training images, and which classes are ``in_set``, bool (classes,); None where that is not
    known."""

    probabilities: npt.NDArray[np.float64]
    distance: float | None
    in_set: npt.NDArray[np.bool_] | None


def predict_stream(
    network: Classifier,
    items: Iterable[Item],
    read: Callable[[Item], Tensor | str],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
    limits: Limits | None = None,
) -> Iterator[tuple[Item, Found | str]]:
    """Yield each item with what is found, within the ``limits`` of the network, or with the problem
    that ``read`` returned instead of an image, in the order given.

    ``network`` is the one to compute with: on its device, and frozen (``for_prediction``) where
    that is wanted. ``read`` turns an item into torch.uint8 (c, size, size), and runs in threads,
    which decode the next batches while the network is busy; at most four batches are in memory.
    """
    stream, limits, watch = iter(items), limits or Limits(), Watch(network)
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")
    try:
        waiting: deque[tuple[Item, Future[Tensor | str]]] = deque()

        def read_ahead() -> None:
            waiting.extend((item, pool.submit(read, item)) for item in islice(stream, 4 * batch_size - len(waiting)))

        read_ahead()
        while waiting:
            batch = [
                (item, image.result())
                for item, image in (waiting.popleft() for _ in range(min(batch_size, len(waiting))))
            ]
            read_ahead()
            images = [image for _, image in batch if isinstance(image, Tensor)]
            found: Iterator[Found] = iter(())
            if images:
                with use_backend(backend), torch.inference_mode(), watch:
                    prepared = normalise(torch.stack(images).to(device), network.preprocessing)
                    probabilities = network.task.probabilities(logits_of(network, prepared, dtype)).numpy()
                found = _found(probabilities, watch.take(), limits)
            for item, image in batch:
                yield item, image if isinstance(image, str) else next(found)
    finally:
        pool.shutdown(cancel_futures=True)  # who stops early waits for the few images in work, not for the queue


def _found(probabilities: npt.NDArray[np.float64], seen: Seen, limits: Limits) -> Iterator[Found]:
    """Yield what is found of each image of a batch."""
    distances, sets = limits.distance(seen), limits.holds(seen, probabilities)
    for row, own in enumerate(probabilities):
        yield Found(
            own,
            None if distances is None else float(distances[row]),
            None if sets is None else sets[row],
        )
