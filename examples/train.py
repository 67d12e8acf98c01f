"""Train on your images, watch every epoch, and read the result: python examples/train.py data/

A second argument is a TOML file of settings, such as the config.toml of an earlier run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medmambase import Run, train
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.model.weights import WeightsError
from medmambase.run_folder import RunFolderError


def main(data: str, config: str | None = None) -> Run:
    """Train, print a line for each epoch and the test figures, and return the run."""

    def on_epoch(row: dict[str, float]) -> None:  # W&B's log, or MLflow's log_metrics, fits here too
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))

    run = train(data, config=config, on_epoch=on_epoch)
    if run.metrics:
        print(f"balanced accuracy on the test images: {run.metrics.clean.balanced_accuracy}")
    print(f"report: {Path(run.report).resolve()}")
    return run


def command(words: Sequence[str]) -> None:
    """Read the command line and train; what is missing or wrong is said in one line, with exit code
    2."""
    parser = argparse.ArgumentParser(description="Train on images, and print every epoch.")
    parser.add_argument("data", help="what medmambase-train takes: a folder of class folders, or a CSV")
    parser.add_argument("config", nargs="?", help="a TOML file of settings")
    given = parser.parse_args(words)
    try:
        main(given.data, given.config)
    except (ConfigError, DataError, WeightsError, RunFolderError) as error:  # settings, data, start, runs/
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    command(sys.argv[1:])
