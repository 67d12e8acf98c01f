"""Measure how many images a second come from files, from the cache and from memory, and how many
the network consumes: python tools/stress/measure_loader.py

Without a folder it draws ultrasound-like images into a temporary one. "Cold" means that nothing was
decoded before; the files themselves lie in the operating system's memory, since no portable program
can put them out of it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from medmambase.config import PRESETS, Preprocessing
from medmambase.data.augment import augment
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.manifest.folders import Sample, scan_folder
from medmambase.data.phantom import write_phantom
from medmambase.data.reading.images import normalise
from medmambase.model.layers import lay_out
from medmambase.model.network import MedMambaSE

WANTED = 5  # times the network's images a second


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 0, or 1 where a way of loading is less than WANTED times as fast as
    the network."""
    parser = argparse.ArgumentParser(
        description="Measure the images a second of each way of loading, and of a training step."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="a folder of images, as for medmambase-train (default: drawn ones)"
    )
    parser.add_argument("--model", choices=PRESETS, default="tiny")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=240, help="how many to draw, or to take of the folder")
    parser.add_argument("--pixels", type=int, default=512, help="width and height of drawn images")
    parser.add_argument("--repeat", type=int, default=3, help="of so many runs the median is shown")
    parser.add_argument("--device", default="cpu", help="where batches are made and the network trains")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or draw(Path(scratch, "images"), options.images, options.pixels)
        samples = scan_folder(folder).samples[: options.images]
        size = sum(sample.path.stat().st_size for sample in samples) / len(samples) / 1e3
        rates, images = loading(samples, Preprocessing(size=options.image_size), Path(scratch, "cache"), options.repeat)
    grey = images.is_grey()
    preprocessing = Preprocessing(size=options.image_size, channels=1 if grey else 3)
    images = images.to_grey() if grey else images
    rates["memory to augmented batches"] = batches(images, preprocessing, options.batch_size, options.repeat, device)
    network = training(options.model, preprocessing, options.batch_size, options.repeat, device)
    print(
        f"{len(samples)} images of {size:.0f} KB on average, {options.image_size} px, batch {options.batch_size}, "
        f"{device}, {torch.get_num_threads()} threads"
    )
    for what, rate in rates.items():
        print(f"{what:45} {rate:9.0f} images/s {rate / network:8.1f} x the network")
    print(f"{f'a training step of {options.model} consumes':45} {network:9.1f} images/s")
    slow = [what for what, rate in rates.items() if rate < WANTED * network]
    print(
        f"slower than {WANTED} x the network: {', '.join(slow)}"
        if slow
        else f"all are at least {WANTED} x as fast as the network"
    )
    return 1 if slow else 0


def draw(folder: Path, count: int, pixels: int) -> Path:
    """Write ``count`` grey PNGs in one folder for each class: a few drawn ones, and the same
    shifted, so that no two are equal."""
    write_phantom(folder, images_per_class=5, size=pixels)
    drawn = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    for number in range(len(drawn), count):
        moved = np.roll(drawn[number % len(drawn)], number // len(drawn), axis=1)
        Image.fromarray(moved).save(folder / "train" / "other" / f"{number}.png")
    return folder


def loading(
    samples: Sequence[Sample], preprocessing: Preprocessing, cache: Path, repeat: int
) -> tuple[dict[str, float], ImageSet]:
    """Measure images a second from files to one tensor: by decoding, by decoding and storing, from
    what was stored, and by decoding ahead of each batch."""

    def run(store: Path | None) -> ImageSet:
        images, errors = decode(samples, preprocessing, cache=Cache(store) if store else None)
        if errors:
            raise SystemExit(f"{errors[0]}; give a folder of images that can all be read")
        return images

    def ahead(images: ImageSet) -> None:
        order = torch.arange(len(images.labels))
        images.expect(order)
        for rows in order.split(16):
            images.images[rows]

    images = run(None)  # the files are now in the operating system's memory, and Python has imported what it needs
    stores = iter([cache / str(number) for number in range(repeat)])
    unkept, _ = decode(samples, preprocessing, keep=False)
    rates = {
        "cold: files to tensors, no cache": seconds(lambda: run(None), repeat),
        "cold: files to tensors, filling the cache": seconds(lambda: run(next(stores)), repeat),
        "warm: cache to tensors": seconds(lambda: run(cache / "0"), repeat),
        "kept nowhere: files to batches in each epoch": seconds(lambda: ahead(unkept), repeat),
    }
    return {what: len(samples) / duration for what, duration in rates.items()}, images


def batches(
    images: ImageSet, preprocessing: Preprocessing, batch_size: int, repeat: int, device: torch.device
) -> float:
    """Measure images a second of what the loop does before the network: gather, move, normalise,
    augment."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))

    def epoch() -> None:
        for rows in order.split(batch_size):
            augment(normalise(images.images[rows].to(device), preprocessing), "ultrasound", 0, 1, rows)
        finish(device)

    epoch()
    return len(order) / seconds(epoch, repeat)


def training(model: str, preprocessing: Preprocessing, batch_size: int, repeat: int, device: torch.device) -> float:
    """Measure images a second of forward, loss, backward and AdamW in float32."""
    torch.manual_seed(0)
    network = MedMambaSE(replace(PRESETS[model], in_chans=preprocessing.channels)).to(device)
    lay_out(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    images = (
        torch.rand(batch_size, preprocessing.channels, preprocessing.size, preprocessing.size, device=device) * 2 - 1
    )
    labels = torch.arange(batch_size, device=device) % network.config.num_classes

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        finish(device)

    step()
    step()
    return batch_size / seconds(step, 2 * repeat + 1)


def seconds(work: Callable[[], object], repeat: int) -> float:
    """Return the median duration."""
    durations = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def finish(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
