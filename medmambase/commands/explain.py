"""``medmambase-explain RUN IMAGES``: draw what a network looks at, and measure whether that can be
believed."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from medmambase.commands import console
from medmambase.data.manifest.folders import DataError, image_files
from medmambase.data.reading.images import ImageError, load, normalise
from medmambase.evaluation.explanation import folder as explanations
from medmambase.evaluation.report import report
from medmambase.inference.predictor import load_network
from medmambase.run_folder import BEST, DESCRIPTION, EXPLAIN

MOST = 96  # images that are looked at; more would change the means little


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 2 usage, 3 data, 4 environment, 130
    interrupted."""
    options = _parser().parse_args(arguments)
    return console.guarded("medmambase-explain", lambda: _explain(options))


def _explain(options: argparse.Namespace) -> int:
    run, source = options.run, options.images
    network, device = load_network(run), console.device(options.device)
    if not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder; give an image, or a folder with images at any depth"
        )
    pictures, paths = [], []
    for path in islice(_spread(source), options.most):
        try:
            pictures.append(load(path, network.preprocessing)[0])
            paths.append(path)
        except ImageError as error:
            print(f"skipped: {error}")
    if not pictures:
        raise DataError(f"{source}: no image that can be read; png, jpg, bmp, gif, tif, webp, pgm, jp2 and dcm are")
    number = {name: index for index, name in enumerate(network.classes)}
    # Below a folder that has a class's name an image is taken to be of that class.
    truths = [next((number[part] for part in reversed(path.parts[:-1]) if part in number), None) for path in paths]
    known = None if None in truths else tuple(label for label in truths if label is not None)
    stacked = torch.stack(pictures)
    network = network.to(device)
    subjects = explanations.Subjects(stacked, tuple(map(str, paths)), known)
    found = explanations.write(
        run / EXPLAIN, network, network.classes, normalise(stacked.to(device), network.preprocessing), subjects
    )
    print(f"{len(paths)} images explained in {(run / 'explain').resolve()}")
    for name, words in (("cam", "by the map"), ("random", "by chance")):
        print(
            f"probability of the class, {words:10}: deletion {found[name]['deletion']:.3f}, insertion "
            f"{found[name]['insertion']:.3f}"
        )
    print(found["verdict"])
    if (run / DESCRIPTION).is_file() and (run / BEST).is_dir():
        print(f"report: {report.write_report(run).resolve()}")
    return 0


def _spread(source: Path) -> Iterator[Path]:
    """Image files, one of each folder in turn, so that a few of them are not all of one class."""
    folders: dict[Path, list[Path]] = {}
    for path in image_files(source):
        folders.setdefault(path.parent, []).append(path)
    longest = max(map(len, folders.values()), default=0)
    yield from (paths[turn] for turn in range(longest) for paths in folders.values() if turn < len(paths))


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "medmambase-explain",
        description="Draw what a network looks at: evidence for the class, delta of the four scans, "
        "squeeze-and-excitation before and after, gates of "
        "each class; and test whether the evidence is where the network finds it.",
        epilog="exit code: 0 ok, 2 usage, 3 data, 4 environment, 130 interrupted",
        allow_abbrev=False,
    )
    found.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    found.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="an image, or a folder; below a folder of a class's name it is taken to be of that class",
    )
    found.add_argument(
        "--most", type=console.positive, default=MOST, help="images to look at, at the most (%(default)s)"
    )
    found.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    return found


if __name__ == "__main__":
    sys.exit(main())
