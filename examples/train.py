"""Train on your images, watch every epoch, and read the result: python examples/train.py data/

A second argument is a TOML file of settings, such as the config.toml of an earlier run.
"""

import sys
from pathlib import Path

from medmambase import Run, train


def main(data: str, config: str | None = None) -> Run:
    """Train, print a line for each epoch and the test figures, and return the run."""

    def on_epoch(row: dict[str, float]) -> None:  # W&B's log, or MLflow's log_metrics, fits here too
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))

    run = train(data, config=config, on_epoch=on_epoch)
    if run.metrics:
        print(f"balanced accuracy on the test images: {run.metrics.balanced_accuracy}")
    print(f"report: {Path(run.report).resolve()}")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
