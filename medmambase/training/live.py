"""Keep ``report.html`` up to date while a training runs (``--live``)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from medmambase.config import TrainConfig
from medmambase.evaluation.report.live_page import write_live_page
from medmambase.privacy import without_paths
from medmambase.run_folder import CROSSVAL, LAST, REPORT, is_finished
from medmambase.training import checkpoint, history
from medmambase.training.history import Epoch
from medmambase.training.plan import Say

_RECENT = 3  # epochs, whose time tells that of the others


class LivePage(AbstractContextManager["LivePage"]):
    """The page of a run that is training: written when it begins, after each epoch, and when the
    block ends with an exception, which the page then tells.

    ``described``: the content of ``config.json``. Without ``wanted`` nothing is written. If the
    page cannot be written, that is said once, and the training goes on.
    """

    def __init__(self, run: Path, config: TrainConfig, described: Mapping[str, Any], say: Say, wanted: bool) -> None:
        self._run, self._config, self._described, self._say, self._wanted = run, config, described, say, wanted
        self._epochs: list[Epoch] = []
        self._begun = False

    def begin(self) -> None:
        """Write the page of a training that begins or goes on. Before that nothing is written: a
        training that is refused leaves the page as it was."""
        if self._wanted:
            self._begun = True
            self._epochs = [Epoch(**one) for one in checkpoint.progress_in(self._run / LAST).get("epochs", [])]
            self._tell()

    def after(self, epoch: Epoch) -> None:
        """Write the page after an epoch."""
        if self._wanted:
            self._epochs.append(epoch)
            recent = [one.seconds for one in self._epochs[-_RECENT:]]
            left = (self._config.epochs - epoch.epoch) * sum(recent) / len(recent)
            at_most = "at most " if self._config.patience else ""  # it may end sooner
            self._tell(f", {at_most}about {_in_words(left)} left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._begun or is_finished(self._run):
            return
        if isinstance(error, KeyboardInterrupt):
            self._write(f"Interrupted{f' by {error}' if str(error) else ''}: {self._so_far()}", over=True)
        elif error is not None:
            self._write(f"Ended by an error after {self._so_far()}: {without_paths(str(error))}", over=True)

    def _tell(self, left: str = "") -> None:
        if history.is_over(self._epochs, self._config):
            self._write(f"Trained, {self._so_far()}: the network is tested and the report written")
        else:
            self._write(f"Training, {self._so_far()}{left}")

    def _so_far(self) -> str:
        return f"epoch {len(self._epochs)} of {self._config.epochs}"

    def _write(self, status: str, over: bool = False) -> None:
        best = history.outcome(self._epochs, self._config).best_epoch
        of_fold = (self._run.resolve().parent / CROSSVAL).is_file()
        rows = [asdict(one) for one in self._epochs]
        try:
            write_live_page(self._run, status, rows, best, self._described, over=over, of_fold=of_fold)
        except OSError as error:
            self._wanted = False
            self._say(f"note: --live ends: {self._run / REPORT} cannot be written ({error.strerror or error})")


def _in_words(seconds: float) -> str:
    """A time as people say it."""
    for unit, long in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * long:
            return f"{seconds / long:.0f} {unit}"
    return f"{seconds:.0f} s"
