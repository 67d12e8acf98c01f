"""A table from the images: which trainings it takes, that those which are there are not trained
again, and what it refuses."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmambase.commands import table as command
from medmambase.commands.table_flags import parse
from medmambase.config import RECIPES, ConfigError, ModelConfig, Preprocessing
from medmambase.evaluation.predictions import Predictions, write_predictions
from medmambase.evaluation.report.run_files import ReportError
from medmambase.opponent_recipes import OPPONENT_RECIPES
from medmambase.settings import Settings
from medmambase.training.plan import Plan, Started
from medmambase.training.table import run as tables
from medmambase.training.table.settings import KNOWN, MODELS, SEEDS, lines


def test_each_line_has_its_own_recipe_and_all_have_the_same_splits() -> None:
    swin, plain, gated = lines(MODELS, SEEDS, {"data": "x", "epochs": 7, "seed": 5})
    assert [line.name for line in (swin, plain, gated)] == ["swin_tiny", "medmamba", "medmambase"]
    every = [settings for line in (swin, plain, gated) for settings in line.trainings]
    assert [settings.training.seed for settings in every] == [5, 6, 7] * 3
    assert {settings.seed_of_splits for settings in every} == {5} and {s.training.epochs for s in every} == {7}
    assert swin.trainings[0].training.lr == OPPONENT_RECIPES["swin_tiny"].lr
    blocks = [line.trainings[0].network() for line in (plain, gated)]
    assert [(one.block, one.dims) for one in blocks if isinstance(one, ModelConfig)] == [
        ("medmamba", (96, 192, 384, 768)), ("medmambase", (96, 192, 384, 768))
    ]  # fmt: skip  # side by side


def test_the_originals_set_up_is_that_of_all_networks() -> None:
    for line in lines(MODELS, 1, {"data": "x", "recipe": "readme"}):
        (settings,) = line.trainings
        assert settings.training.lr == RECIPES["readme"].lr and settings.training.epochs == 20
        network = settings.network()
        assert not isinstance(network, ModelConfig) or network.block == line.name


@pytest.mark.parametrize(
    ("models", "flags", "message"),
    [
        (("swin",), {}, f"--models has 'swin'; the nearest is 'swin_tiny', and there are {', '.join(KNOWN)}"),
        (("nano", "nano"), {}, "--models is nano nano; name each network once"),
        (("tiny", "medmambase"), {}, "--models has tiny and medmambase, which are one network here; leave one out"),
        (("medmambase",), {"recipe": "medmamba"}, "--recipe medmamba trains blocks of type 'medmamba', and a line"),
        (("medmamba",), {"recipe": "notebook"}, "--recipe notebook trains blocks of type 'medmamba_v0', and a line"),
        (("nano",), {"data": None}, "give a folder of images, a CSV or a MedMNIST .npz, or --demo"),
        (("nano",), {"soft_labels": "x.csv"}, "--soft-labels is 'x.csv', but a table compares what networks learn"),
        (("nano",), {"start": "x"}, "--start is 'x', but the networks of a table have no weights in common; give one"),
        ((), {}, "--models names 0 and --seeds is 1; give a table one of each at least"),
    ],
)
def test_what_cannot_be_a_line_is_refused(models: Sequence[str], flags: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in ({"data": "x"} | flags).items() if value is not None}
    with pytest.raises(ConfigError) as raised:
        lines(models, 1, given)
    assert str(raised.value).startswith(message)


def test_a_file_of_settings_gives_no_weights_to_start_from(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('data = "scans"\nepochs = 3\n', encoding="utf-8")
    (one,) = lines(["resnet18"], 1, {}, file)
    assert one.trainings[0].training.epochs == 3 and one.trainings[0].data == "scans"
    file.write_text('data = "scans"\nstart = "weights"\n', encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"own\.toml: start is 'weights', but the networks of a table have no weights"
    ):
        lines(["nano"], 1, {}, file)


def test_flags_name_networks_seeds_and_settings() -> None:
    given = parse(["scans", "--models", "nano", "resnet18", "--seeds", "2", "--lr", "1", "--config", "a.toml"])
    assert (given.models, given.seeds) == (("nano", "resnet18"), 2)
    assert given.settings == {"data": "scans", "lr": 1.0} and given.config == Path("a.toml")
    plain = parse(["scans"])
    assert (plain.models, plain.seeds, plain.config) == (MODELS, SEEDS, None)


class Trained:
    """Stands for training: a finished run in an instant, and an account of which were trained."""

    def __init__(self, test: bool = True) -> None:
        self.test, self.seeds = test, list[tuple[str, int]]()

    @contextmanager
    def started(self, settings: Settings, resumed: Path | None, progress: object) -> Iterator[Started[Plan[Settings]]]:
        folder = resumed or tables.run_folder.create(Path(settings.runs), str(settings.name))
        (folder / "config.toml").write_text(settings.to_toml(), encoding="utf-8")
        yield Started(None, folder, resumed is not None)  # type: ignore[arg-type]  # nothing is trained

    def train_run(self, run: Started[Plan[Settings]], *rest: object) -> None:
        settings = tables.of_run(run.folder, {})
        self.seeds.append((str(settings.name), settings.training.seed))
        described = {"model": {}, "training": {}, "preprocessing": Preprocessing().to_dict(), "classes": ["a", "b"]}
        told = described | {"parameters": 1000, "best_epoch": 1}
        (run.folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
        (run.folder / "metrics.csv").write_text("epoch,train_accuracy\n1,0.75\n2,0.5\n", encoding="utf-8")
        labels = np.arange(20) % 2
        rng = np.random.default_rng([len(str(settings.name)), settings.training.seed])  # the same again
        called = np.where(rng.random(20) < 0.8, labels, 1 - labels)
        found = Predictions(tuple(map(str, range(20))), labels, np.eye(2)[called], ("a", "b"))
        for split in ("val", "test") if self.test else ("val",):
            (run.folder / split).mkdir(exist_ok=True)
            write_predictions(run.folder / split / "predictions.csv", found)
        (run.folder / "report.html").write_text("", encoding="utf-8")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    stands = Trained()
    monkeypatch.setattr(tables, "started", stands.started)
    monkeypatch.setattr(tables, "train_run", stands.train_run)
    return stands


def test_the_same_command_trains_what_is_missing_alone_and_prints_the_same_table(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scans", "--models", "nano", "medmambase", "--seeds", "2", "--runs", str(tmp_path)]
    assert command.main(words) == 0
    shown = capsys.readouterr().out
    assert trained.seeds == [("scans-nano", 0), ("scans-nano", 1), ("scans-medmambase", 0), ("scans-medmambase", 1)]
    assert "4 of 4: medmambase, seed 1" in shown and "| nano | 0.00 M | 0.750 (0.750-0.750) | " in shown
    assert "\nNo table names the patients" in shown
    assert "medmambase-compare" in shown and "--against" in shown
    written = {path.name: path.read_bytes() for path in (tmp_path / "scans-table-001").iterdir()}
    assert sorted(written) == ["table.csv", "table.md", "table.tex"]
    assert written["table.md"].decode("utf-8").strip() in shown
    (tmp_path / "scans-nano-002" / "report.html").unlink()  # it was ended
    assert command.main(words) == 0
    assert trained.seeds[4:] == [("scans-nano", 1)]
    assert "scans-medmambase-001, which is finished" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scans-medmambase-001", "scans-medmambase-002", "scans-nano-001", "scans-nano-002", "scans-table-001",
    ]  # fmt: skip  # no run more
    assert command.main([*words[:2], "nano", *words[4:]]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "scans-table-001").iterdir()} == written
    assert "medmambase" not in (tmp_path / "scans-table-002" / "table.csv").read_text(encoding="utf-8")


def test_what_cannot_be_tabled_is_told_in_one_line(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scans", "--models", "nano", "micro", "--seeds", "1", "--runs", str(tmp_path)]
    trained.test = False
    assert command.main(words) == 3 and trained.seeds == [("scans-nano", 0)]
    assert "scans-nano-001: had no test images, which a table compares networks on" in capsys.readouterr().err
    (tmp_path / "scans-nano-001" / "metrics.csv").write_text("epoch,train_accuracy\n2,0.5\n", encoding="utf-8")
    with pytest.raises(ReportError, match=r"metrics\.csv: does not tell the accuracy of epoch 1"):
        tables._entry("nano", [tmp_path / "scans-nano-001"])
    (tmp_path / "scans-nano-001" / "config.json").unlink()
    with pytest.raises(ReportError, match=r"scans-nano-001 has no config\.json; restore it"):
        tables._entry("nano", [tmp_path / "scans-nano-001"])
    monkeypatch.setattr(tables.opponents, "find_spec", lambda name: None)
    assert command.main(["scans", "--models", "resnet18", "nano", "--runs", str(tmp_path)]) == 2
    assert "resnet18 needs monai, which is not installed" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(words) == 2
    assert "a table trains its networks in one process" in capsys.readouterr().err
