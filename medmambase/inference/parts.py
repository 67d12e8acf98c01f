"""Divide what is to be predicted into images: files with several frames give those that were
chosen."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medmambase.config import Preprocessing
from medmambase.data.reading.clip import Clip
from medmambase.data.reading.frames import chosen
from medmambase.data.reading.images import count_frames

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Part(Generic[Item]):
    """Image ``number``, from 0: the ``item`` that was given at place ``index``, or ``frame``, from
    0, of the ``frames`` of that file, which ``clip`` decodes."""

    number: int
    index: int
    item: Item
    clip: Clip | None = None
    frame: int = 0
    frames: int = 1


def parts(items: Iterable[Item], wish: str, preprocessing: Preprocessing) -> Iterator[Part[Item]]:
    """Yield the images of all items. ``wish``: which frames of a file with several, as
    ``frames.chosen`` takes it; with "first" no file is opened here."""
    number = 0
    for index, item in enumerate(items):
        path = Path(item) if isinstance(item, str | os.PathLike) and wish != "first" else None
        count = 1 if path is None else count_frames(path)
        if path is None or count < 2:
            yield Part(number, index, item)
            number += 1
            continue
        taken = chosen(wish, count)
        clip = Clip(path, preprocessing, taken)
        for frame in taken:
            yield Part(number, index, item, clip, frame, count)
            number += 1
