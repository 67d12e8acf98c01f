"""Save and load ``last/state.safetensors``: everything needed to resume a training exactly where it
stopped.

One file in one step, so its parts always belong together, and a kill at any byte leaves the file
before. It holds tensors and JSON; nothing is ever unpickled. No random number is kept: each is a
function of the seed, the epoch, and the step or the image.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
from pydantic import Field, StrictFloat, StrictInt, with_config
from torch import Tensor, nn

from medmambase import run_folder
from medmambase.config import CAME_LATER, CHANGE_NO_RESULT, ConfigError, TrainConfig
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.manifest.folders import DataError
from medmambase.files import as_written
from medmambase.model import tensor_file
from medmambase.model.classifier import Trainable
from medmambase.run_folder import IMAGES, SPLITS, STATE
from medmambase.tables import of_cell
from medmambase.training.history import Epoch
from medmambase.training.optimise import Average
from medmambase.validation import OBJECT, check

FORMAT = 1
_ENTRY = "training"  # of the file's header
MOST_NAMES = 5
OF_A_WEIGHT = ("exp_avg", "exp_avg_sq")  # what Adam and AdamW keep of each weight, beside the number of the step


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message names the file, what is wrong, and what to
    do."""


@dataclass
class Progress:
    """How far a training has come: the part of a checkpoint that is no tensor."""

    def check(self) -> None:
        """Raise ValueError where its numbers contradict each other."""


@with_config(OBJECT)
@dataclass
class State(Progress):
    """Progress of a training: ``step`` steps of ``epoch`` are done, and ``epochs`` are finished.

    ``sums`` are those of the epoch in work: losses, hits, and weights of its images. ``seconds`` is
    what it took so far. ``threads``: how many the epoch is computed with; 0: not chosen yet.
    """

    epoch: StrictInt = 1
    step: Annotated[StrictInt, Field(ge=0)] = 0
    sums: tuple[StrictFloat, StrictFloat, StrictFloat] = (0.0, 0.0, 0.0)
    seconds: StrictFloat = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    threads: Annotated[StrictInt, Field(ge=0)] = 0

    def check(self) -> None:
        """Raise ValueError where its numbers contradict each other."""
        if self.epoch != len(self.epochs) + 1 or (self.step > 0) != (self.sums[2] > 0):
            raise ValueError(f"epoch {self.epoch}, step {self.step} does not follow {len(self.epochs)} epochs")


N = TypeVar("N", bound=nn.Module)
P = TypeVar("P", bound=Progress)


