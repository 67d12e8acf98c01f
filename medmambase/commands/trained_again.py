"""Write the lines that train the network of a run again, for the end of a command."""

from pathlib import Path

from medmambase.commands.next_steps import pasted
from medmambase.config import ConfigError
from medmambase.run_folder import CONFIG, PHANTOM, RunFolderError
from medmambase.settings import resolve


def trained_again(run: Path) -> list[tuple[str, str]]:
    """Return the steps that train the network of ``run`` again with the same settings: on the next
    fold, if there is one, and with another seed on the same test images. Of a folder that tells no
    settings, or keeps them from this account, there are none."""
    try:
        settings = resolve({}, run / CONFIG)
    except (ConfigError, RunFolderError):
        return []
    again, steps = ("medmambase-train", "--config", run / CONFIG), []
    if settings.fold + 1 < settings.folds:
        steps.append(("train on the next fold", pasted(*again, "--fold", settings.fold + 1)))
    # The demo draws its images by the seed, so those of this run are given as a folder.
    data = () if not settings.demo else (run / PHANTOM,)
    seeds = ("--split-seed", settings.seed_of_splits, "--seed", settings.training.seed + 1)
    steps.append(("train with another seed, test on the same images, and compare", pasted(*again, *data, *seeds)))
    return steps
