"""``medmambase-train``: from a folder to a report, and from bad input to a sentence."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medmambase import MedMambaSE, ModelConfig
from medmambase.commands import train
from medmambase.config import PRESETS, RECIPES, TrainConfig
from medmambase.data import phantom
from medmambase.data.folders import ImageSet, Sample
from medmambase.evaluation.metrics import evaluate, read_predictions
from medmambase.training import loop, run_folder

QUICK = ["--model", "nano", "--image-size", "32", "--epochs", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom set in a folder with a blank and letters outside ASCII."""
    return phantom.write_phantom(tmp_path_factory.mktemp("data") / "Daten ü 肺", images_per_class=5, size=32)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run, started as a person would, on a console that knows only cp1252."""
    broken = images / "train" / phantom.CLASSES[0] / "truncated.jpg"
    Image.effect_noise((64, 64), 80).save(broken)
    broken.write_bytes(broken.read_bytes()[:-500])
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")]), "PYTHONIOENCODING": "cp1252:strict"}
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-W", "error", "-m", "medmambase.commands.train", str(images), "--runs", str(runs), "--name", "lauf/1", *QUICK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("truncated.jpg") == 1
    return runs / "lauf-1-001"


def test_a_run_leaves_everything_that_its_report_promises(finished: Path) -> None:
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    promised = {
        "config.json", "command.txt", "env.json", "splits.csv", "data_report.json", "metrics.csv", "train.log", "curves.png", "report.html",
        "best/model.safetensors", "best/config.json", "last/model.safetensors", "last/config.json",
        "test/predictions.csv", "test/metrics.json", "test/confusion.png", *(f"explain/se_stage{i}.png" for i in (1, 2, 3, 4)),
    }  # fmt: skip  # folder by folder
    assert files == promised


def test_the_test_figures_can_be_recomputed_from_the_predictions(finished: Path) -> None:
    names, labels, probabilities, classes = read_predictions(finished / "test" / "predictions.csv")
    assert evaluate(labels, probabilities, classes).to_dict() == json.loads((finished / "test" / "metrics.json").read_text(encoding="utf-8"))
    with (finished / "splits.csv").open(encoding="utf-8", newline="") as file:
        split_of = {row["path"]: (row["split"], row["label"]) for row in csv.DictReader(file)}
    assert [split_of[name] for name in names] == [("test", classes[label]) for label in labels]


def test_a_truncated_jpeg_costs_one_line_and_is_named_in_the_data_report(finished: Path) -> None:
    report = json.loads((finished / "data_report.json").read_text(encoding="utf-8"))
    assert [Path(one["path"]).name for one in report["skipped"]] == ["truncated.jpg"]
    assert (finished / "train.log").read_text(encoding="utf-8").count("skipped:") == 1


def test_the_saved_network_gives_the_predictions_again(finished: Path, images: Path) -> None:
    from medmambase.data.images import load, normalise

    names, _, probabilities, classes = read_predictions(finished / "test" / "predictions.csv")
    network = MedMambaSE.load(finished / "best")
    assert network.classes == tuple(classes)
    assert network.config.in_chans == 1  # every phantom image is grey
    batch = torch.stack([load(images / name, network.preprocessing) for name in names[:4]])
    with torch.no_grad():
        again = network(normalise(batch, network.preprocessing)).double().softmax(1)
    assert np.abs(again.numpy() - probabilities[:4]).max() < 1e-5


def test_the_same_seed_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    arguments = [str(images), "--runs", str(tmp_path), "--name", "a", *QUICK]
    assert train.main([*arguments, "--seed", "3"]) == 0
    assert train.main([*arguments, "--seed", "3"]) == 0
    assert train.main([*arguments, "--seed", "4"]) == 0
    first, second, other = ((tmp_path / f"a-00{i}" / "last" / "model.safetensors").read_bytes() for i in (1, 2, 3))
    assert first == second
    assert first != other


def test_a_checkpoint_of_medmamba_can_be_the_start(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_weights import as_upstream

    start = MedMambaSE(replace(PRESETS["nano"], block="medmamba", num_classes=9))
    torch.save(as_upstream(start), tmp_path / "start.pth")
    assert train.main([str(images), "--weights", str(tmp_path / "start.pth"), "--runs", str(tmp_path), "--name", "w", *QUICK[2:], "--lr", "1e-12"]) == 0
    assert "skipped: head.weight" in capsys.readouterr().out
    moved = load_file(tmp_path / "w-001" / "best" / "model.safetensors")["stages.3.blocks.0.ssm_branch.out_proj.weight"]
    assert torch.allclose(moved, start.state_dict()["stages.3.blocks.0.ssm_branch.out_proj.weight"], atol=1e-6)


def empty(folder: Path) -> list[str]:
    folder.mkdir()
    return [str(folder)]


def one_class(folder: Path) -> list[str]:
    (folder / "brain").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "brain" / "a.png")
    return [str(folder)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (lambda folder: [str(folder / "nowhere")], 3, "no such folder"),
        (empty, 3, "no images found"),
        (one_class, 3, "only one class found, 'brain'"),
        (lambda folder: ["--demo", "--lr", "0"], 2, "lr is 0.0"),
        (lambda folder: ["--demo", "--device", "cuda:7"], 2, "--device cuda:7 cannot be used"),
        (lambda folder: ["--demo", "--device", "toaster"], 2, "--device toaster cannot be used"),
    ],
)
def test_bad_input_ends_in_a_code_and_a_sentence(arguments, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*arguments(tmp_path / "x"), "--runs", str(tmp_path / "runs")]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "--epoch", "3"], "unrecognized arguments: --epoch"),
        ([], "give a folder of images, or --demo"),
        (["x", "--demo"], "leave out x"),
        (["--demo", "--model", "huge"], "invalid choice: 'huge'"),
        (["x", "--weights", "y.pth", "--model", "nano"], "leave out --model"),
    ],
)
def test_an_unknown_flag_or_choice_is_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_that_are_no_checkpoint_end_in_a_sentence(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.pth").write_text("hello", encoding="utf-8")
    assert train.main([str(images), "--weights", str(tmp_path / "notes.pth"), "--runs", str(tmp_path), *QUICK[2:]]) == 3
    assert "notes.pth" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.pth"]  # nothing was begun


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_network(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(images), "--runs", str(tmp_path), "--name", "nan", "--recipe", "readme", "--lr", "1e30", *QUICK]
    assert train.main(arguments) == 1
    assert "the loss is" in capsys.readouterr().err
    folder = tmp_path / "nan-001"
    if (folder / "last").exists():
        assert all(torch.isfinite(t).all() for t in load_file(folder / "last" / "model.safetensors").values() if t.is_floating_point())


def test_ctrl_c_leaves_with_130_and_keeps_the_finished_epochs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step
    calls: list[int] = []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 6:  # in the second epoch of three steps
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    assert train.main([str(images), "--runs", str(tmp_path), "--name", "c", *QUICK]) == 130
    assert len((tmp_path / "c-001" / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert MedMambaSE.load(tmp_path / "c-001" / "best").config.depths == (2, 2, 4, 2)


def test_without_validation_or_test_images_a_run_still_ends_in_a_report(images: Path, tmp_path: Path) -> None:
    data = phantom.write_phantom(tmp_path / "data", images_per_class=5, size=32)
    import shutil

    shutil.rmtree(data / "test")
    assert train.main([str(data), "--runs", str(tmp_path), "--name", "n", *QUICK]) == 0
    assert (tmp_path / "n-001" / "report.html").exists()
    assert not (tmp_path / "n-001" / "test").exists()


def image_set(count: int, size: int = 32) -> ImageSet:
    """Noise whose brightness is its class, so that it can be learned."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 100, (count, 1, size, size), generator=torch.Generator().manual_seed(1))
    samples = tuple(Sample(Path(f"{i}.png"), int(label), "train", f"{i}.png") for i, label in enumerate(labels))
    return ImageSet((noise + 70 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, samples)


def small_network() -> MedMambaSE:
    torch.manual_seed(0)
    return MedMambaSE(ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(16, 32), drop_path=0.0))


