"""What a network is asked: each batch a function of seed and step, targets that belong to their
pictures, and losses that are those of the definition."""

import multiprocessing.util
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kill_test import image_set
from medmambase.config import Preprocessing
from medmambase.data.drawn_ahead import Drawing, DrawingError, Request, drawn, drawn_ahead, processes
from medmambase.data.phantom.scenes import SCENES, STRUCTURES, draw
from medmambase.pretraining import tasks
from medmambase.pretraining.network import Predicted
from medmambase.pretraining.settings import PICTURE, PretrainSettings
from medmambase.pretraining.tasks import Batch, DrawnPictures, HiddenParts, hide, losses, size_of, weighted
from medmambase.training.interrupt import Terminated, termination_raises

DRAWING = Drawing(3, SCENES, True, True, 3)


def pictures(**changes: object) -> DrawnPictures:
    settings = PretrainSettings(drawn=True, image_size=(32, 40), batch_size=2, held_out=3, seed=3, **changes)
    return DrawnPictures(settings, DRAWING, STRUCTURES, 0, Preprocessing(40, 3))


def parts(count: int = 12, **changes: object) -> HiddenParts:
    settings = PretrainSettings(data="x", image_size=16, batch_size=4, **changes)
    return HiddenParts(settings, image_set(count, "train", 16), Preprocessing(16, 1))


def same(one: Batch, other: Batch) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_of_drawn_pictures_is_what_was_drawn_for_its_step() -> None:
    task = pictures()
    for step, batch in enumerate(task.batches(0, 3)):
        size = size_of(task.settings, step)
        found = draw(3, [2 * step, 2 * step + 1], size=size)
        assert torch.equal(batch.inputs, torch.from_numpy(found.images).permute(0, 3, 1, 2) / 255 * 2 - 1)
        assert torch.equal(batch.structures, torch.from_numpy(found.structures))
        assert torch.equal(batch.pictures, torch.from_numpy(np.stack([found.echo, found.edges], 1)))
    assert {size_of(task.settings, step) for step in range(20)} == {32, 40}
    assert same(next(task.batches(2, 3)), batch) and same(task.some(3)[2], batch)


def test_what_is_not_asked_for_is_not_there() -> None:
    task = pictures(targets=("edges",))
    assert (task.targets, task.structures, task.pictures) == (("edges",), (), 1)
    (batch,) = task.batches(0, 1)
    found = draw(3, [0, 1], size=size_of(task.settings, 0))
    assert batch.structures is None and torch.equal(batch.pictures[:, 0], torch.from_numpy(found.edges))
    task = pictures(targets=("structures",))
    assert (task.structures, task.pictures) == (STRUCTURES, 0)
    assert next(task.batches(0, 1)).pictures is None
    grey = drawn(replace(DRAWING, channels=1), Request(0, 2, 32))
    assert grey.images.shape == (2, 1, 32, 32)


def test_pictures_held_out_are_never_those_of_a_step() -> None:
    task = pictures()
    held_out = task.held_out()
    assert [len(batch.inputs) for batch in held_out] == [2, 1]
    assert {batch.inputs.shape[-1] for batch in held_out} == {32}
    first = draw(3, range(2**40, 2**40 + 2), size=32)
    assert torch.equal(held_out[0].structures, torch.from_numpy(first.structures))


def test_other_processes_draw_the_same_bytes_in_the_same_order() -> None:
    requests = [Request(2 * step, 2, 32) for step in range(7)]  # more than are drawn ahead
    alone, together = (list(drawn_ahead(DRAWING, requests, workers)) for workers in (0, 1))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert processes(5) == 5 and 1 <= processes(None) <= 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there processes are started otherwise")
def test_a_signal_while_a_process_is_started_leaves_no_process_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spawn, started = multiprocessing.util.spawnv_passfds, []

    def struck(path: bytes, words: list[Any], *rest: Any) -> int:
        process = spawn(path, words, *rest)
        if any("spawn_main" in str(word) for word in words):
            started.append(process)
            signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", struck)
    with termination_raises(), pytest.raises(Terminated):
        list(drawn_ahead(DRAWING, [Request(0, 2, 32)], 1))
    with suppress(ChildProcessError):  # it was waited for, unless nobody knows of it
        os.waitpid(started[0], 0)
    assert capfd.readouterr().err == ""


