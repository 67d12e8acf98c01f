"""Train a network that finds several things in one image: python examples/multi_label.py pictures

Drawn ultrasound-like pictures and a table with a column of 0 and 1 for each structure are written
into the folder; then a network is trained on them and its report is written.

It starts from the weights that come with this package, which have learned to find these very
structures in other pictures of the same kind: so the example shows that a network of several
classes learns, is calibrated and is tested, and not what these weights are worth elsewhere.
With --start none it starts from new weights, and needs more epochs.
docs/multilabel.md has the measured figures of both.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from medmambase import train
from medmambase.data.phantom.scenes import draw
from medmambase.data.phantom.structures import STRUCTURES

CLASSES = ("striated muscle", "organ outline", "bone", "pleural line", "fluid-filled organ", "heart chamber")
AT_A_TIME = 50  # pictures in memory


def write_pictures(folder: Path, count: int, size: int) -> Path:
    """Draw pictures of size x size pixels into ``folder``; return the table that says what is in
    them."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [STRUCTURES.index(name) for name in CLASSES]
    table = folder / "structures.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", *CLASSES))
        for start in range(0, count, AT_A_TIME):
            numbers = range(start, min(start + AT_A_TIME, count))
            drawn = draw(0, numbers, size=size)
            for number, picture, there in zip(numbers, drawn.images, drawn.structures, strict=True):
                name = f"{number:05}.png"
                Image.fromarray(picture).save(folder / name)
                rows.writerow((name, *there[columns].astype(int)))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures, train, and say how good the network is."""
    parser = argparse.ArgumentParser(description="Train a multi-label network on drawn pictures.")
    parser.add_argument("folder", type=Path, help="the pictures and their table are written here")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--size", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--start", default="drawn", help="the weights to start from, as medmambase-train takes them")
    parser.add_argument("--runs", default="runs")
    options = parser.parse_args(arguments)
    table = write_pictures(options.folder, options.pictures, options.size)
    run = train(
        table, model="nano", image_size=options.size, epochs=options.epochs, runs=options.runs,
        labels=",".join(CLASSES), lr=2e-3, start=options.start,
    )  # fmt: skip  # one argument list
    assert run.metrics is not None
    print(f"mean AUC {run.metrics.auc:.3f} over {len(CLASSES)} structures; report: {run.report}")


if __name__ == "__main__":
    main(sys.argv[1:])
