"""Predict images with a trained network: from a file, a folder, arrays, or a stream of any length.

``Predictor`` is a network with all that belongs to it: the preparation of its images, the
temperature that makes its probabilities trustworthy, the device and the backend.
"""

import math
import os
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from medmambase.config import ConfigError, Frames, OpponentConfig, Positive, Precision
from medmambase.data.manifest.folders import DataError, image_files
from medmambase.data.reading.images import Decoded, Facts, ImageError, load, picture_pixels
from medmambase.inference.appearance import Appearance
from medmambase.inference.ensemble import Ensemble
from medmambase.inference.limits import Limits
from medmambase.inference.loading import load_ensemble, load_network, run_of, temperature_of, thresholds_of
from medmambase.inference.parts import Part, parts
from medmambase.inference.probabilities import choose_precision
from medmambase.inference.probable import Probable
from medmambase.inference.stream import predict_stream
from medmambase.inference.training_images import Duplicate, TrainingImages
from medmambase.inference.watch import Watch
from medmambase.machine import choose_device
from medmambase.model.classifier import Trainable
from medmambase.model.task import HALF
from medmambase.run_folder import APPEARANCE, folds_of
from medmambase.validation import check, check_path
from medmambase_kernels import describe_backend, use_backend

OneImage = str | os.PathLike[str] | npt.NDArray[np.uint8] | Tensor | Image.Image | Decoded
WANTED = (
    "wanted a path, a Pillow image, or a NumPy array or torch tensor of uint8 with shape (height, width) or (height, "
    "width, 3)"
)


@dataclass(frozen=True, eq=False)
class Prediction(Probable):
    """The prediction of a network for one image.

    ``index``: its position in what was given, from 0. ``path``: its file, None where a picture or
    an array was given. ``label``: the name of the most probable class, and ``probabilities``
    float64 (classes,), which sum to 1 unless the network is multi-label, in the order of
    ``classes``; both None where the image cannot be used: then ``problem`` says why, in one line.
    ``patient``: DICOM's PatientID, else "".
    ``note`` says, in one line, how the image looks unlike those that the network was chosen on
    (``appearance.py``; of its grey levels where no ``distance`` is known), of a file with several
    frames that only the first is predicted, and last of which training or validation image it is a
    ``duplicate`` (``training_images.py``); else "".

    ``distance``: how far the image is from those that the network was trained on; above 1 it is
    ``unlike`` them (``unlike.py``), and its probabilities say nothing. ``conformal_set``: the
    classes that it may be of, in their order: as many sets hold the true class as the run's
    validation images promise, mostly 95 % (``conformal.py``). None where that is not known, as of a
    run without validation images, or of an earlier version. ``frame``: its number in the file, from
    1, of ``frames``, where frames were chosen.
    """

    index: int
    path: Path | None
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64] | None
    problem: str | None
    patient: str = ""
    note: str = ""
    distance: float | None = None
    conformal_set: tuple[str, ...] | None = None
    thresholds: npt.NDArray[np.float64] | None = None
    frame: int | None = None
    frames: int = 1
    duplicate: Duplicate | None = None

    @property
    def unlike(self) -> bool | None:
        """Whether the image is unlike those that the network was trained on."""
        return None if self.distance is None else self.distance > 1


