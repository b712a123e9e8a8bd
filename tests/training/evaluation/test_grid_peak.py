"""The peak of the patch grid against its closed form: a lattice shows, noise and photographs' spectra do not."""

import math

import cv2
import numpy as np
import pytest

from teasr_core.errors import InputError
from training.evaluation.metrics.pictures import grid_peak

NOISE = 10.0


def noise(height, width, seed=0):
    return np.random.default_rng(seed).normal(0, NOISE, (height, width))


def grey(levels):
    """Levels around 128 as a float picture, so that rounding plays no part."""
    return ((128 + levels) / 255)[..., None].repeat(3, axis=2)


def stripes(height, width, amplitude, pitch=8, phase=0.0):
    return np.tile(amplitude * np.cos(2 * np.pi * np.arange(width) / pitch + phase), (height, 1))


def comb(height, width, level, pitch=8, offset=0):
    lattice = np.zeros((height, width))
    lattice[:, offset::pitch] = level
    return lattice


@pytest.mark.parametrize("amplitude", [1.0, 3.0, 10.0])
def test_stripes_in_noise_have_the_closed_form(amplitude):
    width = 256
    wanted = math.sqrt(1 + amplitude**2 * width / (6 * NOISE**2))
    for phase in (0.0, 1.3):
        picture = noise(300, width) + stripes(300, width, amplitude, phase=phase)
        assert grid_peak(grey(picture)) == pytest.approx(wanted, rel=0.06)
        assert grid_peak(grey(picture.T)) == pytest.approx(wanted, rel=0.06)  # either way


def test_a_lattice_of_single_lines_has_the_closed_form_of_its_harmonics():
    level, width = 8.0, 256  # every harmonic of a comb has the coefficient level / 8, twice that as an amplitude
    wanted = math.sqrt(1 + (2 * level / 8) ** 2 * width / (6 * NOISE**2))
    for offset in (0, 3):
        picture = noise(400, width) + comb(400, width, level, offset=offset)
        assert grid_peak(grey(picture)) == pytest.approx(wanted, rel=0.08)  # the largest of four


def test_noise_and_a_falling_spectrum_have_none():
    for seed in range(5):
        assert 0.9 < grid_peak(grey(noise(256, 256, seed))) < 1.2
        soft = cv2.GaussianBlur(noise(256, 264, seed), (0, 0), 2) * 8 + np.linspace(0, 80, 264)
        assert 0.8 < grid_peak(grey(soft)) < 1.3
    assert grid_peak(np.full((64, 100, 3), 90, np.uint8)) == 1.0


def test_only_the_asked_pitch_counts():
    picture = noise(256, 252) + stripes(256, 252, 20, pitch=7)
    assert grid_peak(grey(picture)) < 1.3 and grid_peak(grey(picture), pitch_px=7) > 8
    assert grid_peak(grey(noise(256, 256) + stripes(256, 256, 20, pitch=16))) < 1.3
    assert grid_peak(grey(noise(256, 256) + stripes(256, 256, 20, pitch=4))) > 8  # a harmonic of 8


def test_a_broken_last_pitch_does_not_matter():
    picture = grey(noise(255, 263) + stripes(255, 263, 5))
    assert grid_peak(picture) == grid_peak(picture[:248, :256])


def test_small_pictures_and_impossible_pitches_are_refused():
    for picture, pitch in ((np.zeros((63, 100, 3)), 8), (np.zeros((100, 100, 3)), 16), (np.zeros((64, 64, 3)), 1)):
        with pytest.raises(InputError, match="grid_peak"):
            grid_peak(picture, pitch)
