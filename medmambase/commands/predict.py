"""``medmambase-predict RUN IMAGES -o out.csv``: predict any number of files, one row each; with
``--by-patient`` one row for each patient, with ``--by-file`` for each file."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from tqdm import tqdm

from medmambase.commands import console, guard, predict_flags
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.groups import patients_of
from medmambase.data.reading.dicom import patient_of
from medmambase.data.reading.frames import framed_name
from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.calibration import OperatingPoint, point_at, with_temperature
from medmambase.evaluation.predictions import read_predictions
from medmambase.files import move
from medmambase.inference.loading import run_of
from medmambase.inference.patients import Rule, by_patient
from medmambase.inference.predictor import Prediction, Predictor
from medmambase.inference.probable import Probable
from medmambase.lines import one_line
from medmambase.plural import count_of
from medmambase.run_folder import PREDICTIONS, VAL, folds_of
from medmambase.tables import line

SHOWN = 20  # rows without -o
COLUMNS = ("path", "predicted", "probability")
MORE = ("error", "patient", "note")
AT = ("called", "threshold")
OF_PATIENT = ("patient", "predicted", "probability")
IMAGES = ("images", "unread", "noted")
UNLIKE = "unlike the training images"
MOST = 5  # reasons, or notes, that are printed
Row = tuple[object, ...]
Told = dict[str, tuple[int, str]]  # a reason, or a note -> how many files have it, and the first of them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, some files that cannot be read
    included, 2 usage, 3 data, also where nothing can be read, 4 environment, 130 interrupted."""
    options = predict_flags.parse(arguments)
    return console.guarded("medmambase-predict", lambda: _Call(options).run())