PLAIN = TrainConfig(
    optimizer="adam",
    schedule="constant",
    lr=1e-3,
    weight_decay=0,
    warmup=0,
    patience=0,
    clip_norm=0,
    label_smoothing=0,
    augmentation="none",
    epochs=3,
    batch_size=4,
)


def test_three_epochs_are_the_steps_that_a_person_would_write_down(tmp_path: Path) -> None:
    network, by_hand, data = small_network(), small_network(), image_set(12)
    loop.train(network, data, data, PLAIN, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None)
    optimizer = torch.optim.Adam(by_hand.train().parameters(), lr=1e-3)
    for epoch in (1, 2, 3):
        for rows in torch.randperm(12, generator=loop._generator(0, epoch)).split(4):
            optimizer.zero_grad()
            images = (data.images[rows].float() / 255 - 0.5) / 0.5
            torch.nn.functional.cross_entropy(by_hand(images), data.labels[rows]).backward()
            optimizer.step()
    for (name, trained), expected in zip(network.state_dict().items(), by_hand.state_dict().values(), strict=True):
        assert torch.allclose(trained, expected, atol=1e-5), name


def test_what_can_be_learned_is_learned(tmp_path: Path) -> None:
    data = image_set(48)
    config = replace(PLAIN, optimizer="adamw", lr=3e-3, epochs=8, batch_size=8)
    outcome = loop.train(small_network(), data, data, config, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None)
    assert outcome.best_score == 1.0
    assert outcome.epochs[-1].train_loss < 0.2 * outcome.epochs[0].train_loss


