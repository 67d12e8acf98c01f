"""Where samples lie, and where pixels find them."""

import numpy as np
import pytest
from canvases import canvas, chances

from medmambase.data.phantom.probes import KINDS, choose


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_finds_the_sample_that_lies_there(kind: str) -> None:
    c = canvas(kind)
    along, across = c.probe.positions(c.x, c.y)
    assert np.abs(along - c.grid.along).max() < 1e-3 and np.abs(across - c.grid.across).max() < 1e-3
    x, y = c.probe.place(0.3, 0.7)
    found = c.probe.positions(np.array(x, np.float32), np.array(y, np.float32))
    np.testing.assert_allclose(found, (0.7, 0.3), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_holds_every_sample_of_its_circle_and_begins_at_even_ones(kind: str) -> None:
    c = canvas(kind)
    for x, y, radius in ((0.1, 0.2, 0.3), (-0.6, 0.5, 0.5), (0.0, -0.8, 0.25), (0.9, 0.9, 0.2), (3.0, 3.0, 0.1)):
        rows, columns = c.probe.box(x, y, radius, c.grid.depths, c.grid.lines)
        outside = (c.x - x) ** 2 + (c.y - y) ** 2 <= radius**2
        outside[rows, columns] = False
        assert not outside.any()
        assert not c.x[rows, columns].size or rows.start % 2 == columns.start % 2 == 0


def test_every_probe_fits_its_frame_and_covers_what_it_says() -> None:
    for seed in range(10):
        for kind in KINDS:
            c = canvas(kind, size=48, seed=seed)
            assert np.abs(c.x).max() < 1.2 and np.abs(c.y).max() < 1.01
            places = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 4000)).astype(np.float32)
            along, across = c.probe.positions(*places)
            share = 1.44 * ((along >= 0) & (along <= 1) & (np.abs(across) <= 1)).mean()
            assert abs(share - c.probe.area) < 0.06


def test_another_kind_of_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="is 'radial'; it must be one of linear"):
        choose("radial", chances())
