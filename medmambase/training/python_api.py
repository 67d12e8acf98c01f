"""Train from Python, and read the results: ``run = medmambase.train("scans", epochs=20)``, or, of
all images, ``run = medmambase.crossval("scans", folds=5, epochs=20)``."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from medmambase import packaged, run_folder
from medmambase import settings as known
from medmambase.config import ConfigError, Positive, Precision
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.evaluation import judged
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.predictions import MetricsError
from medmambase.files import no_folder, read_json
from medmambase.inference.predictor import Predictor
from medmambase.model import opponents
from medmambase.model.classifier import Trainable
from medmambase.privacy import without_folders
from medmambase.run_folder import RunFolderError, is_finished
from medmambase.settings_file import todays
from medmambase.training.crossval import run as crossvals
from medmambase.training.plan import Say
from medmambase.training.run import OnEpoch, latest, started, train_run
from medmambase.validation import check, check_functions, check_path, nearest


@dataclass(frozen=True)
class ResultFolder:
    """A folder of results: that of a run, of a cross-validation or of a pretraining."""

    _KIND: ClassVar[str]  # what it is
    _FILE: ClassVar[str]  # that tells it
    _EXAMPLE: ClassVar[str]
    _UNENDED: ClassVar[str]  # why a file is not there yet, and what to do

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", check_path("folder", self.folder))
        if not (self.folder / self._FILE).is_file():
            raise self._other(f"it has no {self._FILE}" if self.folder.is_dir() else no_folder(self.folder))

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def report(self) -> Path:
        """The path of ``report.html``. Raises RunFolderError where it is not written yet, or is
        only that of a training which has not ended."""
        return self._written(run_folder.REPORT, is_finished(self.folder))

    def _other(self, why: str) -> RunFolderError:
        return RunFolderError(f"{self.folder}: not {self._KIND}: {why}; give one such as {self._EXAMPLE}")

    def _written(self, name: str, ended: bool = True) -> Path:
        path = self.folder / name
        if not (ended and path.is_file()):
            raise RunFolderError(f"{path}: not written yet: {self._UNENDED}")
        return path


class _Trained(ResultFolder):
    """The folder of trained networks, that of a run or of a cross-validation."""

    _EXAMPLE = "runs/data-001"

    @property
    def metrics(self) -> AnyMetrics | None:
        """The metrics of the test images, with intervals (of a cross-validation those of all folds
        together); None where there are no test images, or the training has not ended. Raises
        MetricsError for a damaged file."""
        path = self.folder / run_folder.TEST / run_folder.METRICS
        try:
            return judged.from_dict(read_json(path)) if path.is_file() else None
        except (OSError, ValueError) as error:  # MetricsError is a ValueError
            raise MetricsError(f"{path}: {error}; medmambase-evaluate {self.folder} writes it again") from error

    def predictor(
        self,
        *,
        device: str | None = None,
        calibrated: bool | None = None,
        backend: str | None = None,
        precision: Precision = "auto",
    ) -> Predictor:
        """Return a predictor with the best network, or with those of all folds; arguments and
        errors are those of ``Predictor.load``."""
        return Predictor.load(self, device=device, calibrated=calibrated, backend=backend, precision=precision)


class Run(_Trained):
    """The folder of a training run, finished or interrupted: ``Run("runs/scans-001")``.

    It can be given wherever its folder can, as in ``Predictor.load(run)``. Raises RunFolderError
    where there is no such folder, or training has not written it.
    """

    _KIND, _FILE = "a run folder", run_folder.CONFIG
    _UNENDED = "the training has not ended; continue with resume()"

    def __post_init__(self) -> None:
        super().__post_init__()
        if run_folder.writer_of(self.folder) == "pretraining":
            raise self._other("a pretraining wrote it, for PretrainRun to open")

    @cached_property
    def network(self) -> Trainable:
        """The best network, in evaluation mode, on the CPU: MedMambaSE, or an opponent. Raises
        WeightsError, and ConfigError where an opponent's package is not installed."""
        return opponents.load(self.folder / run_folder.BEST)

    def resume(
        self,
        *,
        say: Say | None = None,
        progress: Progress | None = None,
        on_epoch: OnEpoch | None = None,
        **settings: Any,
    ) -> "Run":
        """Continue an interrupted training exactly where it stopped.

        ``settings``: those that change no result, which are ``data`` (where the images lie now),
        ``device``, ``graphs``, ``cache``, ``save_every``, ``live`` and ``tensorboard``. The rest,
        and the errors, are those of ``train``; CheckpointError is raised where the saved state
        cannot be used.
        """
        check_functions({"say": say, "progress": progress, "on_epoch": on_epoch}, ConfigError)
        given = given_settings(settings, known.TYPES)
        call = call_of("Run.resume", given)
        return _train(known.of_run(self.folder, given), self.folder, call, say, progress, on_epoch)


