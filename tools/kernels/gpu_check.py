"""Check and measure everything that needs a GPU, in one go: on a machine with an NVIDIA card it
takes a few minutes, and what is interrupted goes on where it stopped.

    python tools/kernels/gpu_check.py --json FILE
    python tools/kernels/gpu_check.py --json FILE --only operators network
    python tools/kernels/gpu_check.py --json FILE --table

Every finding is written to FILE as soon as it is there. A part that is done is not done again
(--again does). After --minutes no new measurement begins; the same command then goes on. --table
prints the Markdown tables of docs/results.md from FILE, and needs no GPU. Predictions to stand
beside the times are read from the file that predict_times.py --json wrote (--predictions).
``--device cpu --tiny`` runs every part at tiny sizes, as a trial without a GPU. The exit code is 0
if everything asked for is done and right, 1 if something is wrong, 3 if something is left to do,
2 for wrong arguments, and 4 if there is no GPU.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # runs from a bare clone

import gpu_check_parts as parts  # noqa: E402  # after the paths
import gpu_check_tables as tables  # noqa: E402  # likewise

DONE, LEFT, WRONG, SKIPPED = "done", "unfinished", "failed", "skipped"


class RefusalError(Exception):
    """Raised where nothing can be checked; the message says what to do."""


@dataclass
class Record:
    """What is known so far: the file's contents, and where they are kept."""

    path: Path
    contents: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Any]:
        """The entry of a part: its state, its rows by key, and why it is so."""
        entry: dict[str, Any] = self.contents.setdefault("parts", {}).setdefault(name, {"state": LEFT, "rows": {}})
        return entry

    def write(self) -> None:
        """Replace the file by what is known now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".unfinished")
        beside.write_text(json.dumps(self.contents, indent=1) + "\n", encoding="utf-8", newline="\n")
        os.replace(beside, self.path)


def opened(path: Path, machine: dict[str, Any], again: bool) -> Record:
    """Open a record and go on with it, or begin one. Raises RefusalError where it belongs to
    another GPU or other kernels."""
    if again or not path.is_file():
        return Record(path, {"machine": machine, "parts": {}})
    record = Record(path, read(path))
    for what in ("GPU", "sources", "tiny"):
        before, now = record.contents["machine"].get(what), machine.get(what)
        if before != now:
            raise RefusalError(
                f"{path} was written with {what} {before}, and here it is {now}: give another --json, or --again"
            )
    return record


def read(path: Path) -> dict[str, Any]:
    """Read a record's file. Raises RefusalError where it is none."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefusalError(
            f"--json {path} cannot be read ({error}): give the file that an earlier run wrote"
        ) from error
    if not (isinstance(contents, dict) and {"machine", "parts"} <= set(contents)):
        raise RefusalError(f"--json {path} is not a file of this program: give another name")
    return contents


def run_part(
    record: Record, name: str, part: parts.Part, setting: parts.Setting, out_of_time: Callable[[], bool]
) -> None:
    """Run what is left of a part, and write each finding at once."""
    entry = record.part(name)
    if entry["state"] == DONE:
        return
    entry |= {"state": LEFT, "why": ""}
    why = part.hindered(setting)
    if why:
        entry |= {"state": SKIPPED, "why": why}
        record.write()
        return
    for key, find in part.findings(setting):
        if key in entry["rows"] and not entry["rows"][key].get("failed"):
            continue
        if out_of_time():
            entry["why"] = "the time was up"
            record.write()
            return
        began = time.monotonic()
        try:
            row = find()
        except Exception as error:  # noqa: BLE001  # whatever a kernel raises costs this line, not the others
            row = {"failed": True, "note": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        entry["rows"][key] = row | {"seconds": round(time.monotonic() - began, 3)}
        record.write()
        print(f"{name}: {key}: {tables.one_line(row)}", flush=True)
    entry["state"] = WRONG if any(row.get("failed") for row in entry["rows"].values()) else DONE
    record.write()


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check and measure everything that needs a GPU.", allow_abbrev=False)
    names = list(parts.PARTS)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the file of findings, to go on with")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="parts to run (default: all)")
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="parts to leave out")
    parser.add_argument("--minutes", type=float, default=8.0, help="after so many begin nothing new (default: 8)")
    parser.add_argument("--again", action="store_true", help="forget what FILE holds")
    parser.add_argument("--table", action="store_true", help="only print the Markdown tables of FILE")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="what predict_times.py --json wrote")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu with --tiny, as a trial")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, whose times say nothing")
    options = parser.parse_args(argv)
    try:
        return _table(options) if options.table else _check(options)
    except RefusalError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 4


def _table(options: argparse.Namespace) -> int:
    print(tables.markdown(read(options.json)))
    return 0


def _check(options: argparse.Namespace) -> int:
    device = parts.device_of(options.device)
    if device is None or (device.type == "cpu" and not options.tiny):
        raise RefusalError(f"--device {options.device} is no NVIDIA GPU that PyTorch can use: run this where there is "
                           f"one; --device cpu --tiny tries every part without")  # fmt: skip  # one sentence
    predictions = [] if options.predictions is None else _predictions(options.predictions)
    machine = parts.machine_of(device) | {"tiny": options.tiny}
    record = opened(options.json, machine, options.again)
    record.contents["predicted"] = predictions or record.contents.get("predicted", [])
    ends = time.monotonic() + 60 * options.minutes

    def out_of_time() -> bool:
        return time.monotonic() > ends

    setting = parts.Setting(device, options.tiny, lambda: max(1.0, ends - time.monotonic()))
    chosen = [name for name in parts.PARTS if name in options.only and name not in options.skip]
    for name in chosen:
        run_part(record, name, parts.PARTS[name], setting, out_of_time)
    beside = options.json.with_suffix(".md")
    beside.write_text(tables.markdown(record.contents) + "\n", encoding="utf-8", newline="\n")
    states = [(name, record.part(name)) for name in chosen]
    for name, entry in states:
        print(f"{name}: {entry['state']}" + (f" ({entry['why']})" if entry.get("why") else ""))
    print(f"findings: {options.json}; tables: {beside}")
    found = {entry["state"] for _, entry in states}
    return 1 if WRONG in found else 3 if LEFT in found else 0


def _predictions(path: Path) -> list[dict[str, Any]]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = contents["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusalError(
            f"--predictions {path} cannot be read ({error}): write it with predict_times.py --json"
        ) from error
    return rows


if __name__ == "__main__":
    sys.exit(main())
