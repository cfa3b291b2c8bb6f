"""Beads: found where they were put, and as wide as they were made."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import peak_widths

from svision_dask.judging.beads import alone, nearest, peaks, well_inside, widths
from svision_dask.training.psf import FWHM_OF_SIGMA

SHAPE = (40, 48, 56)


def gaussian_bead(centre, sigmas, shape=SHAPE):
    distance = sum(((i - c) / s) ** 2 for i, c, s in zip(np.indices(shape), centre, sigmas, strict=True))
    return np.exp(-distance / 2)


@pytest.mark.parametrize("centre", [(20, 24, 28), (20.3, 23.6, 28.5)])
def test_a_gaussian_is_as_wide_as_its_formula_says_wherever_it_lies_between_voxels(centre):
    sigmas = (2.5, 1.3, 1.7)
    measured = widths(gaussian_bead(centre, sigmas), np.array(centre))
    assert measured == pytest.approx([s * FWHM_OF_SIGMA for s in sigmas], rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", ["gaussian", "lorentzian", "lopsided"])
def test_widths_agree_with_those_of_scipy(axis, shape):
    centre, sigmas = (20, 24, 28), (2.5, 1.6, 2.0)
    bead = gaussian_bead(centre, sigmas)
    if shape == "lorentzian":
        bead = 1 / (1 - np.log(bead) / 2)
    if shape == "lopsided":
        bead = bead + 0.4 * gaussian_bead(tuple(c + 1.5 * (a == axis) for a, c in enumerate(centre)), sigmas)
    place = np.array(np.unravel_index(bead.argmax(), bead.shape))
    line = bead[tuple(slice(None) if a == axis else p for a, p in enumerate(place))]
    ends = np.array([0]), np.array([len(line) - 1])
    theirs = peak_widths(line, [place[axis]], rel_height=0.5, prominence_data=(line[place[axis]][None], *ends))
    assert widths(bead, place)[axis] == pytest.approx(theirs[0][0], rel=0.03)  # scipy draws lines between voxels


def test_what_does_not_fall_to_half_inside_the_volume_has_no_width():
    measured = widths(gaussian_bead((3, 24, 28), (5, 1.3, 1.7)), np.array((3, 24, 28)))
    assert np.isnan(measured[0])
    assert measured[1:] == pytest.approx([s * FWHM_OF_SIGMA for s in (1.3, 1.7)], rel=0.02)
    assert np.isnan(widths(gaussian_bead((0, 24, 28), (1, 2, 2), (1, 48, 56)), np.array((0, 24, 28)))[0])


def test_a_bead_is_found_once_where_it_is_also_where_its_top_is_flat():
    volume = gaussian_bead((10, 12, 14), (2, 2, 2)) + gaussian_bead((30, 30, 40), (2, 2, 2))
    volume[30, 30, 41] = volume[30, 30, 40]
    found = peaks(volume, 0.5)
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], [(10, 12, 14), (30, 30, 40.5)])


def test_beads_with_neighbours_and_beads_at_faces_are_told_apart():
    points = np.array([(20.0, 20, 20), (20, 20, 25), (20, 40, 20), (3, 20, 40)])
    assert alone(points, 8).tolist() == [False, False, True, True]
    assert well_inside(points, SHAPE, 8).tolist() == [True, True, False, False]
    assert nearest(points[:1], points[2:]).tolist() == [20.0]


def test_no_points_are_near_none():
    none = np.empty((0, 3))
    assert len(alone(none, 8)) == len(nearest(none, none)) == 0
    assert nearest(np.ones((1, 3)), none).tolist() == [np.inf]
