"""Make the weights that come with medmambase, and check them: python tools/drawn_weights.py check

Beside each file of weights lie its settings, the log of its pretraining, and its model card.
``make nano`` pretrains by the settings beside the weights, on one thread of a CPU, and ``adopt
RUN`` takes those that a finished ``medmambase-pretrain --drawn`` has made so. ``check`` takes the
first hundredth of the steps again and compares: with the versions and the processor of the log byte
for byte, else the losses.

Exit code: 0 done, 1 a check failed, 2 usage, 3 a run that cannot be taken.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from medmambase import PretrainRun, packaged, pretrain, run_folder
from medmambase.commands import console
from medmambase.config import PRESETS
from medmambase.files import read_json, write_json, write_text
from medmambase.machine import environment
from medmambase.model import starting
from medmambase.model.starting import Start
from medmambase.model.weights import WeightsError
from medmambase.pretraining.loop import ROUNDS
from medmambase.pretraining.settings import PretrainSettings, resolve
from medmambase.settings_file import toml_of
from medmambase.training.checkpoint import progress_in

Log = dict[str, Any]
DECIDE = ("torch", "numpy", "llvmlite", "vectors")  # of the versions those that may decide the last digits
TOLERANCE = 1e-3  # of losses, relative: other instructions round differently
ABOUT = (
    "The settings of {name}.safetensors: python tools/drawn_weights.py make {model} does the pretraining again, "
    "medmambase-pretrain --config takes them too."
)
# The settings that are written: all that decide the weights of a pretraining on drawn pictures.
OWN = (
    "model", "drawn", "image_size", "in_chans", "targets", "scenes", "speckle", "structure", "steps", "batch_size",
    "lr", "weight_decay", "warmup", "clip_norm", "ema", "held_out", "seed", "device", "precision",
)  # fmt: skip  # one list


class _EnoughError(Exception):
    """As many steps are done as were wanted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, adopt or check. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the weights that come with medmambase, and check them.")
    actions = parser.add_subparsers(dest="action", required=True)
    made = actions.add_parser("make", help="pretrain by the settings beside the weights, and take what was made")
    made.add_argument("model", choices=PRESETS)
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run; it goes on where one is")
    adopted = actions.add_parser("adopt", help="take what a finished pretraining has made")
    adopted.add_argument("run", type=Path, metavar="RUN")
    actions.add_parser("check", help="take the first hundredth of the steps of each again, and compare")
    options = parser.parse_args(arguments)

    def act() -> int:
        if options.action == "check":
            return int(False in list(map(check, packaged.models())))
        print(adopt(options.run if options.action == "adopt" else make(options.model, options.runs).folder))
        return 0

    return console.guarded("drawn_weights.py", act)


def make(model: str, runs: Path) -> PretrainRun:
    """Pretrain by the settings beside the weights of ``model``, on one thread, in a new run below
    ``runs`` or in the one that is there already. Raises what ``medmambase.pretrain`` raises."""
    path = packaged.path_of(model).with_suffix(".toml")
    with _one_thread():
        return pretrain(
            config=path, runs=runs, name=path.stem, workers=0, resume=True, say=print, progress=console.progress
        )


def adopt(folder: Path) -> Path:
    """Write the weights of a finished pretraining in float16 as those that come with medmambase,
    and beside them settings, log and model card; return their path. Raises WeightsError where the
    pretraining cannot be made again, or has learned from more than drawn pictures."""
    run = PretrainRun(folder)
    start = starting.read(run.weights)
    model, described = _model_of(run, start), read_json(run.folder / run_folder.DESCRIPTION)
    precision = described["precision"].partition(":")[0]  # behind it stands why
    if (described["device"], precision) != ("cpu (1 thread)", "float32"):
        raise WeightsError(
            f"{folder}: was computed on {described['device']}, precision {precision}; to be made again "
            f"byte for byte it must be on one thread of a CPU, in float32: --device cpu --precision float32, with "
            f"OMP_NUM_THREADS=1"
        )
    (learned,) = start.origin.learned
    settings = replace(
        resolve({}, run.folder / run_folder.CONFIG), steps=learned.steps, minutes=None, scenes=learned.scenes,
        device="cpu", precision="float32",
    )  # fmt: skip  # what is said, instead of what was to be chosen
    figures, path = read_json(run.folder / run_folder.PRETRAINING), packaged.path_of(model)
    rounds = _numbers(run.folder / run_folder.HISTORY)
    hundredth = figures.pop("hundredth", None) or _first_of(settings, rounds[0], folder)
    versions = read_json(run.folder / run_folder.ENVIRONMENT)
    log = {
        "weights": path.name, "sha256": "", "settings": path.with_suffix(".toml").name, "steps": learned.steps,
        "hundredth": hundredth, "versions": environment(torch.device("cpu")) | versions,
        "device": described["device"], "engine": described["engine"], "precision": precision,
        "parameters": described["parameters"], "of_the_run": figures, "rounds": rounds,
    }  # fmt: skip  # the file's content
    log["sha256"] = starting.write(path, start.tensors, start.config, start.origin.learned, (), half=True)
    write_text(path.with_suffix(".toml"), _as_toml(settings, model))
    write_json(path.with_suffix(".json"), log)
    write_text(path.with_suffix(".md"), card(model, log))
    return path


