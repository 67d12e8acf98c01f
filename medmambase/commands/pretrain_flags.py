"""Define the flags of ``medmambase-pretrain``: each is a setting of ``pretraining/settings.py``, in
groups, with its help text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmambase.commands.flags import Parser, new_parser
from medmambase.commands.setting_flags import Auto, add_config_and_resume, add_settings, parse_settings
from medmambase.pretraining.settings import STEPS, TYPES, PretrainSettings, from_text

# depths can be set in a file only, as in a training.
GROUPS: dict[str, dict[str, str]] = {
    "most used settings": {
        "drawn": "learn from drawn ultrasound-like pictures, a new one each time: needs no data",
        "model": "size of the network (default: nano)",
        "start": "weights to start from, instead of a new network: none, drawn, auto, or a path, as medmambase-train "
        "takes them",
        "image_size": "width and height of the pictures, in pixels; of several, each step takes one",
        "steps": f"number of training steps (default: {STEPS})",
        "minutes": "as many steps as take about so long, instead of --steps",
        "name": "name of the run folder (default: pretrain-drawn, or pretrain- and the name of IMAGES)",
    },
    "drawn pictures": {
        "targets": "what is predicted: which structures are there, the tissue's echo without speckle, edges",
        "scenes": "kinds of pictures (default: all)",
        "speckle": "off: without speckle, to see what it is worth",
        "structure": "off: noise in place of every structure, to see what they are worth",
        "workers": "processes that draw the next pictures; they change no result (default: half of the processors)",
    },
    "images": {
        "splits": "a table that divides the images, such as the splits.csv of a run; only its train part is used",
        "on_bad": "if an image cannot be read: skip it with a message, or stop with an error",
        "hidden": "share of each image that is hidden, in squares of 8 pixels, and to be restored",
        "noise": "greatest standard deviation of the noise that is added to the rest, where white less black is 2",
    },
    "training": {
        "in_chans": "input channels: 1 grey, 3 RGB, auto: 1 if every image is grey, 3 for drawn pictures; a later "
        "training takes the weights either way",
        "batch_size": "pictures per step",
        "lr": "peak learning rate",
        "warmup": "part of the steps over which the learning rate rises to its peak",
        "weight_decay": "weight decay",
        "clip_norm": "maximum gradient norm; longer gradients are scaled down to it; 0: no limit",
        "ema": "decay per step of a moving average of the weights, which is measured and saved; 0: off",
        "held_out": "pictures that are never learned from, on which figures are measured; of images at most a tenth",
        "seed": "random seed of the pictures, their order and the initial weights",
    },
    "machine": {
        "device": "cpu, cuda, cuda:1 (default: the GPU if there is one)",
        "precision": "precision of matrix products; auto: bfloat16 on GPUs that are fast at it, else float32",
        "backend": "backend of the scans (default: the fastest that runs here)",
        "save_every": "steps between checkpoints beside those of each twentieth of all steps; 0: none",
        "half": "write the weights in float16; with --resume also those of a finished run",
        "runs": "folder in which run folders are created",
    },
}


def parser() -> Parser:
    """Return a parser of all flags, in groups; it converts nothing, so that every message comes
    from the settings."""
    found = new_parser(
        "medmambase-pretrain",
        usage="medmambase-pretrain IMAGES [settings], or --drawn [settings], or --resume runs/pretrain-x-001",
        description="Learn weights to start trainings from: from images that need no labels, or from drawn pictures.",
        epilog="Every setting can stand in a TOML file, one a line (batch_size = 32); a flag overrides the file. "
        "Exit codes: 0 done, 1 training failed, 2 usage, 3 data, 4 environment, 130 interrupted, 143 or 129 ended by "
        "the system (saved: continue with --resume).",
    )
    found.add_argument(
        "data",
        nargs="?",
        metavar="IMAGES",
        help="a folder with images at any depth, or whatever medmambase-train takes; where there is a folder train, "
        "those of val and test are left out",
    )
    add_config_and_resume(found)
    add_settings(found, GROUPS, TYPES, PretrainSettings().value)
    return found


def parse(words: Sequence[str]) -> tuple[dict[str, Any], Path | None, Path | Auto | None]:
    """Return the settings given as flags, the file of ``--config`` and the folder of ``--resume``,
    or AUTO.

    Raises ConfigError for an invalid value, and SystemExit, with code 2 and one line, for an
    unknown flag.
    """
    return parse_settings(parser(), words, from_text)
