"""Drawn scenes: the same bytes however they are cut into batches, targets that agree with what is
drawn, every structure often enough, and brightness that gives nothing away."""

from dataclasses import replace

import numpy as np
import pytest
from canvases import canvas, chances
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from medmambase.data.phantom import scanner, scenes
from medmambase.data.phantom.canvas import Array, Canvas, Patch
from medmambase.data.phantom.scenes import SCENES, STRUCTURES, DrawnPictures, draw

TARGETS = ("structures", "echo", "edges", "shadows", "scene")


@pytest.fixture(scope="module")
def few() -> DrawnPictures:
    return draw(5, range(60), size=48)


@pytest.fixture(scope="module")
def many() -> DrawnPictures:
    return draw(6, range(500), size=48)


def test_the_arrays_have_the_shapes_types_and_ranges_they_say(few: DrawnPictures) -> None:
    assert few.images.shape == (60, 48, 48, 3) and few.images.dtype == np.uint8
    assert few.structures.shape == (60, len(STRUCTURES)) and set(np.unique(few.structures)) == {0, 1}
    assert few.scene.shape == (60,) and few.scene.dtype == np.int64 and 0 <= few.scene.min() < few.scene.max() < 11
    for name, low in (("echo", 0), ("edges", 0), ("shadows", -1)):
        values = getattr(few, name)
        assert values.shape == (60, 48, 48) and values.dtype == np.float32
        assert low <= values.min() < low + 0.01 and 0.9 < values.max() <= 1
    assert len(set(STRUCTURES)) == len(STRUCTURES) and len(set(SCENES)) == len(SCENES)


def test_a_picture_is_the_same_in_every_batch(few: DrawnPictures) -> None:
    for indices in ([17], [4, 31, 4], range(59, 54, -1)):
        again = draw(5, indices, size=48)
        for name in ("images", *TARGETS):
            np.testing.assert_array_equal(getattr(again, name), getattr(few, name)[list(indices)], err_msg=name)
    assert len({picture.tobytes() for picture in few.images}) == 60
    assert not np.array_equal(draw(6, [17], size=48).images, few.images[17:18])


def test_no_picture_draws_nothing() -> None:
    assert draw(0, []).images.shape == (0, 96, 96, 3)


def test_edges_lie_where_echo_changes(few: DrawnPictures) -> None:
    echo, edges = few.echo, few.edges
    windows = np.lib.stride_tricks.sliding_window_view(echo, (3, 3), axis=(1, 2))
    change = windows.max((3, 4)) - windows.min((3, 4))
    inner = np.lib.stride_tricks.sliding_window_view(echo > 0, (3, 3), axis=(1, 2)).all((3, 4))
    edge = edges[:, 1:-1, 1:-1]
    on, off = change[inner & (edge > 0.8)], change[inner & (edge < 0.05)]
    assert on.size > 1000 and off.size > 10000
    assert on.mean() > 4 * off.mean() and np.median(on) > 5 * np.median(off)


def test_shadows_are_dark_and_echo_knows_nothing_of_them(few: DrawnPictures) -> None:
    grey, tissue = few.images.min(3) / 255, (few.echo > 0.55) & (few.echo < 0.75)
    shadowed, lit = tissue & (few.shadows > 0.9), tissue & (np.abs(few.shadows) < 0.1)
    both = [i for i in range(60) if shadowed[i].sum() > 15 and lit[i].sum() > 15]
    darker = [grey[i][shadowed[i]].mean() < 0.6 * grey[i][lit[i]].mean() for i in both]
    assert len(both) > 10 and np.mean(darker) > 0.9


@pytest.mark.parametrize("name", ["vessel", "cyst", "bone", "pleural line", "kidney", "solid mass, spiculated margin"])
def test_a_structure_is_marked_where_it_changes_the_picture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, indices = STRUCTURES.index(name), range(100, 130)
    before = draw(5, indices, size=32)
    paint = Canvas.paint

    def all_but_one(c: Canvas, patch: Patch, echo: float | Array, **given: object) -> None:
        if given.get("name") != name:
            paint(c, patch, echo, **given)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Canvas, "paint", all_but_one)
    without = draw(5, indices, size=32)
    assert not without.structures[:, place].any()
    changed = (np.abs(before.images.astype(int) - without.images).max(3) > 12).sum((1, 2))
    marked = before.structures[:, place] == 1
    assert marked.any() and (changed[~marked] <= 10).all()
    assert np.mean(changed[marked] > 3) > 0.8


