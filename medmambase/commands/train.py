"""``medmambase-train data/``: a folder of images in, a trained network and a report out.

Parse, call, print. As data: ``data/folders.py`` -> ``training/loop.py`` -> ``evaluation/`` -> the run folder.
"""

import argparse
import errno
import io
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from medmambase.config import PRESETS, RECIPES, Augmentation, Block, ConfigError, Metric, ModelConfig, Precision, Preprocessing, Resize, TrainConfig
from medmambase.data import phantom
from medmambase.data.decode import ImageSet, decode, lost
from medmambase.data.folders import DataError, Manifest, scan_folder
from medmambase.data.images import normalise
from medmambase.evaluation import explain, figures, report
from medmambase.evaluation.metrics import Metrics, MetricsError, evaluate, write_predictions
from medmambase.model.layers import as_coded
from medmambase.model.network import MedMambaSE
from medmambase.model.weights import WeightsError, read_start
from medmambase.training import loop, run_folder
from medmambase_kernels import BACKENDS, BackendError, describe_backend, use_backend

DEMO_IMAGES_PER_CLASS = 400
# What --demo does differently, so that it ends in minutes without a GPU; a flag given by hand still wins.
DEMO = {"model": "nano", "image_size": 48, "epochs": 6, "in_chans": "1"}
DEMO_RECIPE = {"lr": 3e-3, "augmentation": "none"}  # not where a recipe is asked for: it is then shown as it is
DEMO_DEPTHS = {"depths": (1, 1, 2, 1)}  # not where the network is
# What a person should do about each kind of failure is in its message; the exit code says which kind it was.
EXIT_CODES: dict[type[Exception], int] = {
    loop.TrainingError: 1, MetricsError: 1, ConfigError: 2, DataError: 3, WeightsError: 3, BackendError: 4, run_folder.RunFolderError: 4,
    figures.FigureError: 4, report.ReportError: 4, torch.OutOfMemoryError: 4, OSError: 4,
}  # fmt: skip  # a table


