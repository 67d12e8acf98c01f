"""Train a run, from its settings to its report: everything around the training loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medmambase import distributed, packaged, run_folder
from medmambase.config import ConfigError
from medmambase.data import phantom
from medmambase.data.decoded.image_set import ImageSet, Progress, no_progress
from medmambase.data.manifest.csv_table import read_splits
from medmambase.data.manifest.folders import SPLITS, DataError, Manifest
from medmambase.data.manifest.joined import Duplicates
from medmambase.data.manifest.sources import read_manifest
from medmambase.distributed import Ranks
from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.report import answering, of_a_run, report, results
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.summary import benchmark, summary
from medmambase.inference.appearance import Appearance
from medmambase.inference.probabilities import choose_precision
from medmambase.inference.watch import Watch
from medmambase.machine import choose_device, environment
from medmambase.model import opponents
from medmambase.model.classifier import Trainable
from medmambase.model.network import MedMambaSE
from medmambase.model.starting import Start, write_origin
from medmambase.privacy import last_name
from medmambase.settings import Settings, is_run_of
from medmambase.training import batches, checkpoint, history, loop, session
from medmambase.training.history import Epoch, Outcome
from medmambase.training.live import LivePage
from medmambase.training.optimise import warm_up
from medmambase.training.plan import Plan, Say, Started, check_several, describe, locked
from medmambase.training.soft_labels import soft_labels
from medmambase_kernels import describe_backend, use_backend

DEMO_IMAGES_PER_CLASS = 400
CACHE = "cache"  # decoded images, below the folder of the runs, which is never taken for data

OnEpoch = Callable[[dict[str, float]], object]


@contextmanager
def started(
    settings: Settings, resumed: Path | None = None, progress: Progress = no_progress, patience: float = 0
) -> Iterator[Started[Plan[Settings]]]:
    """Check all settings, then create the run's folder, or continue ``resumed``; inside the
    context, the folder is locked and the backend chosen. ``progress``: as of ``train_run``;
    ``patience``: as of ``run_folder.held``.

    Raises, with nothing made, ConfigError, DataError, ImageError, WeightsError, BackendError and
    CheckpointError; and RunFolderError or RankError.
    """
    if not (settings.data or settings.demo):
        raise ConfigError("give a folder of images, a CSV or a MedMNIST .npz, or --demo to train on synthetic images")
    device = choose_device(settings.device, "--device")
    with use_backend(settings.backend or "auto", "--backend"), distributed.joined(device.type) as ranks:
        own = device if ranks.count == 1 or device.type != "cuda" else torch.device("cuda", ranks.local)
        plan = make_plan(settings, own, ranks, resumed, progress if ranks.first else no_progress)
        with locked(resumed, settings.runs, lambda: name_of(settings), ranks, patience) as folder:
            yield Started(plan, folder, resumes=resumed is not None, ranks=ranks)


def latest(settings: Settings) -> Path | None:
    """Return the newest run of these settings, finished or not: there the same command goes on when
    it is started again. None where there is none. Raises what ``run_folder.latest`` raises."""
    found = run_folder.existing(Path(settings.runs), name_of(settings))
    if not settings.name and Path(settings.data or "").name == run_folder.SPLITS:
        # Before, runs on the splits of another were called by the name of the table.
        found += run_folder.existing(Path(settings.runs), Path(run_folder.SPLITS).stem)
    anew = "train anew, choose another --name, or leave out --resume auto"
    return run_folder.latest(found, lambda folder: is_run_of(folder, settings), anew)


def make_plan(
    settings: Settings,
    device: torch.device,
    ranks: Ranks,
    resumed: Path | None,
    progress: Progress,
    manifest: Manifest | None = None,
) -> Plan[Settings]:
    """Check device, files and network; ``manifest``: which images there are, where that is known.
    Raises what ``started`` raises."""
    config = settings.training
    if resumed and settings.data and not Path(settings.data).exists():
        raise DataError(
            f"{settings.data}: the data of {resumed} was not found; give its new place: medmambase-train DATA "
            f"--resume {resumed}"
        )
    if settings.soft_labels and not Path(settings.soft_labels).is_file():
        raise DataError(f"--soft-labels {settings.soft_labels}: there is no such file; give a table of probabilities")
    dtype, why = choose_precision(config.precision, device)
    if settings.opponent is not None:
        opponents.check_installed(settings.opponent)
        engine = f"PyTorch's own operators, of which {settings.opponent} consists"
    else:
        engine = describe_backend(device, dtype)
    manifest = manifest or (None if settings.demo else _manifest(settings, progress, resumed))
    if manifest and manifest.multi_label:
        check_several(settings)
    if settings.soft_labels and manifest:
        table = last_name(settings.soft_labels)
        given = f"training images are learned, without label smoothing, half by the probabilities in {table}"
        if manifest.split("test"):
            given += ": if a network that gave them has learned from test images, test results are too good"
        manifest = replace(manifest, notes=(*manifest.notes, given))
    start: Start | opponents.PublishedWeights | None = None
    if resumed and session.has_begun(resumed):  # all weights are then in its checkpoint
        model = session.model_of(resumed)
    elif settings.weights:
        start, model = session.start(Path(settings.weights), config)
    else:
        model = settings.network()
        start = opponents.pretrained(settings.opponent) if settings.opponent is not None else None
    images = len(manifest.split("train")) if manifest else DEMO_IMAGES_PER_CLASS
    batches.check_batches(images, config.image_size, config.batch_size, model, ranks.count, config.mixup)
    precision = f"{str(dtype).removeprefix('torch.')}: {why}"
    return Plan(settings, model, start, manifest, device, dtype, precision, engine)


def train_run(
    run: Started[Plan[Settings]], command: str, say: Say, progress: Progress, on_epoch: OnEpoch | None = None
) -> None:
    """Train and evaluate a run and write its report, all into its folder.

    ``command``: how it was started, to be kept in ``command.txt``. ``say`` gets lines for a person,
    which ``train.log`` keeps; ``progress`` wraps what takes long, as tqdm does; ``on_epoch`` gets
    each new row of ``metrics.csv``, without its empty cells.

    Raises DataError where the images cannot be trained on, what ``loop.train`` raises, and
    FigureError, ReportError, RunFolderError or OSError where results cannot be written.
    KeyboardInterrupt comes after Ctrl-C, when all is saved.
    """
    plan, folder, ranks = run.plan, run.folder, run.ranks
    settings, config, device = plan.settings, plan.settings.training, plan.device
    called = session.settle(folder, settings, run.resumes, ranks.first)
    data = plan.manifest.root if plan.manifest else folder / run_folder.PHANTOM
    say = run_folder.logged(folder / run_folder.LOG, say, called.shown, data) if ranks.first else _silent
    show = progress if ranks.first else no_progress
    begun = run.resumes and session.has_begun(folder)
    say(f"run folder: {folder}")
    for note in packaged.notes(settings.start):
        say(note)
    if ranks.first and not run.resumes:
        session.write_command(folder, command, goes_on=False)
    manifest = plan.manifest or _demo(folder / run_folder.PHANTOM, settings, ranks, say)
    seen = plan.start.origin.seen if plan.start else ()
    intake = session.take_in(manifest, config, settings.in_chans, Path(settings.runs) / CACHE, show, called, seen)
    session.say_intake(intake, manifest, folder, say)
    if begun:
        checkpoint.refuse_other_names(folder, intake.images)
    if ranks.first and not begun:  # what a training began with stays what is told of it
        session.write_intake(intake, manifest, folder)
        of_a_run.draw_duplicates(intake.images, intake.audit, folder)
    session.check_intake(intake, manifest, folder, skip_bad=settings.on_bad == "skip", allow_leak=settings.allow_leak)
    torch.manual_seed(config.seed)
    if plan.start and ranks.first:
        write_origin(folder, plan.start.origin)
    network = session.begin(
        plan.model, plan.start, manifest.classes, intake.preprocessing, say, manifest.multi_label
    ).to(device)  # fmt: skip  # one argument list
    described = _describe(network, plan, ranks, folder, say)
    if ranks.first and not begun:
        run_folder.write_json(folder / run_folder.ENVIRONMENT, environment(device))
        run_folder.write_json(folder / run_folder.DESCRIPTION, described)

    live = LivePage(folder, config, described, say, wanted=config.live and ranks.first)

    def tell(epoch: Epoch) -> None:
        say(history.line(epoch))
        live.after(epoch)
        if on_epoch:
            on_epoch({name: value for name, value in asdict(epoch).items() if value is not None})

    def begins() -> None:
        if run.resumes:
            session.write_command(folder, command, goes_on=True)
        live.begin()

    training = intake.images.split("train")
    soft = soft_labels(Path(settings.soft_labels), training, network.classes) if settings.soft_labels else None
    with live:
        outcome = loop.train(
            network,
            training,
            intake.images.split("val"),
            config,
            folder,
            plan.dtype,
            show,
            tell,
            resume=run.resumes,
            say=say,
            ranks=ranks,
            soft=soft,
            begins=begins,
        )
        if ranks.first:
            chosen = {
                "best_epoch": outcome.best_epoch, "best_score": outcome.best_score, "selected_by": outcome.selected_by,
            }  # fmt: skip  # the file's content
            run_folder.write_json(folder / run_folder.DESCRIPTION, described | chosen)
            _evaluate(run, intake.images, intake.audit.leaked, outcome, command, say)


def _evaluate(
    run: Started[Plan[Settings]], images: ImageSet, leaked: frozenset[str], outcome: Outcome, command: str, say: Say
) -> None:
    """Evaluate the best network on validation and test images, draw explanations, and write the
    report."""
    plan, folder, settings = run.plan, run.folder, run.plan.settings
    best = opponents.load(folder / run_folder.BEST).to(plan.device)
    batch_size, test = settings.training.batch_size, images.split("test")
    with Watch(best) as watch:
        validation = of_a_run.predicted(best, images.split("val"), (), batch_size, plan.dtype)
    calibration = of_a_run.learn_from_validation(folder, validation)
    limits = of_a_run.learn_limits(
        folder, best, images.split("train"), validation, watch.take(), calibration, batch_size, plan.dtype
    )
    chosen_on = images.split("val") if calibration else images.split("train")
    run_folder.write_json(folder / run_folder.APPEARANCE, Appearance.of(chosen_on.facts).to_dict())
    if len(test.labels):
        data = last_name(settings.data) if settings.data else "the demo"
        results.note_access(folder, data, len(test.labels), command)
        published = Path(settings.data or "").suffix.casefold() == ".npz"
        with Watch(best) as watch:
            predictions = of_a_run.predicted(best, test, leaked, batch_size, plan.dtype)
        metrics = of_a_run.test(folder / run_folder.TEST, predictions, test, calibration, published)
        temperature = calibration.temperature if calibration else 1.0
        answering.write(folder / run_folder.TEST, predictions, limits, temperature, limits.distance(watch.take()))
        say(f"\n{summary(metrics)}\n{headline(metrics).sentence}")
        if published:
            say(benchmark(as_medmnist(predictions.labels, predictions.probabilities)))
    explained = isinstance(best, MedMambaSE) and not best.task.multi_label
    explains = "drawing explanations of a few images, and " if explained else ""
    say(f"\n{explains}writing the report")
    shown = next(
        (split for name in ("test", "val") if len((split := images.split(name)).labels)), images.split("train")
    )
    of_a_run.draw(best, shown, folder, outcome.best_epoch)
    say(f"\n{history.kept(outcome, settings.training)}; network: {folder / run_folder.BEST}")
    say(f"report: {report.write_report(folder).resolve()}")


def _describe(network: Trainable, plan: Plan[Settings], ranks: Ranks, folder: Path, say: Say) -> dict[str, Any]:
    """Print network, device, backend and precision; return the content of ``config.json``."""
    described = describe(network, plan, folder, say, ranks.count - 1)
    config = plan.settings.training
    if warm_up(config) < config.warmup:
        say(
            f"note: the learning rate rises over {warm_up(config):g} epochs, not over {config.warmup:g}: at most a "
            f"fifth of all epochs is warm-up"
        )
    return {
        "model": network.config.to_dict(), "training": plan.settings.training.to_dict(),
        "preprocessing": network.preprocessing.to_dict(), "classes": list(network.classes),
        **described,
    }  # fmt: skip  # the file's content


def name_of(settings: Settings) -> str:
    """Return the name of the run's folder, without its number: that of the data, also where the
    splits of another run stand for them."""
    if settings.name:
        return settings.name
    data = Path(settings.data or "demo").resolve()
    if data.name == run_folder.SPLITS and (trained_on := run_folder.data_of(data.parent)):
        if not trained_on.exists():  # gone, or on another system
            name = last_name(str(trained_on))
            return Path(name).stem if Path(name).suffix.casefold() in (".csv", ".npz") else name
        data = trained_on.resolve()
    return data.stem if data.is_file() else data.name


def duplicates_of(settings: Settings, progress: Progress) -> Duplicates | None:
    """Return what finds the duplicates that no split may separate; None where any may."""
    if not settings.keep_duplicates_together:
        return None
    return partial(
        session.duplicates, config=settings.training, in_chans=settings.in_chans, cached=Path(settings.runs) / CACHE,
        progress=progress,
    )  # fmt: skip  # one argument list


def _manifest(settings: Settings, progress: Progress, resumed: Path | None) -> Manifest:
    table = resumed / run_folder.SPLITS_OF_FOLD if resumed else None
    if table is None or not table.is_file():
        return _read(settings, progress)
    # A fold's images are divided as its cross-validation has divided all.
    restore = "restore it, or start anew with another --name"
    if lacking := {*SPLITS} - {split for split, _ in read_splits(table).values()}:
        raise DataError(f"{table}: names no image of {', '.join(sorted(lacking))}, and a fold has some; {restore}")
    own = replace(settings, splits=str(table), folds=0, fold=0, keep_duplicates_together=False)
    try:
        found = _read(own, progress)
    except DataError as error:
        if str(table) in str(error):
            raise
        raise DataError(f"{error}; these images are divided by {table}: if it was changed, {restore}") from error
    return replace(found, method=f"fold {settings.fold} of {settings.folds} of a cross-validation, {found.method}")


def _read(settings: Settings, progress: Progress) -> Manifest:
    return read_manifest(
        Path(settings.data or ""), seed=settings.seed_of_splits, runs=Path(settings.runs),
        group_regex=settings.group_regex, group_column=settings.group_column, folds=settings.folds, fold=settings.fold,
        allow_leak=settings.allow_leak, splits=Path(settings.splits) if settings.splits else None,
        class_names=settings.class_names, labels=settings.labels, frames=settings.frames,
        duplicates=duplicates_of(settings, progress),
    )  # fmt: skip  # by idea


def _demo(folder: Path, settings: Settings, ranks: Ranks, say: Say) -> Manifest:
    seed = settings.seed_of_splits  # so that trainings with other seeds have the same test images
    if ranks.first:
        say(f"generating {len(phantom.CLASSES) * DEMO_IMAGES_PER_CLASS} ultrasound-like images into {folder}")
        phantom.write_phantom(folder, images_per_class=DEMO_IMAGES_PER_CLASS, seed=seed)
    ranks.agree("drawn")  # the others wait here
    return read_manifest(folder, seed=seed, class_names=settings.class_names)


def _silent(line: str) -> None:
    """Print nothing: only the first of several processes does."""
