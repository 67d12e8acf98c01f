"""``medmambase-explain RUN IMAGES``: draw what a network looks at, and measure whether to trust
it."""

import argparse
import sys
from collections.abc import Sequence

from medmambase.commands import console, explain_flags
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.images import normalise
from medmambase.evaluation.explanation import folder as explanations
from medmambase.evaluation.report import report
from medmambase.inference.predictor import load_network
from medmambase.run_folder import BEST, DESCRIPTION, EXPLAIN


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 2 usage, 3 data, 4 environment, 130
    interrupted."""
    options = explain_flags.parse(arguments)
    return console.guarded("medmambase-explain", lambda: _explain(options))


def _explain(options: argparse.Namespace) -> int:
    run, source = options.run, options.images
    network, device = load_network(run), console.device(options.device)
    if not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder; give an image, or a folder with images at any depth"
        )
    subjects, bad = explanations.read_subjects(source, network, options.most)
    for error in bad:
        print(f"skipped: {error}")
    images = normalise(subjects.pictures.to(device), network.preprocessing)
    found = explanations.write(run / EXPLAIN, network.to(device), network.classes, images, subjects)
    print(f"{len(subjects.names)} images explained in {(run / EXPLAIN).resolve()}")
    for name, words in (("cam", "by the map"), ("random", "by chance")):
        print(
            f"probability of the class, {words:10}: deletion {found[name]['deletion']:.3f}, insertion "
            f"{found[name]['insertion']:.3f}"
        )
    print(found["verdict"])
    if (run / DESCRIPTION).is_file() and (run / BEST).is_dir():
        print(f"report: {report.write_report(run).resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
