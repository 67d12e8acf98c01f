"""Hold what a kernel compiled to against the budget that kernel_budgets.toml gives it for this
version of Triton."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiled_kernel import Usage
from kernel_launches import Launch

FILE = Path(__file__).resolve().parent / "kernel_budgets.toml"


@dataclass(frozen=True)
class Predicted:
    """What compiling a launch showed, and the cycles that a turn of its hot loops takes by
    sm_model.py; none where the model knows nothing of the GPU generation."""

    usage: Usage
    cycles: tuple[float, ...] = ()


def read() -> dict[str, Any]:
    """Read kernel_budgets.toml."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def budgets_for(version: str, file: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The budgets that kernel_budgets.toml gives a version of Triton, and a sentence that says what
    they hold. Those of memory are for every version: spills and shared memory."""
    memory = [budget for budget in file["budget"] if "loops" not in budget]
    minor = ".".join(version.split(".")[:2])
    if minor == file["triton"]:
        return file["budget"], f"budgets of Triton {minor}: instructions, cycles and memory"
    if minor not in file["others"]:
        known = ", ".join([*file["others"], file["triton"]])
        return memory, f"no budgets of Triton {version}, only of {known}: nothing but memory is held to a limit"
    few = [
        {"kernel": kernel, "n": 16, "spills": limits.get("spills", 0), "shared": limits["shared"],
         "loops": [{"name": "longest", "instructions": limits["instructions"]}]}
        for kernel, limits in file["others"][minor].items()
    ]  # fmt: skip  # the form of the others
    return [*few, *memory], f"budgets of Triton {minor}: instructions and memory"


def budget_of(launch: Launch, arch: int, budgets: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Find the first budget that kernel_budgets.toml gives this launch on this GPU generation. One
    without kernel, GPU generations, dtypes, number of states or rank of delta is for all of
    them."""
    this = {"kernel": launch.name, "arch": arch, "dtype": launch.dtype}
    this |= {"n": launch.constants.get("N"), "rank": launch.constants.get("RANK")}
    for budget in budgets:
        if all(
            value in (budget[name] if name in ("arch", "dtype") else [budget[name]])
            for name, value in this.items()
            if name in budget
        ):
            return budget
    return None


def over_budget(launch: Launch, predicted: Predicted, budget: dict[str, Any] | None) -> list[str]:
    """Say of each figure that it is above what the budget allows; nothing of loops where none could
    be counted."""
    usage = predicted.usage
    if budget is None:
        return []
    # Where B or C is constant the second longest loop is the sweep over the last, odd steps, not
    # the one that rebuilds.
    varies = launch.constants.get("VARY_B", True) and launch.constants.get("VARY_C", True)
    named = budget.get("loops", []) if usage.loops else []
    named = named if varies else named[:1]
    sentences = [
        f"{figure} bytes {what}, {budget[limit]} allowed"
        for figure, what, limit in (
            (usage.spills, "spilled", "spills"),
            (usage.shared, "of shared memory", "shared"),
        )
        if figure > budget.get(limit, figure)
    ]
    for rank, allowed in enumerate(named):
        loop = usage.loops[rank]
        sentences += [
            f"loop {allowed['name']}: {getattr(loop, figure) / launch.states:.2f} {figure} a state, {most} allowed"
            for figure, most in allowed.items()
            if figure not in ("name", "cycles") and getattr(loop, figure) / launch.states > most
        ]
    sentences += [
        f"loop {allowed['name']}: {cycles:.0f} cycles a turn predicted, {allowed['cycles']} allowed"
        for allowed, cycles in zip(named, predicted.cycles, strict=False)
        if "cycles" in allowed and cycles > allowed["cycles"]
    ]
    return sentences