def check(model: str) -> bool:
    """Compare the weights of a network with their log, and the first hundredth of their
    pretraining, made again, with that in the log; print what was found, and return whether all is
    well."""
    path = packaged.path_of(model)
    log, found = read_json(path.with_suffix(".json")), starting.read(path).origin.sha256
    print(f"{path.name}: SHA-256 {found}, {'as' if found == log['sha256'] else 'NOT as'} its log has it")
    then, settings = log["hundredth"], resolve({}, path.with_suffix(".toml"))
    now, _ = begun_again(settings, then["steps"])
    here = environment(torch.device("cpu"))
    other = [f"{name} {here.get(name)}, not {log['versions'].get(name)}" for name in DECIDE
             if here.get(name) != log["versions"].get(name)]  # fmt: skip  # one list
    same = now["sha256"] == then["sha256"]
    off = max(abs(now["losses"][name] / value - 1) for name, value in then["losses"].items())
    steps = f"{path.name}: {then['steps']} of {log['steps']} steps made again"
    if same or not other:
        print(f"{steps}: {'the same bytes' if same else f'OTHER BYTES, losses {off:.1g} apart'}")
    else:
        print(
            f"{steps} with {', '.join(other)}: other bytes, losses {off:.1g} apart, "
            f"{'within' if off <= TOLERANCE else 'NOT WITHIN'} {TOLERANCE:g}"
        )
    return found == log["sha256"] and (same or (bool(other) and off <= TOLERANCE))


def begun_again(settings: PretrainSettings, steps: int) -> tuple[Log, list[Log]]:
    """Take the first ``steps`` of a pretraining again, on one thread. Returns what it has recorded
    of its first hundredth, and the rows of ``metrics.csv`` so far."""
    with tempfile.TemporaryDirectory() as scratch, _one_thread():
        path = Path(scratch, "again.toml")
        write_text(path, _as_toml(settings, settings.model or ""))
        with suppress(_EnoughError):
            pretrain(
                config=path, runs=scratch, name="again", workers=0, save_every=steps, progress=partial(_first, steps)
            )
        run = Path(scratch, "again-001")
        rounds = _numbers(run / run_folder.HISTORY) if (run / run_folder.HISTORY).is_file() else []
        return progress_in(run / run_folder.LAST)["hundredth"], rounds


def card(model: str, log: Log) -> str:
    """Return the model card."""
    figures, name = log["of_the_run"], packaged.path_of(model).stem
    rows = [
        f"| {one['name']} | {_figure(one['auc'])} ({_figure(one['low'])} to {_figure(one['high'])}) | {one['present']} "
        f"of {one['pictures']} |"
        for one in figures["structures"]
    ]
    losses = [
        f"- Loss of {target}: {value:.4f} (first measured {figures['first_losses'][target]:.4f})"
        for target, value in figures["losses"].items()
    ]
    return f"""\
# {name}

Weights to start a training of MedMambaSE ({model}) from: a network without its head, which classifies nothing yet.
They have learned from drawn pictures alone, so there is no patient in them.
They come with medmambase, under its licence (MIT).

For research only: they are no medical device.

- Use: `medmambase-train DATA --start drawn --model {model}`, or `MedMambaSE.from_pretrained("{name}")`
- Input: grey or RGB
- Parameters: {log["parameters"]:,}
- File: `{log["weights"]}`, in float16, SHA-256 `{log["sha256"]}`
- Learned from: {figures["learned"][0]}
- Settings: `{log["settings"]}`; log: `{name}.json`; made again by `python tools/drawn_weights.py make {model}`

## Figures on {figures["held_out"]} drawn pictures that were held out

{chr(10).join(losses)}

Mean AUC of the structures {_figure(figures["mean_auc"])} ({_figure(figures["mean_low"])} to {_figure(figures["mean_high"])}); guessing gives 0.500.

| structure | AUC (95 % interval) | pictures that show it |
| --- | ---: | ---: |
{chr(10).join(rows)}

What these weights are worth for your images is not known from these figures: train once from them and once with `--start none`, with the same splits, and compare.
"""  # noqa: E501  # Markdown has one sentence a line


def _model_of(run: PretrainRun, start: Start) -> str:
    """The name of the network that a pretraining has begun anew, and that has learned from drawn
    pictures alone. Raises WeightsError for any other."""
    origin, config = start.origin, start.config
    if len(origin.learned) != 1 or origin.learned[0].source != "drawn" or origin.seen or origin.unrecorded:
        raise WeightsError(
            f"{run.folder}: {origin.sentence()}; only what one pretraining has learned from drawn pictures comes with "
            f"medmambase: medmambase-pretrain --drawn, without --start"
        )
    for name, preset in PRESETS.items():
        if replace(config, in_chans=preset.in_chans, num_classes=preset.num_classes) == preset:
            return name
    raise WeightsError(f"{run.folder}: holds {config.words()}; it must be one of {', '.join(PRESETS)}, unchanged")


def _first_of(settings: PretrainSettings, first: Log, folder: Path) -> Log:
    """What a pretraining that has recorded nothing of its first hundredth would have recorded: its
    first round is made again, and must be the ``first`` one of its own."""
    hundredth, rounds = begun_again(settings, -(-(settings.steps or 1) // ROUNDS))
    if rounds != [first]:
        raise WeightsError(
            f"{folder}: its first round cannot be made again here: {rounds} in the place of {first}; adopt it where it "
            f"was made"
        )
    return hundredth


def _as_toml(settings: PretrainSettings, model: str) -> str:
    about = ABOUT.format(name=packaged.path_of(model).stem, model=model)
    return toml_of({name: settings.value(name) for name in OWN}, about)


def _numbers(path: Path) -> list[Log]:
    """The rows of ``metrics.csv``."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(cell) if cell else None for name, cell in row.items()} for row in csv.DictReader(file)]


def _first(count: int, items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """Show no progress of ``count`` items, and end whatever goes on then."""
    yield from islice(items, count)
    raise _EnoughError


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


@contextmanager
def _one_thread() -> Iterator[None]:
    present = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(present)


if __name__ == "__main__":
    sys.exit(main())
