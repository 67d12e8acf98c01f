"""``medmambase-predict RUN IMAGES -o out.csv``: predict any number of files, one row each."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from medmambase.commands import console, guard, predict_flags
from medmambase.config import ConfigError
from medmambase.files import move
from medmambase.inference.predictor import Predictor
from medmambase.tables import line

COLUMNS = ("path", "predicted", "probability")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, files that cannot be read included, 2
    usage, 3 data, 4 environment, 130 interrupted."""
    options = predict_flags.parse(arguments)
    return console.guarded("medmambase-predict", lambda: _predict(options))


def _predict(options: argparse.Namespace) -> int:
    source, out = options.images, options.output
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"-o {out} cannot be written: {_no_place(out)}")
    device = console.device(options.device)
    predictor = Predictor.load(options.run, device=device, calibrated=options.calibrated)
    part = out.with_name(out.name + ".part")
    good = bad = 0
    root = source if source.is_dir() else source.parent
    predictions = predictor(source, options.batch_size)
    # A file name that is no valid Unicode is written with escapes. Each batch is on its way to the
    # disk at once: whatever ends this, the rows so far are there.
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(line((*COLUMNS, *(f"prob_{name}" for name in predictor.classes), "error")))
        try:
            for one in tqdm(predictions, desc="predicting", unit=" images", leave=False, disable=None):
                name = one.path.relative_to(root).as_posix() if one.path else ""
                if one.problem is None:
                    good += 1
                    file.write(line((name, one.label, one.probability, *one.by_class.values(), "")))
                else:
                    bad += 1
                    file.write(line((name, "", "", *("" for _ in predictor.classes), one.problem)))
                if (good + bad) % options.batch_size == 0:
                    file.flush()
        except KeyboardInterrupt as error:
            print(f"\ninterrupted: the first {good + bad} rows are in {part}", file=sys.stderr)
            return guard.code_of(error)
    move(part, out)
    print(f"{good} images predicted{f', {bad} could not be read' if bad else ''}: {out.resolve()}")
    return 0


def _no_place(out: Path) -> str:
    return "it is a folder; give a file's name" if out.is_dir() else "its folder does not exist"


if __name__ == "__main__":
    sys.exit(main())
