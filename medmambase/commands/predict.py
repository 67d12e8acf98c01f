"""``medmambase-predict RUN IMAGES -o out.csv``: predict any number of files, one row each."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from medmambase.commands import console, guard, predict_flags
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.dicom import NEEDS_PYDICOM
from medmambase.evaluation.calibration import OperatingPoint, point_at, with_temperature
from medmambase.evaluation.predictions import read_predictions
from medmambase.files import move
from medmambase.inference.predictor import Prediction, Predictor, run_of
from medmambase.run_folder import PREDICTIONS, VAL
from medmambase.tables import line

SHOWN = 20  # rows without -o
COLUMNS = ("path", "predicted", "probability")
MORE = ("error", "patient", "note")
AT = ("called", "threshold")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, some files that cannot be read
    included, 2 usage, 3 data, also where nothing can be read, 4 environment, 130 interrupted."""
    options = predict_flags.parse(arguments)
    return console.guarded("medmambase-predict", lambda: _Call(options).run())


class _Call:
    """One call of the command: what it was asked for, and what has come of it so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.source, self.out = options, options.images, options.output
        if self.out is not None and (self.out.is_dir() or not self.out.absolute().parent.is_dir()):
            raise ConfigError(f"-o {self.out} cannot be written: {_no_place(self.out)}")
        device = console.device(options.device)
        self.predictor = Predictor.load(options.run, device=device, calibrated=options.calibrated)
        self.point = self._point()
        self.root = self.source if self.source.is_dir() else self.source.parent
        self.good = self.bad = self.noted = self.without_pydicom = 0

    def run(self) -> int:
        predictions = self._counted(self.predictor(self.source, self.options.batch_size))
        code = self._print(predictions) if self.out is None else self._write(predictions)
        if code:
            return code
        if self.without_pydicom:
            print(f"{self.without_pydicom} of them: {NEEDS_PYDICOM}")
        if self.noted:
            print(
                f"{_images(self.noted)} with a note: unlike those that the network was chosen on, or one frame of many"
            )
        if self.point is not None:
            kind = "calibrated" if self.options.calibrated else "uncalibrated"
            print(
                f"called {self.point.name} from a probability of {self.point.threshold:.6g} on ({kind}): on the "
                f"validation images sensitivity {self.point.sensitivity:.3f}, specificity {self.point.specificity:.3f}"
            )
        if not self.good:
            return console.EXIT_CODES[DataError]
        say_next(("see what the network looks at", pasted("medmambase-explain", self.options.run, self.source)))
        return 0

    def _point(self) -> OperatingPoint | None:
        """The operating point of --at: its threshold is of the same kind as the probabilities."""
        if self.options.at is None:
            return None
        path = run_of(self.options.run) / VAL / PREDICTIONS
        if not path.is_file():
            raise ConfigError(
                f"--at {self.options.at} needs the run's predictions of validation images; {path} is missing"
            )
        validation = read_predictions(path)
        if self.options.calibrated:
            validation = with_temperature(validation, self.predictor.temperature)
        return point_at(validation, self.options.at)

    def _counted(self, predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        for one in tqdm(predictions, desc="predicting", unit=" images", leave=False, disable=None):
            self.good += one.problem is None
            self.bad += one.problem is not None
            self.noted += bool(one.note)
            self.without_pydicom += one.problem == NEEDS_PYDICOM
            yield one

    def _print(self, predictions: Iterator[Prediction]) -> int:
        """Print the first rows as a table."""
        rows = [(*COLUMNS, *AT[: 1 if self.point else 0], "")]
        for one in islice(predictions, SHOWN):
            probability = "" if one.probability is None else f"{one.probability:.{self.options.digits or 3}f}"
            called = (self._called(one),) if self.point else ()
            rows.append((self._name(one), one.label or "", probability, *called, one.problem or one.note))
        more = next(predictions, None)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if more is not None:
            print(f"... the first {SHOWN}; all of them, with every probability, in a file:")
            print(f"  {pasted('medmambase-predict', self.options.run, self.source, '-o', 'out.csv')}")
        return 0

    def _write(self, predictions: Iterator[Prediction]) -> int:
        """Write all rows, each batch at once: whatever ends this, the rows so far are there."""
        part = self.out.with_name(self.out.name + ".part")
        classes = self.predictor.classes
        # A file name that is no valid Unicode is written with escapes.
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            at = AT if self.point else ()
            file.write(line((*COLUMNS, *(f"prob_{name}" for name in classes), *MORE, *at)))
            try:
                for one in predictions:
                    probabilities = [self._rounded(value) for value in one.by_class.values()] or [""] * len(classes)
                    first = (self._name(one), one.label or "", self._rounded(one.probability))
                    called = (self._called(one), self.point.threshold) if self.point else ()
                    file.write(line((*first, *probabilities, one.problem or "", one.patient, one.note, *called)))
                    if (self.good + self.bad) % self.options.batch_size == 0:
                        file.flush()
            except KeyboardInterrupt as error:
                print(f"\ninterrupted: the first {self.good + self.bad} rows are in {part}", file=sys.stderr)
                return guard.code_of(error)
        move(part, self.out)
        unread = f", {self.bad} could not be read" if self.bad else ""
        print(f"{_images(self.good)} predicted{unread}: {self.out.resolve()}")
        return 0

    def _name(self, one: Prediction) -> str:
        return one.path.relative_to(self.root).as_posix() if one.path else ""

    def _called(self, one: Prediction) -> str:
        if self.point is None or one.problem is not None:
            return ""
        reached = one.by_class[self.point.name] >= self.point.threshold
        return self.point.name if reached else f"not {self.point.name}"

    def _rounded(self, value: float | None) -> float | str | None:
        return value if value is None or self.options.digits is None else f"{value:.{self.options.digits}f}"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _no_place(out: Path) -> str:
    return "it is a folder; give a file's name" if out.is_dir() else "its folder does not exist"


if __name__ == "__main__":
    sys.exit(main())
