"""``medmambase-table data/``: several networks, several seeds of each, on the same images."""

import sys
from collections.abc import Sequence

from medmambase import privacy
from medmambase.commands import console
from medmambase.commands.next_steps import pasted, say_next
from medmambase.commands.table_flags import parse
from medmambase.run_folder import TABLE_MARKDOWN
from medmambase.training.table.run import table_run
from medmambase.training.table.settings import lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ok, 1 a training failed, 2 usage, 3 data, 4
    environment, 130 interrupted, 143 or 129 ended by the system."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def act() -> int:
        given = parse(words)
        every = lines(given.models, given.seeds, given.settings, given.config)
        command = privacy.command("medmambase-table", words)
        folder, _, runs = table_run(every, command, console.say, console.progress)
        table = (folder / TABLE_MARKDOWN).read_text(encoding="utf-8")
        print(f"\n{table}\ntable: {folder.resolve()}")
        if len(runs) > 1:
            sides = (*map(str, runs[0]), "--against", *map(str, runs[-1]))
            say_next(("compare two of the networks in every metric", pasted("medmambase-compare", *sides)))
        return 0

    def interrupted() -> str:
        return "interrupted: what was trained is saved; the same command goes on"

    return console.guarded("medmambase-table", act, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