class Predictor:
    """A trained network that predicts images: ``for prediction in predictor("scans"): ...``.

    ``network``: as it was trained, or several as an ``Ensemble``; a copy is used. ``device``: such
    as "cuda:1", None for the GPU if there is one. ``temperature``: what its logits are divided by,
    1 for none. ``backend``: one of the names that ``use_backend`` takes, None for the fastest that
    runs here. ``precision`` of matrix products: "auto", "float32" or "bfloat16". ``appearance``:
    that of the images that the network was chosen on, from which predictions get their notes.
    ``limits``: from which they know what is unlike, and which classes are possible.
    ``training_images``: by which they know duplicates of these.
    ``thresholds``: of a multi-label network, from which probability on, before the temperature,
    each class is called; None: a half.

    Raises TypeError for a network that is none, ConfigError for a device that cannot be used, a
    temperature that is not positive, another precision, or a ``backend`` for a network that is not
    MedMambaSE, BackendError for a backend that cannot run on the device, and ValueError for a
    network without a head.

    ``Predictor.load`` takes all of this from the folder of a run. For research only: this is not a
    diagnosis.
    """

    def __init__(
        self,
        network: Trainable | Ensemble,
        *,
        device: str | torch.device | None = None,
        temperature: float = 1.0,
        backend: str | None = None,
        precision: Precision = "auto",
        appearance: Appearance | None = None,
        limits: Limits | None = None,
        thresholds: dict[str, float] | None = None,
        training_images: TrainingImages | None = None,
    ) -> None:
        given: tuple[tuple[str, object, tuple[type, ...]], ...] = (
            ("network", network, (Trainable, Ensemble)),
            ("appearance", appearance, (Appearance, type(None))),
            ("limits", limits, (Limits, type(None))),
            ("training_images", training_images, (TrainingImages, type(None))),
        )
        for name, value, kinds in given:
            if not isinstance(value, kinds):
                advice = "; Predictor.load takes the folder of a run" if isinstance(value, str | os.PathLike) else ""
                wanted = " or ".join(
                    {Trainable: "a network such as MedMambaSE", type(None): "None"}.get(kind, f"an {kind.__name__}")
                    for kind in kinds
                )
                raise TypeError(f"{name} is {value!r:.80}; it must be {wanted}{advice}")
        check("precision", precision, Precision, ConfigError)
        if network.features_only:
            raise ValueError("this network was built with features_only=True and has no head; load it without")
        number: object = temperature
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ConfigError(f"temperature is {temperature!r}; it must be a finite number above 0 (1: no effect)")
        if backend is not None and isinstance(network.config, OpponentConfig):
            raise ConfigError(
                f"backend is {backend!r}, but {network.config.opponent} has no scan, and PyTorch computes it; leave it "
                f"out"
            )
        check("thresholds", thresholds, dict[str, float] | None, ConfigError)
        if thresholds is not None and not (network.task.multi_label and thresholds.keys() == {*network.classes}):
            wanted = f"one for each of {', '.join(network.classes)}" if network.task.multi_label else "None"
            raise ConfigError(f"thresholds is {thresholds!r:.80}; wanted {wanted}")
        self.device, self.temperature, self.backend = choose_device(device), temperature, backend or "auto"
        self.dtype, _ = choose_precision(precision, self.device)
        with use_backend(self.backend, "the backend argument"):
            describe_backend(self.device, self.dtype)  # raises where the backend cannot run there
        self.appearance, self.limits, self.training_images = appearance, limits or Limits(), training_images
        self.limits.check(Watch(network).widths)
        self.network = deepcopy(network).to(self.device).for_prediction()
        self.thresholds: npt.NDArray[np.float64] | None = None
        if network.task.multi_label:
            given_or_half = [HALF if thresholds is None else thresholds[name] for name in network.classes]
            self.thresholds = self._calibrated(np.array(given_or_half, dtype=np.float64))

    @classmethod
    def load(
        cls,
        run: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        calibrated: bool | None = None,
        backend: str | None = None,
        precision: Precision = "auto",
    ) -> Self:
        """Load the best network of a run, any folder that a network was saved to, or the networks
        of a cross-validation.

        ``run``: the folder of a run (``runs/data-001``), a network's own (``runs/data-001/best``,
        or what ``MedMambaSE.save`` wrote), or a ``Run``; or that of a cross-validation, or a
        ``CrossvalRun``: then each probability is the mean over the networks of all folds.
        ``calibrated``: None divides the logits by the temperature that was learned on the run's
        (each fold's own) validation images, where there were any; True insists on it; False leaves
        the probabilities as the softmax gives them.

        Raises DataError where there is no such folder or its ``calibration.json`` is damaged, or a
        fold is not trained yet, WeightsError where it holds no network, ConfigError where
        ``calibrated=True`` finds no temperature or the network is an opponent whose package is not
        installed, and what ``Predictor`` raises.
        """
        folder = check_path("run", run)
        check("calibrated", calibrated, bool | None, ConfigError)
        network: Trainable | Ensemble
        if folds_of(folder):
            network, temperature = load_ensemble(folder, calibrated), 1.0  # each network has its own
            thresholds = None
        else:
            network, temperature = load_network(folder), temperature_of(folder, calibrated)
            thresholds = thresholds_of(folder, network)
        own = run_of(folder)
        return cls(
            network, device=device, temperature=temperature, backend=backend, precision=precision,
            appearance=Appearance.read(own / APPEARANCE), limits=Limits.read(own), thresholds=thresholds,
            training_images=TrainingImages.read(own),
        )  # fmt: skip  # one argument list

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.network.classes

    def __call__(
        self, images: OneImage | Iterable[OneImage], batch_size: int = 16, frames: str = "first"
    ) -> Iterator[Prediction]:
        """Predict images in the order given; of a stream of any length, only a few batches are in
        memory.

        ``images``: a path to an image; a folder, of which every image at any depth is taken; an
        array or tensor of uint8 (height, width) or (height, width, 3); a Pillow image; what
        ``decode`` of ``data/reading/images.py`` returned; or any iterable of paths, arrays and
        pictures, an array (n, height, width, 3) included. Files are read, and everything is resized
        and normalised, as in training. ``batch_size``: images that the network computes at a time.
        ``frames`` of a file that has several: "first", "middle", "all", or a number of them, evenly
        spaced; each is an image with the ``index`` of the file.

        In an iterable an image that cannot be used is a ``Prediction`` with a ``problem``, and the
        stream goes on. Raises, before anything is predicted: DataError for a path that does not
        exist or a folder without images, TypeError or ValueError for a single thing that is not an
        image, ConfigError for a ``batch_size`` below 1, or other ``frames``.
        """
        check("batch_size", batch_size, Positive, ConfigError)
        check("frames", frames, Frames, ConfigError)
        return self._predictions(parts(_items(images), frames, self.network.preprocessing), batch_size)

    def _predictions(self, given: Iterable[Part[OneImage]], batch_size: int) -> Iterator[Prediction]:
        known: dict[int, Facts] = {}

        def read(part: Part[OneImage]) -> Tensor | str:
            found = self._read(part)
            if isinstance(found, str):
                return found
            image, known[part.number] = found
            return image

        rows = predict_stream(
            self.network,
            given,
            read,
            batch_size,
            self.device,
            self.dtype,
            self.backend,
            self.limits,
        )
        for part, result in rows:
            path = Path(part.item) if isinstance(part.item, str | os.PathLike) else None
            clip = (part.frame + 1, part.frames) if part.clip else (None, 1)
            if isinstance(result, str):
                empty = Prediction(part.index, path, self.classes, None, result)
                yield replace(empty, frame=clip[0], frames=clip[1])
                continue
            facts = known.pop(part.number)
            if not np.isfinite(result.probabilities).all():
                problem = "the network's outputs are no finite numbers"
                empty = Prediction(part.index, path, self.classes, None, problem, facts.patient)
                yield replace(empty, frame=clip[0], frames=clip[1])
            else:
                duplicate = self.training_images.duplicate(facts) if self.training_images else None
                yield Prediction(
                    part.index, path, self.classes, self._calibrated(result.probabilities), None, facts.patient,
                    self._note(facts, part.clip is not None, duplicate), result.distance, self._set(result.in_set),
                    self.thresholds, clip[0], clip[1], duplicate,
                )  # fmt: skip  # one argument list

    def _calibrated(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        warmth = self.temperature
        return probabilities if warmth == 1.0 else self.network.task.apply_temperature(probabilities, warmth)

    def _set(self, held: npt.NDArray[np.bool_] | None) -> tuple[str, ...] | None:
        return None if held is None else tuple(name for name, one in zip(self.classes, held, strict=True) if one)

    def _note(self, facts: Facts, chosen: bool, duplicate: Duplicate | None) -> str:
        frames = f"frame 1 of {facts.frames}" if facts.frames > 1 and not chosen else ""
        # What is unlike in its grey levels tells its distance, where that is known.
        unlike = self.appearance.note(facts, grey=not self.limits.detectors) if self.appearance else ""
        return "; ".join(filter(None, (frames, unlike, duplicate and ": ".join(duplicate))))

    def _read(self, part: Part[OneImage]) -> tuple[Tensor, Facts] | str:
        preprocessing, image = self.network.preprocessing, part.item
        try:
            if part.clip is not None:
                return part.clip.take(part.frame)
            if isinstance(image, str | os.PathLike):
                return load(Path(image), preprocessing)
            if isinstance(image, Decoded):
                return load(Path(), preprocessing, image)
            return load(Path(), preprocessing, _pixels(image, preprocessing.high_depth))
        except ImageError as error:
            return error.reason
        except (TypeError, ValueError) as error:
            return str(error)


def _items(images: OneImage | Iterable[OneImage]) -> Iterable[OneImage]:
    """Turn the given images into a stream of single images; invalid arguments are refused here."""
    if isinstance(images, str | os.PathLike):
        source = Path(images)
        if not source.exists():
            raise DataError(
                f"{source}: there is no such file or folder; give an image, or a folder with images at any depth"
            )
        files = image_files(source)
        first = next(files, None)
        if first is None:
            raise DataError(f"{source}: no images found (png, jpg, bmp, gif, tif, webp, pgm, jp2, dcm are read)")
        return chain([first], files)
    if isinstance(images, Image.Image | Decoded):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim == 4:
            return images
        _pixels(images, "range")
        return [images]
    if not isinstance(images, Iterable):
        raise TypeError(f"images is of type {type(images).__name__}; {WANTED}, a folder, or an iterable of these")
    return images


def _pixels(image: OneImage, high_depth: str) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image or an array to uint8 (h, w) or (h, w, 3). Raises TypeError or
    ValueError."""
    if isinstance(image, Image.Image):
        return picture_pixels(image, high_depth)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"an image is of type {type(image).__name__}; {WANTED}")
    kind, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    if kind != "uint8" or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or 0 in shape:
        advice = ""
        if kind != "uint8":
            advice = "; convert it to 0 to 255 first"
        elif len(shape) == 3 and shape[0] in (1, 3):
            advice = "; move the channels to the end"
        elif len(shape) == 3:
            advice = "; give several grey images as a list"
        raise ValueError(f"an image is {kind} {shape}; {WANTED}{advice}")
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    return pixels[:, :, 0] if shape[2:] == (1,) else pixels
