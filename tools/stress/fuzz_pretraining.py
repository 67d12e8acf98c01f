"""A small pretraining with every file that the commands read again, for fuzz_readers.py."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fuzz_crossval import LEARNED
from fuzz_mutations import Case, of_json, of_text
from fuzz_run import GREY, SMALL, TRAINING
from fuzz_tensor_files import of_safetensors
from kill_test import image_set
from medmambase import MedMambaSE, PretrainRun, run_folder
from medmambase.evaluation.report.figures import columns_of
from medmambase.evaluation.report.pretraining_page import write_pretraining_page
from medmambase.model import starting
from medmambase.model.starting import Origin
from medmambase.pretraining import loop
from medmambase.pretraining import settings as known
from medmambase.pretraining.network import Pretrained
from medmambase.pretraining.tasks import HiddenParts
from medmambase.training import checkpoint, session

SETTINGS = known.PretrainSettings(
    data="scans", start="start", image_size=(8,), steps=40, batch_size=4, held_out=1, ema=0.9, lr=0.01, save_every=1
)
_SEEN = ("00ff" * 8, "ff00" * 8)
_CUT = 3  # steps that are done: one after a round


def whole_pretraining(folder: Path) -> Path:
    """Write one that has ended into ``folder``, without pictures; return its own folder."""
    made = folder / "pretraining"
    network = MedMambaSE(SMALL, features_only=True)
    starting.write_origin(made, Origin("start", "0" * 64, (LEARNED,), _SEEN[:1]))
    sha256 = starting.write(made / run_folder.PRETRAINED, network.state_dict(), SMALL, (LEARNED, LEARNED), _SEEN)
    private = {"data": "/home/a/scans ü", "runs": "C:\\runs"}
    run_folder.write_private(made, private)
    run_folder.write_text(made / run_folder.CONFIG, SETTINGS.to_toml(leave_out=private))
    run_folder.write_json(
        made / run_folder.DESCRIPTION,
        {
            "model": SMALL.to_dict(), "pretraining": SETTINGS.deciding(), "preprocessing": GREY.to_dict(),
            "device": "cpu", "engine": "torch", "precision": "float32", "parameters": 1000, "start": "none",
        },
    )  # fmt: skip  # the file's content
    run_folder.write_json(
        made / run_folder.PRETRAINING,
        {
            "learned": [LEARNED.sentence()] * 2, "sha256": sha256, "half": False, "images_seen": 2,
            "unrecorded": False, "held_out": 6, "losses": {"echo": 0.1}, "first_losses": {"echo": 0.4},
            "mean_auc": 0.75, "structures": [
                {"name": "cyst", "auc": 0.75, "low": 0.5, "high": 0.875, "present": 3, "pictures": 6},
                {"name": "bone", "auc": None, "low": None, "high": None, "present": 0, "pictures": 6},
            ],
        },
    )  # fmt: skip  # the file's content
    run_folder.write_json(made / run_folder.ENVIRONMENT, {"python": "3.12.1", "torch": "2.13.0"})
    skipped = [{"path": "x.png", "reason": "no picture"}]
    run_folder.write_json(
        made / run_folder.DATA_REPORT, {"root": "scans", "images": 8, "skipped": skipped, "notes": ["none"]}
    )
    rows = [(step, 0.01, 0.5 / step, 0.6 / step, "") for step in range(2, 42, 2)]
    run_folder.write_rows(made / run_folder.HISTORY, ("step", "lr", "train_picture", "held_out_picture", "auc"), rows)
    return made


def tables(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a CSV file."""
    made = whole_pretraining(folder)
    images = {"train": image_set(8, "train", 8)}
    _pretrain(made, 1)
    seen = made / run_folder.LAST / run_folder.IMAGES

    def changes() -> str:
        return checkpoint._changes(seen, images).partition(" (")[0]

    return [
        Case(made / run_folder.HISTORY, of_text, lambda: f"{len(columns_of(made / run_folder.HISTORY, 'step'))} cols"),
        Case(seen, of_text, changes),
    ]


def settings_files(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a TOML file."""
    made, by_hand = whole_pretraining(folder), folder / "pretraining.toml"
    by_hand.write_text(
        '# of a colleague\ndrawn = true\nmodel = "nano"\ndepths = [1, 1, 2, 1]\nimage_size = [64, 96]\n'
        'targets = ["echo", "edges"]\nscenes = ["cyst"]\nminutes = 40\nlr = 1e-3\nheld_out = 64\nworkers = 2\n',
        encoding="utf-8",
        newline="\n",
    )

    def of_run() -> str:
        PretrainRun(made)
        return _set(known.of_run(made, {}))

    return [
        Case(by_hand, of_text, lambda: _set(known.resolve({}, by_hand))),
        Case(made / run_folder.CONFIG, of_text, of_run),
        Case(made / run_folder.PRIVATE, of_text, of_run),
    ]


def objects(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a JSON file."""
    made = whole_pretraining(folder)
    told = (run_folder.PRETRAINING, run_folder.PRETRAINING, run_folder.ENVIRONMENT, run_folder.DATA_REPORT)

    def tell() -> str:
        return write_pretraining_page(made).name

    def go_on() -> str:
        session.model_of(made)
        return tell()

    def begun() -> str:
        origin = starting.read_origin(made)
        return f"{len(origin.learned) > 0 and len(origin.sentence()) > 0} learned" if origin else "none"

    return [
        *(Case(made / name, of_json, tell) for name in told),
        Case(made / run_folder.DESCRIPTION, of_json, go_on),
        Case(made / run_folder.START, of_json, begun),
    ]


def tensors(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a safetensors file."""
    made = whole_pretraining(folder)
    weights = made / run_folder.PRETRAINED

    def start() -> str:
        session.start(made, TRAINING)
        network = MedMambaSE.from_pretrained(weights, num_classes=2, in_chans=3)
        return f"a network that takes {'8' if network.preprocessing.size == 8 else 'other'} px"

    _pretrain(made, _CUT)
    return [
        Case(weights, of_safetensors, start),
        Case(weights, of_safetensors, start),
        Case(made / run_folder.LAST / run_folder.STATE, of_safetensors, partial(_pretrain, made, 1)),
    ]


def _set(found: known.PretrainSettings) -> str:
    found.network()
    return f"settings of a pretraining on {'drawn pictures' if found.drawn else 'images'}"


def _pretrain(made: Path, steps: int) -> str:
    """Go on for so many steps."""
    torch.manual_seed(0)
    images = image_set(8, "train", 8)
    task = HiddenParts(SETTINGS, images, GREY)
    network = Pretrained(MedMambaSE(replace(SMALL), preprocessing=GREY, features_only=True), 0, task.pictures)

    def some(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        return islice(items, steps)

    outcome = loop.pretrain(
        network, task, SETTINGS, made, torch.float32, some, lambda one: one.line() and None, resume=True
    )
    return f"a pretraining of {'40' if outcome.steps == 40 else 'other'} steps"
