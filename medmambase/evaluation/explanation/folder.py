"""Write the folder ``explain/``: what a network looks at on some images, and whether that can be
believed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.data.manifest.folders import DataError, image_files
from medmambase.data.reading.frames import chosen, file_and_frame, framed_name
from medmambase.data.reading.images import ImageError, count_frames, load
from medmambase.evaluation.explanation import faithfulness, figures, maps
from medmambase.evaluation.explanation.overlays import write_overlays
from medmambase.evaluation.explanation.page import Explained, write_page
from medmambase.files import write_json
from medmambase.model.classifier import Classifier
from medmambase.model.task import SINGLE_LABEL
from medmambase.run_folder import FAITHFULNESS, FAITHFULNESS_CURVES, GATES, SE_STAGES, SHEETS

ON_A_SHEET = 6
MOST_SHEETS = 4
MOST_MEASURED = 32  # images for the faithfulness
_BATCH = 8


@dataclass(frozen=True)
class Subjects:
    """Images to explain: ``pictures`` torch.uint8 (n, c, h, w) as the network was given them, their
    ``names``, and their ``truths``, indices of classes, where they are known."""

    pictures: Tensor
    names: tuple[str, ...]
    truths: tuple[int, ...] | None


def read_subjects(
    source: Path, network: Classifier, most: int, frames: str = "first"
) -> tuple[Subjects, tuple[ImageError, ...]]:
    """Read up to ``most`` images of a file, of a frame (``clip.gif#07``) or of a folder as the
    network takes them; and what could not be read. Of a file with several frames that in the middle
    of those that ``frames`` chooses is taken, and named as a frame.

    Below a folder that has a class's name an image is taken to be of that class; truths are known
    where that says something of every image. Raises DataError where no image can be read.
    """
    pictures, paths, names, bad = [], [], [], []
    file, asked = file_and_frame(source)
    for path in islice(_in_turn(file), most):
        count = 1 if frames == "first" or asked is not None else count_frames(path)
        taken = chosen(frames, count)
        frame = taken[len(taken) // 2] if asked is None else asked
        try:
            picture, facts = load(path, network.preprocessing, frame=frame)
            pictures.append(picture)
            paths.append(path)
            names.append(framed_name(str(path), frame, facts.frames) if facts.frames > 1 else str(path))
        except ImageError as error:
            bad.append(error)
    if not pictures:
        why = f"; {bad[0]}" if bad else " (png, jpg, bmp, gif, tif, webp, pgm, jp2, dcm are read)"
        raise DataError(f"{source}: no image that can be read{why}")
    number = {name: index for index, name in enumerate(network.classes)}
    truths = [next((number[part] for part in reversed(path.parts[:-1]) if part in number), None) for path in paths]
    known = None if None in truths else tuple(label for label in truths if label is not None)
    return Subjects(torch.stack(pictures), tuple(names), known), tuple(bad)


def _in_turn(source: Path) -> Iterator[Path]:
    """Image files, one of each folder in turn, so that a few of them are not all of one class."""
    folders: dict[Path, list[Path]] = {}
    for path in image_files(source):
        folders.setdefault(path.parent, []).append(path)
    longest = max(map(len, folders.values()), default=0)
    yield from (paths[turn] for turn in range(longest) for paths in folders.values() if turn < len(paths))


def write(
    folder: Path,
    network: nn.Module,
    classes: Sequence[str],
    images: Tensor,
    subjects: Subjects,
    overlaid: Preprocessing | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Draw every picture and return what ``faithfulness.json`` holds. images (n, c, h, w),
    normalised, on the network's device. ``overlaid``: how they were prepared, where the names of
    the subjects are files and each is to be drawn with its map over it, on a page.
    ``progress(items, total, description)`` may wrap what takes long, as tqdm does. Raises OSError.

    Each image is explained for the class it is called, not the one it is: that is what a person
    sees. Sheets of earlier images are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob(SHEETS), *folder.glob(SE_STAGES)):
        old.unlink()
    parts = images.split(_BATCH)
    probabilities = torch.cat([_predict(network, part) for part in parts])
    called = torch.from_numpy(SINGLE_LABEL.called(probabilities.double().numpy()))
    shown = range(min(len(images), ON_A_SHEET * MOST_SHEETS))
    cams = torch.cat(
        [
            maps.grad_cam(network, part, target)
            for part, target in zip(progress(parts, len(parts), "computing maps"), called.split(_BATCH), strict=True)
        ]
    )
    overlays = write_overlays(folder, subjects.names, cams.cpu(), overlaid, progress) if overlaid else []
    scans = torch.cat([maps.deltas(network, part) for part in images[: len(shown)].split(_BATCH)])
    starts = shown[::ON_A_SHEET]
    for number, start in enumerate(progress(starts, len(starts), "drawing sheets"), start=1):
        rows = range(start, min(start + ON_A_SHEET, len(shown)))
        captions = [
            _caption(subjects, classes, row, int(called[row]), float(probabilities[row, called[row]])) for row in rows
        ]
        part = slice(rows.start, rows.stop)
        figures.sheet_of(
            subjects.pictures[part], cams[part], scans[part], captions, folder / SHEETS.replace("*", f"{number:02}")
        )
    _gates(folder, network, classes, images, called if subjects.truths is None else torch.tensor(subjects.truths))
    measured = slice(0, MOST_MEASURED)
    marked, chance = faithfulness.measure(
        lambda batch: _predict(network, batch), images[measured], cams[measured], called[measured], progress=progress
    )
    figures.faithfulness_of(marked, chance, folder / FAITHFULNESS_CURVES)
    told = {
        name: dict(zip(("deletion", "insertion"), (float(area.mean()) for area in curves.areas()), strict=True))
        for name, curves in (("cam", marked), ("random", chance))
    }
    found = told | {"images": len(marked.deletion), "verdict": faithfulness.verdict(marked, chance)}
    write_json(folder / FAITHFULNESS, found)
    if overlaid:
        write_page(folder, [
            Explained(
                Path(subjects.names[row]).name, path.name, classes[int(called[row])],
                float(probabilities[row, called[row]]), classes[subjects.truths[row]] if subjects.truths else "",
            )
            for row, path in enumerate(overlays)
        ], found)  # fmt: skip  # one a picture
    return found


def _predict(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        return SINGLE_LABEL.probabilities(network(images)).float()


def _caption(
    subjects: Subjects, classes: Sequence[str], row: int, called: int, probability: float
) -> tuple[str, str, str]:
    truth = "" if subjects.truths is None else f"is {classes[subjects.truths[row]]}"
    return f"{classes[called]}: {probability:.0%}", truth, Path(subjects.names[row]).name


def _gates(folder: Path, network: nn.Module, classes: Sequence[str], images: Tensor, labels: Tensor) -> None:
    """Maps before and after squeeze-and-excitation, and the mean gates of each class; nothing of a
    network without."""
    parts = [maps.recalibration(network, part) for part in images.split(_BATCH)]
    if not parts[0]:
        (folder / GATES).unlink(missing_ok=True)
        return
    present = sorted(set(labels.tolist()))
    first = [labels.tolist().index(label) for label in present][: figures.MOST_ROWS]
    means: list[np.ndarray] = []
    for number in range(len(parts[0])):
        stage = maps.Recalibration(
            parts[0][number].stage,
            *(torch.cat([getattr(part[number], name) for part in parts]) for name in ("before", "after", "gates")),
        )
        chosen = maps.Recalibration(stage.stage, stage.before[first], stage.after[first], stage.gates[first])
        figures.recalibration(
            chosen,
            images[first],
            [classes[int(labels[row])] for row in first],
            folder / SE_STAGES.replace("*", str(stage.stage)),
        )
        means.append(np.stack([stage.gates[labels == label].mean(0).numpy() for label in present]))
    figures.gates_of(means, [classes[label] for label in present], folder / GATES)
