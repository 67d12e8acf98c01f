"""Maps show what the network uses: a planted shortcut is seen in them, and what is no better than
chance is called that."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pytest
import torch
from html_page import Page
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medmambase.commands import explain as command
from medmambase.config import ModelConfig, Preprocessing
from medmambase.data.reading.images import normalise
from medmambase.evaluation.explanation import faithfulness
from medmambase.evaluation.explanation import folder as explanations
from medmambase.evaluation.explanation.maps import deltas, grad_cam
from medmambase.evaluation.explanation.page import Explained, write_page
from medmambase.model import layers
from medmambase.model.network import MedMambaSE

SIZE, MARK = 32, 6
TINY = ModelConfig(num_classes=2, in_chans=1, depths=(1, 1), dims=(16, 32), state=4, drop_path=0.0)


def marked(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 32, 32) of the same kind in both classes, but for a bright mark in the corner
    of the second."""
    generator = torch.Generator().manual_seed(seed)
    pictures = functional.interpolate(torch.rand(count, 1, 8, 8, generator=generator), size=SIZE, mode="bilinear") * 200
    labels = torch.arange(count) % 2
    pictures[labels == 1, :, 1:MARK, 1:MARK] = 255
    return pictures.to(torch.uint8), labels


@pytest.fixture(scope="module")
def shortcut() -> MedMambaSE:
    """A network that has learned the mark, and nothing else, because there is nothing else."""
    torch.manual_seed(0)
    network = MedMambaSE(TINY, classes=("plain", "marked"), preprocessing=Preprocessing(size=SIZE, channels=1)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    pictures, labels = marked(256, 0)
    images = normalise(pictures, network.preprocessing)
    for step in range(96):
        rows = torch.arange(16) + 16 * (step % 16)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    network.eval()
    pictures, labels = marked(40, 1)
    with torch.no_grad():
        assert (network(normalise(pictures, network.preprocessing)).argmax(1) == labels).all()
    return network


def test_a_planted_shortcut_is_seen_in_the_map_and_in_the_faithfulness(shortcut: MedMambaSE) -> None:
    pictures, labels = marked(32, 2)
    images, targets = normalise(pictures, shortcut.preprocessing)[labels == 1], labels[labels == 1]
    cams = grad_cam(shortcut, images, targets)
    assert cams.shape == (16, SIZE, SIZE) and cams.min() >= 0 and cams.amax((1, 2)).allclose(torch.ones(16))
    corner = cams[:, : MARK + 2, : MARK + 2]
    assert (corner.amax((1, 2)) == 1).sum() >= 14  # the brightest place of nearly every image
    assert (corner.sum((1, 2)) / cams.sum((1, 2))).mean() > 5 * (MARK + 2) ** 2 / SIZE**2
    with torch.no_grad():
        by_map, by_chance = faithfulness.measure(lambda batch: shortcut(batch).softmax(1), images, cams, targets)
    assert (
        by_map.areas()[0].mean() < by_chance.areas()[0].mean() - 0.2
        and by_map.areas()[1].mean() > by_chance.areas()[1].mean() + 0.1
    )
    assert faithfulness.verdict(by_map, by_chance).startswith("The maps mark what the network uses")


def test_maps_that_mark_another_corner_are_not_believed(shortcut: MedMambaSE) -> None:
    pictures, labels = marked(32, 2)
    images, targets = normalise(pictures, shortcut.preprocessing)[labels == 1], labels[labels == 1]
    wrong = grad_cam(shortcut, images, targets).flip(1, 2)
    with torch.no_grad():
        told = faithfulness.verdict(
            *faithfulness.measure(lambda batch: shortcut(batch).softmax(1), images, wrong, targets)
        )
    assert told.startswith("Neither is better than chance")


def test_the_curves_begin_and_end_with_the_whole_image_and_none_of_it() -> None:
    def brightness(images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None].expand(-1, 2)

    images = torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    by_map, by_chance = faithfulness.measure(brightness, images, images[:, 0], torch.zeros(3, dtype=torch.int64))
    for curves in (by_map, by_chance):
        assert curves.deletion.shape == curves.insertion.shape == (3, faithfulness.STEPS + 1)
        torch.testing.assert_close(curves.deletion[:, 0], brightness(images)[:, 0].double())
        torch.testing.assert_close(curves.insertion[:, -1], brightness(images)[:, 0].double())
        torch.testing.assert_close(curves.deletion[:, -1], curves.insertion[:, 0])
    assert (by_map.deletion[:, 3] < by_chance.deletion[:, 3]).all()  # the brightest places are gone first


def test_the_map_is_activation_times_gradient_place_by_place_before_the_scans_and_after_them() -> None:
    network = MedMambaSE(TINY).eval()
    images = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 0])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = grad_cam(network.train(), images, targets)
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    network.eval()
    patches = network.embedding(images)
    patches.retain_grad()
    last = network.stages[1](network.stages[0](patches))
    last.retain_grad()
    network.forward_head(last).gather(1, targets[:, None]).sum().backward()
    wanted = torch.ones(2, SIZE, SIZE)
    for each, value in ((patches, patches - patches.mean((1, 2), keepdim=True)), (last, last)):
        assert each.grad is not None
        cam = functional.interpolate(
            (value.detach() * each.grad).sum(-1).clamp_min(0)[:, None], size=SIZE, mode="bilinear"
        )[:, 0]
        wanted *= cam / cam.amax((1, 2), keepdim=True)
    wanted = wanted.sqrt()
    torch.testing.assert_close(found, wanted / wanted.amax((1, 2), keepdim=True), atol=1e-5, rtol=1e-4)


