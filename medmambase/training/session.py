"""Prepare a training: decode and audit the images of a run, build its initial network, and record
both in its folder.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medmambase import run_folder
from medmambase.config import (
    RECIPES,
    AnyConfig,
    Block,
    ConfigError,
    ModelConfig,
    Preprocessing,
    TrainConfig,
    network_config,
)
from medmambase.data import looks
from medmambase.data.audit import Audit, audit, duplicate_groups, seen_otherwise
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.image_set import ImageSet, Progress, clips, decode, lost, modalities
from medmambase.data.manifest.folders import SPLITS, DataError, Manifest, Sample
from medmambase.data.manifest.labels import classes_in
from medmambase.data.manifest.splits import write_splits
from medmambase.data.pseudonyms import KEY, Pseudonyms, place
from medmambase.data.reading.images import ImageError
from medmambase.files import read_json
from medmambase.model import opponents, starting, weights
from medmambase.model.classifier import Trainable
from medmambase.model.layers import as_coded
from medmambase.model.network import MedMambaSE
from medmambase.model.starting import Start
from medmambase.plural import count_of
from medmambase.privacy import without_paths
from medmambase.settings import Settings
from medmambase.training.checkpoint import CheckpointError

MOST_LINES = 20  # about images that cannot be read; the report has them all
_MOST_NAMES = 5  # of images that the weights have learned from; data_report.json has them all


@dataclass(frozen=True)
class Intake:
    """All images of a run, their preprocessing, the findings of the audit, and one line for each
    note."""

    images: ImageSet
    preprocessing: Preprocessing
    audit: Audit
    bad: tuple[ImageError, ...]
    notes: tuple[str, ...]

    def counts(self, classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
        """Count images by split and class, for splits that have any."""
        parts = {split: self.images.split(split).samples for split in SPLITS}
        found = {
            split: Counter(classes[number] for sample in part for number in classes_in(sample.label))
            for split, part in parts.items()
        }
        return {split: {name: of_class[name] for name in classes} for split, of_class in found.items() if parts[split]}

    def sizes(self) -> dict[str, int]:
        """Count images by split, for splits that have any."""
        counts = Counter(sample.split for sample in self.images.samples)
        return {split: counts[split] for split in SPLITS if counts[split]}


def duplicates(
    samples: Sequence[Sample], config: TrainConfig, in_chans: str, cached: Path, progress: Progress
) -> list[list[str]]:
    """Find groups of duplicates among images that are not divided yet, as ``take_in`` finds them
    later: the names of each group. The other arguments are those of ``take_in``; each image is
    decoded, and not kept."""
    cache = Cache(cached) if config.cache == "disk" else None
    images, _ = decode(
        samples,
        _preprocessing(config, in_chans),
        lambda results, total: progress(results, total, "looking for duplicates"),
        cache,
        keep=False,
    )
    return [[images.samples[row].name for row in group] for group in duplicate_groups(images.facts)]


def take_in(
    manifest: Manifest,
    config: TrainConfig,
    in_chans: str,
    cached: Path,
    progress: Progress,
    called: Pseudonyms,
    seen: Collection[str] = (),
) -> Intake:
    """Decode every image once, decide between grey and RGB, and audit them. ``in_chans`` is "1",
    "3" or "auto": 1 if every image is grey. Patients and images are named as they are ``called``.

    ``cached``: the folder of decoded images that are kept on disk, where they are. ``seen``: the
    hashes of images that the weights to start from have learned from. Raises DataError where memory
    does not suffice.
    """
    manifest = called.of_manifest(manifest)
    preprocessing = _preprocessing(config, in_chans)
    cache = Cache(cached) if config.cache == "disk" else None
    images, bad = decode(
        manifest.samples,
        preprocessing,
        lambda results, total: progress(results, total, "reading images"),
        cache,
        keep=config.cache != "off",
    )
    images = replace(images, facts=called.of_facts(images.facts))
    if in_chans == "auto" and len(images.labels) and images.is_grey():
        images, preprocessing = images.to_grey(), replace(preprocessing, channels=1)
    found = audit(images, manifest, seen)
    if seen:
        again = [
            seen_otherwise(
                images.split(name), preprocessing, seen, lambda results, total: progress(results, total, "comparing")
            )
            for name in ("val", "test")
        ]
        found = replace(found, seen=tuple(sorted({*found.seen}.union(*again))))
    of_images = (*lost(manifest, images.samples), *modalities(images), *clips(images))
    notes = (*manifest.notes, *of_images, *(cache.notes if cache else ()))
    return Intake(images, preprocessing, found, (*manifest.unlisted, *bad), notes)


def _preprocessing(config: TrainConfig, in_chans: str) -> Preprocessing:
    """How images are read, as long as it is not known whether all are grey."""
    return Preprocessing(config.image_size, 1 if in_chans == "1" else 3, config.resize, config.high_depth)


def say_intake(intake: Intake, manifest: Manifest, run: Path, say: Callable[[str], object]) -> None:
    """Print what a person should know about the images before training."""
    say(f"data:      {manifest.method}")
    for note in intake.notes:
        say(f"note: {note}")
    say_skipped(intake.bad, run, say)
    for split, of_class in intake.counts(manifest.classes).items():
        say(
            f"{split + ':':6} {count_of(intake.sizes()[split], 'image')} "
            f"({', '.join(f'{name} {count}' for name, count in of_class.items())})"
        )
    found = intake.audit
    told = found.counted()
    where = f"; all listed in {run / run_folder.DATA_REPORT}" if told else ""
    say(f"checked:   {told or 'no duplicates, and no patient in two splits'}{where}")
    for line in found.lines() if found.across or found.conflicts or found.patients or found.seen else ():
        say(f"found: {line}")
    if found.leaked:
        say(
            f"note: {count_of(len(found.leaked), 'test image has', 'test images have')} a duplicate, or an image of "
            f"the same patient, in train or val: test results are given with and without such images"
        )


def say_skipped(bad: Sequence[ImageError], run: Path, say: Callable[[str], object]) -> None:
    """Print which images cannot be read, at most MOST_LINES of them."""
    for error in bad[:MOST_LINES]:
        say(f"skipped: {error}")
    if len(bad) > MOST_LINES:
        say(f"skipped: {len(bad) - MOST_LINES} more, all listed in {run / run_folder.DATA_REPORT}")


def skipped(bad: Iterable[ImageError], root: Path) -> list[dict[str, str]]:
    """Return what a run's files say of images that cannot be read, of data at ``root``."""
    return [{"path": place(error.path, root), "reason": without_paths(error.reason)} for error in bad]