class _Call:
    """One call of the command: what it was asked for, and what has come of it so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.source, self.out = options, options.images, options.output
        if self.out is not None:
            guard.check_file("-o", self.out)
        if options.at and (options.by_file or options.by_patient == "max"):
            other = "--by-file" if options.by_file else "--by-patient max"
            raise ConfigError(
                f"--at finds its threshold on single images, or on means over patients, so it does not fit {other}; "
                f"leave out --at, or take --by-patient mean"
            )
        self.root = self.source if self.source.is_dir() else self.source.parent
        self.patients = patients_of(self.source, options.group_regex) if options.group_regex else {}
        device = console.device(options.device)
        self.predictor = Predictor.load(options.run, device=device, calibrated=options.calibrated)
        self.point = self._point()
        self.good = self.bad = 0
        self.problems: Told = {}
        self.notes: Told = {}
        self.unlike: Told = {}
        self.partial = False  # only the first images were looked at, so nothing is known of all of them

    @property
    def several(self) -> bool:
        """Whether an image may have several classes: each has then a probability and a call."""
        return self.predictor.thresholds is not None

    def run(self) -> int:
        predictions = self._counted(
            self.predictor(self.source, self.options.batch_size, self.options.frames or "first")
        )
        together = self.options.by_patient or self.options.by_file
        header, rows = self._together(predictions, together) if together else self._of_images(predictions)
        code = self._print(header, rows) if self.out is None else self._write(header, rows)
        if code:
            return code
        if not self.partial:
            self._tell()
            print("\n".join(self.predictor.limits.told()))
        if self.point is not None:
            what = "a patient" if self.options.by_patient else "an image"
            kind = "calibrated" if self.options.calibrated else "uncalibrated"
            print(
                f"{what} is called {self.point.name} if its {kind} probability of this class is at least "
                f"{self.point.threshold:.6g}: on the validation images, sensitivity {self.point.sensitivity:.3f} and "
                f"specificity {self.point.specificity:.3f}"
            )
        if not self.good and not self.partial:
            return console.EXIT_CODES[DataError]
        run = next(iter(folds_of(self.options.run)), self.options.run)
        say_next(("see what the network looks at", pasted("medmambase-explain", run, self.source)))
        return 0

    def _tell(self) -> None:
        """Print why files could not be read, which images are unlike others, and what notes images
        have, with the first of each."""
        more = ("more file could not be read, for another reason", "more files could not be read, for other reasons")
        _say(self.problems, ("file could not be read:", "files could not be read:"), more)
        _say(self.unlike, ("image is", "images are"), ("", ""))
        more = ("more image has another note", "more images have other notes")
        _say(self.notes, ("image has a note:", "images have a note:"), more)

    def _point(self) -> OperatingPoint | None:
        """The operating point of --at: its threshold is of the same kind as the probabilities."""
        if self.options.at is None:
            return None
        if folds := folds_of(self.options.run):
            raise ConfigError(
                f"--at {self.options.at} chooses its threshold on predictions of validation images, and the networks "
                f"of a cross-validation, {self.options.run}, have none in common; give the folder of one of them, such "
                f"as {folds[0]}, or leave out --at"
            )
        path = run_of(self.options.run) / VAL / PREDICTIONS
        if not path.is_file():
            raise ConfigError(
                f"--at {self.options.at} chooses its threshold on the run's predictions of validation images, and "
                f"{path} is missing; give the folder of a run that had some, or leave out --at"
            )
        validation = read_predictions(path)
        if self.options.calibrated:
            validation = with_temperature(validation, self.predictor.temperature)
        if self.options.by_patient:
            patients = of_patients(validation)
            if patients is None or not patients.predictions.names:
                raise ConfigError(
                    f"--at {self.options.at} with --by-patient chooses its threshold on patients, and no patient of "
                    f"{path} has several images of one class; leave out one of them"
                )
            validation = patients.predictions
        return point_at(validation, self.options.at)

    def _counted(self, predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        for one in tqdm(predictions, desc="predicting", unit=" images", leave=False, disable=None):
            self.good += one.problem is None
            self.bad += one.problem is not None
            unlike = UNLIKE if one.unlike else ""
            # All duplicates have the same note, though each is one of another image.
            note = one.note.removesuffix(f": {one.duplicate.name}") if one.duplicate else one.note
            for found, what in ((self.problems, one.problem), (self.unlike, unlike), (self.notes, note)):
                if what:
                    _count(found, what, self._name(one))
            yield one

    def _of_images(self, predictions: Iterable[Prediction]) -> tuple[Row, Iterator[Row]]:
        """A header, and a row for each image: where it is printed only what is read first."""
        if self.out is None:
            who = ("patient",) if self.options.group_regex else ()
            sets = ("set",) if self.predictor.limits.sets else ()
            return (*COLUMNS[: 2 if self.several else 3], *who, *AT[: 1 if self.point else 0], *sets, ""), (
                (
                    self._name(one), *self._called_best(one),
                    *((self._patient(one),) if who else ()), *((self._called(one),) if self.point else ()),
                    *((_set(one),) if sets else ()),
                    one.problem or "; ".join(filter(None, (UNLIKE if one.unlike else "", one.note))),
                )
                for one in predictions
            )  # fmt: skip  # in the order of the columns
        at, limits = AT if self.point else (), self.predictor.limits
        knows = (*(("unlike",) if limits.detectors else ()), *(("set",) if limits.sets else ()))
        return (*COLUMNS[: 2 if self.several else 3], *self._columns(), *MORE, *knows, *at), (
            (
                self._name(one), *self._called_best(one), *self._of_classes(one),
                one.problem, self._patient(one), one.note,
                *((_unlike(one),) if limits.detectors else ()), *((_set(one),) if limits.sets else ()),
                *((self._called(one), self._threshold(one)) if self.point else ()),
            )
            for one in predictions
        )  # fmt: skip  # in the order of the columns

    def _together(self, predictions: Iterable[Prediction], rule: Rule) -> tuple[Row, Iterator[Row]]:
        """A header, and a row for each patient, or file, once all images are predicted."""
        of_file = self.options.by_file is not None
        whose = (lambda one: "") if of_file else self._patient
        found = by_patient(predictions, rule, whose, self._file)
        if (unknown := sum(one.alone for one in found)) and not of_file:
            print(
                f"{count_of(unknown, 'image belongs to no known patient', 'images belong to no known patient')}: each "
                f"has its own row; --group-regex finds the patient in the path"
            )
        whole = self.out is not None
        knows = ("unlike",) if self.predictor.limits.detectors else ()
        at = AT if self.point else ()
        first = (COLUMNS if of_file else OF_PATIENT)[: 2 if self.several else 3]
        return (*first, *(self._columns() if whole else ()), *IMAGES, *knows, *at), (
            (
                one.name, *self._called_best(one), *(self._of_classes(one) if whole else ()),
                one.images, one.unread, one.noted, *((one.unlike,) if knows else ()),
                *((self._called(one), self._threshold(one)) if self.point else ()),
            )
            for one in found
        )  # fmt: skip  # in the order of the columns

    def _called_best(self, one: Probable) -> Row:
        """What is called and, of one class, its probability."""
        return (one.label,) if self.several else (one.label, self._rounded(one.probability))

    def _columns(self) -> Row:
        classes = self.predictor.classes
        return (*(f"prob_{name}" for name in classes), *(f"called_{name}" for name in classes if self.several))

    def _of_classes(self, one: Probable) -> Row:
        """The probability of each class and, of several classes an image, whether it is called."""
        classes, known = self.predictor.classes, one.probabilities is not None
        called = (int(name in one.labels) if known else None for name in classes if self.several)
        return (*(self._rounded(one.by_class.get(name)) for name in classes), *called)

    def _print(self, header: Row, rows: Iterator[Row]) -> int:
        """Print the first rows as a table."""
        table = [["" if cell is None else str(cell) for cell in row] for row in (header, *islice(rows, SHOWN))]
        more = next(rows, None)
        self.partial = more is not None and not (self.options.by_patient or self.options.by_file)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if more is not None:
            print(f"... these are the first {SHOWN}; to write all rows, with every probability, to a file:")
            words = [*self._words(), "-o", "out.csv"]
            print(f"  {pasted('medmambase-predict', self.options.run, self.source, *words)}")
        return 0

    def _words(self) -> list[str]:
        """The flags of this call that choose what a row holds."""
        given = {"--at": self.options.at, "--by-patient": self.options.by_patient}
        given |= {"--by-file": self.options.by_file, "--frames": self.options.frames}
        given |= {"--group-regex": self.options.group_regex, "--digits": self.options.digits}
        words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
        return [*words, "--calibrated"] if self.options.calibrated else words

    def _write(self, header: Row, rows: Iterator[Row]) -> int:
        """Write all rows, those of images batch by batch: whatever ends this, the rows so far are
        there. Those of patients come when all images are predicted."""
        written = 0
        part = self.out.with_name(self.out.name + ".part")
        # A file name that is no valid Unicode is written with escapes.
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(line(header))
            try:
                for row in rows:
                    file.write(line(row))
                    written += 1
                    if written % self.options.batch_size == 0:
                        file.flush()
            except KeyboardInterrupt as error:
                print(f"\ninterrupted: the first {written} rows are in {part}", file=sys.stderr)
                return guard.code_of(error)
        move(part, self.out)
        unread = f", {self.bad} could not be read" if self.bad else ""
        print(f"{count_of(self.good, 'image')} predicted{unread}: {self.out.resolve()}")
        return 0

    def _file(self, one: Prediction) -> str:
        return one.path.relative_to(self.root).as_posix() if one.path else ""

    def _name(self, one: Prediction) -> str:
        return self._file(one) if one.frame is None else framed_name(self._file(one), one.frame - 1, one.frames)

    def _patient(self, one: Prediction) -> str:
        known = self.patients.get(self._file(one), one.patient)
        # Of a DICOM file whose picture is damaged the header may still be whole.
        return patient_of(one.path) if one.path and one.problem and not known else known

    def _called(self, one: Probable) -> str:
        if self.point is None or one.probabilities is None:
            return ""
        reached = one.by_class[self.point.name] >= self.point.threshold
        return self.point.name if reached else f"not {self.point.name}"

    def _threshold(self, one: Probable) -> float | str | None:
        return None if self.point is None or one.probabilities is None else self._rounded(self.point.threshold)

    def _rounded(self, value: float | None) -> float | str | None:
        digits = self.options.digits or (3 if self.out is None else None)
        return value if value is None or digits is None else f"{value:.{digits}f}"


def _unlike(one: Prediction) -> str | None:
    return None if one.unlike is None else "yes" if one.unlike else "no"


def _set(one: Prediction) -> str | None:
    return None if one.conformal_set is None else "|".join(one.conformal_set)


def _count(found: Told, what: str, name: str) -> None:
    """Count a file under ``what`` is said of it, or under "" where too much else was said."""
    key = what if what in found or len(found) < MOST else ""
    count, first = found.get(key, (0, name))
    found[key] = count + 1, first


def _say(found: Told, words: tuple[str, str], more: tuple[str, str]) -> None:
    """Print each reason, or note, with the number of its files and the first of them; ``words`` and
    ``more`` are singular and plural."""
    for what, (count, first) in found.items():
        which = one_line(first if count == 1 else f"the first: {first}")
        print(f"{count_of(count, *words)} {what} ({which})" if what else count_of(count, *more))


if __name__ == "__main__":
    sys.exit(main())