def test_each_image_comes_once_before_any_comes_again_and_those_held_out_never() -> None:
    task = parts(count=23)
    learned = torch.cat([task.rows_of(step) for step in range(21)])
    counts = learned.bincount(minlength=23)
    held = (counts == 0).nonzero()[:, 0]
    assert len(held) == 2 and counts.sum() == 84 and set(counts[counts > 0].tolist()) == {4}
    assert not torch.equal(learned[:21], learned[21:42])
    shown = torch.cat([batch.pictures for batch in task.held_out()])
    wanted = task.decoded.images[held].float() / 255 * 2 - 1
    assert sorted(image.sum().item() for image in shown) == pytest.approx(sorted(i.sum().item() for i in wanted))
    assert len(parts(count=4).held_out()[0].inputs) == 1  # one at least


def test_parts_are_hidden_by_the_seed_of_the_step_and_the_target_is_the_whole_picture() -> None:
    task = parts()
    batches = list(task.batches(0, 3))
    assert same(batches[2], next(task.batches(2, 3))) and same(batches[1], task.some(2)[1])
    assert not torch.equal(batches[0].inputs == 0, batches[1].inputs == 0)
    assert not same(batches[0], next(parts(seed=1).batches(0, 1)))
    for batch in batches:
        assert batch.inputs.shape == batch.pictures.shape == (4, 1, 16, 16)
        assert (batch.inputs != batch.pictures).any()


def test_hiding_makes_whole_cells_grey_and_noise_keeps_its_limit() -> None:
    clean = torch.full((64, 1, 20, 20), 0.5)
    hidden = hide(clean, 0.5, 0.0, torch.Generator().manual_seed(0))
    assert set(hidden.unique().tolist()) == {0.0, 0.5}
    cells = F.pad(hidden, (0, 4, 0, 4), mode="replicate").unfold(2, 8, 8).unfold(3, 8, 8)
    assert (cells.amax((4, 5)) == cells.amin((4, 5))).all()
    assert (cells[..., 0, 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    noisy = hide(clean, 0.0, 0.2, torch.Generator().manual_seed(0))
    spread = (noisy - clean).flatten(1).std(1)
    assert spread.max() < 0.23 and spread.min() < 0.03 and 0.07 < spread.mean() < 0.13
    assert torch.equal(hide(clean, 0.0, 0.0, torch.Generator()), clean)
    assert hide(clean, 0.3, 3.0, torch.Generator()).abs().max() <= 1


def test_each_loss_is_that_of_its_own_target() -> None:
    present, wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.rand(2, 2, 4, 4)
    batch = Batch(torch.zeros(2, 1, 4, 4), present, wanted)
    found = Predicted(torch.randn(2, 2), torch.randn(2, 2, 4, 4))
    each = losses(found, batch, ("structures", "echo", "edges"))

    def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
        return -(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log()).mean()

    by_hand = [
        entropy(found.structures, present),
        (found.pictures[:, 0] - wanted[:, 0]).abs().mean(),
        entropy(found.pictures[:, 1], wanted[:, 1]),
    ]
    assert torch.allclose(each, torch.stack(by_hand), atol=1e-6)
    edges = losses(Predicted(None, found.pictures[:, 1:]), Batch(batch.inputs, None, wanted[:, 1:]), ("edges",))
    assert torch.allclose(edges, each[2:])
    whole = losses(found, Batch(batch.inputs, None, wanted), (PICTURE,))
    assert torch.allclose(whole, (found.pictures - wanted).abs().mean()[None])
    total = weighted(each, ("structures", "echo", "edges"))
    weights = [tasks.WEIGHTS[name] for name in ("structures", "echo", "edges")]
    assert total.item() == pytest.approx(sum(w * one.item() for w, one in zip(weights, each, strict=True)), rel=1e-6)


def test_a_process_that_ends_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *arguments: object, **named: object) -> None:
            self.open = True

        def submit(self, *arguments: object) -> object:
            raise BrokenProcessPool

        def shutdown(self, **named: object) -> None:
            self.open = False

    monkeypatch.setattr("medmambase.data.drawn_ahead.ProcessPoolExecutor", Broken)
    with pytest.raises(DrawingError, match=r"has ended; draw in this one with --workers 0"):
        list(drawn_ahead(DRAWING, [Request(0, 1, 32)], 2))
