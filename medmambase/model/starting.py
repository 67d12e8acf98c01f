"""Read the weights that a network starts from, and write those that a pretraining has learned.

A file of ours, ``weights.safetensors``, holds a network without its head, and its header says what
it has learned from: how many drawn pictures of which scenes, or which images, by the hashes of
their contents. So a training can refuse weights that have seen an image it is to be tested on.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import StrictBool, StrictInt, with_config
from safetensors import SafetensorError
from torch import Tensor

from medmambase import packaged, run_folder
from medmambase.config import ModelConfig, Preprocessing
from medmambase.files import read_json
from medmambase.model import tensor_file, weights
from medmambase.model.weights import WeightsError
from medmambase.plural import count_of
from medmambase.run_folder import (
    BEST,
    CONFIG,
    CROSSVAL,
    DESCRIPTION,
    FOLD,
    IMAGES,
    LAST,
    PRETRAINED,
    START,
    WEIGHTS,
)
from medmambase.validation import OBJECT, check

FORMAT = 1
NEW_WEIGHTS = "none: new weights"  # what a run says of its start where it started from none
KEY = "medmambase"  # of what the file says of itself
_SHOWN = 12  # digits of a hash in a sentence


@with_config(OBJECT)
@dataclass(frozen=True)
class Learned:
    """What a pretraining has learned from, and how long.

    ``pictures``: how many different ones; ``steps`` of ``batch_size`` each; ``image_size`` in
    pixels. ``targets`` were predicted from them. Drawn ones show ``scenes``, with ``speckle`` and
    ``structure`` or without. ``version`` of this package.
    """

    source: Literal["drawn", "images"]
    pictures: StrictInt
    steps: StrictInt
    batch_size: StrictInt
    image_size: tuple[StrictInt, ...]
    seed: StrictInt
    targets: tuple[str, ...]
    version: str
    scenes: tuple[str, ...] = ()
    speckle: StrictBool = True
    structure: StrictBool = True

    def sentence(self) -> str:
        """Return it as a clause: "64 drawn pictures (...)"."""
        what = count_of(self.pictures, "drawn picture" if self.source == "drawn" else "unlabelled image")
        without = [word for word in ("speckle", "structure") if not getattr(self, word)]
        facts = [
            f"scenes {', '.join(map(repr, self.scenes))}" if self.scenes else "",  # whose names may hold commas
            f"without {' and '.join(without)}" if without else "",
            f"targets {', '.join(self.targets)}",
            f"{count_of(self.steps, 'step')} of {self.batch_size}",
            f"{', '.join(map(str, self.image_size))} px",
            f"seed {self.seed}",
        ]
        return f"{what} ({'; '.join(filter(None, facts))})"


@with_config(OBJECT)
@dataclass(frozen=True)
class Origin:
    """Where weights come from: the last name of their path, the SHA-256 of their file, every
    pretraining that they went through, the first one first, and the hashes (``Facts.digest``) of
    all images that these, and the run whose network it is, have trained on. ``unrecorded``: whether
    they may have learned from images that nobody has recorded, as the networks of earlier trainings
    and others' checkpoints."""

    name: str
    sha256: str
    learned: tuple[Learned, ...] = ()
    seen: tuple[str, ...] = ()
    unrecorded: StrictBool = False

    def sentence(self) -> str:
        """Return it in one line, for a person."""
        each = [one.sentence() for one in self.learned] + ["images that are not recorded"] * self.unrecorded
        learned = ", then from ".join(each)
        drawn = self.learned and not self.unrecorded and all(one.source == "drawn" for one in self.learned)
        return (
            f"{self.name} (SHA-256 {self.sha256[:_SHOWN]}...){f', learned from {learned}' if learned else ''}"
            f"{', so there is no patient in them' if drawn else ''}"
        )


@dataclass(frozen=True)
class Start:
    """Tensors to start from, under our names or the originals', and the architecture that they
    belong to. ``classes`` are () where there is no head, or nobody knows their names;
    ``preprocessing`` is None where nobody knows it."""

    tensors: Mapping[str, Tensor]
    config: ModelConfig
    origin: Origin
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


def read(path: Path) -> Start:
    """Read weights: of a pretraining (its folder, or the file in it), of a network's own folder
    (``best/``, or the file in it), or of a checkpoint of MedMamba or of the MedMambaSE notebook.

    Raises WeightsError.
    """
    if not path.exists():
        raise WeightsError(
            f"{path}: there is no such file or folder, {packaged.hint(path.name)}; give the folder that "
            f"medmambase-pretrain wrote, a network's folder such as runs/data-001/best, or a checkpoint"
        )
    path = path / PRETRAINED if (path / PRETRAINED).is_file() else path
    if path.suffix == ".safetensors" and path.is_file():
        content = _safetensors(path)
        if (said := tensor_file.words_of(content).get(KEY)) is not None:
            return _of_pretraining(path, content, said)
    folder = path.parent if path.name == WEIGHTS and (path.parent / DESCRIPTION).is_file() else path
    if folder.is_dir():
        return _of_network(folder)
    tensors, config = weights.read_upstream(path)
    return Start(tensors, config, Origin(path.name, _hash(_content(path)), unrecorded=True))


