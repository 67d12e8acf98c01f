"""Pretrain, from the settings to the weights and their report: everything around the loop."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medmambase import packaged, run_folder
from medmambase.config import ConfigError, ModelConfig, Preprocessing
from medmambase.data.decoded.image_set import Progress
from medmambase.data.drawn_ahead import Drawing, processes
from medmambase.data.manifest.folders import DataError
from medmambase.data.phantom.scenes import SCENES, SMALLEST, STRUCTURES
from medmambase.evaluation.report import pretraining_figures
from medmambase.evaluation.report.pretraining_page import write_pretraining_page
from medmambase.inference.probabilities import choose_precision
from medmambase.machine import choose_device, environment
from medmambase.model import starting, weights
from medmambase.model.network import MedMambaSE
from medmambase.model.starting import Learned, Start, read_origin, write_origin
from medmambase.plural import count_of
from medmambase.pretraining import loop, unlabelled
from medmambase.pretraining.loop import Outcome, Round
from medmambase.pretraining.network import Pretrained
from medmambase.pretraining.settings import PretrainSettings, is_run_of
from medmambase.pretraining.tasks import CELL, DrawnPictures, HiddenParts, Task
from medmambase.privacy import without_paths
from medmambase.training import session
from medmambase.training.checkpoint import CheckpointError
from medmambase.training.plan import Plan, Say, Started, describe, locked
from medmambase.validation import nearest
from medmambase_kernels import describe_backend, use_backend

OnRound = Callable[[dict[str, float]], object]


@dataclass(frozen=True)
class PretrainPlan(Plan[PretrainSettings]):
    """Everything that is known before a folder is created; ``scenes`` are those to be drawn. It is
    MedMambaSE that learns."""

    model: ModelConfig
    start: Start | None
    scenes: tuple[str, ...]


@contextmanager
def started(settings: PretrainSettings, resumed: Path | None = None) -> Iterator[Started[PretrainPlan]]:
    """Check all settings, then create the run's folder, or continue ``resumed``; inside the
    context, the folder is locked and the backend chosen.

    Raises, with nothing made, ConfigError, DataError, WeightsError, BackendError and
    CheckpointError; and RunFolderError.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun has started this; a pretraining runs in one process: start it without torchrun")
    device = choose_device(settings.device, "--device")
    with use_backend(settings.backend or "auto", "--backend"):
        plan = make_plan(settings, device, resumed)
        with locked(resumed, settings.runs, lambda: name_of(settings)) as folder:
            yield Started(plan, folder, resumes=resumed is not None)


def latest(settings: PretrainSettings) -> Path | None:
    """Return the newest run of these settings, finished or not; None where there is none. Raises
    what ``run_folder.latest`` raises."""
    found = run_folder.existing(Path(settings.runs), name_of(settings))
    anew = "pretrain anew, choose another --name, or leave out --resume auto"
    return run_folder.latest(found, lambda folder: is_run_of(folder, settings), anew)


def name_of(settings: PretrainSettings) -> str:
    """Return the name of the run's folder, without its number."""
    data = Path(settings.data or "drawn").resolve()
    return settings.name or f"pretrain-{data.stem if data.is_file() else data.name}"


def make_plan(settings: PretrainSettings, device: torch.device, resumed: Path | None) -> PretrainPlan:
    """Check files, scenes and network. Raises what ``started`` raises."""
    if resumed and settings.data and not Path(settings.data).exists():
        raise DataError(
            f"{settings.data}: the images of {resumed} were not found; give their new place: medmambase-pretrain "
            f"IMAGES --resume {resumed}"
        )
    smallest = min(settings.image_size)
    if settings.drawn and smallest < SMALLEST:
        raise ConfigError(
            f"--image-size has {smallest}; drawn pictures have at least {SMALLEST} pixels, since less shows nothing"
        )
    if smallest < 2 * CELL:
        raise ConfigError(
            f"--image-size has {smallest}; images have at least {2 * CELL} pixels, since squares of {CELL} are hidden, "
            f"and of one alone nothing is left to restore it from"
        )
    dtype, why = choose_precision(settings.precision, device)
    start: Start | None = None
    if resumed and session.has_begun(resumed):  # all weights are then in its checkpoint
        begun = session.model_of(resumed)
        if not isinstance(begun, ModelConfig):
            raise CheckpointError(
                f"{resumed / run_folder.DESCRIPTION}: describes {begun.words()}, and only MedMambaSE is pretrained; "
                f"restore the file"
            )
        model = begun
    elif settings.weights:
        start = starting.read(Path(settings.weights))
        model = replace(start.config, odd="pad")
        _check_start(start, model, settings.weights)
    else:
        model = settings.network()
    manifest = None if settings.drawn else unlabelled.find(settings)
    scenes = _scenes(settings.scenes) if settings.drawn else ()
    precision = f"{str(dtype).removeprefix('torch.')}: {why}"
    engine = describe_backend(device, dtype)
    return PretrainPlan(settings, model, start, manifest, device, dtype, precision, engine, scenes)


