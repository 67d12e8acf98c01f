"""The physics: shadows lie behind what takes sound away, speckle is Rayleigh's, gain evens out."""

from dataclasses import replace

import numpy as np
import pytest
from canvases import canvas, chances

from medmambase.data.phantom import scanner
from medmambase.data.phantom.probes import KINDS

PLAIN = replace(
    scanner.settings(chances()), attenuation=0.0, focus_gain=0.0, averaging=0.0, floor=-80.0, haze=-80.0, shadows=1.0
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shadow_lies_behind_bone_along_the_beam_and_more_sound_behind_a_cyst(kind: str) -> None:
    c = canvas(kind)
    for across, echo, loss in ((-0.5, 15, 600), (0.5, -30, -20)):
        x, y = c.probe.place(across, 0.4)
        c.paint(c.disc(x, y, 0.1, 0.1), echo, loss=loss)
    lost, along = scanner.lost(c, PLAIN), c.grid.along[:, 0]
    bone, cyst, between = (np.abs(c.grid.across[0] - across).argmin() for across in (-0.5, 0.5, 0.0))
    before, behind = along < 0.25, along > 0.6
    assert lost[behind, bone].min() > 0.95 and -1 <= lost[behind, cyst].max() < -0.3
    assert np.abs(lost[:, between]).max() < 1e-5 and np.abs(lost[before]).max() < 1e-5
    received = scanner.scan(c, lost, PLAIN, np.random.default_rng(0), speckle=False)
    fall = received[behind].mean(0) - received[before].mean(0)
    assert fall[bone] < -20 and fall[cyst] > 2 and abs(fall[between]) < 0.1


def test_speckle_of_even_tissue_follows_rayleigh_and_averaging_takes_it_away() -> None:
    c = canvas(size=96)
    lost = scanner.lost(c, PLAIN)
    snr = []
    for averaging in (0.0, 0.9):
        settings = replace(PLAIN, averaging=averaging)
        received = scanner.scan(c, lost, settings, np.random.default_rng(1), speckle=True)[5:-5, 5:-5]
        amplitude = 10 ** (received / 20)
        snr.append(amplitude.mean() / amplitude.std())
        assert abs((amplitude**2).mean() - 1) < 0.1
    assert 1.75 < snr[0] < 2.1, "Rayleigh has 1.91"
    assert snr[1] > 8


def test_the_beam_is_wider_away_from_the_focus() -> None:
    settings = replace(PLAIN, focus=0.2, spread=3.0, beam=0.6)
    c = canvas(size=96)
    received = scanner.scan(c, scanner.lost(c, settings), settings, np.random.default_rng(2), speckle=True)
    steps = np.abs(np.diff(received, axis=1)).mean(1)
    assert steps[70:].mean() < 0.75 * steps[10:30].mean()


def test_pixels_lie_between_samples_and_nothing_beside_them() -> None:
    for kind in KINDS:
        c = canvas(kind)
        seen = scanner.View(0.05, -0.1, 0.9)
        (x, y), inside = scanner.convert(np.stack([c.x, c.y]), c.probe, c.grid, seen)
        expected = seen.half * c.grid.pixels
        assert 0.2 < inside.mean()
        assert np.abs(x - (expected[None, :] + seen.x))[inside].max() < 0.01
        assert np.abs(y - (expected[:, None] + seen.y))[inside].max() < 0.01


def test_gain_makes_dark_and_bright_pictures_alike() -> None:
    rng = np.random.default_rng(0)
    inside = np.ones((48, 48), bool)
    inside[:, :10] = False
    texture = rng.standard_normal((48, 48)).astype(np.float32)
    settings = replace(PLAIN, level=0.2, contrast=0.15, span=60.0)
    loud, quiet = (scanner.expose(4 * texture + offset, inside, settings) for offset in (30, -30))
    np.testing.assert_allclose(loud, quiet, atol=1e-4)
    assert (loud[~inside] == 0).all() and abs(loud.mean() - 0.2) < 0.03


def test_about_as_much_tissue_is_shown_as_was_asked_for() -> None:
    for kind in KINDS:
        c = canvas(kind)
        shown = []
        for coverage in (0.6, 0.95):
            seen = scanner.view(c.probe, replace(PLAIN, coverage=coverage, x=0.5, y=-0.5))
            _, inside = scanner.convert(c.x[None], c.probe, c.grid, seen)
            shown.append(inside.mean())
        assert shown[0] < shown[1] and abs(shown[0] - 0.6) < 0.2
