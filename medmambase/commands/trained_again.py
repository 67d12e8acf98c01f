"""Write the lines that train the network of a run again, for the end of a command."""

from pathlib import Path

from medmambase.commands.next_steps import pasted
from medmambase.config import ConfigError
from medmambase.run_folder import CONFIG, PHANTOM, RunFolderError
from medmambase.settings import Settings, resolve


def trained_again(run: Path) -> list[tuple[str, str]]:
    """Return the steps that train the network of ``run`` again with the same settings: on the next
    fold, if there is one, and with another seed on the same test images. Of a folder that tells no
    settings, or keeps them from this account, there are none."""
    settings, steps = _settings(run), []
    if settings and settings.fold + 1 < settings.folds:
        again = ("medmambase-train", "--config", run / CONFIG)
        steps.append(("train on the next fold", pasted(*again, "--fold", settings.fold + 1)))
    words = "train with another seed, test on the same images, and compare"
    return steps + [(words, command) for command in other_seeds(run, 1)]


def other_seeds(run: Path, count: int) -> list[str]:
    """Return commands that train the network of ``run`` again on the same images, with the
    ``count`` seeds that follow its own; of a folder that tells no settings none."""
    settings = _settings(run)
    if settings is None:
        return []
    # The demo draws its images by the seed, so those of this run are given as a folder.
    data = () if not settings.demo else (run / PHANTOM,)
    again = ("medmambase-train", "--config", run / CONFIG, *data, "--split-seed", settings.seed_of_splits)
    return [pasted(*again, "--seed", settings.training.seed + 1 + number) for number in range(count)]


def _settings(run: Path) -> Settings | None:
    try:
        return resolve({}, run / CONFIG)
    except (ConfigError, RunFolderError):
        return None
