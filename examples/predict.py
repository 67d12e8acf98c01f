"""Predict new images, and keep the uncertain ones apart: python examples/predict.py RUN IMAGES"""

import argparse
import sys
from collections.abc import Sequence

from medmambase import Predictor
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.model.weights import WeightsError


def main(run: str, images: str, sure: float = 0.8) -> dict[str, list[str]]:
    """Print a line for each image; return their paths under "sure", "unsure" and "unreadable"."""
    found: dict[str, list[str]] = {"sure": [], "unsure": [], "unreadable": []}
    for one in Predictor.load(run)(images):
        if one.probability is None:
            print(f"{one.path}: {one.problem}")
            found["unreadable"].append(str(one.path))
        else:
            print(f"{one.path}: {one.label}, probability {one.probability:.3f}")
            found["sure" if one.probability >= sure else "unsure"].append(str(one.path))
    return found


def command(words: Sequence[str]) -> None:
    """Read the command line and predict; what is missing or wrong is said in one line, with exit
    code 2."""
    parser = argparse.ArgumentParser(description="Predict images, and keep the uncertain ones apart.")
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("images", help="an image, or a folder with images at any depth")
    given = parser.parse_args(words)
    try:
        main(given.run, given.images)
    except (ConfigError, DataError, WeightsError) as error:  # an opponent's package, a folder, a network
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    command(sys.argv[1:])
