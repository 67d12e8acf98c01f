"""Say of an image what the page shows: class, probabilities, notes, the picture and its map."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from medmambase.config import ConfigError
from medmambase.data.reading.frames import chosen
from medmambase.data.reading.images import (
    Decoded,
    ImageError,
    count_frames,
    decode,
    decode_frames,
    load,
    normalise,
)
from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.calibration import OperatingPoint, point_at, with_temperature
from medmambase.evaluation.explanation.maps import grad_cam
from medmambase.evaluation.explanation.overlays import in_colour, on_picture
from medmambase.evaluation.predictions import read_predictions
from medmambase.inference.loading import frames_of, load_network, run_of
from medmambase.inference.patients import by_patient
from medmambase.inference.predictor import Predictor
from medmambase.model.network import MedMambaSE
from medmambase.plural import count_of
from medmambase.run_folder import CALIBRATION, PREDICTIONS, VAL, folds_of

LONGEST = 640  # pixels of the longer side of a picture on the page
SHARE = 0.95  # sensitivity, or specificity, of the operating points that are always offered


class Answers:
    """What a trained network says of images, one at a time, in a form that a page can show.

    ``run``: what ``Predictor.load`` takes. ``at``: an operating point to offer beside the others,
    such as "malignant:sensitivity=0.9". Raises what ``Predictor.load`` raises, ConfigError for an
    ``at`` that cannot be met, and MetricsError for damaged predictions of the run.
    """

    def __init__(self, run: Path, device: torch.device, at: str | None = None) -> None:
        self.predictor = Predictor.load(run, device=device)
        folds = folds_of(run)
        self.name = run_of(run).resolve().name
        self.calibrated = all((run_of(one) / CALIBRATION).is_file() for one in folds or (run,))
        self.frames = frames_of(run)
        self.points = list(self._points(run, at))
        self.chosen = at is not None
        network = None if folds else load_network(run)
        self.explained: MedMambaSE | None = None
        if isinstance(network, MedMambaSE) and not network.task.multi_label:  # as medmambase-explain has it
            self.explained = network.to(device).requires_grad_(False)

    @property
    def depth(self) -> str:
        """How pixels of more than 8 bits become 8."""
        return self.predictor.network.preprocessing.high_depth

    def facts(self) -> dict[str, Any]:
        """Return what the page knows before the first image, ready for JSON: ``name``, ``classes``,
        whether probabilities are ``calibrated``, whether an image may have several classes, from
        which probability on each is then called (``thresholds``, else None), whether
        there are ``maps``, and the operating ``points``, of which that of ``at`` comes first; in
        each ``of_patients`` is the same of the means of patients, or None. Of images like the
        validation images ``false_alarms`` is the largest share that is called unlike these, and
        ``coverage`` the least whose sets hold the true class; None where that is not known."""
        return {
            "name": self.name,
            "classes": list(self.predictor.classes),
            "calibrated": self.calibrated,
            "multi_label": self.predictor.network.task.multi_label,
            "thresholds": None if self.predictor.thresholds is None else self.predictor.thresholds.tolist(),
            "maps": self.explained is not None,
            "false_alarms": self.predictor.limits.false_alarms,
            "coverage": self.predictor.limits.coverage,
            "points": [
                asdict(of_images) | {"of_patients": None if of_means is None else asdict(of_means)}
                for of_images, of_means in self.points
            ],
        }

    def answer(self, content: bytes) -> dict[str, Any]:
        """Return what is said of a file that holds ``content``, ready for JSON. Of a file with
        several frames those are taken that the run has learned from: their mean is told, whether
        most of them are ``unlike``, and no set, and the one in their middle is shown, which
        ``note`` says.

        ``problem``: one line where it cannot be used, and then nothing else; else None. Of an
        image ``probabilities`` in the order of the classes, ``patient``, ``note``, ``unlike`` and
        ``set`` (its ``conformal_set``) as a ``Prediction`` has them, ``picture`` and, where there
        are maps and it is not unlike the training images, ``map`` to be laid over it, as data URIs.
        """
        try:
            count = 1 if self.frames == "first" else count_frames(content)
            if count == 1:
                return self._said(decode(content, self.depth))
            return self._of_clip(content, chosen(self.frames, count), count)
        except ImageError as error:
            return {"problem": error.reason}

    def warm_up(self) -> None:
        """Answer for a black picture, so that the first image need not wait for kernels to be
        compiled."""
        black = Decoded(np.zeros((8, 8), np.uint8), "L")
        self._said(black)
        self._map(black, 0)  # it has none where black is unlike the training images

    def _said(self, decoded: Decoded, frame: str = "") -> dict[str, Any]:
        """What is said of a picture; ``frame``: which of a file it is."""
        (found,) = self.predictor([decoded])
        if found.probabilities is None:
            return {"problem": found.problem}
        note = "; ".join(filter(None, (frame, found.note)))
        return self._shown(decoded, found.probabilities, note, found.unlike, found.conformal_set)

    def _of_clip(self, content: bytes, taken: Sequence[int], count: int) -> dict[str, Any]:
        """What is said of the frames that are ``taken``, from 0, of ``count``; one at a time is in
        memory. Raises ImageError where the one to be shown cannot be read."""
        middle = taken[len(taken) // 2]
        picture = replace(decode(content, self.depth, middle), frames=1)
        if len(taken) == 1:
            return self._said(picture, f"frame {middle + 1} of {count}")
        every = decode_frames(content, self.depth, taken)
        frames = (replace(one, frames=1) for one in every if isinstance(one, Decoded))
        (found,) = by_patient(self.predictor(frames), "mean", lambda one: "", lambda one: "")
        if found.probabilities is None:
            return {"problem": "the network's outputs are no finite numbers"}
        note = f"mean of {found.images} of {count} frames, shown is frame {middle + 1}"
        told = [count_of(found.noted, "frame has a note", "frames have a note")] * bool(found.noted)
        told += [f"{count_of(found.unlike, 'frame is', 'frames are')} unlike the training images"] * bool(found.unlike)
        unlike = 2 * found.unlike > found.images if self.predictor.limits.detectors else None
        return self._shown(picture, found.probabilities, "; ".join((note, *told)), unlike, None)

    def _shown(
        self,
        decoded: Decoded,
        probabilities: npt.NDArray[np.float64],
        note: str,
        unlike: bool | None,
        held: Sequence[str] | None,
    ) -> dict[str, Any]:
        return {
            "problem": None,
            "probabilities": probabilities.tolist(),
            "patient": decoded.patient,
            "note": note,
            "unlike": unlike,
            "set": None if held is None else list(held),
            "picture": _picture(decoded.pixels),
            "map": None if unlike else self._map(decoded, int(probabilities.argmax())),
        }

    def _map(self, decoded: Decoded, target: int) -> str | None:
        """The evidence for a class in colour, as a data URI."""
        if self.explained is None:
            return None
        preprocessing = self.explained.preprocessing
        image, _ = load(Path(), preprocessing, decoded)
        batch = normalise(image[None].to(self.predictor.device), preprocessing)
        (cam,) = grad_cam(self.explained, batch, torch.tensor([target]))
        height, width = decoded.pixels.shape[:2]
        colours, alpha = in_colour(on_picture(cam, height, width, preprocessing.resize).clip(0, 1))
        return _uri(Image.fromarray(np.rint(np.dstack([colours, 255 * alpha])).astype(np.uint8)), "PNG")

    def _points(self, run: Path, at: str | None) -> Iterator[tuple[OperatingPoint, OperatingPoint | None]]:
        """Operating points of probabilities as the page shows them, chosen on validation images;
        and beside each that of the means of patients, where validation images have known ones."""
        path = run_of(run) / VAL / PREDICTIONS
        if folds_of(run) or not path.is_file():
            if at is not None:
                raise ConfigError(
                    f"--at {at} chooses its threshold on the run's predictions of validation images, and {path} is "
                    f"missing; give the folder of a run that had some, or leave out --at"
                )
            return
        validation = with_temperature(read_predictions(path), self.predictor.temperature)
        patients = of_patients(validation)

        def both(wish: str) -> tuple[OperatingPoint, OperatingPoint | None]:
            point = point_at(validation, wish)
            with suppress(ConfigError):
                return point, point_at(patients.predictions, wish) if patients else None
            return point, None

        if at is not None:
            yield both(at)
        for name in self.predictor.classes:
            for figure in ("sensitivity", "specificity"):
                with suppress(ConfigError):  # no threshold reaches it
                    yield both(f"{name}:{figure}={SHARE}")


def _picture(pixels: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST, LONGEST))
    return _uri(picture, "JPEG")


def _uri(picture: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
