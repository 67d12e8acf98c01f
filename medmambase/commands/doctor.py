"""Say what runs on this machine, what does not, and which command fixes it: ``medmambase-doctor``.

Parse, call, print. Needs nothing but Python, so that it can say why PyTorch does not load.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from medmambase import __version__
from medmambase.commands import doctor_flags, guard
from medmambase.commands.next_steps import pasted, say_next
from medmambase.doctor.facts import Facts, look
from medmambase.doctor.finding import Finding, Level
from medmambase.doctor.findings import findings, verdict
from medmambase.privacy import without_names

READY = 0
_MARKS = {Level.OK: " ", Level.NOTE: "-", Level.SLOWER: "!", Level.BROKEN: "X"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command. Returns its exit code: 0 ready, 2 usage, 4 not ready, or the
    environment fails, 130 interrupted."""
    options = doctor_flags.parse(arguments)
    return guard.guarded("medmambase-doctor", lambda: _examine(options))


def _examine(options: argparse.Namespace) -> int:
    if options.json:
        guard.check_file("--json", options.json)
    facts = look()
    found = findings(facts)
    level, last = verdict(facts, found)
    for finding in found:
        print(f"{_MARKS[finding.level]} {finding.title:17} {finding.text}")
        if finding.fix and finding.level:
            print(f"  {'':17} -> {finding.fix}")
    if options.json:
        text = json.dumps(report(facts, found, last, options.paths), indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8", newline="\n")
        print(f"  {'for a bug report':17} {options.json}")
    print(f"\n{last}")
    if level == Level.BROKEN:  # the last line says what to do
        return guard.ENVIRONMENT
    say_next(("train a small network on drawn images, which takes minutes", pasted("medmambase-train", "--demo")))
    return READY


def report(facts: Facts, found: Sequence[Finding], last: str, paths: bool) -> dict[str, Any]:
    """Build what ``--json`` writes; without ``paths`` it holds no path and no user's name."""
    whole = {
        "medmambase": __version__,
        "verdict": last,
        "findings": [{**dataclasses.asdict(finding), "level": finding.level.name.lower()} for finding in found],
        "facts": dataclasses.asdict(facts),
    }
    return whole if paths else without_names(whole)


if __name__ == "__main__":
    sys.exit(main())