def read_origin(run: Path) -> Origin | None:
    """Read which weights ``run`` started from; None where it started from none. Raises
    WeightsError."""
    path = run / START
    try:
        found: Origin = check(f"{path}: start", read_json(path), Origin, WeightsError)
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); restore the file") from error


def lost_origin(run: Path) -> bool:
    """Return whether ``run`` says that its network started from weights, and not any more from
    which."""
    if (run / START).exists():
        return False
    try:
        said = read_json(run / DESCRIPTION)["start"]
    except (OSError, ValueError, LookupError, TypeError):  # not there, damaged, or of before, when none was recorded
        return False
    return bool(said != NEW_WEIGHTS)


def write_origin(run: Path, origin: Origin) -> None:
    """Write what ``read_origin`` reads. Raises RunFolderError."""
    run_folder.write_json(run / START, asdict(origin))


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    learned: Iterable[Learned],
    seen: Iterable[str],
    *,
    unrecorded: bool = False,
    half: bool = False,
) -> str:
    """Write the weights of a network without its head, and return the SHA-256 of the file. The
    same weights give the same bytes.

    ``half``: weights of two axes and more in float16, which halves the file; biases, norms and
    statistics, a hundredth of it, keep their range. Raises RunFolderError, and WeightsError for a
    weight that float16 cannot hold.
    """
    plain = {name: t.detach() for name, t in tensors.items() if not name.startswith("head.")}
    if half:
        plain = {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in plain.items()}
        if bad := [name for name, t in plain.items() if not t.isfinite().all()]:
            raise WeightsError(f"{path}: {bad[0]} is too large for float16; leave out half (--half)")
    said = {
        "format": FORMAT,
        "model": config.to_dict(),
        "learned": [asdict(one) for one in learned],
        "seen": sorted(set(seen)),
        "unrecorded": unrecorded,
    }
    content = tensor_file.as_bytes(plain, KEY, said)
    run_folder.write_bytes(path, content)
    return _hash(content)


def _of_pretraining(path: Path, content: bytes, said: object) -> Start:
    try:
        words = json.loads(said) if isinstance(said, str) else None
        if not isinstance(words, dict) or words.get("format") != FORMAT:
            found = words.get("format") if isinstance(words, dict) else said
            raise WeightsError(f"{path}: format is {found!r:.80}; this version reads format {FORMAT}")
        config = ModelConfig.from_dict(words["model"])
        name = path.parent.name if path.name == PRETRAINED else path.name
        if path.resolve().parent == packaged.FOLDER.resolve():
            name = f"{path.stem} of medmambase, {packaged.LICENCE}"
        origin: Origin = check(
            f"{path}: header",
            {"name": name, "sha256": _hash(content)} | {key: words[key] for key in ("learned", "seen", "unrecorded")},
            Origin,
            WeightsError,
        )
        tensors = tensor_file.from_bytes(content, KEY)
        sizes = origin.learned[-1].image_size if origin.learned else ()
        preprocessing = Preprocessing(size=max(sizes, default=Preprocessing().size), channels=config.in_chans)
    # ConfigError is a ValueError.
    except (ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); restore the file") from error
    weights.check_size(path, config, tensors, "the file holds")
    return Start(tensors, config, origin, preprocessing=preprocessing)


def _of_network(folder: Path) -> Start:
    for kind, one in (("run", folder), ("cross-validation", folder / f"{FOLD}0")):
        if (one / BEST).is_dir():
            raise WeightsError(f"{folder}: is the folder of a {kind}; give one of its networks, such as {one / BEST}")
    if not (folder / WEIGHTS).is_file() and ((folder / CONFIG).is_file() or (folder / CROSSVAL).is_file()):
        raise WeightsError(f"{folder}: has no weights yet, because its training has not ended; go on with it first")
    tensors, config, classes, preprocessing = weights.read_folder(folder)
    if not isinstance(config, ModelConfig):
        raise weights.not_ours(folder, config)
    resolved = folder.resolve()
    inside = resolved.name in (BEST, LAST)
    before = read_origin(resolved.parent) if inside else None
    seen = _trained_on(resolved.parent) if inside else set()
    origin = Origin(
        f"{resolved.parent.name}/{resolved.name}" if inside else resolved.name,
        _hash(_content(folder / WEIGHTS)),
        before.learned if before else (),
        tuple(sorted(seen.union(before.seen if before else ()))),
        unrecorded=True,
    )
    return Start(tensors, config, origin, classes, preprocessing)


def _trained_on(run: Path) -> set[str]:
    """The hashes of the images that a run has trained on; none where it has lost the list of them.
    Those that it was only validated or tested on may be validated or tested on again."""
    path = run / LAST / IMAGES
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["pixels"] for row in rows if row["split"] == "train"} - {"", None}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError, LookupError, csv.Error) as error:  # what is no UTF-8 is a ValueError
        raise WeightsError(
            f"{path}: cannot be read ({error}); restore it: it tells which images the network was trained on"
        ) from error


def _safetensors(path: Path) -> bytes:
    try:
        return tensor_file.read_bytes(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from error
    except ValueError as error:
        raise WeightsError(f"{path}: is no safetensors file, or is damaged ({error}); restore the file") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from error


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
