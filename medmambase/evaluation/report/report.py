"""One offline HTML page, and a model card, from the files of a run folder.

Before: everything that training and evaluation left in the folder. The page itself is
``report.html.jinja``, the card ``model_card.md.jinja``.
"""

import base64
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined, Template

from medmambase.data.reading.images import ImageError, read_image
from medmambase.evaluation.metrics import Metrics
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report import checklist
from medmambase.evaluation.report.results import openings
from medmambase.files import write_text

PICTURE_BYTES = 4_500_000  # as base64, all pictures together: the page stays below 5 MB, small enough to send
PNG = b"\x89PNG\r\n\x1a\n"
MOST_LINES = 200  # skipped files and notes on the page; data_report.json has them all

# What the page takes from a file, by an example: names, and below each a text, a number (or none),
# a list of such things, or more names.
_FIGURE = {"figure": 0.0, "low": 0.0, "high": 0.0}
_BOTH = {"brier": _FIGURE, "ece": _FIGURE}
_POINT = {
    "name": "",
    "rule": "",
    "threshold": 0.0,
    "test": {"sensitivity": _FIGURE, "specificity": _FIGURE, "ppv": _FIGURE, "npv": _FIGURE},
}
CALIBRATED = {"temperature": 0.0, "before": _BOTH, "after": _BOTH, "points": [_POINT]}
MEDMNIST = {"ACC": 0.0, "AUC": 0.0}
_CURVES = {"deletion": 0.0, "insertion": 0.0}
FAITHFULNESS = {"cam": _CURVES, "random": _CURVES, "verdict": ""}

T = TypeVar("T")


class ReportError(Exception):
    """A run folder that cannot be reported: the message names the file and what is wrong with
    it."""


@dataclass(frozen=True)
class _Picture:
    width: int
    height: int
    uri: str


def write_report(run: Path) -> Path:
    """Writes ``run/report.html``, one page without scripts or outside references, below 5 MB, and
    ``run/MODEL_CARD.md``. Returns the page's path.

    Only ``config.json`` must be there; a missing result becomes a sentence. The same files give the
    same bytes.
    Raises ReportError for a folder without ``config.json``, a broken JSON or PNG file, or JSON of
    another shape.
    """
    config = _json(run / "config.json")
    if config is None:
        raise ReportError(f"{run} is not a run folder: it has no config.json; wanted the folder that training wrote")
    settings = {
        name: _field(run / "config.json", config, name, dict) for name in ("model", "training", "preprocessing")
    }
    explained = {
        kind: sorted(path.relative_to(run).as_posix() for path in run.glob(f"explain/{kind}_*.png"))
        for kind in ("se", "sheet")
    }
    wanted = [f"test/{name}.png" for name in ("confusion", "roc", "pr", "reliability", "mistakes")]
    wanted += [
        "curves.png",
        "audit/twins.png",
        "explain/faithfulness.png",
        "explain/gates.png",
        *explained["sheet"],
        *explained["se"],
    ]
    pictures, left_out = _album(run, wanted)
    facts = {
        "name": run.resolve().name,
        "config": config,
        "settings": settings,
        "classes": _field(run / "config.json", config, "classes", list),
        "data": _data(run / "data_report.json"),
        "metrics": _metrics(run / "test" / "metrics.json"),
        "calibrated": _json(run / "test" / "calibrated.json", CALIBRATED),
        "benchmark": _json(run / "test" / "medmnist.json", MEDMNIST),
        "openings": _openings(run),
        "faithfulness": _json(run / "explain" / "faithfulness.json", FAITHFULNESS),
        "environment": _json(run / "env.json") or {},
        "command": _text(run / "command.txt"),
    }
    facts["answers"] = checklist.answers(facts)
    page = _template("report.html.jinja", html=True).render(
        **facts, pictures=pictures, explained=explained, left_out=left_out, most_lines=MOST_LINES
    )
    card = _template("model_card.md.jinja", html=False).render(**facts)
    path = run / "report.html"
    write_text(path, page)
    write_text(run / "MODEL_CARD.md", card)
    return path


def _template(name: str, html: bool) -> Template:
    environment = Environment(autoescape=html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    environment.filters["setting"] = _setting
    environment.filters["marked"] = _marked
    environment.globals["between"] = _between
    environment.globals["ends"] = _ends
    return environment.from_string(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _between(metrics: Metrics, name: str) -> str:
    """The interval of a figure, as ``Metrics.flat`` names it; nothing where it has none."""
    interval = metrics.intervals.get(name)
    return f"{interval.low:.3f}\u2013{interval.high:.3f}" if interval else ""


def _ends(figure: dict[str, float | None]) -> str:
    """A figure with its interval, as ``results.figure_of`` gives it."""
    sure = f" ({figure['low']:.3f}\u2013{figure['high']:.3f})" if figure["low"] is not None else ""
    return f"{_figure(figure['figure'])}{sure}"


def _marked(text: object) -> str:
    """Text in a line, or a table's cell, of Markdown: nothing in it is a mark, a tag or a new
    line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(_setting(text).split()))


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not set" if value is None else str(value)


def _data(path: Path) -> dict[str, Any] | None:
    """Counts as a table of classes by splits, and what was noticed; None if there is no such
    file."""
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


def _openings(run: Path) -> list[dict[str, str]]:
    try:
        return openings(run)
    except MetricsError as error:
        raise ReportError(str(error)) from error


def _metrics(path: Path) -> Metrics | None:
    values = _json(path)
    try:
        return None if values is None else Metrics.from_dict(values)
    except MetricsError as error:
        raise ReportError(f"{path}: {error}") from error


def _album(run: Path, names: list[str]) -> tuple[dict[str, _Picture], list[str]]:
    """Those pictures that exist, by their names, and the names of those for which the page has no
    room."""
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


def _json(path: Path, example: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file; with an ``example`` it must have
    all that the example has."""
    if not path.exists():
        return None
    try:
        values = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReportError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} holds a {type(values).__name__}; wanted an object with named values")
    if example is not None and (wrong := _unlike(values, example)) is not None:
        raise ReportError(f"{path}: {wrong}; medmambase-evaluate and medmambase-explain write such files again")
    return values


def _unlike(value: object, example: object, name: str = "it") -> str | None:
    """What is wrong with a value that should be like the example; None where nothing is."""
    if isinstance(example, dict):
        if not isinstance(value, dict):
            return f"{name} is {value!r:.80}; wanted named values"
        parts = [(f"{name}.{key}", value.get(key, ...), inner) for key, inner in example.items()]
    elif isinstance(example, list):
        if not isinstance(value, list):
            return f"{name} is {value!r:.80}; wanted a list"
        parts = [(f"{name}[{index}]", one, example[0]) for index, one in enumerate(value)]
    else:
        fits = (
            isinstance(value, str)
            if isinstance(example, str)
            else value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        )
        return (
            None
            if fits
            else f"{name} is {'missing' if value is ... else repr(value)[:80]}; wanted a "
            f"{'text' if isinstance(example, str) else 'number'}"
        )
    return next((wrong for inner, one, wanted in parts if (wrong := _unlike(one, wanted, inner)) is not None), None)


def _field(path: Path, values: dict[str, Any], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind):
        raise ReportError(f"{path}: {name} is {value!r:.80}; wanted a {kind.__name__}")
    return value
