"""``medmambase-predict RUN IMAGES -o out.csv``: predict any number of files, one row each."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from medmambase.commands import console, guard
from medmambase.config import ConfigError
from medmambase.files import move
from medmambase.inference.predictor import Predictor
from medmambase.tables import line

COLUMNS = ("path", "predicted", "probability")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, files that cannot be read included, 2
    usage, 3 data, 4 environment, 130 interrupted."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "medmambase-predict",
        description="Predict every image below a folder. A file that cannot be read becomes a row with the reason. "
        "For research only, not for diagnosis.",
        epilog="columns: path, predicted, probability, prob_<class> for each class, error. Exit code: 0 ok, 2 usage, "
        "3 data, 4 environment, 130 interrupted",
        allow_abbrev=False,
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run folder, or the folder of a network")
    found.add_argument("images", type=Path, metavar="IMAGES", help="an image, or a folder with images at any depth")
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT.csv",
        help="the CSV file to write; an existing file is replaced",
    )
    found.add_argument(
        "--calibrated",
        action="store_true",
        help="calibrate the probabilities with the temperature fitted on the run's validation images",
    )
    found.add_argument("--batch-size", type=console.positive, default=16, help="images per batch (%(default)s)")
    found.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    return found


if __name__ == "__main__":
    sys.exit(main())
