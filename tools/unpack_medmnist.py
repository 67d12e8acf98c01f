"""A MedMNIST .npz file to the folders that medmambase-train reads: python tools/unpack_medmnist.py pneumoniamnist.npz data normal pneumonia

The official split is kept; the class names are given in the order of the file's labels.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> int:
    """Write ``out/train|val|test/<class>/NNNNN.png``. Returns the exit code: 0, or 3 for a file that is not MedMNIST's."""
    parser = argparse.ArgumentParser(description="Unpack a MedMNIST .npz file into train/, val/ and test/ with one folder for each class.")
    parser.add_argument("npz", type=Path, help="the file, for example pneumoniamnist.npz")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("classes", nargs="+", help="class names, in the order of the labels, for example: normal pneumonia")
    chosen = parser.parse_args()
    try:
        with np.load(chosen.npz, allow_pickle=False) as file:
            parts = {split: (file[f"{split}_images"], file[f"{split}_labels"].ravel()) for split in ("train", "val", "test")}
    except FileNotFoundError:
        print(f"{chosen.npz}: there is no such file", file=sys.stderr)
        return 3
    except (OSError, ValueError, KeyError):
        print(f"{chosen.npz}: not a MedMNIST file; wanted an .npz with train_images, train_labels and the same for val and test", file=sys.stderr)
        return 3
    highest = max(int(labels.max(initial=0)) for _, labels in parts.values())
    if highest >= len(chosen.classes):
        parser.error(f"the labels go up to {highest}, so {highest + 1} class names are wanted; got {len(chosen.classes)}")
    for split, (images, labels) in parts.items():
        for name in chosen.classes:
            (chosen.out / split / name).mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(chosen.out / split / chosen.classes[label] / f"{number:05d}.png")
        print(f"{split}: {len(labels)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
