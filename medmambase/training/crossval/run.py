"""Cross-validate, from settings to the report: cut the images into folds, train each, and put
together what they have predicted of the images that they have not learned from."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medmambase import packaged, run_folder
from medmambase.config import ConfigError
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.labels import in_words
from medmambase.data.manifest.multi_label import refuse
from medmambase.data.manifest.sources import read_images
from medmambase.data.manifest.splits import complete, write_splits
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.distributed import ALONE
from medmambase.evaluation import pooling
from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report import of_a_crossval, report, results
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.summary import benchmark, distilled, figure, over_folds, summary
from medmambase.files import as_written
from medmambase.machine import choose_device
from medmambase.plural import count_of
from medmambase.privacy import last_name
from medmambase.settings import Settings, is_run_of
from medmambase.tables import of_cell, table
from medmambase.training import session
from medmambase.training.crossval.distil import measured, prepare, settings_of
from medmambase.training.crossval.processes import places, train_folds
from medmambase.training.loop import TrainingError
from medmambase.training.plan import Plan, Say, locked
from medmambase.training.run import CACHE, duplicates_of, make_plan, name_of
from medmambase_kernels import use_backend

COLUMNS = ("path", "label", "patient", "fold")


@dataclass(frozen=True)
class Crossval:
    """A cross-validation that is ready to be trained, its folder locked by this process. ``cut``:
    the images as each fold divides them; ``device``: where nobody chose one for each fold;
    ``resumes`` if it was started before."""

    settings: Settings
    folder: Path
    cut: tuple[Manifest, ...]
    device: torch.device
    resumes: bool


def latest(settings: Settings) -> Path | None:
    """Return the newest cross-validation of these settings, finished or not; None where there is
    none. Raises what ``run_folder.latest`` raises."""
    found = run_folder.existing(Path(settings.runs), name_of(settings))
    anew = "train anew, choose another --name"
    return run_folder.latest(found, lambda folder: is_run_of(folder, settings, run_folder.CROSSVAL), anew)


@contextmanager
def started(settings: Settings, resumed: Path | None, progress: Progress = no_progress) -> Iterator[Crossval]:
    """Check all settings, then create the folder, or continue ``resumed``; inside the context, the
    folder is locked. ``progress`` wraps what takes long, as tqdm does. Raises what
    ``training.run.started`` raises, with nothing made."""
    if not settings.data:
        raise ConfigError("give a folder of images, or a CSV: a cross-validation cuts them into folds")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun has started this; a cross-validation starts its own processes, see --jobs")
    device = choose_device(settings.device, "--device")
    cut = _cut(settings, progress)
    begins = [
        fold for fold in range(settings.folds)
        if not resumed or not session.has_begun(run_folder.folds_of(resumed)[fold])
    ]  # fmt: skip  # one sentence
    with use_backend(settings.backend or "auto", "--backend"):
        for fold in begins[:1]:  # what is wrong with the settings is wrong with those of any fold
            plan = make_plan(replace(settings, fold=fold), device, ALONE, None, progress, cut[fold])
            _refuse_seen(plan, cut[fold], progress)
    with locked(resumed, settings.runs, lambda: name_of(settings)) as folder:
        yield Crossval(settings, folder, cut, device, resumes=resumed is not None)


def is_done(folder: Path, distil: bool) -> bool:
    """Return whether nothing is left to do in a cross-validation: the report, which comes last, is
    written, with ``distil`` since the loss was."""
    told, loss = folder / run_folder.REPORT, folder / run_folder.LOSS
    if not (told.is_file() and distil):
        return told.is_file()
    return loss.is_file() and loss.stat().st_mtime_ns <= told.stat().st_mtime_ns


def crossval_run(begun: Crossval, command: str, jobs: int | None, distil: bool, say: Say) -> None:
    """Train all folds that are not finished, and write the report; all into the folder of the
    cross-validation.

    ``command``: how it was started; ``jobs``: folds that are trained at a time, None to choose;
    ``distil``: train one more network, which learns from those of the folds; ``say`` gets lines for
    a person, which ``train.log`` keeps. Raises TrainingError where a fold failed, when all others
    have ended; DataError where the images have changed; MetricsError, FigureError, ReportError,
    RunFolderError or OSError where results cannot be read or written. After Ctrl-C
    KeyboardInterrupt comes when all is saved: the same settings go on.
    """
    settings, folder = begun.settings, begun.folder
    called = _settle(begun)
    shown = tuple(map(called.of_manifest, begun.cut))
    say = run_folder.logged(folder / run_folder.LOG, say, called.shown, begun.cut[0].root)
    say(f"run folder: {folder}")
    for note in packaged.notes(settings.start):
        say(note)
    session.write_command(folder, command, begun.resumes)
    divided = _divided(settings, shown)
    _write_parts(folder / run_folder.PARTS, divided, shown[0].classes)
    folds = run_folder.folds_of(folder)
    for number, fold in enumerate(folds):
        if not (fold / run_folder.CONFIG).is_file():
            fold.mkdir(exist_ok=True)
            write_splits(fold / run_folder.SPLITS_OF_FOLD, shown[number])
            session.write_settings(fold, replace(settings, fold=number), called)
    at = places(settings, begun.device, jobs)
    to_do = [fold for fold in folds if not run_folder.is_finished(fold)]
    say(f"data:       {count_of(len(divided.samples), 'image')}; {divided.method}")
    if to_do:
        say(f"processes:  {min(len(at), len(to_do))} at a time; {folds[0] / run_folder.LOG} tells of the first fold")
    failed: list[Path] = []

    def ended(fold: Path, problem: str | None) -> None:
        try:
            line = f"failed: {problem}" if problem else _worth(fold) if fold in folds else "done"
        except MetricsError as error:
            problem, line = str(error), f"failed: {error}"
        say(f"{fold.name}: {line}")
        failed.extend([fold] if problem else [])

    for fold in folds:
        if fold not in to_do:
            ended(fold, None)
    train_folds(to_do, settings, at, command, ended)
    if failed:
        raise TrainingError(
            f"{folder}: {count_of(len(failed), 'fold')} of {len(folds)} failed, for the reasons above; once they are "
            f"put right, the same command goes on with {'it' if len(failed) == 1 else 'them'}"
        )
    if not run_folder.is_finished(folder):
        _put_together(begun, divided, command, say)
    if distil:
        run = prepare(folder, settings, shown[0], divided, called)
        if not run_folder.is_finished(run):
            say("distilled:  one network learns from all of them")
            train_folds([run], settings_of(folder, settings), at[:1], command, ended)
        if failed:
            raise TrainingError(
                f"{folder}: the distilled network failed, for the reason above; the same command tries it again"
            )
        found = measured(folder, divided.together)
        run_folder.write_json(folder / run_folder.LOSS, found)
        say(distilled(found))
        say(f"report: {report.write_report(folder).resolve()}")


def _put_together(begun: Crossval, divided: pooling.Division, command: str, say: Say) -> None:
    """Write what the finished folds have predicted together, and the report."""
    settings, folder = begun.settings, begun.folder
    folds = run_folder.folds_of(folder)
    read = [pooling.of_fold(fold) for fold in folds]
    predictions = pooling.pooled([one for one, _ in read], divided)
    results.note_access(folder, last_name(settings.data or ""), len(predictions.names), command)
    every = [one for _, one in read]
    published = Path(settings.data or "").suffix.casefold() == ".npz"
    metrics = of_a_crossval.write(folder, folds, predictions, every, divided, published)
    say(f"\n{over_folds(pooling.over_folds(every, divided.together))}")
    what = "all networks together" if divided.together else "all folds"
    say(f"\n{summary(metrics, what)}\n{headline(metrics).sentence}")
    if published:
        say(benchmark(as_medmnist(predictions.labels, predictions.probabilities)))
    say(f"\nnetworks: {folder}, which predicts with all of them")
    say(f"report: {report.write_report(folder).resolve()}")


def _cut(settings: Settings, progress: Progress) -> tuple[Manifest, ...]:
    """The images as each fold divides them."""
    found = read_images(
        Path(settings.data or ""), runs=Path(settings.runs), group_regex=settings.group_regex,
        group_column=settings.group_column, class_names=settings.class_names, labels=settings.labels,
        frames=settings.frames,
    )  # fmt: skip  # by idea
    refuse(found, "a cross-validation takes one class an image; train folds with medmambase-train --folds 5 --fold 0")
    find = duplicates_of(settings, progress)
    groups = find([sample for sample in found.samples if sample.split != "test"]) if find else []
    return tuple(
        complete(
            found, settings.seed_of_splits, folds=settings.folds, fold=fold, allow_leak=settings.allow_leak,
            duplicates=(lambda pool: groups) if find else None, val_in_turn=True,
        )
        for fold in range(settings.folds)
    )  # fmt: skip  # one argument list


def _refuse_seen(plan: Plan[Settings], found: Manifest, progress: Progress) -> None:
    """Raise DataError where the weights to start from have learned from any of the images: each is
    of val or test in some fold."""
    if plan.start and (seen := plan.start.origin.seen):
        settings, every = plan.settings, tuple(replace(sample, split="test") for sample in found.samples)
        intake = session.take_in(
            replace(found, samples=every), settings.training, settings.in_chans, Path(settings.runs) / CACHE, progress,
            Pseudonyms(None), seen,
        )  # fmt: skip  # by idea
        session.refuse_seen(intake.audit.seen, found.root, None)


def _settle(begun: Crossval) -> Pseudonyms:
    """The pseudonyms of the patients, the same in all folds: a new cross-validation draws their
    key, and writes its settings."""
    folder, settings = begun.folder, begun.settings
    if begun.resumes:
        if run_folder.read_private(folder) is None:
            raise run_folder.RunFolderError(
                f"{folder / run_folder.PRIVATE}: is not there, and the pseudonyms of all folds are made with the key "
                f"in it; restore it, or start anew with another --name"
            )
        called = Pseudonyms.of_run(folder)
        assert called is not None  # None is what that file's absence gives
        return called
    called = Pseudonyms.new(settings.plain_patients)
    session.write_settings(folder, settings, called, run_folder.CROSSVAL)
    return called


def _divided(settings: Settings, cut: tuple[Manifest, ...]) -> pooling.Division:
    """How the images are divided: where all folds are tested on the same ones, the data have a test
    split of their own. Images are named as the files of the folds have them."""
    cut = tuple(
        replace(one, samples=tuple(replace(sample, name=as_written(sample.name)) for sample in one.samples))
        for one in cut
    )
    samples = cut[0].samples
    tested = [{sample.name for sample in manifest.split("test")} for manifest in cut]
    together = tested[0] == tested[1]
    held_out = [manifest.split("val" if together else "test") for manifest in cut]
    fold_of: dict[str, int | None] = {sample.name: fold for fold, part in enumerate(held_out) for sample in part}
    by = cut[0].method.partition(" by ")[2].partition(",")[0]  # what no fold separates
    rest = (
        "is the validation set of the network that learns from the others, and all networks are tested on the test set "
        "in the data"
        if together
        else "is tested by the network that learns from the others, of which 15 % are its validation set"
    )
    method = f"{settings.folds} folds by {by}, stratified, seed {settings.seed_of_splits}; each {rest}"
    notes = tuple(note for note in cut[0].notes if all(note in manifest.notes for manifest in cut))
    return pooling.Division(samples, method, fold_of | dict.fromkeys(tested[0] if together else ()), notes)


def _write_parts(path: Path, divided: pooling.Division, classes: tuple[str, ...]) -> None:
    """Write which fold each image is held out of. Raises DataError where that is not what was
    written when the cross-validation began."""
    rows = sorted(
        (sample.name, in_words(classes, sample.label), sample.patient, "test" if fold is None else str(fold))
        for sample, fold in ((sample, divided.fold_of[sample.name]) for sample in divided.samples)
    )
    if not path.is_file():
        run_folder.write_text(path, table(COLUMNS, rows))
        return
    try:
        with path.open(encoding="utf-8", newline="") as file:
            before = {tuple(map(of_cell, row)) for row in csv.reader(file)} - {COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore it, or start anew with another --name") from error
    if changed := sorted({row[0] for row in before ^ set(rows) if row}):
        raise DataError(
            f"{path}: {count_of(len(changed), 'image is', 'images are')} not as when the cross-validation began, "
            f"such as {changed[0]}; put the images back, or start anew with another --name"
        )


def _worth(fold: Path) -> str:
    """What a finished fold is worth, in one line."""
    _, found = pooling.of_fold(fold)
    of = "" if found.patients is None else f" of {count_of(found.patients, 'patient')}"
    return (
        f"{count_of(found.images, 'test image')}{of}, balanced accuracy {figure(found.figures['balanced_accuracy'])}, "
        f"AUC {figure(found.figures['auc'])}"
    )
