"""What scanners, archives and screens do to a picture."""

from dataclasses import replace

import numpy as np
from canvases import chances

from medmambase.data.phantom import overlay, processing

PLAIN = processing.Processing(
    coarse=0, detail=0.0, gamma=1.0, bend=0.0, steps=256, blocks=0.0, margin=0, tint=(1.0, 1.0, 1.0)
)
INSIDE = np.ones((40, 40), bool)
GREY = np.random.default_rng(0).uniform(0.2, 0.8, (40, 40)).astype(np.float32)


def grey_of(picture: np.ndarray) -> np.ndarray:
    return picture[..., 0].astype(float) / 255


def test_nothing_done_leaves_grey_as_it_is() -> None:
    picture = processing.process(GREY, INSIDE, PLAIN)
    assert picture.dtype == np.uint8 and np.abs(grey_of(picture) - GREY).max() < 0.003
    assert (picture == picture[..., :1]).all()


def test_detail_sharpens_and_blurs() -> None:
    plain, sharp, soft = (
        grey_of(processing.process(GREY, INSIDE, replace(PLAIN, detail=detail))).std() for detail in (0, 0.8, -0.8)
    )
    assert soft < 0.7 * plain and sharp > 1.2 * plain
    once, twice = (grey_of(processing.process(GREY, INSIDE, replace(PLAIN, coarse=n))).std() for n in (1, 2))
    assert twice < 0.8 * once < 0.5 * plain


def test_curves_rise_and_steps_are_as_many_as_asked_for() -> None:
    ramp = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)
    for look in (replace(PLAIN, gamma=1.45), replace(PLAIN, gamma=0.7, bend=0.6)):
        values = processing.process(ramp, INSIDE, look)[..., 0].ravel().astype(int)
        assert (np.diff(values) >= 0).all() and values[0] == 0 and values[-1] == 255
    assert len(np.unique(processing.process(ramp, INSIDE, replace(PLAIN, steps=24)))) == 24


def test_blocks_lose_detail_within_themselves_only() -> None:
    coarse, fine = (grey_of(processing.process(GREY, INSIDE, replace(PLAIN, blocks=b))) for b in (6.0, 0.01))
    assert np.abs(fine - GREY).max() < 0.02 < np.abs(coarse - GREY).max()
    means = [(p.reshape(5, 8, 5, 8).mean((1, 3))) for p in (coarse, GREY)]
    assert np.abs(means[0] - means[1]).max() < 0.06
    other = GREY.copy()
    other[:8, :8] = 0.5
    changed = grey_of(processing.process(other, INSIDE, replace(PLAIN, blocks=6.0))) != coarse
    assert changed[:8, :8].any() and not changed[8:].any() and not changed[:, 8:].any()


def test_margins_and_tints() -> None:
    inside = INSIDE.copy()
    inside[:, :10] = False
    picture = processing.process(GREY * inside, inside, replace(PLAIN, margin=30, tint=(1.0, 0.8, 0.5)))
    assert (picture[:, :10] == 30).all()
    assert picture[:, 10:, 2].mean() < 0.6 * picture[:, 10:, 0].mean()


def test_marks_are_named_where_they_are_drawn_and_nowhere_else() -> None:
    found = []
    for seed in range(60):
        picture = np.full((64, 64, 3), 7, np.uint8)
        names = overlay.burn_in(picture, chances(seed), [(10.0, 10.0, 50.0, 30.0)])
        assert bool(names) == bool((picture != 7).any())
        found += names
    assert {found.count(name) > 5 for name in ("text", "calipers", "scale")} == {True} and len(set(found)) == 3


def test_calipers_mark_what_was_measured_half_of_the_time() -> None:
    at_the_end = []
    for seed in range(120):
        picture = np.zeros((64, 64, 3), np.uint8)
        if overlay.burn_in(picture, chances(seed), [(10.0, 12.0, 50.0, 30.0)]) == ["calipers"]:
            at_the_end.append(bool(picture[12, 10].any() and picture[30, 50].any()))
    assert 0.2 < np.mean(at_the_end) < 0.8
