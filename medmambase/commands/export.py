"""``medmambase-export RUN``: write the network of a run as a file for other programs."""

import sys
from collections.abc import Sequence

from medmambase.commands import console, export_flags, guard
from medmambase.portable.python_api import describe, export_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 the network cannot be exported or the
    file would differ, 2 usage, 3 data, 4 environment, 130 interrupted."""
    options = export_flags.parse(arguments)

    def act() -> int:
        if options.output is not None:
            guard.check_file("-o", options.output)
        exported = export_run(
            options.run, options.output, format=options.format, images=options.images, progress=console.progress
        )
        for line in describe(exported):
            print(line)
        if exported.program is not None:
            print(f"\npictures are prepared, and predicted with it, by {exported.program.resolve()}:\n")
            print(exported.program.read_text(encoding="utf-8"), end="")
        return 0

    return console.guarded("medmambase-export", act)


if __name__ == "__main__":
    sys.exit(main())
