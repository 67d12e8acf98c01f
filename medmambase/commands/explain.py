"""``medmambase-explain RUN IMAGES``: draw what a network looks at, and measure whether to trust
it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import run_folder
from medmambase.commands import console, explain_flags
from medmambase.commands.next_steps import pasted, say_next
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.frames import file_and_frame
from medmambase.data.reading.images import normalise
from medmambase.evaluation.explanation import folder as explanations
from medmambase.inference.loading import frames_of, load_network
from medmambase.model.network import MedMambaSE
from medmambase.plural import count_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 2 usage, 3 data, 4 environment, 130
    interrupted."""
    options = explain_flags.parse(arguments)
    return console.guarded("medmambase-explain", lambda: _explain(options))


def _explain(options: argparse.Namespace) -> int:
    run, source = options.run, options.images
    network, device = load_network(run), console.device(options.device)
    if not isinstance(network, MedMambaSE):
        raise ConfigError(
            f"{run} holds {network.config.words()}, and maps of evidence, scans and gates are those of MedMambaSE's "
            f"blocks; give a run of MedMambaSE"
        )
    if network.task.multi_label:
        raise ConfigError(
            f"{run} calls several classes an image, and an explanation is of the one class that an image is called; "
            f"give the run of a network of one class an image"
        )
    file, _ = file_and_frame(source)
    if not file.exists():
        raise DataError(
            f"{source}: there is no such file or folder; give an image, or a folder with images at any depth"
        )
    subjects, bad = explanations.read_subjects(source, network, options.most, frames_of(run))
    for error in bad:
        print(f"skipped: {error}")
    if frames := [name for name in subjects.names if file_and_frame(Path(name))[1] is not None]:
        told = count_of(len(frames), "image is one frame of several", "images are one frame of several each")
        print(f"note: {told}, such as {frames[0]}; give FILE#NUMBER for another frame of a file")
    folder = _folder(options)
    images = normalise(subjects.pictures.to(device), network.preprocessing)
    found = explanations.write(
        folder, network.to(device), network.classes, images, subjects, network.preprocessing, console.progress
    )
    explained = count_of(
        len(subjects.names), "image explained and drawn with its map", "images explained and drawn with their maps"
    )
    print(f"{explained}: {folder.resolve()}")
    marked, chance = found["cam"], found["random"]
    print(
        f"deletion test: the class has a mean probability of {marked['deletion']:.3f} while what the map marks is "
        f"deleted first, and of {chance['deletion']:.3f} in random order (lower is better)"
    )
    print(
        f"insertion test: {marked['insertion']:.3f} while what the map marks is shown first, and "
        f"{chance['insertion']:.3f} in random order (higher is better)"
    )
    print(found["verdict"])
    print(f"report: {(folder / run_folder.REPORT).resolve()}")
    say_next(("see the probabilities of these images", pasted("medmambase-predict", run, file)))
    return 0


def _folder(options: argparse.Namespace) -> Path:
    """The folder to write to, which is not that of the training's own explanations."""
    if options.output is None:
        return run_folder.create(options.run / run_folder.EXPLANATIONS, options.images.resolve().stem)
    output: Path = options.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"-o {output} is a file; give the name of a folder for the pictures")
    if (output / run_folder.REPORT).exists() and not (output / run_folder.FAITHFULNESS).exists():
        raise ConfigError(
            f"-o {output} holds a {run_folder.REPORT} of something else, such as a training; give another folder for "
            f"the pictures"
        )
    return output


if __name__ == "__main__":
    sys.exit(main())