def test_patience_ends_a_training_that_no_longer_improves(tmp_path: Path) -> None:
    data = image_set(12)
    config = replace(PLAIN, lr=1e-12, epochs=20, patience=2)
    outcome = loop.train(small_network(), data, data, config, tmp_path, torch.float32, lambda items, total, text: items, lambda epoch: None)
    assert len(outcome.epochs) - outcome.best_epoch == 2
    assert len(outcome.epochs) < 20


def test_the_learning_rate_warms_up_and_follows_a_half_cosine() -> None:
    config = replace(TrainConfig(), lr=1.0, warmup=2.0, epochs=12)
    rates = [loop._learning_rate(config, moment) for moment in (0.0, 1.0, 2.0, 7.0, 12.0)]
    assert rates == [pytest.approx(0.01), pytest.approx(0.5), pytest.approx(1.0), pytest.approx(0.505), pytest.approx(0.01)]
    assert loop._learning_rate(RECIPES["readme"], 19.5) == 1e-3
    assert loop._learning_rate(replace(config, epochs=5), 1.0) == 1.0  # at most a fifth of the training is warm-up


def test_states_norms_and_biases_do_not_decay() -> None:
    network = MedMambaSE(ModelConfig(dims=(16, 32), depths=(1, 1)))
    decayed, free = (group["params"] for group in loop._optimizer(network, TrainConfig()).param_groups)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in free} == {"bias", "weight", "A_log", "D", "dt_bias"}
    assert all(p.dim() < 2 for p in free if names[id(p)].endswith((".weight", ".bias")))
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed} == {"weight", "x_proj", "dt_weight", "squeeze", "excite"}
    assert len(decayed) + len(free) == len(names)


def test_an_undefined_figure_is_replaced_by_the_next_that_is_defined() -> None:
    metrics = evaluate(np.array([1, 1]), np.array([[0.2, 0.8], [0.9, 0.1]]), ["a", "b"])
    assert metrics.auc is None
    assert loop._score(metrics, TrainConfig()) == ("balanced_accuracy", 0.5)


@pytest.mark.parametrize(("name", "legal"), [("a/b:c", "a-b-c"), ("CON", "CON-run"), (" .. ", "run"), ("Lunge ü 肺", "Lunge ü 肺"), ("x.", "x")])
def test_run_folders_have_names_that_windows_takes(name: str, legal: str) -> None:
    assert run_folder.legal_name(name) == legal


def test_two_runs_of_one_name_get_two_folders(tmp_path: Path) -> None:
    assert [run_folder.create(tmp_path, "x").name for _ in range(3)] == ["x-001", "x-002", "x-003"]
    with pytest.raises(run_folder.RunFolderError, match="cannot make a folder"):
        (tmp_path / "file").write_text("", encoding="utf-8")
        run_folder.create(tmp_path / "file" / "runs", "x")
