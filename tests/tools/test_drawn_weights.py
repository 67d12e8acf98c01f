"""The program that makes the weights that come with the package: what it writes, what it refuses,
and what its check finds."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import drawn_weights
from medmambase import PretrainRun, packaged, pretrain
from medmambase.model import starting
from medmambase.model.weights import WeightsError
from medmambase.pretraining.settings import resolve

SMALL: dict[str, Any] = {
    "drawn": True, "model": "nano", "steps": 2, "batch_size": 2, "image_size": 32, "held_out": 2, "workers": 0,
    "device": "cpu", "name": "x",
}  # fmt: skip  # by idea


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    """A finished pretraining on drawn pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("curves", "pictures"):
            patch.setattr(f"medmambase.evaluation.report.pretraining_figures.{name}", lambda *_: None)
        return pretrain(runs=tmp_path_factory.mktemp("runs"), **SMALL)


@pytest.fixture
def adopted(run: PretrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its weights as those that come with the package."""
    monkeypatch.setattr(packaged, "FOLDER", tmp_path / "weights")
    assert drawn_weights.main(["adopt", str(run.folder)]) == 0
    yield packaged.path_of("nano")


def test_what_is_adopted_is_what_half_writes_with_settings_log_and_card(run: PretrainRun, adopted: Path) -> None:
    start, before = starting.read(adopted), starting.read(run.weights)
    assert start.origin.learned == before.origin.learned and start.origin.seen == ()
    assert adopted.stat().st_size < 0.52 * run.weights.stat().st_size
    tensors = load_file(adopted)
    assert all(torch.allclose(t, tensors[name].to(t.dtype), 1e-3, 1e-6) for name, t in before.tensors.items())
    half = starting.write(
        run.folder / "half.safetensors", before.tensors, before.config, before.origin.learned, (), half=True
    )
    log = json.loads(adopted.with_suffix(".json").read_text(encoding="utf-8"))
    assert log["sha256"] == half == start.origin.sha256 and log["of_the_run"]["sha256"] == before.origin.sha256
    assert log["hundredth"]["steps"] == 1 and len(log["rounds"]) == 2 and log["versions"]["vectors"]
    settings = resolve({}, adopted.with_suffix(".toml"))
    begun = resolve({}, run.folder / "config.toml")
    scenes = before.origin.learned[0].scenes
    said = replace(settings, runs=begun.runs, name="x", workers=0, precision=begun.precision, scenes=begun.scenes)
    assert said == begun and settings.scenes == scenes and settings.precision == "float32"
    card = adopted.with_suffix(".md").read_text(encoding="utf-8")
    for text in ("no patient in them", "(MIT)", half, "--start drawn --model nano", "4 drawn pictures", "2 steps of 2"):
        assert text in card
    assert sorted(path.suffix for path in adopted.parent.iterdir()) == [".json", ".md", ".safetensors", ".toml"]


def test_the_first_hundredth_made_again_is_compared_byte_for_byte_or_by_its_losses(
    adopted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(change: dict[str, Any]) -> tuple[int, str]:
        path = adopted.with_suffix(".json")
        log = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(log | change), encoding="utf-8", newline="\n")
        monkeypatch.setattr(drawn_weights, "begun_again", lambda settings, steps: (first, []))
        code = drawn_weights.main(["check"])
        path.write_text(json.dumps(log), encoding="utf-8", newline="\n")
        return code, capsys.readouterr().out

    log = json.loads(adopted.with_suffix(".json").read_text(encoding="utf-8"))
    settings = resolve({}, adopted.with_suffix(".toml"))
    first, rounds = drawn_weights.begun_again(settings, 1)
    assert first == log["hundredth"] and rounds == log["rounds"][:1]
    assert "1 of 2 steps made again: the same bytes" in checked({})[1] and checked({})[0] == 0
    other = {"hundredth": first | {"sha256": "0" * 64}}
    code, said = checked(other)
    assert code == 1 and "OTHER BYTES, losses 0 apart" in said
    elsewhere = {"versions": log["versions"] | {"vectors": "VSX"}}
    code, said = checked(other | elsewhere)
    assert code == 0 and ", not VSX: other bytes, losses 0 apart, within 0.001" in said
    off = {"hundredth": {"steps": 1, "sha256": "", "losses": {name: 1.01 * v for name, v in first["losses"].items()}}}
    code, said = checked(off | elsewhere)
    assert code == 1 and "NOT WITHIN" in said
    code, said = checked({"sha256": "0" * 64})
    assert code == 1 and "NOT as its log has it" in said


def test_a_run_that_recorded_no_hundredth_is_taken_if_its_first_round_comes_again(
    run: PretrainRun, adopted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(adopted.with_suffix(".json").read_text(encoding="utf-8"))
    read = drawn_weights.read_json

    def without(path: Path) -> Any:
        found = read(path)
        found.pop("hundredth", None)
        return found

    monkeypatch.setattr(drawn_weights, "read_json", without)
    drawn_weights.adopt(run.folder)
    assert json.loads(adopted.with_suffix(".json").read_text(encoding="utf-8")) == before
    begun_again = drawn_weights.begun_again
    monkeypatch.setattr(drawn_weights, "begun_again", lambda s, steps: begun_again(replace(s, seed=1), steps))
    with pytest.raises(WeightsError, match="its first round cannot be made again here"):
        drawn_weights.adopt(run.folder)


def test_only_drawn_pictures_one_thread_and_a_network_that_has_a_name_are_taken(
    run: PretrainRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    start, read = starting.read(run.weights), drawn_weights.read_json

    def adopt_with(found: starting.Start) -> None:
        monkeypatch.setattr(starting, "read", lambda path: found)
        drawn_weights.adopt(run.folder)

    (learned,) = start.origin.learned
    for origin in (
        replace(start.origin, learned=(replace(learned, source="images"),)),
        replace(start.origin, learned=(learned, learned)),
        replace(start.origin, unrecorded=True),
        replace(start.origin, seen=("a",)),
    ):
        with pytest.raises(WeightsError, match="only what one pretraining has learned from drawn pictures comes with"):
            adopt_with(replace(start, origin=origin))
    with pytest.raises(WeightsError, match="it must be one of nano, micro, tiny, small, base, unchanged"):
        adopt_with(replace(start, config=replace(start.config, state=8)))
    monkeypatch.setattr(drawn_weights, "read_json", lambda path: read(path) | {"device": "cpu (2 threads)"})
    with pytest.raises(WeightsError, match=r"was computed on cpu \(2 threads\), .*must be on one thread of a CPU"):
        adopt_with(start)
    assert not list(tmp_path.iterdir())


def test_weights_are_made_by_the_settings_beside_them(
    adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("curves", "pictures"):
        monkeypatch.setattr(f"medmambase.evaluation.report.pretraining_figures.{name}", lambda *_: None)
    files = {path: path.read_bytes() for path in adopted.parent.iterdir()}
    adopted.unlink()
    for _ in range(2):  # the second time the run is there already
        assert drawn_weights.main(["make", "nano", "--runs", str(tmp_path / "runs")]) == 0
        assert {path: path.read_bytes() for path in adopted.parent.iterdir()} == files
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["nano-drawn-001"]
    assert drawn_weights.main(["make", "micro", "--runs", str(tmp_path / "runs")]) == 2
    assert "micro-drawn.toml: there is no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_first_hundredth_of_the_pretraining_of_nano_comes_again() -> None:
    assert drawn_weights.check("nano")
