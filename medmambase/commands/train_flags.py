"""Define the flags of ``medmambase-train``: each is a setting of ``settings.py``, in groups, with
its help text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medmambase.commands.flags import Parser, new_parser
from medmambase.commands.setting_flags import AUTO, Auto, add_config_and_resume, add_settings, parse_settings
from medmambase.config import RECIPES
from medmambase.settings import TYPES, Settings, from_text
from medmambase.settings_file import EARLIER

__all__ = ["AUTO", "GROUPS", "parse", "parser"]

# A setting that is of no group can be set in a file only: the blocks and depths that belong to one
# published network.
GROUPS: dict[str, dict[str, str]] = {
    "most used settings": {
        "model": "size of the network (default: nano; with the recipe of an original tiny); or another network to "
        "compare with, by a recipe of its own (needs medmambase[opponents])",
        "se": "squeeze-and-excitation gates; off: the same network without them",
        "recipe": "training recipe: ours, or the one published with an original network",
        "epochs": "maximum number of passes over the training images",
        "image_size": "width and height of the network's input, in pixels",
        "name": "name of the run folder (default: the name of DATA)",
    },
    "data: images and patients": {
        "demo": "train on synthetic ultrasound-like images: needs no data, takes minutes without a GPU",
        "group_regex": 'regular expression that finds the patient in an image\'s path, such as "(patient\\d+)"; '
        "keeps each patient in one split",
        "group_column": "the CSV column that names the patient; keeps each patient in one split",
        "class_names": "other names for classes: 0=malignant,1=benign",
        "labels": "columns of a CSV that hold 0 or 1, one for each class, where an image may have several: cyst,stone "
        "(default: a column of labels or, without one, all other columns if they hold 0 and 1)",
        "frames": "which frames of a DICOM, GIF, TIFF or WebP file that has several are images: first, middle, all, or "
        "a number of them, evenly spaced; those of a file count as one patient, and stay in one split (default: first)",
        "folds": "number of cross-validation folds, stratified and grouped by patient; each run trains one",
        "fold": "the fold that this run tests on, counted from 0; if the data has its own test split, the run "
        "validates on this fold instead",
        "split_seed": "random seed of splits and folds alone, so that trainings with other seeds have the same test "
        "images (default: that of --seed)",
        "splits": "a table with the columns path,split that divides the images, such as the splits.csv of a run",
        "keep_duplicates_together": "keep duplicates, and all images of their patients, in one split or fold; every "
        "image is then read twice",
        "allow_leak": "continue even if a patient is in two splits",
        "plain_patients": "name patients in the run's files as the data does, instead of by pseudonyms",
        "on_bad": "if an image cannot be read: skip it with a message, or stop with an error",
        "in_chans": "input channels: 1 grey, 3 RGB, auto: 1 if every image is grey",
        "resize": "how to make an image square: pad it, or stretch it",
        "high_depth": "conversion of 16-bit and float images to 8 bits: by their own percentiles, or by the full range",
        "cache": "where to keep decoded images: in memory, or on disk for later runs too; off: decode at each use",
    },
    "network: initial weights, and other networks to learn from": {
        "start": "weights to start from: none; drawn, those that come with this version, learned from drawn pictures "
        "(--model nano or micro); auto, drawn where there are such weights for the network; or the path of what "
        "medmambase-pretrain learned (runs/pretrain-x-001), of a network of ours (runs/x-001/best), or of a MedMamba "
        "or MedMambaSE checkpoint (.pth, .safetensors)",
        "soft_labels": "a table of probabilities (path,label,predicted,prob_<class>), such as a predictions.csv: "
        "training images are learned half by these and half by their class",
        "freeze": "layers to leave untrained: the patch embedding, or everything except the classifier",
    },
    "training: override the recipe": {
        "batch_size": "images per batch",
        "accumulate": "batches per optimiser step: acts like a larger batch in the same memory",
        "optimizer": "optimiser",
        "lr": "peak learning rate",
        "backbone_lr_factor": "multiplies the learning rate of everything except the classifier, for a training with "
        "--start; below 1 the starting weights change less",
        "schedule": "how the learning rate changes after the warm-up",
        "warmup": "epochs over which the learning rate rises to its peak, at most a fifth of all",
        "weight_decay": "weight decay",
        "clip_norm": "maximum gradient norm; longer gradients are scaled down to it; 0: no limit",
        "label_smoothing": "label smoothing",
        "mixup": "train on mixtures of two images and their labels; the share is drawn from Beta(MIXUP, MIXUP), once "
        "a batch; 0: off",
        "ema": "decay per step of a moving average of the weights, which is validated and saved; 0: off",
        "balance": "give every class equal weight: in the loss, or by sampling its images more or less often",
        "augmentation": "augmentation of the training images: made for ultrasound, crops and mirror images, one "
        "random operation an image (TrivialAugment), or none",
        "laterality": "keep left and right: never mirror an image",
        "select": "validation metric that chooses the best epoch",
        "select_after": "choose the best epoch only after this fraction of the epochs",
        "patience": "stop after this many epochs without improvement; 0: never",
        "seed": "random seed of order, augmentation and initial weights, and of splits without --split-seed",
    },
    "machine": {
        "device": "cpu, cuda, cuda:1 (default: the GPU if there is one)",
        "precision": "precision of matrix products; auto: bfloat16 on GPUs that are fast at it, else float32",
        "backend": "backend of the scans (default: the fastest that runs here)",
        "recompute": "save memory by computing each block again in the backward pass; steps take half as long again",
        "graphs": "CUDA graphs, which launch a whole step at once on an NVIDIA GPU; auto: if they change no bit of the "
        "result",
        "save_every": "steps between checkpoints inside an epoch; 0: only after each epoch",
        "live": "write report.html after each epoch, to be looked at while the training runs",
        "tensorboard": "also write the metrics for TensorBoard (needs medmambase[tensorboard])",
        "runs": "folder in which run folders are created",
    },
}


def parser() -> Parser:
    """Return a parser of all flags, in groups; it converts nothing, so that every message comes
    from ``settings.py``."""
    found = new_parser(
        "medmambase-train",
        usage="medmambase-train DATA [settings], or --config settings.toml [settings], or --resume runs/data-001",
        description="Train MedMambaSE on images and write a report.",
        epilog="Every setting can stand in a TOML file, one a line (batch_size = 32); a flag overrides the file, and "
        "the file overrides the recipe. Values in brackets are those of the default recipe. "
        "Exit codes: 0 done, 1 training failed, 2 usage, 3 data, 4 environment, 130 "
        "interrupted, 143 or 129 ended by the system (saved: continue with --resume).",
    )
    found.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="a folder with train/, val/ and test/, each with one folder per class; or a folder of class folders; "
        "a CSV (path,label,patient,split); a MedMNIST .npz; FETAL_PLANES_DB",
    )
    add_config_and_resume(found)
    add_run_settings(found)
    return found


def add_run_settings(parser: Parser, other: Mapping[str, str | None] = MappingProxyType({})) -> None:
    """Add a flag for each setting of a run, in groups. ``other``: as ``add_settings`` takes it."""
    add_settings(parser, GROUPS, TYPES, Settings().value, {"recipe": tuple(RECIPES)}, EARLIER, other)


def parse(words: Sequence[str]) -> tuple[dict[str, Any], Path | None, Path | Auto | None]:
    """Return the settings given as flags, the file of ``--config`` and the folder of ``--resume``,
    or AUTO.

    Raises ConfigError for an invalid value, and SystemExit, with code 2 and one line, for an
    unknown flag.
    """
    return parse_settings(parser(), words, from_text)
