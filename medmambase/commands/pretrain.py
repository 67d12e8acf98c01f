"""``medmambase-pretrain images/``: images without labels in, weights to start from out."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medmambase import privacy, run_folder
from medmambase.commands import console, resume
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.pretrain_flags import parse
from medmambase.config import PRESETS, ModelConfig
from medmambase.data.manifest.folders import Manifest
from medmambase.pretraining.run import latest, pretrain_run, started
from medmambase.pretraining.settings import PretrainSettings, of_run, resolve
from medmambase.training import checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 training failed, 2 usage, 3 data, 4
    environment, 130 interrupted, 143 or 129 ended by the system."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    run: Path | None = None

    def act() -> int:
        nonlocal run
        if (to_do := resume.to_do(parse(words), resolve, latest, of_run, "pretrain", ("half",))) is None:
            return 0
        resumed, settings = to_do
        with started(settings, resumed) as begun:
            run = begun.folder
            pretrain_run(begun, privacy.command("medmambase-pretrain", words), console.say, console.progress)
        say_next(*_steps(settings, run, begun.plan.manifest, begun.plan.model))
        return 0

    def advice(error: Exception) -> str:
        return resume.advice("medmambase-pretrain", run, _saved, error)

    def interrupted() -> str:
        return resume.interrupted("medmambase-pretrain", run, _saved)

    return console.guarded("medmambase-pretrain", act, where=lambda: run, advice=advice, interrupted=interrupted)


def _steps(
    settings: PretrainSettings, run: Path, manifest: Manifest | None, model: ModelConfig
) -> list[tuple[str, str]]:
    """What can be done next: to train from the weights and from none, the same network at the same
    size, and to compare. On the images of the pretraining only where some of them were left out, or
    there is nothing to test on."""
    apart = settings.data if settings.data and manifest and manifest.method else None
    splits = ("--splits", settings.splits) if apart and settings.splits else ()
    train = ("medmambase-train", apart or "DATA", *splits)
    size = ("--image-size", max(settings.image_size))
    none, flags = _new_network(model)
    which = ", on other images in val and test than these" if settings.data and not apart else ""
    return [
        (f"train from these weights{which}", pasted(*train, "--start", run, *size, "--name", "started")),
        (f"train from none{none}", pasted(*train, "--start", "none", *flags, *size, "--name", "anew")),
        ("test the difference", pasted("medmambase-compare", "runs/anew-*", "--against", "runs/started-*")),
    ]


def _new_network(model: ModelConfig) -> tuple[str, tuple[str, ...]]:
    """Return what to add to "train from none", and the flags, for a new network of the shape of
    pretrained weights."""
    for name, preset in sorted(PRESETS.items(), key=lambda item: item[1].depths != model.depths):
        if (preset.dims, preset.block, preset.state) != (model.dims, model.block, model.state):
            continue
        if replace(preset, depths=model.depths).gate_widths() == model.gate_widths():
            listed = ", ".join(map(str, model.depths))
            depths = "" if model.depths == preset.depths else f" (with depths = [{listed}] in a file for --config)"
            return depths, ("--model", name)
    return " (no --model has the shape of these weights, so the networks differ)", ()


def _saved(run: Path) -> str | None:
    step = checkpoint.progress_in(run / run_folder.LAST).get("step")
    return f"step {step}" if isinstance(step, int) and step else None


if __name__ == "__main__":
    sys.exit(main())