def test_delta_is_what_the_scan_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    network, given = MedMambaSE(TINY).eval(), []
    real = layers.selective_scan_2d

    def watched(
        x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, *rest: Tensor, **named: torch.dtype
    ) -> Tensor:
        low_rank = x_dbl[..., : dt_weight.shape[2]]
        given.append(functional.softplus((low_rank[:, :, :, :, None] * dt_weight).sum(-1) + dt_bias).mean(-1))
        return real(x, x_dbl, dt_weight, dt_bias, *rest, **named)  # type: ignore[arg-type]  # handed through as they came

    monkeypatch.setattr(layers, "selective_scan_2d", watched)
    found = deltas(network, torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    assert found.shape == (2, 4, SIZE // 4, SIZE // 4) and (found > 0).all()
    torch.testing.assert_close(found, given[0].detach().permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_a_verdict_needs_images() -> None:
    for count, said in ((1, "one image"), (2, "2 images")):
        few = [faithfulness.Curves(torch.full((count, 13), a), torch.full((count, 13), b)) for a, b in ((0, 1), (1, 0))]
        assert faithfulness.verdict(*few).startswith(f"Nothing can be said from {said} about whether")
    same = faithfulness.Curves(torch.ones(9, 13), torch.ones(9, 13))
    assert "that does not show that the maps are wrong" in faithfulness.verdict(same, same)
    many = [faithfulness.Curves(torch.full((9, 13), a), torch.full((9, 13), b)) for a, b in ((0.0, 0.5), (1.0, 0.5))]
    assert faithfulness.verdict(*many).startswith("Only deletion is better")


@pytest.mark.parametrize(
    ("count", "block"),
    [
        (1, "medmambase"),
        (9, "medmamba"),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in ((9, "medmambase"), (1, "medmamba"))),
    ],
)
def test_the_folder_holds_a_sheet_for_six_images_and_gates_where_there_are_gates(
    block: str, count: int, tmp_path: Path
) -> None:
    network = MedMambaSE(
        replace(TINY, block=block), classes=("ä", "<b>肺</b>"), preprocessing=Preprocessing(size=SIZE, channels=1)
    )
    pictures, labels = marked(count, 0)
    (tmp_path / "sheet_07.png").write_bytes(b"of earlier images")
    truths = tuple(labels.tolist()) if count > 1 else None
    subjects = explanations.Subjects(pictures, tuple(f"a/{n}.png" for n in range(count)), truths)
    found = explanations.write(tmp_path, network, network.classes, normalise(pictures, network.preprocessing), subjects)
    wanted = {"faithfulness.png", "faithfulness.json", *(f"sheet_{n:02}.png" for n in range(1, 3 if count > 6 else 2))}
    wanted |= {"gates.png", "se_stage1.png", "se_stage2.png"} if block == "medmambase" else set()
    assert {path.name for path in tmp_path.iterdir()} == wanted
    assert (
        json.loads((tmp_path / "faithfulness.json").read_text(encoding="utf-8")) == found and found["images"] == count
    )
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_the_page_shows_each_image_with_its_map_and_what_it_is_called(tmp_path: Path) -> None:
    network = MedMambaSE(TINY, classes=("ä", "<b>肺</b>"), preprocessing=Preprocessing(size=SIZE, channels=1))
    pictures, _ = marked(2, 0)
    paths = tuple(str(tmp_path / name) for name in ("1 # ü.png", "2 & 100 %.png"))
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture[0].numpy()).save(path)
    images, subjects = normalise(pictures, network.preprocessing), explanations.Subjects(pictures, paths, (1, 0))
    explanations.write(tmp_path / "e", network, network.classes, images, subjects, network.preprocessing)
    page = Page(tmp_path / "e" / "report.html")
    shown = [unquote(one["src"] or "") for one in page.all("img")]
    assert {path.name for path in (tmp_path / "e").glob("*.png")} == set(shown) and len(shown) == len(set(shown))
    with torch.no_grad():
        sure = network.eval()(images).softmax(1)
    for number, truth in ((0, "<b>肺</b>"), (1, "ä")):
        called = network.classes[int(sure[number].argmax())]
        assert f"{number + 1}. {Path(paths[number]).name}" in page.text
        assert f"Called {called}, with probability {sure[number].max():.3f}; is {truth}." in page.text
    assert not page.all("b") and str(tmp_path) not in page.text


def test_the_page_shows_a_picture_whose_name_is_no_valid_unicode(tmp_path: Path) -> None:
    means = {"deletion": 0.5, "insertion": 0.5}
    found = {"verdict": "Nothing can be said.", "cam": means, "random": means}
    one = Explained("\udcfc.png", "overlay_001_\udcfc.png", "a", 0.5, "")
    page = Page(write_page(tmp_path, [one], found))
    assert "1. \\udcfc.png" in page.text
    assert [os.fsdecode(unquote_to_bytes(shown["src"] or "")) for shown in page.all("img")][1] == one.picture


def test_the_report_of_a_training_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, image = tmp_path / "run", tmp_path / "a.png"
    MedMambaSE(TINY, classes=("a", "b"), preprocessing=Preprocessing(size=SIZE, channels=1)).save(run / "best")
    (run / "report.html").write_bytes(b"its page")
    Image.new("L", (SIZE, SIZE), 9).save(image)
    assert command.main([str(run), str(image), "-o", str(run)]) == 2
    assert "holds a report.html of something else" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {"best", "report.html"}


@pytest.mark.slow
def test_the_command_explains_a_folder_and_leaves_what_the_training_explained(
    shortcut: MedMambaSE, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shortcut.save(run / "best")
    described = {
        "model": shortcut.config.to_dict(),
        "training": {},
        "preprocessing": shortcut.preprocessing.to_dict(),
        "classes": list(shortcut.classes),
    }
    (run / "config.json").write_text(json.dumps(described), encoding="utf-8")
    pictures, labels = marked(12, 3)
    for number, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
        folder = tmp_path / "Bilder ü" / shortcut.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(folder / f"{number}.png")
    (tmp_path / "Bilder ü" / "plain" / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.full((30, 90, 3), 200, dtype=np.uint8)).save(tmp_path / "Bilder ü" / "marked" / "wide.png")
    (run / "explain").mkdir()
    kept = {run / "explain" / "sheet_01.png": b"the training's", run / "report.html": b"its page"}
    for path, content in kept.items():
        path.write_bytes(content)
    assert command.main([str(run), str(tmp_path / "Bilder ü")]) == 0
    said = capsys.readouterr().out
    assert (
        "13 images explained" in said
        and "skipped: " in said
        and "broken.png" in said
        and "deletion test: the class has a mean probability of" in said
    )
    assert said.splitlines()[-1].startswith("  medmambase-predict ")
    assert all(path.read_bytes() == content for path, content in kept.items())
    folder = run / "explanations" / "Bilder ü-001"
    assert f"report: {(folder / 'report.html').resolve()}\n" in said
    assert (folder / "sheet_03.png").is_file() and len(list(folder.glob("overlay_*.png"))) == 13
    (wide,) = folder.glob("overlay_*_wide.png")
    with Image.open(wide) as picture:
        assert picture.size == (90, 30) and np.asarray(picture).std() > 1  # the image's own shape, and colour on it
    mine = tmp_path / "mine"
    for most, sheets in (("8", 2), ("2", 1)):
        words = [str(tmp_path / "Bilder ü" / "marked"), "--most", most, "-o", str(mine)]
        assert command.main([str(run), *words]) == 0 and len(list(mine.glob("sheet_*.png"))) == sheets
    assert len(list(mine.glob("overlay_*.png"))) == 2 and len(list((run / "explanations").iterdir())) == 1
    assert "Nothing can be said from 2 images" in capsys.readouterr().out
    assert command.main([str(run), str(tmp_path / "Bilder ü"), "-o", str(run / "config.json")]) == 2
    assert "is a file; give the name of a folder" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "Bilder ü" / "marked")
    for words, wanted in (
        ([str(tmp_path / "nowhere")], "there is no such file or folder"),
        ([str(run / "config.json")], f"no image that can be read; {run / 'config.json'}: empty, not a known image"),
    ):
        assert command.main([str(run), *words]) == 3
        assert wanted in capsys.readouterr().err