class CrossvalRun(_Trained):
    """The folder of a cross-validation, finished or interrupted: ``CrossvalRun("runs/scans-001")``.

    It can be given wherever its folder can: ``Predictor.load(run)`` predicts with the networks of
    all folds. Raises RunFolderError where there is no such folder, or it is none of a
    cross-validation.
    """

    _KIND, _FILE = "a cross-validation", run_folder.CROSSVAL
    _UNENDED = "the training has not ended; call crossval again, with the same settings"

    @property
    def folds(self) -> tuple[Run, ...]:
        """The run of each fold, in order. Raises RunFolderError where one was never begun."""
        return tuple(map(Run, run_folder.folds_of(self.folder)))

    @property
    def distilled(self) -> Run | None:
        """The run of the distilled network; None where there is none."""
        folder = self.folder / run_folder.DISTILLED
        return Run(folder) if (folder / run_folder.CONFIG).is_file() else None


def train(
    data: str | PathLike[str] | None = None,
    *,
    config: str | PathLike[str] | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Train a network on images, evaluate it, and write its report into a new folder.

    ``data``: a folder of images (with train/, val/ and test/, or with class folders alone), a CSV
    (path,label,patient,split), a MedMNIST ``.npz``, or "demo" to draw ultrasound-like images.
    ``settings``: those of ``medmambase-train``, by the names that they have in ``config.toml``, as
    in ``train("scans", model="nano", epochs=20, batch_size=32)``; ``config`` is such a file, over
    which they win. ``say`` gets each line of the log (``print`` shows them; nothing does by
    default), and ``progress(items, total, description)`` may wrap what takes long, as tqdm does.
    Everything that is said is also kept in the folder's ``train.log``. ``on_epoch(row)`` gets each
    row of ``metrics.csv`` once it is saved, as a dictionary without what was not measured, in the
    first of several processes only; an error in it ends the training, which ``resume`` continues.

    Ctrl-C, SIGTERM and SIGHUP save the training and raise KeyboardInterrupt (of the class
    ``training.interrupt.Terminated`` for the latter two); ``Run(folder).resume()`` goes on. With
    ``resume`` the last run of the same settings goes on, where there is one. Under
    torchrun all processes train one run together.

    Raises ConfigError for a setting that does not exist (with the nearest that does) or cannot be
    meant, DataError or ImageError for the data, WeightsError for ``start``, BackendError,
    RunFolderError and OSError for what this machine cannot do, and TrainingError where the loss is
    no longer a number. Messages name a setting as its flag: ``--batch-size`` is ``batch_size``.
    """
    if data == "demo":
        if Path("demo").exists():
            raise ConfigError(
                "data is 'demo', and a folder or file has that name; give './demo' for it, or demo=True for "
                "synthetic images"
            )
        data, settings = None, {**settings, "demo": True}
    check_functions({"say": say, "progress": progress, "on_epoch": on_epoch}, ConfigError)
    check("resume", resume, bool, ConfigError)
    given = given_settings({"data": data, **settings}, known.TYPES)
    resolved = known.resolve(given, None if config is None else check_path("config", config))
    begun = latest(resolved) if resume else None
    if begun and is_finished(begun):
        return Run(begun)
    extra = ({"config": str(config)} if config else {}) | ({"resume": True} if resume else {})
    to_do = known.of_run(begun, given) if begun else resolved
    return _train(to_do, begun, call_of("train", given | extra), say, progress, on_epoch)


def crossval(
    data: str | PathLike[str] | None = None,
    folds: int | None = None,
    *,
    jobs: int | None = None,
    distil: bool = False,
    config: str | PathLike[str] | None = None,
    say: Say | None = None,
    **settings: Any,
) -> CrossvalRun:
    """Train a network for each fold of the images, and test it on that fold: so every image is
    predicted by a network that has learned neither from it nor from its patient.

    ``data``: as ``train`` takes it, but no demo; where it has a test split, all are tested on that,
    and the figures are those of the mean of their probabilities. ``folds``: how many, at least 2;
    None: as many as ``config`` says, 5 where it does not. ``jobs``: folds that are trained at the
    same time, each in a process of its own; None: as many as there are processors, or GPUs.
    ``distil``: also train one network that learns from all others. ``config``, ``say`` and
    ``settings``: those of ``train``, and each fold becomes such a run. The same call goes on where
    an earlier one was ended, however that was, to the same bytes, and returns at once where all is
    done.

    Raises what ``train`` raises; TrainingError where a fold failed, when all others have ended.
    After Ctrl-C KeyboardInterrupt comes when all is saved.
    """
    check("jobs", jobs, Positive | None, ConfigError)
    check("distil", distil, bool, ConfigError)
    check_functions({"say": say}, ConfigError)
    given = given_settings({"data": data, "folds": folds, **settings}, known.TYPES)
    resolved = known.of_crossval(given, None if config is None else check_path("config", config))
    begun = crossvals.latest(resolved)
    if begun and crossvals.is_done(begun, distil):
        return CrossvalRun(begun)
    extra = {"jobs": jobs, "distil": distil or None, "config": None if config is None else str(config)}
    extra = {name: value for name, value in extra.items() if value is not None}
    with crossvals.started(resolved, begun) as run:
        crossvals.crossval_run(run, call_of("crossval", given | extra), jobs, distil, say or silent)
    return CrossvalRun(run.folder)


def _train(
    settings: known.Settings,
    resumed: Path | None,
    command: str,
    say: Say | None,
    progress: Progress | None,
    on_epoch: OnEpoch | None,
) -> Run:
    with started(settings, resumed, progress or no_progress) as run:
        train_run(run, command, say or silent, progress or no_progress, on_epoch)
    return Run(run.folder)


def given_settings(settings: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to the form that a file gives. ``types`` are those that there are, by name.
    Raises ConfigError for one that does not exist."""
    given: dict[str, Any] = {}
    for name, value in todays(settings).items():
        if name not in types:
            raise ConfigError(f"there is no setting {name!r}; the nearest is {nearest(name, types)!r}")
        if value is None:  # is left to choose, as in Settings
            continue
        if isinstance(value, PathLike):
            path = str(Path(value))
            value = f"./{path}" if name == "start" and path in packaged.WORDS else path
        elif name == "in_chans" and value in (1, 3):
            value = str(value)
        given[name] = value
    return given


def call_of(function: str, given: dict[str, Any]) -> str:
    """Return the line of Python that started the training, with the last name alone of each
    path."""
    told = {name: without_folders(value) if isinstance(value, str) else value for name, value in given.items()}
    return f"medmambase.{function}({', '.join(f'{name}={value!r}' for name, value in told.items())})"


def silent(line: str) -> None:
    """Print nothing."""