@dataclass(frozen=True)
class _Plan:
    """What is known before anything is made. ``manifest`` is None for the demo, ``tensors`` where the network is a new one."""

    config: TrainConfig
    model: ModelConfig
    tensors: Mapping[str, torch.Tensor] | None
    manifest: Manifest | None
    device: torch.device
    dtype: torch.dtype
    precision: str
    engine: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command. Returns its exit code: 0 ok, 1 training failed, 2 usage, 3 data, 4 environment, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show a file's name shows a question mark
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(words)
    if (options.data is None) != options.demo:
        parser.error(
            "give a folder of images, or --demo to train on drawn ones" if options.data is None else f"--demo draws its own images; leave out {options.data}"
        )
    if options.weights and options.model:
        parser.error("--weights brings the size of its own network; leave out --model")
    run = None
    try:
        with use_backend(options.backend or "auto"):
            plan = _plan(options)  # what is wrong with the arguments is said before anything is made
            run = run_folder.create(options.runs, options.name or ("demo" if options.demo else options.data.resolve().name))
            _train(options, words, plan, run)
    except KeyboardInterrupt:
        print(f"\n{_interrupted(run)}", file=sys.stderr)
        return 130
    except tuple(EXIT_CODES) as error:
        print(f"medmambase-train: {_sentence(error, run or options.runs)}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    return 0


def _interrupted(run: Path | None) -> str:
    if run is None:
        return "interrupted: nothing was made"
    if not (run / "best" / "config.json").is_file():  # what the first epoch writes last
        return f"interrupted before the first epoch was finished: no network was kept; {run} can be deleted"
    return f"interrupted: the figures of all finished epochs, and the best and the last network, are in {run}"


def _sentence(error: Exception, place: Path) -> str:
    """One line; an error of the operating system says too little by itself, and not always where."""
    text = str(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = f"{error.filename or place}: {error.strerror or error}{'; free some space there, or choose another place with --runs' if full else ''}"
    return " ".join(text.splitlines())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medmambase-train",
        description="Train MedMambaSE on a folder of images and write a report.",
        epilog="The folder holds train/, val/ and test/ with one folder for each class, or just one folder for each class.",
        allow_abbrev=False,
    )
    parser.add_argument("data", nargs="?", type=Path, help="the folder of images")
    parser.add_argument("--demo", action="store_true", help="train on drawn ultrasound-like images: no data needed, minutes without a GPU")
    parser.add_argument("--recipe", choices=RECIPES, help="how to train (default: ultrasound)")
    parser.add_argument("--model", choices=PRESETS, help="size of the network (default: tiny)")
    parser.add_argument(
        "--weights", type=Path, help="start from a network of ours (runs/x-001/best), or a MedMamba or MedMambaSE checkpoint (.pth, .safetensors)"
    )
    parser.add_argument("--image-size", type=int, help="pixels, square (default: the recipe's, mostly 128)")
    parser.add_argument("--in-chans", choices=("auto", "1", "3"), help="1 grey, 3 RGB (default: 1 if every image is grey)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--patience", type=int, help="stop after so many epochs without improvement; 0: never")
    parser.add_argument("--select", choices=get_args(Metric), help="validation figure that picks the best epoch")
    parser.add_argument("--augmentation", choices=get_args(Augmentation))
    parser.add_argument("--resize", choices=get_args(Resize), help="pad to a square, or distort")
    parser.add_argument("--precision", choices=get_args(Precision))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    parser.add_argument("--backend", choices=BACKENDS, help="engine of the scans (default: the fastest that runs here)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are made (default: runs)")
    parser.add_argument("--name", help="name of the run folder (default: the data's)")
    return parser


def _plan(options: argparse.Namespace) -> _Plan:
    """Settings, device, files and network, each looked at. Raises the errors of EXIT_CODES."""
    config = _config(options)
    device = _device(options.device)
    dtype, why = loop.choose_precision(config.precision, device)
    engine = describe_backend(device, dtype)
    manifest = None if options.demo else scan_folder(options.data, config.seed, options.runs)
    tensors, model = _start(options.weights, config) if options.weights else (None, config.model(PRESETS[options.model or "tiny"]))
    loop.check_batches(len(manifest.split("train")) if manifest else DEMO_IMAGES_PER_CLASS, config.image_size, config.batch_size, model)
    return _Plan(config, model, tensors, manifest, device, dtype, f"{str(dtype).removeprefix('torch.')}: {why}", engine)


def _config(options: argparse.Namespace) -> TrainConfig:
    """The recipe with what was given by hand; the demo fills in what was not."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    if options.demo:
        own = DEMO | ({} if options.recipe else DEMO_RECIPE) | ({} if options.recipe or options.model or options.weights else DEMO_DEPTHS)
        given = own | given
        options.model, options.in_chans = given["model"], given["in_chans"]
    return replace(RECIPES[options.recipe or "ultrasound"], **{f.name: given[f.name] for f in fields(TrainConfig) if f.name != "recipe" and f.name in given})


def _start(path: Path, config: TrainConfig) -> tuple[Mapping[str, torch.Tensor], ModelConfig]:
    """The tensors to start from, and their network as the recipe wants it."""
    tensors, found = read_start(path)
    if config.block and as_coded(config.block) != as_coded(found.block):
        fitting = ", ".join(name for name, recipe in RECIPES.items() if recipe.block is None or as_coded(recipe.block) == as_coded(found.block))
        raise ConfigError(
            f"--weights {path} is a network of block {found.block!r}, and --recipe {config.recipe} trains {config.block!r}, "
            f"whose convolutions are ordered otherwise; choose a recipe that fits ({fitting}), or other weights"
        )
    # The originals' MedMamba gains a gate that starts at exactly 1; a network of ours stays what it is.
    own: Block = "medmambase" if found.block == "medmamba" and "patch_embed.proj.weight" in tensors else found.block
    return tensors, replace(found, block=config.block or own, odd="pad")


def _train(options: argparse.Namespace, words: Sequence[str], plan: _Plan, run: Path) -> None:
    config, device, dtype = plan.config, plan.device, plan.dtype
    say = _logger(run / "train.log")
    say(f"run folder: {run}")
    manifest = plan.manifest
    if manifest is None:
        say(f"drawing {6 * DEMO_IMAGES_PER_CLASS} ultrasound-like images into {run / 'phantom'}")
        manifest = scan_folder(phantom.write_phantom(run / "phantom", images_per_class=DEMO_IMAGES_PER_CLASS, seed=config.seed), config.seed)
    images, preprocessing = _images(manifest, config, options.in_chans or "auto", run, say)
    torch.manual_seed(config.seed)
    network = _network(plan, manifest.classes, preprocessing, say).to(device)
    parameters = sum(p.numel() for p in network.parameters())
    say(f"network:   {network.config.block}, depths {network.config.depths}, widths {network.config.dims}, {parameters / 1e6:.2f} M parameters")
    say(f"device:    {_device_name(device)}")
    say(f"engine:    {plan.engine}")
    say(f"precision: {plan.precision}")
    run_folder.write_text(run / "command.txt", f"medmambase-train {shlex.join(words)}\n")
    run_folder.write_json(run / "env.json", _environment(device))
    described = {
        "model": network.config.to_dict(), "training": config.to_dict(), "preprocessing": preprocessing.to_dict(), "classes": list(manifest.classes),
        "device": _device_name(device), "engine": plan.engine, "precision": plan.precision, "parameters": parameters,
    }  # fmt: skip  # the file's content
    run_folder.write_json(run / "config.json", described)
    outcome = loop.train(network, images.split("train"), images.split("val"), config, run, dtype, _progress, lambda epoch: say(_line(epoch)))
    run_folder.write_json(
        run / "config.json", described | {"best_epoch": outcome.best_epoch, "best_score": outcome.best_score, "selected_by": outcome.selected_by}
    )
    best = MedMambaSE.load(run / "best").to(device)
    test = images.split("test")
    if len(test.labels):
        say("")
        say(_summary(_evaluate(best, test, config, run, dtype)))
    shown = test if len(test.labels) else images.split("val") if len(images.split("val").labels) else images.split("train")
    _draw(best, shown, run, outcome.best_epoch)
    say(f"\nbest epoch: {outcome.best_epoch}; network: {run / 'best'}")
    say(f"report: {report.write_report(run).resolve()}")


def _device(wish: str | None) -> torch.device:
    try:
        device = torch.device(wish or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).item()  # the number must come back: there are devices without any
    except (RuntimeError, AssertionError) as error:  # torch raises either, with or without CUDA in its build
        raise ConfigError(f"--device {wish} cannot be used ({str(error).splitlines()[0]}); leave it out to choose automatically") from error
    return device


def _images(manifest: Manifest, config: TrainConfig, in_chans: str, run: Path, say: Callable[[str], None]) -> tuple[ImageSet, Preprocessing]:
    """Decode everything once; report what was skipped; decide between grey and RGB."""
    preprocessing = Preprocessing(size=config.image_size, resize=config.resize, channels=1 if in_chans == "1" else 3)
    images, bad = decode(manifest.samples, preprocessing, lambda results, total: _progress(results, total, "reading images"))
    if in_chans == "auto" and len(images.labels) and images.is_grey():
        images, preprocessing = images.to_grey(), replace(preprocessing, channels=1)
    notes = [*manifest.notes, *lost(manifest, images.samples)]
    for note in notes:
        say(f"note: {note}")
    for error in bad[:20]:
        say(f"skipped: {error}")
    if len(bad) > 20:
        say(f"skipped: {len(bad) - 20} more, all named in {run / 'data_report.json'}")
    counts = {split: Counter(manifest.classes[s.label] for s in images.samples if s.split == split) for split in ("train", "val", "test")}
    for split, of_class in counts.items():
        if of_class:
            say(f"{split + ':':6} {of_class.total()} images ({', '.join(f'{name} {of_class[name]}' for name in manifest.classes)})")
    run_folder.write_json(
        run / "data_report.json",
        {
            "root": manifest.root.name, "counts": {split: {name: c[name] for name in manifest.classes} for split, c in counts.items() if c},
            "skipped": [{"path": str(error.path), "reason": error.reason} for error in bad], "notes": notes,
        },
    )  # fmt: skip  # the file's content
    run_folder.write_rows(run / "splits.csv", ("path", "label", "split"), [(s.name, manifest.classes[s.label], s.split) for s in images.samples])
    unread = [name for name in manifest.classes if not counts["train"][name]]
    if unread:
        raise DataError(f"{manifest.root}: no training image of {', '.join(unread)} can be read; see {run / 'data_report.json'}")
    return images, preprocessing


def _network(plan: _Plan, classes: tuple[str, ...], preprocessing: Preprocessing, say: Callable[[str], None]) -> MedMambaSE:
    """A new network, or one that starts from the tensors of another."""
    if plan.tensors is None:
        architecture = replace(plan.model, num_classes=len(classes), in_chans=preprocessing.channels)
        return MedMambaSE(architecture, classes=classes, preprocessing=preprocessing)
    network = MedMambaSE.start_from(plan.tensors, plan.model, num_classes=len(classes), in_chans=preprocessing.channels, say=say)
    network.classes, network.preprocessing = classes, preprocessing
    return network


def _evaluate(network: MedMambaSE, test: ImageSet, config: TrainConfig, run: Path, dtype: torch.dtype) -> Metrics:
    probabilities = loop.predict(network, test, config.batch_size, dtype)
    labels = test.labels.numpy()
    metrics = evaluate(labels, probabilities, network.classes)
    (run / "test").mkdir()
    write_predictions(run / "test" / "predictions.csv", [sample.name for sample in test.samples], labels, probabilities, network.classes)
    run_folder.write_json(run / "test" / "metrics.json", metrics.to_dict())
    figures.confusion(metrics, run / "test" / "confusion.png")
    return metrics


def _draw(network: MedMambaSE, images: ImageSet, run: Path, best_epoch: int) -> None:
    """The curves, and squeeze-and-excitation before and after on the first image of each class."""
    figures.curves(run / "metrics.csv", run / "curves.png", best_epoch)
    labels = images.labels.tolist()
    rows = [labels.index(label) for label in sorted(set(labels))][: figures.MOST_ROWS]
    batch = normalise(images.images[rows].to(next(network.parameters()).device), network.preprocessing)
    stages = explain.recalibration(network, batch)
    if stages:
        (run / "explain").mkdir()
    for stage in stages:
        figures.recalibration(stage, batch, [network.classes[labels[row]] for row in rows], run / "explain" / f"se_stage{stage.stage}.png")


def _logger(path: Path) -> Callable[[str], None]:
    def say(line: str) -> None:
        tqdm.write(line)
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(line + "\n")

    return say


def _progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    return tqdm(items, description, total, leave=False, disable=None)  # None: silent where nobody watches


def _line(epoch: loop.Epoch) -> str:
    def figure(value: float | None) -> str:
        return "n/a  " if value is None else f"{value:.3f}"

    return (
        f"epoch {epoch.epoch:3}  train loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.3f}   val loss {figure(epoch.val_loss)}  "
        f"accuracy {figure(epoch.val_accuracy)}  balanced {figure(epoch.val_balanced_accuracy)}  AUC {figure(epoch.val_auc)}   {epoch.seconds:.1f} s"
    )


def _summary(metrics: Metrics) -> str:
    def figure(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    wide = max(len(one.name) for one in metrics.per_class)
    area = "AUC" if len(metrics.per_class) == 2 else "macro AUC"  # of two classes there is one curve, and no mean
    lines = [f"test: accuracy {figure(metrics.accuracy)}, balanced accuracy {figure(metrics.balanced_accuracy)}, {area} {figure(metrics.auc)}"]
    lines.append(f"{'class':{wide}}  images  sensitivity  specificity     F1    AUC")
    lines += [
        f"{one.name:{wide}}  {one.support:6}  {figure(one.sensitivity):>11}  {figure(one.specificity):>11}  {figure(one.f1):>5}  {figure(one.auc):>5}"
        for one in metrics.per_class
    ]
    return "\n".join(lines)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _environment(device: torch.device) -> dict[str, str]:
    """Versions that a result may depend on; nothing that names the person or the machine."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in ("medmambase", "torch", "triton", "triton-windows", "numpy", "pillow", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        found |= {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
    return found


if __name__ == "__main__":
    sys.exit(main())
