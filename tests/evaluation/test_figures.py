"""Pictures: drawn for every set of classes and every log, the same bytes each time, and honest
about their colours."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import decode
from medmambase.data.decoded.originals import originals
from medmambase.data.manifest.folders import Sample
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.explanation import figures as explanation_figures
from medmambase.evaluation.explanation.maps import Recalibration
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import Metrics, evaluate
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.report import figures, performance_figures

HEADER = "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,val_balanced_accuracy,val_auc,seconds\n"
Draw = Callable[[Predictions, Metrics, Path], None]
UNDRAWABLE = "\U0010fffd"  # no font has it


def perfect(classes: list[str], each: int = 3) -> Metrics:
    labels = np.arange(len(classes) * each) % len(classes)
    return evaluate(labels, np.eye(len(classes))[labels], classes)


def stage(before: float = 1.0, after: float = 0.5, images: int = 2, channels: int = 16) -> Recalibration:
    maps = torch.ones(images, 6, 5)
    return Recalibration(
        stage=3, before=maps * before, after=maps * after, gates=torch.full((images, channels), after / (before or 1.0))
    )


def size(png: Path) -> tuple[int, int]:
    with Image.open(png) as image:
        return image.size


def pixels(png: Path, colour: tuple[float, ...]) -> int:
    """How many pixels of the picture have this colour (a matplotlib colour, alpha ignored)."""
    values = np.asarray(Image.open(png).convert("RGB")).astype(int)
    return int((abs(values - np.round(np.array(colour[:3]) * 255).astype(int)).max(axis=-1) <= 1).sum())


@pytest.mark.parametrize(
    "classes",
    [
        ["the only one"],
        ["normal", "pneumonia"],
        [f"a class name that goes on and on for ever and ever, number {index}" for index in range(30)],
        ["名前 子宮", "تصوير", "рак", "ένα", "🫀", "\udcfc"],
        ["$", r"a$\frac{$b", r"$^^_{$", "50 %", "_hidden", "<b>"],
        [" ", "two\nlines", "bell\a", UNDRAWABLE],
    ],
    ids=["one", "two", "thirty", "scripts", "formulas", "odd"],
)
def test_any_class_names_give_a_picture_without_a_warning(
    tmp_path: Path, classes: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "Bild ü.png"
    figures.confusion(perfect(classes), png)
    width, height = size(png)
    assert 300 < width < 2400
    assert 300 < height < 2400
    assert png.stat().st_size < 1_000_000
    assert [entry.name for entry in tmp_path.iterdir()] == [png.name]
    assert capfd.readouterr() == ("", "")


def test_a_name_no_font_can_draw_becomes_its_number(tmp_path: Path) -> None:
    figures.confusion(perfect(["a", UNDRAWABLE]), tmp_path / "odd.png")
    figures.confusion(perfect(["a", "no. 2"]), tmp_path / "number.png")
    figures.confusion(perfect(["a", "no. 1"]), tmp_path / "other.png")
    assert (
        (tmp_path / "odd.png").read_bytes()
        == (tmp_path / "number.png").read_bytes()
        != (tmp_path / "other.png").read_bytes()
    )


def test_long_names_that_differ_at_the_end_stay_apart(tmp_path: Path) -> None:
    figures.confusion(perfect(["x" * 60 + " left", "x" * 60 + " right"]), tmp_path / "a.png")
    figures.confusion(perfect(["x" * 60 + " left", "x" * 60 + " wrong"]), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_colours_are_shares_of_the_row_whatever_the_counts(tmp_path: Path) -> None:
    labels = np.array([0] * 200 + [1] * 2)
    predicted = np.array([0] * 160 + [1] * 40 + [0, 1])
    png = tmp_path / "c.png"
    figures.confusion(evaluate(labels, np.eye(2)[predicted], ["common", "rare"]), png)
    blues = matplotlib.colormaps["Blues"]
    cell = 100 * 100  # pixels, and a bit less than one
    assert pixels(png, blues(160 / 200)) > cell
    assert pixels(png, blues(40 / 200)) > cell
    assert pixels(png, blues(1 / 2)) > 2 * cell


def test_an_empty_test_set_still_has_a_matrix(tmp_path: Path) -> None:
    figures.confusion(evaluate(np.array([]), np.zeros((0, 3)), ["a", "b", "c"]), tmp_path / "c.png")
    assert (tmp_path / "c.png").exists()


def test_before_and_after_share_one_colour_scale(tmp_path: Path) -> None:
    png = tmp_path / "se.png"
    images = torch.zeros(2, 1, 8, 8)
    explanation_figures.recalibration(stage(before=1.0, after=0.5), images, ["a", "b"], png)
    viridis = matplotlib.colormaps["viridis"]
    full, half = pixels(png, viridis(1.0)), pixels(png, viridis(0.5))
    assert full > 2 * 100 * 100
    assert half == pytest.approx(full, rel=0.05)  # half as strong is half way up the same scale


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (1.0, 1.0), (float("nan"), float("inf")), (1.0, 1.9)])
def test_dead_equal_and_broken_activations_are_drawn(tmp_path: Path, before: float, after: float) -> None:
    explanation_figures.recalibration(stage(before, after), torch.zeros(2, 3, 8, 8), ["a", "b"], tmp_path / "se.png")
    assert (tmp_path / "se.png").exists()


def test_images_titles_and_maps_must_be_as_many(tmp_path: Path) -> None:
    for images, titles, maps in ((2, 1, 2), (1, 2, 2), (2, 2, 1), (0, 0, 0)):
        with pytest.raises(FigureError, match=f"{images} images, {titles} titles and {maps} maps"):
            explanation_figures.recalibration(
                stage(images=maps), torch.zeros(images, 1, 8, 8), ["x"] * titles, tmp_path / "se.png"
            )


def test_one_broken_value_does_not_blank_the_picture(tmp_path: Path) -> None:
    broken = stage()
    broken.before[0, 0, 0], broken.after[1, 0, 0] = float("nan"), float("inf")
    explanation_figures.recalibration(broken, torch.zeros(2, 1, 8, 8), ["a", "b"], tmp_path / "se.png")
    viridis = matplotlib.colormaps["viridis"]
    assert pixels(tmp_path / "se.png", viridis(1.0)) > 100 * 100
    assert pixels(tmp_path / "se.png", viridis(0.5)) > 100 * 100


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_grey_and_colour_images_are_drawn_and_only_the_first_six(tmp_path: Path, channels: int) -> None:
    images = torch.randn(9, channels, 16, 12, generator=torch.Generator().manual_seed(0))
    names = [rf"$\frac{{$ {index} {UNDRAWABLE if index % 2 else ''}" for index in range(9)]
    explanation_figures.recalibration(stage(images=9), images, names, tmp_path / "nine.png")
    explanation_figures.recalibration(stage(images=6), images[:6], names[:6], tmp_path / "six.png")
    assert (tmp_path / "nine.png").read_bytes() == (tmp_path / "six.png").read_bytes()
    assert (tmp_path / "six.png").stat().st_size < 600_000


def test_curves_show_a_run_of_one_epoch_and_gaps(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    for rows in (
        "1,0.001,1.7,0.3,1.8,0.25,0.25,0.6,9\n",
        "1,0.001,1.7,0.3,,,,,9\n",
        "1,0.1,1,1,1,1,1,,9\n2,0.1,nan,1,inf,,1,0.5,9\n\n",
    ):
        log.write_text(HEADER + rows, encoding="utf-8")
        figures.curves(log, tmp_path / "curves.png", best_epoch=1)
        assert size(tmp_path / "curves.png")[0] > 600


def test_curves_do_without_the_columns_that_were_never_measured(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("epoch,train_loss\n1,2\n2,1\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("epoch,train_loss,val_loss,lr,new\n1,2,,,\n2,1,,,5\n", encoding="utf-8")
    for name in ("short", "empty"):
        figures.curves(tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
    assert (tmp_path / "short.png").read_bytes() == (tmp_path / "empty.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no epoch"),
        (HEADER.encode(), "no epoch"),
        (b"lr\n1\n", "no epoch"),
        (b"epoch,seconds\n1,2\n", "no column"),
        (b"epoch,train_loss\n1,low\n", "column train_loss.*low"),
        (b"epoch,train_loss\n1,2.0\n,1.0\n", "column epoch"),
        (b"epoch\xff\n", "cannot be read"),
    ],
)
def test_a_log_that_cannot_be_drawn_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    log = tmp_path / "metrics.csv"
    log.write_bytes(content)
    with pytest.raises(FigureError, match=words) as caught:
        figures.curves(log, tmp_path / "curves.png")
    assert str(log) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [log.name]


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match=r"metrics\.csv cannot be read"):
        figures.curves(tmp_path / "metrics.csv", tmp_path / "curves.png")


def test_the_same_run_gives_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(HEADER + "1,0.1,1,0.5,1,0.5,0.5,0.7,9\n2,0.05,0.5,0.8,0.9,0.6,0.6,0.8,9\n", encoding="utf-8")

    def draw() -> list[bytes]:
        figures.curves(log, tmp_path / "1.png", 2)
        figures.confusion(perfect(["a", "b"]), tmp_path / "2.png")
        explanation_figures.recalibration(stage(), torch.zeros(2, 1, 4, 4), ["a", "b"], tmp_path / "3.png")
        return [(tmp_path / f"{number}.png").read_bytes() for number in (1, 2, 3)]

    first = draw()
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "axes.facecolor": "red"}):
        assert draw() == first
        assert matplotlib.rcParams["font.size"] == 20


@pytest.mark.slow
def test_importing_evaluation_loads_neither_matplotlib_nor_scikit_learn_nor_triton() -> None:
    program = (
        "import sys\nfrom medmambase.evaluation import metrics\nfrom medmambase.evaluation.explanation import "
        "figures, maps\n"
        "from medmambase.evaluation.report import figures, report\nprint(sorted({'matplotlib', 'sklearn', 'triton'} "
        "& set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8", env=environment, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("draw", [performance_figures.roc, performance_figures.pr])
def test_a_legend_of_long_names_and_intervals_is_never_cut(draw: Draw, tmp_path: Path) -> None:
    classes = [f"a class whose name is long, {name}" for name in ("benign", "malignant", "neither")]
    labels = np.arange(30) % 3
    scores = np.eye(3)[labels] / 2 + np.random.default_rng(0).random((30, 3))
    scores /= scores.sum(axis=1, keepdims=True)
    found = Predictions(tuple(map(str, range(30))), labels, scores, tuple(classes))
    draw(found, evaluate_with_intervals(found), tmp_path / "x.png")
    columns = np.flatnonzero((np.asarray(Image.open(tmp_path / "x.png").convert("L")) < 128).any(axis=0))
    width = size(tmp_path / "x.png")[0]
    assert width - 80 < columns[-1] < width - 4


def test_curves_of_images_of_the_other_class_alone_are_drawn_without_a_warning(tmp_path: Path) -> None:
    labels = np.zeros(3, dtype=np.int64)
    predictions = Predictions(("a", "b", "c"), labels, np.eye(2)[labels], ("x", "y"))
    performance_figures.pr(predictions, evaluate(labels, np.eye(2)[labels], ("x", "y")), tmp_path / "pr.png")
    assert size(tmp_path / "pr.png")[0] > 100


def test_duplicates_and_mistakes_are_drawn_from_their_files_not_at_the_networks_size(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for name, shape in (("a.png", (300, 200)), ("b.png", (900, 900, 3)), ("c.png", (20, 20))):
        Image.fromarray(chance.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    samples = [Sample(tmp_path / name, 0, "train", name) for name in ("a.png", "b.png", "c.png")]
    images, _ = decode(samples, Preprocessing(16, 1))
    (tmp_path / "c.png").unlink()
    found = originals(images, [1, 0, 2, 1])
    assert [tuple(picture.shape) for picture in found] == [(3, 400, 400), (3, 300, 300), (1, 16, 16), (3, 400, 400)]
    inside = found[1][:, :, 50:250].permute(1, 2, 0).numpy()
    assert (
        np.array_equal(inside, np.asarray(Image.open(tmp_path / "a.png").convert("RGB")))
        and not found[1][:, :, :50].any()
    )
