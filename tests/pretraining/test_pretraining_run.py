"""A pretraining from end to end: what it leaves, how it goes on after an interruption, and what a
training makes of its weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import interrupt_at, leave_out_pictures, rows
from safetensors.torch import load_file

import medmambase
from medmambase import MedMambaSE, ModelConfig, Preprocessing, PretrainRun, Run, run_folder
from medmambase.config import ConfigError
from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.phantom.scenes import STRUCTURES
from medmambase.data.reading.images import load
from medmambase.inference.held_out import examine
from medmambase.model import starting
from medmambase.model.starting import Origin
from medmambase.model.tensor_file import fingerprint
from medmambase.pretraining import loop, tasks
from medmambase.pretraining import run as pretraining_run
from medmambase.pretraining.settings import TARGETS, PretrainSettings
from medmambase.pretraining.settings import of_run as resume_pretraining
from medmambase.run_folder import RunFolderError
from medmambase.settings import of_run, resolve
from medmambase.training.loop import TrainingError

Pretrain = Callable[..., PretrainRun]
Drawn = tuple[PretrainRun, list[str], list[dict[str, float]]]
TINY = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=3, state=2, drop_path=0.5)
# Of a pretraining that takes half a second.
SMALL: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "image_size": 32, "held_out": 6, "workers": 0, "device": "cpu", "lr": 1e-2,
}  # fmt: skip  # by idea
RESULTS = ("weights.safetensors", "metrics.csv", "pretraining.json", "config.json")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that is small enough to be pretrained in a second."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    starting.write(path, MedMambaSE(TINY, features_only=True).state_dict(), TINY, [], [])
    return path


def leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of the report, most of the time of a small run."""
    for name in ("curves", "pictures"):
        monkeypatch.setattr(f"medmambase.evaluation.report.pretraining_figures.{name}", lambda *_: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """``leave_out`` in a test."""
    leave_out(monkeypatch)


@pytest.fixture
def pretrained(tiny: Path, tmp_path: Path) -> Callable[..., PretrainRun]:
    """Pretrain from the tiny weights into tmp_path, with other settings."""

    def run(data: Path | None = None, **settings: Any) -> PretrainRun:
        first: dict[str, Any] = {"start": tiny, "runs": tmp_path / "runs"} | SMALL
        return medmambase.pretrain(data, **first | ({"drawn": True} if data is None else {}) | settings)

    return run


@pytest.fixture(scope="module")
def drawn_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A finished pretraining on drawn pictures that nobody changes, what it said, and its
    rounds."""
    said: list[str] = []
    rounds: list[dict[str, float]] = []
    settings = {"drawn": True, "start": tiny, "runs": tmp_path_factory.mktemp("runs")} | SMALL
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        run = medmambase.pretrain(say=said.append, on_round=rounds.append, **settings)
    return run, said, rounds


def same(first: Path, second: Path) -> list[str]:
    """The results that differ between two runs."""
    return [name for name in RESULTS if (first / name).read_bytes() != (second / name).read_bytes()]


def rows_of(run: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    return rows(run / "metrics.csv")


def test_a_pretraining_leaves_weights_figures_and_a_page_that_says_where_they_come_from(
    drawn_run: Drawn, tiny: Path
) -> None:
    run, said, rounds = drawn_run
    start, before = starting.read(run.weights), starting.read(tiny)
    learned = start.origin.learned[-1]
    assert (learned.source, learned.pictures, learned.steps, learned.targets) == ("drawn", 16, 4, TARGETS)
    assert start.origin.seen == () and len(start.origin.learned) == 1
    assert not any(name.startswith("head.") for name in start.tensors)
    matrices = [name for name, t in start.tensors.items() if t.dim() > 1]
    assert len(matrices) > 20 and not any(torch.equal(start.tensors[n], before.tensors[n]) for n in matrices)
    state = load_file(run.folder / "last" / "state.safetensors")
    assert all(torch.equal(t, state[f"average.backbone.{name}"]) for name, t in start.tensors.items())
    figures = json.loads((run.folder / "pretraining.json").read_text(encoding="utf-8"))
    assert figures["sha256"] == start.origin.sha256 and figures["held_out"] == 6
    assert [one["name"] for one in figures["structures"]] == list(STRUCTURES)
    assert 0 <= figures["mean_low"] <= figures["mean_auc"] <= figures["mean_high"] <= 1
    rows = rows_of(run.folder)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4] == [row["step"] for row in rounds]
    assert float(rows[-1]["held_out_echo"]) == figures["losses"]["echo"] == rounds[-1]["held_out_echo"]
    assert float(rows[-1]["train_edges"]) > 0 and rows[0]["lr"] != rows[3]["lr"]
    page = run.report.read_text(encoding="utf-8")
    card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert "16 drawn pictures" in text and start.origin.sha256 in text and "echo" in text
        assert "No patient&#39;s image" in text or "No patient's image was among them" in text
        assert "pleural line" in text
    assert "<script" not in page and "data:image/png;base64," not in page
    config = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    assert config["start"].startswith("tiny.safetensors (SHA-256 ") and config["pretraining"]["batch_size"] == 4
    assert any(line.startswith("dry run: first loss ") for line in said)
    assert any("mean AUC" in line for line in said if line.startswith("step "))
    assert (run.folder / "train.log").is_file() and (run.folder / "config.toml").is_file()


@pytest.mark.slow
def test_a_finished_run_is_drawn_again_with_the_same_bytes(drawn_run: Drawn, tmp_path: Path) -> None:
    run = PretrainRun(shutil.copytree(drawn_run[0].folder, tmp_path / "run")).resume()
    assert run.report.read_text(encoding="utf-8").count("data:image/png;base64,") == 2
    assert same(drawn_run[0].folder, run.folder) == []


@pytest.mark.usefixtures("undrawn")
def test_weights_whose_start_is_no_longer_recorded_say_so(drawn_run: Drawn, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawn_run[0].folder, tmp_path / "run"))
    (folder / run_folder.START).unlink()
    said: list[str] = []
    run = PretrainRun(folder).resume(say=said.append)
    assert starting.read(run.weights).origin.unrecorded and "start:     not recorded" in said
    assert "had learned from images that are not recorded" in run.report.read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn", "ctrl_c")
@pytest.mark.parametrize("step", [2, 4])  # 4: the last one, after which nothing but the report is left
def test_after_ctrl_c_a_pretraining_goes_on_to_the_same_bytes(
    step: int, drawn_run: Drawn, pretrained: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            pretrained(name="cut")
    run = PretrainRun(tmp_path / "runs" / "cut-001")
    with pytest.raises(RunFolderError, match=r"weights\.safetensors: not written yet"):
        _ = run.weights
    said: list[str] = []
    again = run.resume(say=said.append)
    assert any(line == f"resuming after step {step} of 4" for line in said)
    assert same(drawn_run[0].folder, again.folder) == []


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "ctrl_c")
def test_images_are_gone_on_with_within_a_round_and_only_with_the_same_ones(
    images: Path, pretrained: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = pretrained(images, name="each")
    monkeypatch.setattr(loop, "ROUNDS", 1)
    whole = pretrained(images, name="whole")
    (row,), steps = (rows_of(run.folder) for run in (whole, each))
    mean = sum(float(step["train_picture"]) for step in steps) / 4
    assert (
        float(row["train_picture"]) == pytest.approx(mean) and row["held_out_picture"] == steps[3]["held_out_picture"]
    )
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            pretrained(images, name="cut")
    run = PretrainRun(tmp_path / "runs" / "cut-001")
    with pytest.raises(ConfigError, match=r"--lr is 1\.0 and was 0\.01; leave them out"):
        run.resume(lr=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_run.unlabelled, "find", lambda settings: _without_one(settings))
        with pytest.raises(DataError, match=r"the images differ from those of the start: 1 gone"):
            run.resume()
    assert same(whole.folder, run.resume().folder) == []
    assert len((run.folder / "command.txt").read_text(encoding="utf-8").splitlines()) == 2  # none that was refused
    assert len(starting.read(whole.weights).origin.seen) == len({*starting.read(whole.weights).origin.seen}) > 10


def _without_one(settings: PretrainSettings) -> object:
    from medmambase.pretraining.unlabelled import list_unlabelled

    found = list_unlabelled(Path(settings.data))
    train = found.split("train")
    return replace(found, samples=train[1:])


@pytest.mark.usefixtures("undrawn")
def test_a_training_whose_test_images_the_weights_have_seen_is_refused_by_name(
    images: Path, pretrained: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch)
    every = pretrained(images / "test", name="seen")
    quick = {"image_size": 32, "batch_size": 8, "epochs": 1, "runs": tmp_path / "runs", "name": "a", "device": "cpu"}
    names = sorted(path.relative_to(images).as_posix() for path in (images / "test").rglob("*.png"))
    with pytest.raises(DataError, match=f"have learned from 6 images of val or test .{names[0]}, ") as refused:
        medmambase.train(images, start=every, **quick)
    assert "medmambase-pretrain DATA --splits" in str(refused.value)
    found = json.loads((tmp_path / "runs" / "a-001" / run_folder.DATA_REPORT).read_text(encoding="utf-8"))["audit"]
    assert found["seen"] == names
    only_train = pretrained(images, name="fine")
    run = medmambase.train(images, start=only_train, **quick)
    config = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    assert config["start"].startswith("fine-001 (SHA-256 ") and "unlabelled images" in config["start"]
    assert config["model"]["dims"] == [4, 8] and config["model"]["in_chans"] == 1  # of weights for RGB
    for page in ("report.html", "MODEL_CARD.md"):
        assert "fine-001 (SHA-256 " in (run.folder / page).read_text(encoding="utf-8")
    # What the weights have seen stays known: also of the network that was trained from them.
    assert starting.read(run.folder / "best").origin.seen == starting.read(only_train.weights).origin.seen
    with pytest.raises(DataError, match="have learned from"):
        medmambase.train(images / "train", start=run.folder / "best", **quick)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_weights_can_follow_each_other_and_a_finished_run_is_written_again_in_half(
    images: Path, pretrained: Pretrain
) -> None:
    first = pretrained(images)
    after = pretrained(start=first, in_chans=1)
    origin = starting.read(after.weights).origin
    assert [one.source for one in origin.learned] == ["images", "drawn"] and not origin.unrecorded
    assert origin.seen == starting.read(first.weights).origin.seen != ()
    assert after.network(num_classes=2).config.in_chans == 1
    before = load_file(after.weights)
    half = after.resume(half=True)
    tensors = load_file(half.weights)
    assert all(t.dtype == torch.float16 for t in tensors.values() if t.is_floating_point() and t.dim() > 1)
    assert all(torch.equal(tensors[name], t.to(tensors[name].dtype)) for name, t in before.items())
    assert starting.read(half.weights).origin.seen == origin.seen


def test_images_that_the_starting_weights_have_seen_are_set_apart_where_a_run_is_tested_on_others(
    images: Path, tmp_path: Path
) -> None:
    run, found = tmp_path, read_manifest(images, seed=0)
    network = MedMambaSE(TINY, classes=found.classes, preprocessing=Preprocessing(32, 3))
    assert examine(run, network, found, no_progress).seen == frozenset()
    sample = found.split("test")[0]
    digest = load(sample.path, network.preprocessing)[1].digest
    starting.write_origin(run, Origin("w", "0" * 64, seen=(digest,)))
    examination = examine(run, network, found, no_progress)
    assert examination.seen == {sample.name} and "one that its starting weights have seen" in examination.notes[-1]


@pytest.mark.usefixtures("undrawn")
def test_the_first_hundredth_of_the_steps_is_recorded_with_the_weights_that_would_be_kept(
    drawn_run: Drawn, pretrained: Pretrain
) -> None:
    def recorded(run: PretrainRun) -> Any:
        return json.loads((run.folder / run_folder.PRETRAINING).read_text(encoding="utf-8"))["hundredth"]

    assert [loop.hundredth_of(steps) for steps in (1, 199, 200, 2500)] == [1, 1, 2, 25]
    run = pretrained(steps=1)
    losses = {name: float(rows_of(run.folder)[0][f"train_{name}"]) for name in TARGETS}
    assert recorded(run) == {"steps": 1, "losses": losses, "sha256": fingerprint(starting.read(run.weights).tensors)}
    assert recorded(drawn_run[0])["steps"] == 1  # of 4
    assert recorded(drawn_run[0])["losses"]["echo"] == float(rows_of(drawn_run[0].folder)[0]["train_echo"])


@pytest.mark.usefixtures("undrawn")
def test_a_loss_that_is_no_number_ends_the_pretraining_with_its_step(
    pretrained: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = tasks.weighted, iter(range(1, 10**6))
    monkeypatch.setattr(loop, "weighted", lambda *args: original(*args) * (float("nan") if next(calls) == 5 else 1))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3 of 4 \(first bad tensor: .*smaller --lr"):
        pretrained()


def test_a_scene_is_asked_for_by_its_name_also_where_that_holds_a_comma() -> None:
    assert pretraining_run._scenes(("lung", "linear probe", "breast")) == ("breast", "lung, linear probe")
    assert pretraining_run._scenes(("lung, linear probe",)) == ("lung, linear probe",)
    assert len(pretraining_run._scenes(None)) > 5
    with pytest.raises(ConfigError, match="--scenes has 'haert'; the nearest is 'heart'; there are 'breast', "):
        pretraining_run._scenes(("haert",))


def test_a_folder_that_no_pretraining_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("epochs = 3\n", encoding="utf-8")  # that of a training
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(RunFolderError, match="not the folder of a pretraining") as refused:
            PretrainRun(folder)
        assert "--resume" not in str(refused.value)  # which no caller of Python has given
    with pytest.raises(ConfigError, match=r"--resume .*none: there is no such folder"):
        resume_pretraining(tmp_path / "none", {})


def test_a_training_and_a_pretraining_are_told_apart(tmp_path: Path) -> None:
    for name, settings in (("a", resolve({"data": "x"})), ("b", PretrainSettings(data="x"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(settings.to_toml({}), encoding="utf-8", newline="\n")
    assert (Run(tmp_path / "a").folder, PretrainRun(tmp_path / "b").folder) == (tmp_path / "a", tmp_path / "b")
    with pytest.raises(
        RunFolderError, match=r"b: not a run folder: a pretraining wrote it, for PretrainRun to open; .* runs/data-001$"
    ):
        Run(tmp_path / "b")
    with pytest.raises(RunFolderError, match=r"not the folder of a pretraining: a training wrote it, for Run to open"):
        PretrainRun(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--resume .*b: a pretraining wrote it; continue .* medmambase-pretrain$"):
        of_run(tmp_path / "b", {})
    with pytest.raises(ConfigError, match=r"--resume .*a: a training wrote it; continue it with medmambase-train$"):
        resume_pretraining(tmp_path / "a", {})


def test_a_network_is_pretrained_anew_as_its_preset_says() -> None:
    settings = PretrainSettings(drawn=True, depths=(1, 1, 1, 1))
    assert settings.network().depths == (1, 1, 1, 1) and settings.network().dims == (48, 96, 192, 384)
