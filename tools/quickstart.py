"""Go from a clone to a trained network and its report in one command: python tools/quickstart.py

Makes .venv, installs a torch that fits the machine and both distributions of this repository, and
trains on the built-in phantom images.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # old Pythons must parse this file and hear why, so the import stands below
    sys.exit(
        f"medmambase needs Python 3.11 or newer; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
        f"Get one from https://www.python.org"
    )

from collections.abc import Sequence

import environment


def main(arguments: Sequence[str]) -> int:
    """Set up, train, and say where the report is. Returns the exit code of medmambase-train."""
    ours, theirs = environment.split(arguments)
    chosen = environment.parser(
        "Set up medmambase and train a small network on its built-in phantom images.",
        "medmambase-train, for example: -- --epochs 2",
    ).parse_args(ours)
    folder = chosen.venv.absolute()
    environment.prepare(folder)
    train = str(environment.program(folder, "medmambase-train"))
    environment.say("training on the built-in phantom images")
    code = environment.call([train, "--demo", *theirs])
    if code != 0:
        environment.say(f"the training ended with exit code {code}; the reason is above")
        return code
    environment.say("done; the path of the report is above. To train on your own images in data/<class>/*.png:")
    environment.say(environment.as_text([train, "data"]))
    return 0


if __name__ == "__main__":
    sys.exit(environment.run(main))
