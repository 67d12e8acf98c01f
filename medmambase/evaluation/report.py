"""One offline HTML page from the files of a run folder.

Before: everything that training and evaluation left in the folder. The page itself is ``report.html.jinja``.
"""

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined, Template

from medmambase.data.images import ImageError, read_image
from medmambase.evaluation.metrics import Metrics, MetricsError
from medmambase.files import move

PICTURE_BYTES = 4_500_000  # as base64, all pictures together: the page stays below 5 MB, small enough to send
PNG = b"\x89PNG\r\n\x1a\n"
MOST_LINES = 200  # skipped files and notes on the page; data_report.json has them all

T = TypeVar("T")


class ReportError(Exception):
    """A run folder that cannot be reported: the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class _Picture:
    width: int
    height: int
    uri: str


def write_report(run: Path) -> Path:
    """Writes ``run/report.html``: one page without scripts or outside references, below 5 MB. Returns its path.

    Only ``config.json`` must be there; a missing result becomes a sentence. The same files give the same bytes.
    Raises ReportError for a folder without ``config.json``, a broken JSON or PNG file, or JSON of another shape.
    """
    config = _json(run / "config.json")
    if config is None:
        raise ReportError(f"{run} is not a run folder: it has no config.json; wanted the folder that training wrote")
    settings = {name: _field(run / "config.json", config, name, dict) for name in ("model", "training", "preprocessing")}
    recalibrations = sorted(path.relative_to(run).as_posix() for path in run.glob("explain/se_stage*.png"))
    pictures, left_out = _album(run, ["curves.png", "test/confusion.png", "audit/twins.png", *recalibrations])
    page = _template().render(
        name=run.resolve().name,
        config=config,
        settings=settings,
        classes=_field(run / "config.json", config, "classes", list),
        data=_data(run / "data_report.json"),
        metrics=_metrics(run / "test" / "metrics.json"),
        benchmark=_json(run / "test" / "medmnist.json"),
        environment=_json(run / "env.json") or {},
        command=_text(run / "command.txt"),
        pictures=pictures,
        recalibrations=recalibrations,
        left_out=left_out,
        most_lines=MOST_LINES,
    )
    path = run / "report.html"
    part = path.with_name(path.name + ".part")
    # backslashreplace: a file name that is no valid Unicode is shown with escapes instead of stopping the report
    part.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
    move(part, path)
    return path


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value: "n/a" if value is None else f"{value:.3f}"
    environment.filters["setting"] = _setting
    return environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not set" if value is None else str(value)


def _data(path: Path) -> dict[str, Any] | None:
    """Counts as a table of classes by splits, and what was noticed; None if there is no such file."""
    report = _json(path)
    if report is None:
        return None
    counts = _field(path, report, "counts", dict)
    splits = {split: _numbers(path, split, row) for split, row in counts.items()}
    skipped = _field(path, report, "skipped", list)
    if not all(isinstance(one, dict) and {"path", "reason"} <= one.keys() for one in skipped):
        raise ReportError(f"{path}: skipped holds something without path and reason; wanted a list of both")
    return {
        "root": report.get("root"),
        "splits": splits,
        "classes": list(dict.fromkeys(name for row in splits.values() for name in row)),
        "skipped": skipped,
        "notes": _field(path, report, "notes", list),
        "method": report.get("method"),
        "findings": _field(path, _field(path, report, "audit", dict), "findings", list),
    }


def _numbers(path: Path, split: str, row: object) -> dict[str, int]:
    if not isinstance(row, dict) or not all(isinstance(count, int) for count in row.values()):
        raise ReportError(f"{path}: counts of {split} are {row!r:.80}; wanted a number of images for each class")
    return row


def _metrics(path: Path) -> Metrics | None:
    values = _json(path)
    try:
        return None if values is None else Metrics.from_dict(values)
    except MetricsError as error:
        raise ReportError(f"{path}: {error}") from error


def _album(run: Path, names: list[str]) -> tuple[dict[str, _Picture], list[str]]:
    """Those pictures that exist, by their names, and the names of those for which the page has no room."""
    pictures: dict[str, _Picture] = {}
    left_out = []
    room = PICTURE_BYTES
    for name in names:
        if not (run / name).is_file():
            continue
        picture = _picture(run / name)
        if len(picture.uri) > room:
            left_out.append(name)
            continue
        room -= len(picture.uri)
        pictures[name] = picture
    return pictures, left_out


def _picture(path: Path) -> _Picture:
    try:
        height, width, _ = read_image(path, 3).shape
        content = path.read_bytes()
    except (ImageError, OSError) as error:
        raise ReportError(f"{path} is not a readable PNG picture ({error}); delete it or draw it again") from error
    if not content.startswith(PNG):
        raise ReportError(f"{path} holds a picture of another kind; wanted a PNG")
    return _Picture(width, height, "data:image/png;base64," + base64.b64encode(content).decode("ascii"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file."""
    if not path.exists():
        return None
    try:
        values = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReportError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} holds a {type(values).__name__}; wanted an object with named values")
    return values


def _field(path: Path, values: dict[str, Any], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind):
        raise ReportError(f"{path}: {name} is {value!r:.80}; wanted a {kind.__name__}")
    return value
