"""Predict new images, and keep the uncertain ones apart: python examples/predict.py RUN IMAGES"""

import sys

from medmambase import Predictor


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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
