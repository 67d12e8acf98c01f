"""The Markdown tables of docs/results.md, from what gpu_check.py found.

Measured times stand beside predicted ones; a predicted time is called so in the head of its column.
"""

from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]
_ABOUT = ("GPU", "driver", "CUDA", "torch", "triton", "mamba-ssm", "python", "system")


def markdown(contents: Row) -> str:
    """All tables of a file of findings, and before them what they were measured on."""
    machine, parts = contents["machine"], contents["parts"]
    about = ", ".join(f"{name} {machine[name]}" for name in _ABOUT if machine.get(name))
    lines = [f"Measured by `python tools/kernels/gpu_check.py`: {about}."]
    if machine.get("tiny"):
        lines += ["", "A trial at tiny sizes: its times say nothing."]
    lines += ["", *_summary(parts)]
    if "operators" in parts:
        lines += ["", *_operators(parts["operators"]["rows"], contents.get("predicted", []))]
    if "network" in parts:
        lines += ["", *_network(parts["network"]["rows"])]
    return "\n".join(lines)


def one_line(row: Row) -> str:
    """What a finding says, for the screen."""
    if row.get("note"):
        return str(row["note"])
    if "passes" in row:
        return ", ".join(f"{one['passes']} {_ms(one['ms'])} ms" for one in row["passes"])
    if "rows" in row:
        return ", ".join(f"{one['what']} {_ms(one['ms'])} ms" for one in row["rows"])
    if "training step" in row:
        return ", ".join(f"{what} {_ms(row[what]['ms'])} ms" for what in ("training step", "prediction"))
    if "said" in row:
        return str(row["said"][-1]) if row["said"] else f"exit {row['exit']}"
    if "error" in row:
        return f"error {row['error']} in {row['where']}, {row['tolerance']} allowed"
    return f"different: {', '.join(row['different'])}" if row.get("different") else "the same bits"


def _summary(parts: Row) -> Iterator[str]:
    yield "| part | state | findings |"
    yield "|---|---|---|"
    for name, entry in parts.items():
        wrong = [key for key, row in entry["rows"].items() if row.get("failed")]
        found = f"{len(entry['rows']) - len(wrong)} right" + (f", wrong: {'; '.join(wrong)}" if wrong else "")
        why = f" ({entry['why']})" if entry.get("why") else ""
        yield f"| {name} | {entry['state']}{why} | {found} |"


def _operators(rows: Row, predicted: Sequence[Row]) -> Iterator[str]:
    """A line for each case and pass."""
    foreseen = {_case(row): row["predicted_ms"] for row in predicted}
    head = ("operator", "dtype", "batch", "channels, map", "pass", "GPU ms", "predicted ms", "share of floor",
            "mamba-ssm ms", "theirs / ours", "call ms", "MB")  # fmt: skip  # the head of a table
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for found in rows.values():
        for row in found.get("passes", ()):
            cells = (
                row["operator"], row["dtype"], row["batch"], f"{row['channels']}, {row['height']}x{row['width']}",
                row["passes"], _ms(row["ms"]), _ms(foreseen.get(_case(row))), _share(row["of_floor"]),
                _ms(row["mamba_ms"]), _ratio(row["mamba_ratio"]), _ms(row["call_ms"]), _number(row["peak_mb"]),
            )  # fmt: skip  # a line of a table
            yield f"| {' | '.join(map(str, cells))} |"


def _case(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("operator", "dtype", "batch", "height", "width", "channels", "passes"))


def _network(rows: Row) -> Iterator[str]:
    """A line for each dtype, batch, and training step or prediction."""
    yield "| network | dtype, batch | GPU ms | call ms | graphed ms | the original's ms | theirs / ours | MB |"
    yield "|---" * 8 + "|"
    for key, found in rows.items():
        for row in found.get("rows", ()):
            graphed = rows.get(key.removesuffix(" eager") + " graphed", {}).get(row["what"], {})
            cells = (
                f"{row['model']}, {row['what']}", f"{row['dtype']}, {row['batch']}", _ms(row["ms"]),
                _ms(row["call_ms"]), _ms(graphed.get("ms")), _ms(row["original_ms"]), _ratio(row["original_ratio"]),
                _number(row["peak_mb"]),
            )  # fmt: skip  # a line of a table
            yield f"| {' | '.join(cells)} |"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    """In bold where we are faster."""
    return "-" if value is None else f"**{value:.2f}**" if value > 1 else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
