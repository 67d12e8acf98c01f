"""``medmambase-train data/``: images in, a trained network and a report out.

Parse, call, print. As data: ``settings.py`` -> ``training/session.py`` -> ``training/loop.py`` ->
``evaluation/`` -> the run folder.
"""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medmambase import distributed, run_folder
from medmambase.commands import console, summaries
from medmambase.commands.train_flags import parse
from medmambase.config import ConfigError, ModelConfig
from medmambase.data import phantom
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.reading.images import ImageError
from medmambase.distributed import Ranks
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.report import report, results
from medmambase.model.network import MedMambaSE
from medmambase.settings import CONFIG, Settings, of_run, resolve
from medmambase.training import batches, checkpoint, loop, session
from medmambase_kernels import describe_backend, use_backend

DEMO_IMAGES_PER_CLASS = 400
CACHE = "cache"  # decoded images, below the folder of the runs, which is never taken for data
# What has nothing to do with the settings, so that the run can go on once it is mended.
MENDED = (ImageError, run_folder.RunFolderError, distributed.RankError, FigureError, report.ReportError, OSError)


@dataclass(frozen=True)
class _Plan:
    """What is known before anything is made. ``manifest`` is None for the demo, ``tensors`` where
    the network is a new one."""

    settings: Settings
    model: ModelConfig
    tensors: Mapping[str, torch.Tensor] | None
    manifest: Manifest | None
    device: torch.device
    dtype: torch.dtype
    precision: str
    engine: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command. Returns its exit code: 0 ok, 1 training failed, 2 usage, 3 data, 4
    environment, 130 interrupted."""
    console.prepare()
    words = list(sys.argv[1:] if arguments is None else arguments)
    run, begun = None, False
    try:
        given, file, resumed = parse(words)
        settings = of_run(resumed, given) if resumed else resolve(given, file)
        if not (settings.data or settings.demo):
            raise ConfigError("give a folder of images, a CSV or a MedMNIST .npz, or --demo to train on drawn images")
        device = console.device(settings.device)
        with use_backend(settings.backend or "auto"), distributed.joined(device.type) as ranks:
            # What is wrong with the arguments is said before anything is made.
            plan = _plan(
                settings,
                device if ranks.count == 1 or device.type != "cuda" else torch.device("cuda", ranks.local),
                ranks,
                resumed,
            )
            run = resumed or Path(
                ranks.agree(str(run_folder.create(Path(settings.runs), _name(settings))) if ranks.first else "")
            )
            with run_folder.held(run) if ranks.first else nullcontext():
                begun = True
                _train(plan, words, run, ranks, goes_on=resumed is not None)
    except KeyboardInterrupt:
        print(f"\n{_interrupted(run)}", file=sys.stderr)
        return console.INTERRUPTED
    except tuple(console.EXIT_CODES) as error:
        kept = run if begun and run and isinstance(error, MENDED) and checkpoint.position(run / "last") else None
        print(
            f"medmambase-train: {console.sentence(error, run)}{f'; then go on with {_resume(kept)}' if kept else ''}",
            file=sys.stderr,
        )
        return console.exit_code(error)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # for a CPU's memory torch has no error of its own
            raise
        print(f"medmambase-train: {console.too_much(error)}", file=sys.stderr)
        return console.EXIT_CODES[torch.OutOfMemoryError]
    return 0


def _name(settings: Settings) -> str:
    """What the run folder is called."""
    data = Path(settings.data or "demo").resolve()
    return settings.name or (data.stem if data.is_file() else data.name)


def _interrupted(run: Path | None) -> str:
    if run is None or not (run / CONFIG).is_file():
        return "interrupted: nothing was made"
    position = checkpoint.position(run / "last")
    if position is None:
        return f"interrupted before anything was learned; {run} can be deleted, or begun again with {_resume(run)}"
    epoch, step = position
    done = f"step {step} of epoch {epoch}" if step else f"epoch {epoch - 1}"
    return f"interrupted: all is saved up to {done}; go on with {_resume(run)}"


def _resume(run: Path) -> str:
    return f'medmambase-train --resume "{run}"' if " " in str(run) else f"medmambase-train --resume {run}"


def _plan(settings: Settings, device: torch.device, ranks: Ranks, resumed: Path | None) -> _Plan:
    """Device, files and network, each looked at. Raises the errors of console.EXIT_CODES."""
    config = settings.training
    if resumed and settings.data and not Path(settings.data).exists():
        raise DataError(
            f"{settings.data}: the data of {resumed} is not there; say where it lies now: medmambase-train DATA "
            f"--resume {resumed}"
        )
    dtype, why = loop.choose_precision(config.precision, device)
    engine = describe_backend(device, dtype)
    manifest = None if settings.demo else _manifest(settings)
    tensors: Mapping[str, torch.Tensor] | None = None
    if resumed and session.has_begun(resumed):  # all weights are then in its checkpoint
        model = session.model_of(resumed)
    elif settings.weights:
        tensors, model = session.start(Path(settings.weights), config)
    else:
        model = settings.network()
    images = len(manifest.split("train")) if manifest else DEMO_IMAGES_PER_CLASS
    batches.check_batches(images, config.image_size, config.batch_size, model, ranks.count)
    return _Plan(
        settings, model, tensors, manifest, device, dtype, f"{str(dtype).removeprefix('torch.')}: {why}", engine
    )


def _manifest(settings: Settings) -> Manifest:
    return read_manifest(
        Path(settings.data or ""), seed=settings.training.seed, runs=Path(settings.runs),
        group_regex=settings.group_regex, group_column=settings.group_column, folds=settings.folds, fold=settings.fold,
        allow_leak=settings.allow_leak,
    )  # fmt: skip  # by idea


def _train(plan: _Plan, words: Sequence[str], run: Path, ranks: Ranks, goes_on: bool) -> None:
    settings, config, device, dtype = plan.settings, plan.settings.training, plan.device, plan.dtype
    say = console.logger(run / "train.log") if ranks.first else _silent
    show = console.progress if ranks.first else _no_progress
    begun = goes_on and session.has_begun(run)
    say(f"run folder: {run}")
    if ranks.first:
        session.write_command(run, f"medmambase-train {shlex.join(words)}", goes_on)
        if not goes_on:
            run_folder.write_text(run / CONFIG, settings.to_toml())
    manifest = plan.manifest or _demo(run / "phantom", config.seed, ranks, say)
    intake = session.take_in(manifest, config, settings.in_chans, Path(settings.runs) / CACHE, show)
    session.say_intake(intake, manifest, run, say)
    if ranks.first and not begun:  # what a training began with stays what is told of it
        session.write_intake(intake, manifest, run)
        summaries.draw_twins(intake.images, intake.audit, run / "audit" / "twins.png")
    session.check_intake(intake, manifest, run, skip_bad=settings.on_bad == "skip", allow_leak=settings.allow_leak)
    images, preprocessing = intake.images, intake.preprocessing
    torch.manual_seed(config.seed)
    network = session.begin(plan.model, plan.tensors, manifest.classes, preprocessing, say).to(device)
    parameters = sum(p.numel() for p in network.parameters())
    say(
        f"network:   {network.config.block}, depths {network.config.depths}, widths {network.config.dims}, "
        f"{parameters / 1e6:.2f} M parameters"
    )
    say(f"device:    {_device_name(device)}{f' and {ranks.count - 1} more' if ranks.count > 1 else ''}")
    say(f"engine:    {plan.engine}")
    say(f"precision: {plan.precision}")
    described = {
        "model": network.config.to_dict(), "training": config.to_dict(), "preprocessing": preprocessing.to_dict(),
        "classes": list(manifest.classes), "device": _device_name(device), "engine": plan.engine,
        "precision": plan.precision, "parameters": parameters,
    }  # fmt: skip  # the file's content
    if ranks.first and not begun:
        run_folder.write_json(run / "env.json", session.environment(device))
        run_folder.write_json(run / "config.json", described)
    outcome = loop.train(
        network,
        images.split("train"),
        images.split("val"),
        config,
        run,
        dtype,
        show,
        lambda epoch: say(summaries.line(epoch)),
        resume=goes_on,
        say=say,
        ranks=ranks,
    )
    if not ranks.first:
        return
    run_folder.write_json(
        run / "config.json",
        described
        | {"best_epoch": outcome.best_epoch, "best_score": outcome.best_score, "selected_by": outcome.selected_by},
    )
    best = MedMambaSE.load(run / "best").to(device)
    test, published = images.split("test"), Path(settings.data or "").suffix.casefold() == ".npz"
    known = summaries.learn_from_validation(
        run, summaries.predicted(best, images.split("val"), (), config.batch_size, dtype)
    )
    if len(test.labels):
        results.note_opening(
            run, settings.data or "the demo", len(test.labels), f"medmambase-train {shlex.join(words)}"
        )
        predictions = summaries.predicted(best, test, intake.audit.leaked, config.batch_size, dtype)
        say("\n" + "\n".join(summaries.test(run / "test", predictions, test, known, published)))
    shown = next(
        (split for name in ("test", "val") if len((split := images.split(name)).labels)), images.split("train")
    )
    summaries.draw(best, shown, run, outcome.best_epoch)
    say(f"\nbest epoch: {outcome.best_epoch}; network: {run / 'best'}")
    say(f"report: {report.write_report(run).resolve()}")


def _demo(folder: Path, seed: int, ranks: Ranks, say: Callable[[str], None]) -> Manifest:
    if ranks.first:
        say(f"drawing {6 * DEMO_IMAGES_PER_CLASS} ultrasound-like images into {folder}")
        phantom.write_phantom(folder, images_per_class=DEMO_IMAGES_PER_CLASS, seed=seed)
    ranks.agree("drawn")  # the others wait here
    return read_manifest(folder, seed=seed)


def _silent(line: str) -> None:
    """What all but the first of several processes say."""


def _no_progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    return items


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


if __name__ == "__main__":
    sys.exit(main())