def write_intake(intake: Intake, manifest: Manifest, run: Path) -> None:
    """Write ``data_report.json``, ``splits.csv``, a manifest of the images that could be read, and
    ``looks.csv``."""
    run_folder.write_json(
        run / run_folder.DATA_REPORT,
        {
            "root": manifest.root.name, "method": manifest.method, "counts": intake.counts(manifest.classes),
            "skipped": skipped(intake.bad, manifest.root),
            "notes": list(map(without_paths, intake.notes)), "audit": intake.audit.to_dict(),
            **({"images": intake.sizes()} if manifest.multi_label else {}),
        },
    )  # fmt: skip  # the file's content
    write_splits(run / run_folder.SPLITS, replace(manifest, samples=intake.images.samples))
    looks.write(run / run_folder.LOOKS, intake.images)


def check_intake(intake: Intake, manifest: Manifest, run: Path, skip_bad: bool, allow_leak: bool) -> None:
    """Refuse images that cannot be trained on. Raises DataError where a class has no readable
    training image, where an image is unreadable and ``skip_bad`` is False, where a patient is in
    two splits according to the decoded files, or where the weights to start from have learned from
    an image of val or test.
    """
    if intake.bad and not skip_bad:
        more = (
            f", and {len(intake.bad) - 1} more listed in {run / run_folder.DATA_REPORT}" if len(intake.bad) > 1 else ""
        )
        raise DataError(f"{intake.bad[0]}{more}; fix or remove unreadable files, or skip them with --on-bad skip")
    if intake.audit.patients and not allow_leak:
        raise DataError(
            f"{manifest.root}: {count_of(len(intake.audit.patients), 'patient is', 'patients are')} in two splits, "
            f"according to the image files (see {run / run_folder.DATA_REPORT}), so test results would be too good; "
            f"split by patient in a CSV (path,label,patient,split), or continue with --allow-leak"
        )
    of_fold = (run / run_folder.SPLITS_OF_FOLD).is_file()
    refuse_seen(intake.audit.seen, manifest.root, None if of_fold else run / run_folder.SPLITS)
    counts = intake.counts(manifest.classes).get("train", {})
    unread = [name for name in manifest.classes if not counts.get(name)]
    if unread:
        raise DataError(
            f"{manifest.root}: no training image of {', '.join(unread)} can be read; see {run / run_folder.DATA_REPORT}"
        )


def refuse_seen(seen: Sequence[str], root: Path, splits: Path | None) -> None:
    """Raise DataError where the weights to start from have ``seen`` images of val or test.
    ``splits``: how these are divided; None in a cross-validation, which tests what others learn."""
    if not seen:
        return
    advice = "for a cross-validation pretrain on drawn pictures (medmambase-pretrain --drawn) or on other images"
    if splits:
        advice = (
            f"divide the images as they were divided then (--splits), pretrain without them (medmambase-pretrain DATA "
            f"--splits {splits})"
        )
    named = f"{', '.join(seen[:_MOST_NAMES])}{', ...' if len(seen) > _MOST_NAMES else ''}"
    raise DataError(
        f"{root}: the weights of --start have learned from {count_of(len(seen), 'image')} of val or test ({named}), "
        f"so results would be too good; {advice}, or start from other weights"
    )


