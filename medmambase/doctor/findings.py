"""Turn the facts into findings, one line each with the command that fixes it, and into the last
line. Pure functions of Facts.
"""

from collections.abc import Iterable

from medmambase.doctor import machine, packages, trial_run
from medmambase.doctor.facts import Facts
from medmambase.doctor.finding import Finding, Level


def findings(f: Facts) -> list[Finding]:
    """Judge everything, each thing after those that it needs."""
    return [
        machine.system(f), machine.python(f), machine.headers(f), machine.runtime(f), machine.card(f),
        machine.driver(f),
        packages.medmambase(f), packages.torch(f), packages.build(f), packages.capability(f), packages.triton(f),
        packages.pair(f), packages.llvmlite(f), packages.shadow(f),
        machine.temp(f), machine.cache(f), machine.long_paths(f), machine.memory(f), machine.disk(f),
        trial_run.backend(f), trial_run.kernel(f), trial_run.scan(f), trial_run.speed(f),
    ]  # fmt: skip  # a list


def verdict(f: Facts, found: Iterable[Finding]) -> tuple[Level, str]:
    """Sum the findings up: the worst level, and the last line of the report."""
    # max takes the first of the worst: what comes later may only follow from it.
    worst = max(found, key=lambda finding: finding.level)
    if worst.level == Level.BROKEN:
        return worst.level, f"NOT READY: {worst.why}; {worst.fix}"
    if worst.level == Level.SLOWER:
        return worst.level, f"READY (slower, {worst.why})" + (f"; to fix it: {worst.fix}" if worst.fix else "")
    return worst.level, f"READY ({f.trial.backend}{f' on {f.card_name}' if f.trial.sees_gpu and f.card_name else ''})"
