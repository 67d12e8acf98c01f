"""Measure how well images are noticed that are unlike the training images of a run: for each kind
the AUROC of their distance against that of the images given, and the share that is called unlike.

    python tools/stress/measure_unlike.py RUN IMAGES [NAME=FOLDER ...]

IMAGES: such as the run was trained on, and has not seen. Kinds are made of them (inverted, turned,
with noise, blurred, quarters changed, pixels shuffled) and drawn (noise, flat grey, ultrasound-like
pictures of other body parts); each NAME=FOLDER is one more.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from medmambase import Predictor
from medmambase.data.manifest.folders import image_files
from medmambase.data.phantom import scenes
from medmambase.data.reading.images import ImageError, read_image

Picture = np.ndarray
DRAWN = 60  # pictures of each kind that is drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(description="Measure how well images unlike the training images are noticed.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run that has validation images")
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="images like those it was trained on, which are new to it"
    )
    parser.add_argument("kinds", nargs="*", metavar="NAME=FOLDER", help="images of another kind")
    chosen = parser.parse_args(arguments)
    predictor = Predictor.load(chosen.run)
    if not predictor.limits.detectors:
        print("\n".join(predictor.limits.told()))
        return 1
    own = list(pictures(chosen.images))
    size = predictor.network.preprocessing.size
    rng = np.random.default_rng(0)
    near = distances(predictor, own)
    print(f"{'the images given':<24} {len(near):5} images  {(near > 1).mean():6.1%} called unlike")
    for name, change in changes(size, rng).items():
        tell(name, distances(predictor, [change(one) for one in own]), near)
    for name, draw in drawings(size, rng).items():
        tell(name, distances(predictor, [draw(number) for number in range(DRAWN)]), near)
    for word in chosen.kinds:
        name, _, folder = word.partition("=")
        tell(name, distances(predictor, list(pictures(Path(folder)))), near)
    return 0


def changes(size: int, rng: np.random.Generator) -> dict[str, Callable[[Picture], Picture]]:
    """What is done to each of the images given; noise is added at the network's size, since what is
    added to a large image is gone in a small one."""

    def noisy(one: Picture) -> Picture:
        small = np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR))
        return (small + rng.normal(0, 60, small.shape)).clip(0, 255).astype(np.uint8)

    def blurred(one: Picture) -> Picture:
        return np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(max(one.shape) / 32)))

    def parts(one: Picture) -> Picture:
        y, x = one.shape[0] // 2, one.shape[1] // 2
        return np.block([[one[y : 2 * y, x : 2 * x], one[y : 2 * y, :x]], [one[:y, x : 2 * x], one[:y, :x]]])

    return {
        "inverted": lambda one: 255 - one,
        "turned by 90 degrees": lambda one: np.rot90(one).copy(),
        "turned by 180 degrees": lambda one: np.rot90(one, 2).copy(),
        "noise added": noisy,
        "blurred": blurred,
        "quarters changed": parts,
        "pixels shuffled": lambda one: rng.permutation(one.reshape(-1)).reshape(one.shape),
    }


def drawings(size: int, rng: np.random.Generator) -> dict[str, Callable[[int], Picture]]:
    """What is drawn, by its number."""

    def coarse(_: int) -> Picture:
        few = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        return np.asarray(few.resize((200, 200), Image.Resampling.BICUBIC))

    return {
        "noise": lambda _: rng.integers(0, 256, (size, size), dtype=np.uint8),
        "coarse noise": coarse,
        "flat grey": lambda number: np.full((100, 100), number * 255 // DRAWN, dtype=np.uint8),
        "drawn ultrasound": lambda number: scenes.draw(0, [number]).images[0, :, :, 0].copy(),
    }


def pictures(folder: Path) -> Iterator[Picture]:
    """Read the images below a folder, grey; those that cannot be read are left out."""
    for path in image_files(folder):
        try:
            yield read_image(path, 1)[:, :, 0]
        except ImageError as error:
            print(f"left out: {error}")


def distances(predictor: Predictor, images: list[Picture]) -> np.ndarray:
    """How far each image is from the training images: (n,)."""
    return np.array([one.distance for one in predictor(images)], dtype=np.float64)


def tell(name: str, far: np.ndarray, near: np.ndarray) -> None:
    """Print the line of a kind."""
    truth = np.repeat([0, 1], [len(near), len(far)])
    auroc = roc_auc_score(truth, np.concatenate([near, far]))
    print(f"{name:<24} {len(far):5} images  {(far > 1).mean():6.1%} called unlike  AUROC {auroc:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