def start(path: Path, config: TrainConfig) -> tuple[Start, ModelConfig]:
    """Read the weights to start from, and the network that the recipe wants for them. Raises
    WeightsError, or ConfigError where the two contradict each other."""
    begun = starting.read(path)
    tensors, found = begun.tensors, begun.config
    if config.block and as_coded(config.block) != as_coded(found.block):
        fitting = ", ".join(
            name
            for name, recipe in RECIPES.items()
            if recipe.block is None or as_coded(recipe.block) == as_coded(found.block)
        )
        raise ConfigError(
            f"--start {path} has blocks of type {found.block!r}, but --recipe {config.recipe} trains {config.block!r}, "
            f"whose convolutions are in another order; choose a matching recipe ({fitting}), or other weights"
        )
    # The originals' MedMamba gains a gate that starts at exactly 1; a network of ours stays what it
    # is.
    own: Block = "medmambase" if found.block == "medmamba" and "patch_embed.proj.weight" in tensors else found.block
    model = replace(found, block=config.block_for(own), odd="pad")
    with torch.device("meta"):  # shapes alone: what does not fit is said before any image is read
        network = MedMambaSE(model)
    new = weights.new_parts(tensors, found, model.block, model.num_classes)
    weights.match(network, tensors, found, str(path), new)
    return begun, model


def begin(
    model: AnyConfig,
    start: Start | opponents.PublishedWeights | None,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    say: Callable[[str], object],
    multi_label: bool = False,
) -> Trainable:
    """Build a new network, or one that starts from the weights of another: with its classifier if
    that knows as many classes, by the same names in the same order where it has names, and was
    learned for the same task."""
    model = replace(model, multi_label=multi_label)
    if not isinstance(model, ModelConfig):
        return opponents.begin(model, start, classes, preprocessing)
    if not isinstance(start, Start):
        model = replace(model, num_classes=len(classes), in_chans=preprocessing.channels)
        return MedMambaSE(model, classes=classes, preprocessing=preprocessing)
    tensors, same_task = start.tensors, start.config.multi_label == multi_label
    if start.classes and (start.classes != classes or not same_task) and len(start.classes) == len(classes):
        tensors = {key: t for key, t in tensors.items() if not weights.renamed(key).startswith("head.")}
        say(
            f"the classifier starts anew: the weights tell {', '.join(start.classes)} apart, and these images are "
            f"{', '.join(classes)}"
            if same_task
            else "the classifier starts anew: the weights and these images do not both have one class an image"
        )
    network = MedMambaSE.start_from(
        tensors, model, block=model.block, num_classes=len(classes), in_chans=preprocessing.channels, say=say
    )
    network.classes, network.preprocessing = classes, preprocessing
    return network


def settle(run: Path, settings: Settings, resumes: bool, write: bool) -> Pseudonyms:
    """Write the settings of a new run, and draw the key of its patients' pseudonyms; of a run that
    is resumed read the key. Without ``write`` another process does the writing.

    Raises RunFolderError, also where a resumed run has lost its key.
    """
    if resumes:
        kept = Pseudonyms.of_run(run)
        if kept is None:
            raise run_folder.RunFolderError(
                f"{run / run_folder.PRIVATE}: is not there, and the patients of this run have pseudonyms that were "
                f"made with the key in it; restore it, or start a new run"
            )
        if write and kept.key is not None and not (run / run_folder.PRIVATE).is_file():
            run_folder.write_private(run, {KEY: kept.key.hex()})
        return kept
    called = Pseudonyms.new(settings.plain_patients)
    if write:
        write_settings(run, settings, called)
    return called


def write_settings(run: Path, settings: Settings, called: Pseudonyms, file: str = run_folder.CONFIG) -> None:
    """Write the settings of a new run to its ``file``, and the key of its patients'
    pseudonyms. Raises RunFolderError."""
    private = settings.private()
    key = {} if called.key is None else {KEY: called.key.hex()}
    run_folder.write_private(run, key | private)  # first: a run is known by its settings
    run_folder.write_text(run / file, settings.to_toml(private, file))


def has_begun(run: Path) -> bool:
    """Return whether ``run`` has a checkpoint to resume from."""
    return (run / run_folder.LAST / run_folder.STATE).is_file()


def model_of(run: Path) -> AnyConfig:
    """Read the network's configuration of a run that has started. Raises CheckpointError where its
    ``config.json`` does not have it."""
    path = run / run_folder.DESCRIPTION
    try:
        return network_config(read_json(path)["model"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # ConfigError is a ValueError
        raise CheckpointError(
            f"{path}: does not describe the network of this run ({error}); restore the file, or start a new run"
        ) from error


def write_command(run: Path, command: str, goes_on: bool) -> None:
    """Write ``command.txt``: the command that started the run, and below it those that resumed
    it."""
    path = run / run_folder.COMMAND
    before = path.read_bytes() if goes_on and path.is_file() else b""
    run_folder.write_bytes(path, before + f"{command}\n".encode("utf-8", "backslashreplace"))