def pretrain_run(
    run: Started[PretrainPlan], command: str, say: Say, progress: Progress, on_round: OnRound | None = None
) -> None:
    """Pretrain, and write the weights and their report into the run's folder.

    ``command``: how it was started, to be kept in ``command.txt``. ``say`` gets lines for a person,
    which ``train.log`` keeps; ``progress`` wraps what takes long, as tqdm does; ``on_round`` gets
    each new row of ``metrics.csv``, without its empty cells.

    Raises DataError where the images cannot be learned from, what ``loop.pretrain`` raises, and
    FigureError, ReportError, RunFolderError or OSError where results cannot be written.
    KeyboardInterrupt comes after Ctrl-C, when all is saved.
    """
    plan, folder, settings = run.plan, run.folder, run.plan.settings
    begun = run.resumes and session.has_begun(folder)
    if not run.resumes:
        private = settings.private()
        if private:
            run_folder.write_private(folder, private)
        run_folder.write_text(folder / run_folder.CONFIG, settings.to_toml(leave_out=private))
    say = run_folder.logged(folder / run_folder.LOG, say, data=plan.manifest.root if plan.manifest else None)
    say(f"run folder: {folder}")
    for note in packaged.notes(settings.start):
        say(note)
    if not run.resumes:
        session.write_command(folder, command, goes_on=False)
    if plan.start:
        write_origin(folder, plan.start.origin)
    task = _task(plan, folder, progress, say)
    torch.manual_seed(settings.seed)
    network = _network(plan, task, say).to(plan.device)
    described = _describe(network, plan, folder, say)
    if not begun:
        run_folder.write_json(folder / run_folder.ENVIRONMENT, environment(plan.device))
        run_folder.write_json(folder / run_folder.DESCRIPTION, described)

    def tell(one: Round) -> None:
        say(one.line())
        if on_round:
            on_round({name: value for name, value in one.row().items() if value is not None})

    def begins() -> None:
        if run.resumes:
            session.write_command(folder, command, goes_on=True)

    outcome = loop.pretrain(
        network, task, settings, folder, plan.dtype, progress, tell, resume=run.resumes, say=say, begins=begins
    )
    _write(plan, folder, task, outcome)
    say(f"\nweights: {folder / run_folder.PRETRAINED}")
    say(f"report: {write_pretraining_page(folder).resolve()}")


