"""Predict a stream of images of any length, with only a few batches in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmambase.data.decoded.on_demand import threads
from medmambase.data.reading.images import normalise
from medmambase.inference.probabilities import logits_of
from medmambase.model.classifier import Classifier
from medmambase_kernels import use_backend

Item = TypeVar("Item")
Result = npt.NDArray[np.float64] | str  # probabilities (classes,), or the problem in words


def predict_stream(
    network: Classifier,
    items: Iterable[Item],
    read: Callable[[Item], Tensor | str],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its probabilities, float64 (classes,), or with the problem that ``read``
    returned instead of an image, in the order given.

    ``network`` is the one to compute with: on its device, and frozen (``for_prediction``) where
    that is wanted. ``read`` turns an item into torch.uint8 (c, size, size), and runs in threads,
    which decode the next batches while the network is busy; at most four batches are in memory.
    """
    stream = iter(items)
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
            with use_backend(backend), torch.inference_mode():
                found = iter(
                    network.task.probabilities(
                        logits_of(network, normalise(torch.stack(images).to(device), network.preprocessing), dtype)
                    ).numpy()
                    if images
                    else ()
                )
            for item, image in batch:
                yield item, image if isinstance(image, str) else next(found)
    finally:
        pool.shutdown(cancel_futures=True)  # who stops early waits for the few images in work, not for the queue