@dataclass
class Learning(Generic[N]):
    """A network, its optimiser and the average of its weights."""

    network: N
    optimizer: torch.optim.Optimizer
    average: Average[N] | None

    @property
    def judged(self) -> N:
        """The network that is validated and saved: the average, where there is one."""
        return self.average.network if self.average else self.network

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; a prefix names their owner."""
        found = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        if self.average:
            found |= {f"average.{name}": t for name, t in self.average.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            found |= {f"optimizer.{name}.{what}": t for what, t in self.optimizer.state.get(parameter, {}).items()}
        return found

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what ``tensors`` returned. Raises LookupError, ValueError or RuntimeError for
        tensors of another training."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for key, t in tensors.items():
            if t.is_floating_point() and not t.isfinite().all():
                raise ValueError(f"{key} holds NaN or infinity")
            whose, _, name = key.partition(".")
            parts[whose][name] = t
        self.network.load_state_dict(parts["network"])
        if self.average:
            self.average.network.load_state_dict(parts["average"])
        parameters = dict(self.network.named_parameters())
        self.optimizer.state.clear()
        for key, t in parts["optimizer"].items():
            name, _, what = key.rpartition(".")
            parameter = parameters[name]
            if what in OF_A_WEIGHT:
                fits = t.is_floating_point() and t.shape == parameter.shape
            else:
                fits = t.dtype == torch.float32 and not t.shape  # steps, which are counted together
            if not fits:
                raise ValueError(f"optimizer.{key} is {t.dtype} {tuple(t.shape)}")
            # The optimiser walks through memory, so what it keeps of a parameter must lie as the
            # parameter does.
            like = parameter if what in OF_A_WEIGHT else t
            self.optimizer.state[parameter][what] = torch.empty_like(
                like, device=parameter.device, requires_grad=False
            ).copy_(t)
        learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if parts["optimizer"] and any({*self.optimizer.state[p]} != {"step", *OF_A_WEIGHT} for p in learning):
            raise ValueError("the optimiser's state of some parameter is not whole")


def describe(
    config: TrainConfig, network: Trainable, dtype: torch.dtype, processes: int, soft: Tensor | None = None
) -> dict[str, Any]:
    """Return everything that decides a training's result besides its images, by readable names; of
    ``soft`` labels a hash."""
    decides = {name: value for name, value in config.to_dict().items() if name not in CHANGE_NO_RESULT}
    own = {name: value for name, value in decides.items() if name not in CAME_LATER or value != CAME_LATER[name]}
    parts = {"model": network.config.to_dict(), "preprocessing": network.preprocessing.to_dict()}
    flat = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return (
        own
        | flat
        | {"classes": list(network.classes), "arithmetic": str(dtype).removeprefix("torch."), "processes": processes}
        | ({} if soft is None else {"soft labels": hashlib.blake2b(soft.numpy().tobytes(), digest_size=8).hexdigest()})
    )


def save(
    folder: Path,
    learning: Learning[Any],
    state: Progress,
    description: Mapping[str, Any],
    images: Mapping[str, ImageSet],
) -> None:
    """Write the state into ``folder`` atomically. Raises RunFolderError; the previous state then
    remains."""
    if not (folder / STATE).exists():
        run_folder.write_rows(
            folder / IMAGES,
            ("split", "name", "label", "pixels"),
            [row for split, part in images.items() for row in _listed(split, part)],
        )
    words = {"format": FORMAT, "state": asdict(state), "description": description, "images": _fingerprints(images)}
    run_folder.write_bytes(folder / STATE, tensor_file.as_bytes(learning.tensors(), _ENTRY, words))


def load(
    folder: Path, learning: Learning[Any], description: Mapping[str, Any], images: Mapping[str, ImageSet]
) -> State | None:
    """Load the state of a training: see ``load_progress``."""
    return load_progress(State, folder, learning, description, images)


def load_progress(
    kind: type[P],
    folder: Path,
    learning: Learning[Any],
    description: Mapping[str, Any],
    images: Mapping[str, ImageSet],
) -> P | None:
    """Load the state in ``folder``, of the kind that ``save`` was given, into ``learning``; return
    None if there is none.

    Raises ConfigError or DataError, with the differences, where settings or images are not those
    that the training began with, and CheckpointError.
    """
    from safetensors import SafetensorError

    path = folder / STATE
    advice = "delete it to train from the beginning, or start a new run"
    try:
        content = tensor_file.read_bytes(path)
        words = _words(content)
        if words["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: format is {words['format']!r}; this version reads format {FORMAT}; {advice}"
            )
        tensors = tensor_file.from_bytes(content, _ENTRY)
        _same_settings(path, words["description"], description)
        if words["images"] != _fingerprints(images):
            raise DataError(
                f"{folder}: the images differ from those of the start: {_changes(folder / IMAGES, images)}; {_ADVICE}"
            )
        state: P = check(f"{path}: state", words["state"], kind, CheckpointError)
        state.check()
        learning.fill(tensors)
        return state
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ConfigError:
        raise
    except (ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of this training, or damaged ({' '.join(str(error).split())[:200]}); {advice}"
        ) from error


_ADVICE = "restore what changed, or start a new run"


def refuse_other_names(run: Path, images: ImageSet) -> None:
    """Raise DataError where images were added to, or removed from, those that ``run`` began with,
    and others are learned from than then: splits that are drawn anew move images that have not
    changed, so that those which have are told by all splits together, from ``splits.csv``. What has
    other pixels tells ``load``."""
    try:
        with (run / SPLITS).open(encoding="utf-8-sig", newline="") as file:
            then = {of_cell(row["path"]): row["split"] for row in csv.DictReader(file)}
    except (OSError, ValueError, LookupError, csv.Error):
        return
    now = {as_written(sample.name): sample.split for sample in images.samples}
    moved = [name for name in now if name in then and now[name] != then[name]]
    changed = {"new": [name for name in now if name not in then], "gone": [name for name in then if name not in now]}
    learned = any("test" not in (now.get(name), then.get(name)) for names in changed.values() for name in names)
    if any(changed.values()) and (moved or learned):
        others = ", so that images which have not changed are in other splits" if moved else ""
        raise DataError(f"{run}: the images differ from those of the start: {_told(changed)}{others}; {_ADVICE}")


def position(folder: Path) -> tuple[int, int] | None:
    """Return the epoch and step from which the training in ``folder`` would resume; None if it
    would start from the beginning."""
    state = progress_in(folder)
    try:
        return int(state["epoch"]), int(state["step"])
    except (ValueError, LookupError, TypeError):
        return None


def progress_in(folder: Path) -> dict[str, Any]:
    """Return the state in ``folder`` as it was saved, without its tensors; {} where there is none,
    or it cannot be read."""
    try:
        state = _words(tensor_file.read_bytes(folder / STATE))["state"]
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _words(content: bytes) -> dict[str, Any]:
    """Read the JSON in a checkpoint. Raises ValueError, LookupError or TypeError for another
    file."""
    words: dict[str, Any] = json.loads(tensor_file.words_of(content)[_ENTRY])
    return words


def _same_settings(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    def shown(values: Mapping[str, Any], name: str) -> str:
        return json.dumps(values[name], ensure_ascii=False) if name in values else "not set"

    changed = [
        f"{name} was {shown(then, name)} and is {shown(now, name)}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)  # by value: 0 is also 0.0, and what did not exist yet was not set
    ]
    if changed:
        raise ConfigError(
            f"{path.parent}: the settings differ from those of the start: {'; '.join(changed)}; {_ADVICE}"
        )


def _fingerprints(images: Mapping[str, ImageSet]) -> dict[str, str]:
    return {split: part.fingerprint for split, part in images.items()}


def _listed(split: str, images: ImageSet) -> list[tuple[str, str, str, str]]:
    rows = zip(images.samples, images.labels.tolist(), images.facts, strict=True)
    return [(split, sample.name, str(label), facts.digest) for sample, label, facts in rows]


def _changes(path: Path, images: Mapping[str, ImageSet]) -> str:
    """Describe which images were added, removed or changed since ``path`` was written."""
    now = {row[1]: row for split, part in images.items() for row in _listed(split, part)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [map(of_cell, row) for row in list(csv.reader(file))[1:]]
            then = {name: (split, name, label, pixels) for split, name, label, pixels in rows}
    except (OSError, ValueError, csv.Error):
        return "which ones is unknown"
    kinds = {
        "new": [name for name in now if name not in then],
        "gone": [name for name in then if name not in now],
        "with different pixels": [name for name in now if name in then and now[name][3] != then[name][3]],
        "with another class": [name for name in now if name in then and now[name][2] != then[name][2]],
        "in another split": [name for name in now if name in then and now[name][0] != then[name][0]],
    }
    return _told(kinds) or "their order differs"


def _told(kinds: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(
        f"{len(names)} {kind} ({', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''})"
        for kind, names in kinds.items()
        if names
    )