def _scenes(wish: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of scenes that were asked for. A name may hold commas, which also divide a list."""
    if wish is None:
        return SCENES
    parts, found = [part.strip() for name in wish for part in name.split(",")], []
    while parts:
        for end in range(len(parts), 0, -1):
            if (name := ", ".join(parts[:end])) in SCENES:
                break
        else:
            raise ConfigError(
                f"--scenes has {parts[0]!r}; the nearest is {nearest(parts[0], SCENES)!r}; there are "
                f"{', '.join(map(repr, SCENES))}"
            )
        found.append(name)
        del parts[:end]
    return tuple(name for name in SCENES if name in found)


def _check_start(start: Start, model: ModelConfig, path: str) -> None:
    """Say what does not fit before any image is read. Raises WeightsError."""
    with torch.device("meta"):  # shapes alone
        network = MedMambaSE(model, features_only=True)
    weights.match(network, start.tensors, start.config, path, frozenset({"head"}))


def _task(plan: PretrainPlan, folder: Path, progress: Progress, say: Say) -> Task:
    settings = plan.settings
    if plan.manifest is None:
        channels = 1 if settings.in_chans == "1" else 3
        preprocessing = Preprocessing(max(settings.image_size), channels)
        drawing = Drawing(settings.seed, plan.scenes, settings.speckle, settings.structure, channels)
        say(f"pictures:  drawn: {', '.join(plan.scenes)}")
        return DrawnPictures(settings, drawing, STRUCTURES, processes(settings.workers), preprocessing)
    decoded = unlabelled.take_in(plan.manifest, settings, progress)
    kind = "grey" if decoded.preprocessing.channels == 1 else "RGB"
    say(f"images:    {count_of(len(decoded.images.labels), 'image')} of {plan.manifest.root.name}, as {kind}")
    for note in decoded.notes:
        say(f"note: {note}")
    session.say_skipped(decoded.bad, folder, say)
    run_folder.write_json(
        folder / run_folder.DATA_REPORT,
        {
            "root": plan.manifest.root.name, "images": len(decoded.images.labels),
            "skipped": session.skipped(decoded.bad, plan.manifest.root),
            "notes": list(map(without_paths, decoded.notes)),
        },
    )  # fmt: skip  # the file's content
    return HiddenParts(settings, decoded.images, decoded.preprocessing)


def _network(plan: PretrainPlan, task: Task, say: Say) -> Pretrained:
    preprocessing = task.preprocessing
    model = replace(plan.model, in_chans=preprocessing.channels)
    if plan.start is None:
        backbone = MedMambaSE(model, preprocessing=preprocessing, features_only=True)
    else:
        start = replace(plan.start.config, odd="pad")
        backbone = MedMambaSE.start_from(
            plan.start.tensors, start, in_chans=preprocessing.channels, say=say, features_only=True,
            source=plan.settings.start,
        )  # fmt: skip  # what was asked for
        backbone.preprocessing = preprocessing
    return Pretrained(backbone, len(task.structures), task.pictures)


def _describe(network: Pretrained, plan: PretrainPlan, folder: Path, say: Say) -> dict[str, Any]:
    """Print network, device, backend and precision; return the content of ``config.json``."""
    backbone = network.backbone
    return {
        "model": backbone.config.to_dict(), "pretraining": plan.settings.deciding(),
        "preprocessing": backbone.preprocessing.to_dict(), **describe(backbone, plan, folder, say),
    }  # fmt: skip  # the file's content


def _write(plan: PretrainPlan, folder: Path, task: Task, outcome: Outcome) -> None:
    """Write the weights, what they have learned in figures, and the pictures."""
    settings, origin = plan.settings, read_origin(folder)
    seen = {facts.digest for images in task.images.values() for facts in images.facts}
    learned = Learned(
        source="drawn" if settings.drawn else "images",
        pictures=outcome.steps * settings.batch_size if settings.drawn else len(seen),
        steps=outcome.steps, batch_size=settings.batch_size, image_size=settings.image_size, seed=settings.seed,
        targets=task.targets, version=_version(), scenes=plan.scenes, speckle=settings.speckle,
        structure=settings.structure,
    )  # fmt: skip  # by idea
    all_seen = seen.union(origin.seen if origin else ())
    chain = (*(origin.learned if origin else ()), learned)
    backbone = outcome.network.backbone
    unrecorded = plan.settings.weights is not None if origin is None else origin.unrecorded
    sha256 = starting.write(
        folder / run_folder.PRETRAINED, backbone.state_dict(), backbone.config, chain,
        all_seen, unrecorded=unrecorded, half=settings.half,
    )  # fmt: skip  # what is in it
    last = outcome.measured
    low, high = last.interval or (None, None)
    run_folder.write_json(
        folder / run_folder.PRETRAINING,
        {
            "learned": [one.sentence() for one in chain], "sha256": sha256, "half": settings.half,
            "images_seen": len(all_seen), "unrecorded": unrecorded,
            "held_out": sum(len(batch.inputs) for batch in outcome.held_out), "losses": last.losses,
            "first_losses": outcome.rounds[0].held_out, "mean_auc": last.auc,
            "hundredth": asdict(outcome.hundredth) if outcome.hundredth else None,
            "mean_low": low, "mean_high": high, "structures": [asdict(one) for one in last.structures],
        },
    )  # fmt: skip  # the file's content
    pretraining_figures.curves(folder / run_folder.HISTORY, folder / run_folder.CURVES)
    batch = outcome.held_out[0]
    if batch.pictures is not None and last.first.pictures is not None:
        # Edges are predicted as logits.
        at = {name: place for place, name in enumerate(name for name in task.targets if name != "structures")}
        predicted = last.first.pictures
        if "edges" in at:
            predicted = predicted.clone()
            predicted[:, at["edges"]] = predicted[:, at["edges"]].sigmoid()
        pretraining_figures.pictures(folder / run_folder.PICTURES, batch.inputs, batch.pictures, predicted, tuple(at))


def _version() -> str:
    try:
        return metadata.version("medmambase")
    except metadata.PackageNotFoundError:
        return "0+unknown"
