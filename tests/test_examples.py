"""Every file of ``examples/`` runs and does what its first lines say."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from house_source import ROOT

EXAMPLES = ROOT / "examples"
BEFORE = ROOT / "tests" / "training" / "run_of_before"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test_and_says_how_to_run_it() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert f'example("{path.stem}")' in tests
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.slow
def test_a_model_of_ones_own_learns_what_only_the_scan_can_carry() -> None:
    assert example("own_model").main() > 0.95


def test_the_network_is_a_backbone_of_segmentation() -> None:
    assert example("segmentation").main().shape == (2, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_training_is_watched_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "images.csv", "whole-001"):
        source = BEFORE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    settings = "weights = 'whole-001/best'\nimage_size = 32\nepochs = 2\nbatch_size = 8\n"
    Path("my.toml").write_text(settings, encoding="utf-8", newline="\n")
    run = example("train").main("images.csv", "my.toml")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed[:2]] == ["epoch 1", "epoch 2"]
    assert all("val_loss" in line and "train_accuracy" in line for line in printed[:2])
    assert printed[-1] == f"report: {run.report.resolve()}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_drawn_pictures_with_several_structures_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example("multi_label").main(["pictures", "--pictures", "120", "--size", "32", "--epochs", "1"])
    table = Path("pictures/structures.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 121 and table[0].startswith("path,striated muscle,")
    assert "over 6 structures; report: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "predict"])
def test_an_example_without_its_arguments_says_which_are_missing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        example(name).command([])
    assert ended.value.code == 2 and "the following arguments are required: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train", ["nowhere"], "nowhere: there is no such file or folder"),
        ("train", ["images", "nofile.toml"], "nofile.toml: there is no such file"),
        ("train", ["images", "bad.toml"], "bad.toml: is not TOML"),
        ("predict", ["nowhere", "nowhere"], "nowhere: there is no such"),
        ("predict", [str(BEFORE / "whole-001"), "nowhere"], "nowhere: there is no such"),
        ("predict", ["images", "images"], "config.json: there is no such file"),
    ],
)
def test_an_example_says_in_one_line_what_is_wrong(
    name: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("bad.toml").write_text("epochs = = 2\n", encoding="utf-8", newline="\n")
    with pytest.raises(SystemExit) as ended:
        example(name).command(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said in line and not Path("runs").exists()


@pytest.mark.parametrize("name", ["own_model", "segmentation"])
@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("surplus", 2)])
def test_an_example_without_arguments_has_help_and_refuses_any_word(name: str, word: str, code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        example(name).command([word])
    assert ended.value.code == code


def test_new_images_are_predicted_and_sorted(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "images", tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    found = example("predict").main(str(BEFORE / "whole-001"), str(tmp_path / "images"), sure=0.5)
    assert len(found["sure"]) == 24 and not found["unsure"]
    assert [Path(path).name for path in found["unreadable"]] == ["broken.png"]
