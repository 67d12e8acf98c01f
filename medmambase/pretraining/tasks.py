"""What a network is asked while it is pretrained: of drawn pictures what was drawn, of images what
they were before a part was hidden. Every batch is a function of the seed and of the step alone."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase.config import Preprocessing
from medmambase.data.augment import augment_by_keys, keys_of
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.drawn_ahead import Drawing, Drawn, Request, drawn, drawn_ahead
from medmambase.data.reading.images import normalise
from medmambase.pretraining.network import Predicted
from medmambase.pretraining.settings import PICTURE, PretrainSettings
from medmambase.training.batches import seed_of

# By what each loss is multiplied in their sum, so that each begins at about the same size.
WEIGHTS = {"structures": 1.0, "echo": 4.0, "edges": 2.0, PICTURE: 4.0}
CELL = 8  # pixels along a side of what is hidden or shown as a whole
_FIRST_HELD_OUT = 2**40  # number of the first drawn picture that is held out: no training comes so far
_SIZE, _HIDE, _HOLD = 1, 2, 3  # which random numbers of a step, or of the whole


class Batch(NamedTuple):
    """Normalised ``inputs``, torch.float32 (b, c, s, s), and what is wanted of them: ``structures``
    (b, structures) of 0 and 1, and ``pictures`` (b, pictures, s, s), or None."""

    inputs: Tensor
    structures: Tensor | None
    pictures: Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on ``device``."""
        return Batch(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]  # the first is never None


