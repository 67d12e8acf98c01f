"""The flags of ``medmambase-train``: each is a setting of ``settings.py``, sorted here by idea,
with the words that ``--help`` says about it."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from medmambase.config import RECIPES
from medmambase.settings import TYPES, Settings, flag, from_text

# A setting that is of no group can be set in a file only: the blocks and depths that belong to one
# published network.
GROUPS: dict[str, dict[str, str]] = {
    "most runs need no more than these": {
        "model": "size of the network; nano and micro suit a machine without a GPU (default: tiny)",
        "se": "off: without squeeze-and-excitation, and all else the same",
        "recipe": "how to train: ours, or one of the originals'",
        "epochs": "at most so many passes over the training images",
        "image_size": "pixels, square",
        "name": "name of the run folder (default: the data's)",
    },
    "data: which images, and whose they are": {
        "demo": "train on drawn ultrasound-like images: no data needed, minutes without a GPU",
        "group_regex": 'what finds the patient in an image\'s path, such as "(patient\\d+)": no patient then comes '
        "into two splits",
        "group_column": "the column of a CSV that names the patient",
        "folds": "cross-validation in so many parts, stratified and grouped; each run does one",
        "fold": "which of them this run tests on, or validates on where the data has a test split of its own; "
        "counted from 0",
        "allow_leak": "go on although a patient is in two splits",
        "on_bad": "what an image that cannot be read costs: a line, or the run",
        "in_chans": "1 grey, 3 RGB, auto: 1 if every image is grey",
        "resize": "pad to a square, or distort",
        "high_depth": "16-bit and float images become 8-bit by each image's own percentiles, or by the full range",
        "cache": "decoded images stay in memory; disk: for the next run too; off: decode each again when it is used",
    },
    "network: what to begin with": {
        "weights": "begin with a network of ours (runs/x-001/best), or a MedMamba or MedMambaSE checkpoint (.pth, "
        ".safetensors)",
        "freeze": "what does not learn: the patch embedding, or all but the classifier",
    },
    "training: other than the recipe has it": {
        "batch_size": "images in a batch",
        "accumulate": "batches that make a step together: a larger batch in the same memory",
        "optimizer": "",
        "lr": "learning rate, at its highest",
        "schedule": "how it falls",
        "warmup": "epochs in which it rises",
        "weight_decay": "",
        "clip_norm": "longest gradient taken as it is; 0: any",
        "label_smoothing": "",
        "ema": "decay, a step, of the moving average of weights, which is then validated and kept; 0: off",
        "balance": "let every class count alike: by weights of the loss, or by how often its images are drawn",
        "augmentation": "how training images are varied",
        "laterality": "left stays left: no image is mirrored",
        "select": "validation figure that picks the best epoch",
        "select_after": "the part of the epochs before which none is picked",
        "patience": "stop after so many epochs without a better one; 0: never",
        "seed": "of splits, order, augmentation and first weights",
    },
    "this machine": {
        "device": "cpu, cuda, cuda:1 (default: the GPU if there is one)",
        "precision": "of matrix products; auto is bfloat16 where the GPU is fast at it",
        "backend": "engine of the scans (default: the fastest that runs here)",
        "recompute": "spare memory: compute each block again in backward, a fifth slower",
        "save_every": "steps between checkpoints inside an epoch; 0: only after each epoch",
        "tensorboard": "write the figures for TensorBoard too (needs medmambase[tensorboard])",
        "runs": "where run folders are made",
    },
}


class _Parser(argparse.ArgumentParser):
    """One line for what cannot be read: the usage of some forty flags would only hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}; {self.prog} --help lists everything\n")


def parser() -> argparse.ArgumentParser:
    """All flags, in groups; nothing is converted, so that every message comes from
    ``settings.py``."""
    found = _Parser(
        prog="medmambase-train",
        usage="medmambase-train DATA [settings], or --config settings.toml [settings], or --resume runs/data-001",
        description="Train MedMambaSE on images and write a report.",
        epilog="Every setting can stand in a TOML file, one a line (batch_size = 32); a flag wins over the file, and "
        "the file over the recipe. In brackets: "
        "what the default recipe has. Exit codes: 0 done, 1 training failed, 2 usage, 3 data, 4 environment, 130 "
        "interrupted (saved: --resume goes on).",
        allow_abbrev=False,
    )
    found.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="a folder with train/, val/, test/ and in each a folder for each class, or with class folders alone; a "
        "CSV (path,label,patient,split); a MedMNIST "
        ".npz; FETAL_PLANES_DB",
    )
    found.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings from a TOML file; the config.toml of a run repeats that run",
    )
    found.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with an interrupted run, as if it had never stopped"
    )
    for title, settings in GROUPS.items():
        group = found.add_argument_group(title)
        for name, words in settings.items():
            if TYPES[name] is bool:
                group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=words)
            else:
                group.add_argument(flag(name), metavar=_metavar(name), help=f"{words}{_default(name)}".strip())
    return found


def parse(words: Sequence[str]) -> tuple[dict[str, Any], Path | None, Path | None]:
    """The settings given by hand, the file of ``--config`` and the folder of ``--resume``.

    Raises ConfigError for a value that cannot be meant, and SystemExit, with code 2 and one line,
    for an unknown flag.
    """
    reader = parser()
    options, rest = reader.parse_known_args(words)
    if rest:
        flags = ["--help", "--config", "--resume", *(flag(name) for settings in GROUPS.values() for name in settings)]
        wrong = next((word.partition("=")[0] for word in rest if word.startswith("-")), "")
        near = difflib.get_close_matches(wrong, flags, n=1, cutoff=0)
        reader.error(
            f"there is no flag {wrong}; the nearest is {near[0]}"
            if wrong
            else f"one DATA is wanted, and {rest[0]!r} is another"
        )
    given = {name: value for name, value in vars(options).items() if value is not None}
    config, resume = given.pop("config", None), given.pop("resume", None)
    if config and resume:
        reader.error(f"--resume takes its settings from {resume}; leave out --config {config}")
    return (
        {name: from_text(name, value) if isinstance(value, str) else value for name, value in given.items()},
        config,
        resume,
    )


def _metavar(name: str) -> str:
    wanted = TYPES[name]
    wanted = (
        next((part for part in get_args(wanted) if part is not NoneType), wanted)
        if NoneType in get_args(wanted)
        else wanted
    )
    choices = list(RECIPES) if name == "recipe" else get_args(wanted) if get_origin(wanted) is Literal else ()
    return "|".join(choices) or {int: "N", float: "X"}.get(wanted, "TEXT")


def _default(name: str) -> str:
    value = Settings().value(name)
    return "" if value is None else f" ({value:g})" if isinstance(value, float) else f" ({value})"
