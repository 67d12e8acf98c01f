"""Pretrain from Python: ``run = medmambase.pretrain("scans", minutes=40)``, and then
``medmambase.train("scans", start=run)``."""

from os import PathLike
from pathlib import Path
from typing import Any

from medmambase import run_folder
from medmambase.config import ConfigError
from medmambase.data.decoded.image_set import Progress, no_progress
from medmambase.model.network import MedMambaSE
from medmambase.pretraining import settings as known
from medmambase.pretraining.run import OnRound, latest, pretrain_run, started
from medmambase.run_folder import is_finished
from medmambase.training.plan import Say
from medmambase.training.python_api import ResultFolder, call_of, given_settings, silent
from medmambase.validation import check, check_functions, check_path

__all__ = ["PretrainRun", "pretrain"]


class PretrainRun(ResultFolder):
    """The folder of a pretraining, finished or interrupted: ``PretrainRun("runs/pretrain-x-001")``.

    It can be given wherever its folder can, as in ``train("scans", start=run)``. Raises
    RunFolderError where there is no such folder, or a pretraining has not written it.
    """

    _KIND, _FILE, _EXAMPLE = "the folder of a pretraining", run_folder.CONFIG, "runs/pretrain-x-001"
    _UNENDED = "the pretraining has not ended; continue with resume()"

    def __post_init__(self) -> None:
        super().__post_init__()
        if run_folder.writer_of(self.folder) == "training":
            raise self._other("a training wrote it, for Run to open")
        try:
            known.resolve({}, self.folder / run_folder.CONFIG)
        except ConfigError as error:
            raise self._other(str(error)) from error

    @property
    def weights(self) -> Path:
        """The path of the weights."""
        return self._written(run_folder.PRETRAINED)

    def network(
        self, *, num_classes: int | None = None, in_chans: int | None = None, features_only: bool = False
    ) -> MedMambaSE:
        """Return a network with the weights: see ``MedMambaSE.from_pretrained``."""
        return MedMambaSE.from_pretrained(
            self.weights, num_classes=num_classes, in_chans=in_chans, features_only=features_only
        )

    def resume(
        self,
        *,
        say: Say | None = None,
        progress: Progress | None = None,
        on_round: OnRound | None = None,
        **settings: Any,
    ) -> "PretrainRun":
        """Continue an interrupted pretraining exactly where it stopped, or write the weights of a
        finished one again, in float16 with ``half``. ``settings``: ``data`` (where the images lie
        now), ``device``, ``workers``, ``save_every`` and ``half``; the rest as in ``pretrain``."""
        check_functions({"say": say, "progress": progress, "on_round": on_round}, ConfigError)
        given = given_settings(settings, known.TYPES)
        call = call_of("PretrainRun.resume", given)
        return _pretrain(known.of_run(self.folder, given), self.folder, call, say, progress, on_round)


def pretrain(
    data: str | PathLike[str] | None = None,
    *,
    config: str | PathLike[str] | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    on_round: OnRound | None = None,
    resume: bool = False,
    **settings: Any,
) -> PretrainRun:
    """Learn weights to start trainings from, and write them into a new folder.

    ``data``: images that need no labels, in a folder of any form, or whatever ``train`` takes; or
    ``drawn=True`` for drawn pictures. ``settings``: those of ``medmambase-pretrain``, by the names
    that they have in ``config.toml``, as in ``pretrain(drawn=True, model="nano", steps=5000)``;
    ``config`` is such a file, over which they win. ``say`` gets each line of the log, and
    ``progress(items, total, description)`` may wrap what takes long, as tqdm does.
    ``on_round(row)`` gets each row of ``metrics.csv`` once it is saved, as a dictionary without
    what was not measured.

    Pictures are drawn by other processes: a script has to call this below
    ``if __name__ == "__main__":``, or to give ``workers=0``.

    Ctrl-C, SIGTERM and SIGHUP save and raise KeyboardInterrupt; ``PretrainRun(folder).resume()``
    goes on. With ``resume`` the last run of the same settings goes on, where there is one.

    Raises ConfigError for a setting that does not exist (with the nearest that does) or cannot be
    meant, DataError for the images, WeightsError for ``start``, BackendError, RunFolderError,
    DrawingError and OSError for what this machine cannot do, and TrainingError where the loss is no
    longer a number. Messages name a setting as its flag: ``--batch-size`` is ``batch_size``.
    """
    check_functions({"say": say, "progress": progress, "on_round": on_round}, ConfigError)
    check("resume", resume, bool, ConfigError)
    given = given_settings({"data": data, **settings}, known.TYPES)
    resolved = known.resolve(given, None if config is None else check_path("config", config))
    begun = latest(resolved) if resume else None
    if begun and is_finished(begun):
        return PretrainRun(begun)
    extra = ({"config": str(config)} if config else {}) | ({"resume": True} if resume else {})
    to_do = known.of_run(begun, given) if begun else resolved
    return _pretrain(to_do, begun, call_of("pretrain", given | extra), say, progress, on_round)


def _pretrain(
    settings: known.PretrainSettings,
    resumed: Path | None,
    command: str,
    say: Say | None,
    progress: Progress | None,
    on_round: OnRound | None,
) -> PretrainRun:
    with started(settings, resumed) as run:
        pretrain_run(run, command, say or silent, progress or no_progress, on_round)
    return PretrainRun(run.folder)