class Task(Protocol):
    """Where batches come from."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the losses."""

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of what may be in a picture; () where that is not asked."""

    @property
    def pictures(self) -> int:
        """How many channels are to be drawn."""

    @property
    def images(self) -> Mapping[str, ImageSet]:
        """The images of a checkpoint, which cannot go on with others."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become inputs, at the largest size."""

    def batches(self, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield the batches of the steps from ``first`` to before ``end``."""

    def some(self, count: int) -> list[Batch]:
        """Return the batches of the first steps, made here and now."""

    def held_out(self) -> list[Batch]:
        """Return pictures that are never learned from, the same ones each time."""


def losses(found: Predicted, batch: Batch, targets: tuple[str, ...]) -> Tensor:
    """Compute the loss of each of ``targets``, torch.float32 (targets,): the mean absolute error of
    a picture, and the binary cross-entropy of structures and edges."""
    each, place = [], 0
    for name in targets:
        if name == "structures":
            assert found.structures is not None and batch.structures is not None
            each.append(F.binary_cross_entropy_with_logits(found.structures, batch.structures))
            continue
        assert found.pictures is not None and batch.pictures is not None
        end = batch.pictures.shape[1] if name == PICTURE else place + 1
        pair = found.pictures[:, place:end], batch.pictures[:, place:end]
        each.append(F.binary_cross_entropy_with_logits(*pair) if name == "edges" else F.l1_loss(*pair))
        place = end
    return torch.stack(each)


def weighted(each: Tensor, targets: tuple[str, ...]) -> Tensor:
    """Add up the losses of ``losses``, each by its weight."""
    return (each * torch.tensor([WEIGHTS[name] for name in targets], device=each.device)).sum()


def size_of(settings: PretrainSettings, step: int) -> int:
    """Return the side of the pictures of a step, in pixels."""
    sides = settings.image_size
    return sides[seed_of(settings.seed, step, _SIZE) % len(sides)]


@dataclass(frozen=True)
class DrawnPictures:
    """Pictures that are drawn as they are needed, a new one each time. ``names`` are those of all
    structures that may be drawn; ``workers`` the processes that draw."""

    settings: PretrainSettings
    drawing: Drawing
    names: tuple[str, ...]
    workers: int
    preprocessing: Preprocessing
    images: Mapping[str, ImageSet] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the losses."""
        return self.settings.predicted()

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of the structures, where they are asked for."""
        return self.names if "structures" in self.targets else ()

    @property
    def pictures(self) -> int:
        """How many channels are to be drawn."""
        return sum(name != "structures" for name in self.targets)

    def batches(self, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield the batches of the steps from ``first`` to before ``end``."""
        requests = (self._request(step) for step in range(first, end))
        with closing(drawn_ahead(self.drawing, requests, self.workers)) as pictures:  # which ends the processes
            for found in pictures:
                yield self._batch(found)

    def some(self, count: int) -> list[Batch]:
        """Return the batches of the first steps, drawn by this process."""
        return [self._batch(drawn(self.drawing, self._request(step))) for step in range(count)]

    def held_out(self) -> list[Batch]:
        """Return pictures whose numbers no step has."""
        size, count = self.settings.image_size[0], self.settings.held_out
        firsts = range(0, count, self.settings.batch_size)
        requests = [Request(_FIRST_HELD_OUT + at, min(self.settings.batch_size, count - at), size) for at in firsts]
        return [self._batch(drawn(self.drawing, request)) for request in requests]

    def _request(self, step: int) -> Request:
        count = self.settings.batch_size
        return Request(step * count, count, size_of(self.settings, step))

    def _batch(self, found: Drawn) -> Batch:
        wanted = [torch.from_numpy(getattr(found, name)) for name in self.targets if name != "structures"]
        return Batch(
            normalise(torch.from_numpy(found.images), self.preprocessing),
            torch.from_numpy(found.structures) if self.structures else None,
            torch.stack(wanted, 1) if wanted else None,
        )


@dataclass(frozen=True)
class HiddenParts:
    """Images of which parts are hidden, and noise is added to the rest: to be restored. They are
    cut and mirrored anew each time (``augment.py``, "crop_flip")."""

    settings: PretrainSettings
    decoded: ImageSet
    preprocessing: Preprocessing
    structures: tuple[str, ...] = ()
    targets: tuple[str, ...] = (PICTURE,)

    @property
    def pictures(self) -> int:
        """How many channels are to be drawn."""
        return self.preprocessing.channels

    @property
    def images(self) -> Mapping[str, ImageSet]:
        """The images that a checkpoint belongs to."""
        return {"train": self.decoded}

    def batches(self, first: int, end: int) -> Generator[Batch, None, None]:
        """Yield the batches of the steps from ``first`` to before ``end``."""
        yield from map(self._batch, range(first, end))

    def some(self, count: int) -> list[Batch]:
        """Return the batches of the first steps."""
        return list(map(self._batch, range(count)))

    def held_out(self) -> list[Batch]:
        """Return a tenth of the images at most, as they are, with the same parts hidden each
        time."""
        found, rows = [], self._order[: self._held]
        for number, some in enumerate(rows.split(self.settings.batch_size)):
            clean = self._clean(some, self.settings.image_size[0])
            found.append(Batch(self._hide(clean, seed_of(self.settings.seed, number, _HOLD)), None, clean))
        return found

    def rows_of(self, step: int) -> Tensor:
        """Return which images a step takes, torch.int64 (b,). Each image comes once before any
        comes again, in another order each time."""
        count, settings = len(self._order) - self._held, self.settings
        places = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
        rounds = places // count
        orders = {turn: self._shuffled(count, turn + 1) for turn in rounds.unique().tolist()}
        chosen = [orders[turn][place] for turn, place in zip(rounds.tolist(), (places % count).tolist(), strict=True)]
        return self._order[self._held :][torch.stack(chosen)]

    @property
    def _order(self) -> Tensor:
        """All images, those that are held out first."""
        return self._shuffled(len(self.decoded.labels), 0)

    @property
    def _held(self) -> int:
        return max(1, min(self.settings.held_out, len(self.decoded.labels) // 10))

    def _shuffled(self, count: int, turn: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(self.settings.seed, turn)))

    def _batch(self, step: int) -> Batch:
        rows = self.rows_of(step)
        keys = keys_of(self.settings.seed, step, rows)
        clean = augment_by_keys(self._clean(rows, size_of(self.settings, step)), "crop_flip", keys)
        return Batch(self._hide(clean, seed_of(self.settings.seed, step, _HIDE)), None, clean)

    def _clean(self, rows: Tensor, size: int) -> Tensor:
        images = normalise(self.decoded.images[rows], self.preprocessing)
        if images.shape[-1] == size:
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True)

    def _hide(self, clean: Tensor, seed: int) -> Tensor:
        return hide(clean, self.settings.hidden, self.settings.noise, torch.Generator().manual_seed(seed))


def hide(clean: Tensor, share: float, noise: float, generator: torch.Generator) -> Tensor:
    """Hide about ``share`` of the cells of images (b, c, s, s) in [-1, 1], which become grey (0),
    and add noise to the rest, of an image at most ``noise`` as standard deviation."""
    b, _, height, width = clean.shape
    cells = torch.rand(b, 1, -(-height // CELL), -(-width // CELL), generator=generator)
    hidden = (cells < share).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)[..., :height, :width]
    strength = noise * torch.rand(b, 1, 1, 1, generator=generator)
    noisy = (clean + strength * torch.randn(clean.shape, generator=generator)).clamp(-1, 1)
    return noisy.masked_fill(hidden, 0.0)