def test_what_lies_outside_of_the_picture_or_in_full_shadow_is_not_marked() -> None:
    c = canvas(size=96)
    seen = scanner.View(0.0, 0.0, 0.7)
    for name, x, y in (("cyst", 0.3, 0.2), ("stone", -0.4, 0.3), ("kidney", 0.9, 0.2)):
        c.paint(c.disc(x, y, 0.12, 0.12), 10, name=name)
    c.paint(c.disc(-0.4, -0.2, 0.2, 0.1), 15, loss=600, name="bone")
    lost = scanner.lost(c, replace(scanner.settings(chances()), shadows=1.0))
    assert scenes._visible(c, lost, seen) == ["cyst", "bone", "acoustic shadow"]


def test_without_speckle_all_else_stays(few: DrawnPictures) -> None:
    smooth = draw(5, range(20), size=48, speckle=False)
    for name in TARGETS:
        np.testing.assert_array_equal(getattr(smooth, name), getattr(few, name)[:20], err_msg=name)
    even = (few.edges[:20, 1:] < 0.05) & (few.echo[:20, 1:] > 0.3)
    steps = [np.abs(np.diff(p[..., 0].astype(float), axis=1)) for p in (smooth.images, few.images[:20])]
    assert steps[0][even].mean() < 0.9 * steps[1][even].mean()
    assert abs(smooth.images.mean() / few.images[:20].mean() - 1) < 0.1


def test_without_structure_spectrum_and_grey_levels_stay(few: DrawnPictures) -> None:
    noise = draw(5, range(20), size=48, structure=False)
    assert not noise.structures.any() and not noise.edges.any() and not noise.shadows.any()
    np.testing.assert_array_equal(noise.scene, few.scene[:20])
    for after, before in zip(noise.images, few.images[:20], strict=True):
        grey = before.mean(2, dtype=np.float32)
        assert (after == after[..., :1]).all()
        np.testing.assert_array_equal(np.sort(after[..., 0], axis=None), np.sort(np.rint(grey), axis=None))
        assert abs(np.corrcoef(after[..., 0].ravel(), grey.ravel())[0, 1]) < 0.5
    spectra = [
        np.log(np.abs(np.fft.rfft2(p.mean(3)))[:, 1:, 1:].mean(0)).ravel() for p in (noise.images, few.images[:20])
    ]
    assert np.corrcoef(*spectra)[0, 1] > 0.8
    likeness = [np.corrcoef(e.ravel(), p[..., 0].ravel())[0, 1] for e, p in zip(noise.echo, noise.images, strict=True)]
    assert np.mean(likeness) > 0.4, "echo and image belong together as before"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 16}, "size is 16; it must be at least 32"),
        ({"scenes": ["brain"]}, "scenes are brain; choose from breast"),
        ({"scenes": []}, "scenes are empty; choose from breast"),
        ({"seed": -1}, "seed is -1; it must lie between 0"),
        ({"indices": [3, 2**64]}, "an index is 18446744073709551616"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**({"seed": 0, "indices": [0]} | given))  # type: ignore[arg-type]  # wrong on purpose


def test_only_the_scenes_asked_for_are_drawn() -> None:
    chosen = draw(1, range(12), size=32, scenes=["heart", "breast"]).scene
    assert {SCENES[place] for place in chosen} == {"heart", "breast"}


def test_no_scene_runs_out_of_numbers() -> None:
    taken = []
    for paint, _ in scenes._SCENES.values():
        for seed in range(12):
            c, r = canvas("convex", size=32, seed=seed), chances(seed)
            paint(c, r)
            taken.append(r.taken)
    assert max(taken) < 512, "half of what there is"


@pytest.mark.slow
def test_every_structure_and_scene_occurs_often_and_none_always(many: DrawnPictures) -> None:
    for name, count in zip(STRUCTURES, many.structures.sum(0), strict=True):
        assert 8 <= count <= 400, f"{name}: in {count:.0f} of 500 pictures"
    counts = np.bincount(many.scene, minlength=len(SCENES))
    assert 25 < counts.min() and counts.max() < 75
    assert 2 < many.structures.sum(1).mean() < 10


@pytest.mark.slow
def test_brightness_hardly_tells_scenes_apart(many: DrawnPictures) -> None:
    grey = many.images.mean(3).reshape(500, -1)
    known = np.stack([grey.mean(1), grey.std(1)], 1)
    model = QuadraticDiscriminantAnalysis().fit(known[::2], many.scene[::2])
    auc = roc_auc_score(many.scene[1::2], model.predict_proba(known[1::2]), multi_class="ovr", average="macro")
    assert auc < 0.6, f"AUC {auc:.3f}; guessing gives 0.5"
