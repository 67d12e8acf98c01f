"""A damaged run folder: the broken file is named and the report of before stays."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_run import change, finished_run
from PIL import Image

from medmambase.evaluation.report.report import ReportError, write_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; never changed."""
    run = finished_run(tmp_path_factory.mktemp("runs"))
    write_report(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def _folder_without_config(run: Path) -> Path:
    (run / "config.json").unlink()
    return run


def _truncate(name: str) -> Callable[[Path], Path]:
    def plant(run: Path) -> Path:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])
        return run / name

    return plant


def _replace(name: str, content: bytes) -> Callable[[Path], Path]:
    def plant(run: Path) -> Path:
        (run / name).write_bytes(content)
        return run / name

    return plant


def _change(name: str, **values: object) -> Callable[[Path], Path]:
    def plant(run: Path) -> Path:
        change(run / name, **values)
        return run / name

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        _folder_without_config,
        _truncate("config.json"),
        _truncate("env.json"),
        _truncate("data_report.json"),
        _truncate("test/metrics.json"),
        _truncate("curves.png"),
        _truncate("test/confusion.png"),
        _truncate("explain/se_stage2.png"),
        _replace("curves.png", b""),
        _replace("curves.png", b"GIF89a not a PNG"),
        _replace("env.json", b"[1, 2]"),
        _replace("env.json", b"\xff\xfe"),
        _replace("env.json", b"[" * 100_000),
        _replace("command.txt", b"\xff"),
        _change("config.json", model=None),
        _change("config.json", training=[1]),
        _change("config.json", classes="abc"),
        _change("config.json", parameters="many"),
        _change("config.json", best_score=float("nan")),
        _change("data_report.json", counts=[]),
        _change("data_report.json", audit=None),
        _change("data_report.json", audit={"findings": "many"}),
        _change("data_report.json", counts={"train": 5}),
        _change("data_report.json", counts={"train": {"a": "many"}}),
        _change("data_report.json", counts={"train": {"a": True}}),
        _change("data_report.json", skipped=["a.png"]),
        _change("data_report.json", skipped=[{"path": "a.png"}]),
        _change("data_report.json", notes=None),
        _change("test/metrics.json", accuracy="high"),
        _change("test/metrics.json", per_class=None),
        _change("test/calibrated.json", before=None),
        _change("test/calibrated.json", temperature="warm"),
        _change("test/calibrated.json", points=[{"name": "a"}]),
        _change("explain/faithfulness.json", cam=[]),
        _change("explain/faithfulness.json", verdict=3),
        _truncate("test/calibrated.json"),
        _replace("openings.csv", b"\xff\xfe"),
    ],
)
def test_a_broken_piece_is_named_and_the_old_page_stays(run: Path, plant: Callable[[Path], Path]) -> None:
    before = (run / "report.html").read_bytes()
    broken = plant(run)
    with pytest.raises(ReportError) as caught:
        write_report(run)
    assert str(broken) in str(caught.value)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.part"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("test/calibrated.json", {"temperature": "warm"}, "calibrated.temperature is 'warm'; it must be a number"),
        ("test/calibrated.json", {"points": [{"name": "a"}]}, "calibrated.points[0].rule is missing"),
        ("explain/faithfulness.json", {"cam": []}, "faithfulness.cam is []; it must be named values"),
        ("data_report.json", {"counts": {"train": {"a": 1.5}}}, "counts.train.a is 1.5; it must be a whole number"),
        ("config.json", {"classes": "abc"}, "config.classes is 'abc'; it must be a list"),
        ("test/metrics.json", {"ece": -1}, "metrics.ece is -1; it must be at least 0"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(
    run: Path, name: str, change: dict[str, object], message: str
) -> None:
    _change(name, **change)(run)
    with pytest.raises(ReportError, match=f"^{re.escape(str(run / name))}: .*{re.escape(message)}$"):
        write_report(run)


@pytest.mark.slow
def test_a_picture_with_any_bytes_changed_is_named_or_shown(run: Path) -> None:
    good = (run / "curves.png").read_bytes()
    chance = random.Random(0)
    named = 0
    for attempt in range(80):
        content = bytearray(good)
        for _ in range(chance.choice([1, 3, 30])):
            content[chance.randrange(len(content) if attempt % 2 else 200)] = chance.randrange(256)
        (run / "curves.png").write_bytes(content)
        try:
            write_report(run)
        except ReportError as error:
            named += "curves.png" in str(error)
        else:
            named += "curves.png was not drawn" not in (run / "report.html").read_text(encoding="utf-8")
    assert named == 80


def test_a_picture_of_another_kind_is_named(run: Path) -> None:
    Image.new("RGB", (8, 8)).save(run / "curves.png", format="JPEG")
    with pytest.raises(ReportError, match=r"curves\.png holds a picture of another kind"):
        write_report(run)


@pytest.mark.parametrize("part", ["preprocessing", "model", "training"])
def test_a_setting_that_is_a_table_or_a_list_is_shown_as_it_is(run: Path, part: str) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    for value in ({}, [1]):
        changed = dict.fromkeys(config[part], value)
        (run / "config.json").write_text(json.dumps(config | {part: changed}), encoding="utf-8")
        write_report(run)
