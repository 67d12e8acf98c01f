"""``medmambase-predict RUN IMAGES -o out.csv``: what a network says of any number of files, one row
each.

Parse, call, print. As data: ``data/folders.py`` -> ``training/examination.py`` -> the rows, written
as they come.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from medmambase.commands import console
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError, image_files
from medmambase.data.reading.images import ImageError
from medmambase.evaluation.calibration import warm
from medmambase.evaluation.report import results
from medmambase.files import move
from medmambase.inference import held_out
from medmambase.training import loop

COLUMNS = ("path", "predicted", "probability")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command. Returns its exit code: 0 ok, files that cannot be read included, 2
    usage, 3 data, 4 environment, 130 interrupted."""
    options = _parser().parse_args(arguments)
    return console.guarded("medmambase-predict", lambda: _predict(options))


def _predict(options: argparse.Namespace) -> int:
    source, out = options.images, options.output
    network, device = console.network_of(options.run), console.device(options.device)
    if not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder; give an image, or a folder with images at any depth"
        )
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"-o {out} is no place for a file; give a file's name in a folder that exists")
    found = results.read_calibration(options.run) if options.calibrated else None
    if options.calibrated and found is None:
        raise ConfigError(
            f"--calibrated: {options.run} has no {results.CALIBRATION}, since it had no validation images; leave it out"
        )
    dtype, _ = loop.choose_precision("auto", device)
    part, classes = out.with_name(out.name + ".part"), network.classes
    good = bad = 0
    root = source if source.is_dir() else source.parent
    rows = held_out.predict_files(network, image_files(source), options.batch_size, device, dtype)
    # A file name that is no valid Unicode is written with escapes. Each batch is on its way to the
    # disk at once: whatever ends this, the rows so far are there.
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(f"prob_{name}" for name in classes), "error"])
        try:
            for path, result in tqdm(rows, desc="predicting", unit=" images", leave=False, disable=None):
                name = path.relative_to(root).as_posix()
                if isinstance(result, ImageError):
                    bad += 1
                    writer.writerow([name, "", "", *("" for _ in classes), result.reason])
                else:
                    good += 1
                    probabilities = result if found is None else warm(result, found.temperature)
                    best = int(probabilities.argmax())
                    writer.writerow(
                        [name, classes[best], *map(repr, [float(probabilities[best]), *probabilities.tolist()]), ""]
                    )
                if (good + bad) % options.batch_size == 0:
                    file.flush()
        except KeyboardInterrupt:
            print(f"\ninterrupted: the first {good + bad} rows are in {part}", file=sys.stderr)
            return console.INTERRUPTED
    if not good + bad:
        part.unlink()
        raise DataError(f"{source}: no images found (png, jpg, bmp, gif, tif, webp, pgm, jp2, dcm are read)")
    move(part, out)
    print(f"{good} images predicted{f', {bad} could not be read' if bad else ''}: {out.resolve()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "medmambase-predict",
        description="Predict every image below a folder. A file that cannot be read becomes a row with the reason. "
        "For research only: no diagnosis.",
        epilog="columns: path, predicted, probability, prob_<class> for each class, error. Exit code: 0 ok, 2 usage, "
        "3 data, 4 environment, 130 interrupted",
        allow_abbrev=False,
    )
    found.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of a network")
    found.add_argument("images", type=Path, metavar="IMAGES", help="an image, or a folder with images at any depth")
    found.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT.csv",
        help="the table, which is replaced if it is there",
    )
    found.add_argument(
        "--calibrated",
        action="store_true",
        help="probabilities at the temperature that the run's validation images told",
    )
    found.add_argument("--batch-size", type=console.positive, default=16, help="images at a time (%(default)s)")
    found.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    return found


if __name__ == "__main__":
    sys.exit(main())
