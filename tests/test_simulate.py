"""The simulated volume: a function of coordinates, with the stated optics and noise."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svision_dask.errors import UsageError
from svision_dask.simulation.neurites import CELL_UM, REACH_UM, SPINE_UM, _cells_near, _discs_of, _fill, points_near
from svision_dask.simulation.simulate import (
    FWHM_PER_SIGMA,
    REFERENCE_RADIUS_UM,
    Phantom,
    _tube_fraction,
    as_volume,
    blurred_points,
    keys_taps,
    reduce_cubic,
)
from svision_dask.training.noise import cloudiness, poisson_counts, poisson_quantile

PHANTOM = Phantom(shape=(64, 256, 256), seed=5)


def box_of(first, shape):
    return tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))


def crop_of(box, outer):
    return tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True))


def boxes_within(outer):
    """Boxes, also empty ones, inside ``outer``."""
    sides = [st.tuples(st.integers(s.start, s.stop), st.integers(s.start, s.stop)).map(sorted) for s in outer]
    return st.tuples(*sides).map(lambda box: tuple(slice(a, b) for a, b in box))


AROUND_ZERO = box_of((-13, -40, -29), (37, 83, 91))
AROUND_ZERO_COARSE = {2: box_of((-7, -11, -5), (13, 29, 31)), 4: box_of((-3, -7, -5), (7, 13, 11))}


@pytest.fixture(scope="module")
def truth_around_zero():
    return PHANTOM.truth(AROUND_ZERO)


@pytest.fixture(scope="module")
def counts_around_zero():
    return PHANTOM.counts(AROUND_ZERO)


@given(box=boxes_within(AROUND_ZERO))
@settings(deadline=None, max_examples=15)
def test_any_box_equals_the_same_crop_of_a_larger_box(truth_around_zero, counts_around_zero, box):
    crop = crop_of(box, AROUND_ZERO)
    np.testing.assert_array_equal(PHANTOM.truth(box), truth_around_zero[crop])
    np.testing.assert_array_equal(PHANTOM.counts(box), counts_around_zero[crop])


@pytest.mark.parametrize("factor", [2, 4])
def test_any_coarse_box_equals_the_same_crop_of_a_larger_box(factor):
    outer = AROUND_ZERO_COARSE[factor]
    inner = tuple(slice(s.start + 2, s.stop - 3) for s in outer)
    measured = PHANTOM.measured(outer, factor)
    np.testing.assert_array_equal(PHANTOM.measured(inner, factor), measured[crop_of(inner, outer)])


def test_boxes_are_equal_far_from_the_origin_too():
    outer = box_of((7_000_003, 40_000_001, -90_000_007), (11, 23, 29))
    inner = tuple(slice(s.start + 3, s.stop - 2) for s in outer)
    np.testing.assert_array_equal(PHANTOM.counts(inner), PHANTOM.counts(outer)[crop_of(inner, outer)])


def test_another_seed_is_another_world_with_other_noise():
    box = box_of((0, 0, 0), (8, 32, 32))
    other = Phantom(shape=PHANTOM.shape, seed=6)
    assert (PHANTOM.truth(box) != other.truth(box)).mean() > 0.99
    dark = [Phantom(shape=(1, 1, 1), seed=s, photons=0).measured(box, 2) for s in (5, 6)]
    assert abs(np.corrcoef(dark[0].ravel(), dark[1].ravel())[0, 1]) < 5 / math.sqrt(dark[0].size)


def test_no_disc_lies_further_from_its_cell_than_the_reach():
    found = 0
    for cell in np.ndindex(4, 4, 4):
        discs = _discs_of(11, cell)
        assert (discs[:, :3] > -REACH_UM).all()
        assert (discs[:, :3] < CELL_UM + REACH_UM).all()
        assert (discs[:, 6] + np.linalg.norm(discs[:, 3:6], axis=1) < SPINE_UM).all()
        found += len(discs)
    assert found > 0


def test_a_box_around_the_furthest_disc_of_a_cell_finds_that_cell():
    cells = list(np.ndindex(3, 3, 3))
    discs = [_discs_of(11, cell)[:, :3] + CELL_UM * np.array(cell) for cell in cells]
    for axis in range(3):
        for furthest in (np.argmin, np.argmax):
            for cell, position in zip(cells, discs, strict=True):
                if len(position):
                    at = position[furthest(position[:, axis])]
                    assert cell in _cells_near(at - 0.1, at + 0.1)


def test_points_of_a_box_are_those_of_a_larger_box_in_the_same_order():
    low, high = np.array([3.0, -5.0, 7.0]), np.array([31.0, 17.0, 19.0])

    def inside(points, volume):
        chosen = ((points > low) & (points < high)).all(axis=1)
        return np.column_stack([points[chosen], volume[chosen]])

    small = inside(*points_near(5, low, high))
    assert len(small) > 0
    np.testing.assert_array_equal(small, inside(*points_near(5, low - 23, high + 41)))


def test_clouds_of_a_box_are_those_of_a_larger_box_to_the_last_bit():
    first, shape = np.array([-31, -200, -7]), np.array([40, 300, 17])
    large = cloudiness(5, first, shape, PHANTOM.spacing)
    small = cloudiness(5, first + np.array([3, 150, 5]), np.array([30, 100, 11]), PHANTOM.spacing)
    np.testing.assert_array_equal(small, large[3:33, 150:250, 5:16])


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (0.31, -0.07, 0.1), (0.4, 0.05, -0.03)])
def test_a_point_has_the_stated_width_wherever_it_lies_in_its_voxel(offset):
    spacing, sigma = PHANTOM.spacing, PHANTOM.psf_sigma
    box = box_of((-15, -15, -15), (31, 31, 31))
    image = blurred_points(np.array([offset]), np.array([math.prod(spacing)]), box, spacing=spacing, sigma=sigma)
    assert image.sum() == pytest.approx(1, abs=1e-9)
    for axis in range(3):
        profile = image.sum(axis=tuple(a for a in range(3) if a != axis))
        position = np.arange(-15, 16) * spacing[axis]
        mean = (profile * position).sum()
        assert mean == pytest.approx(offset[axis], abs=1e-6)
        fwhm = FWHM_PER_SIGMA * math.sqrt((profile * (position - mean) ** 2).sum())
        assert fwhm == pytest.approx(FWHM_PER_SIGMA * sigma[axis], rel=1e-3)


def test_the_default_point_spread_function_is_0_45_by_1_8_micrometers_wide_at_half_its_height():
    spacing = (0.2, 0.05, 0.05)  # fine enough to read the half height off
    box = box_of((0, -40, 0), (1, 81, 1))
    lateral = blurred_points(np.zeros((1, 3)), np.ones(1), box, spacing=spacing, sigma=PHANTOM.psf_sigma).ravel()
    axial = blurred_points(
        np.zeros((1, 3)), np.ones(1), box_of((-40, 0, 0), (81, 1, 1)), spacing=spacing, sigma=PHANTOM.psf_sigma
    ).ravel()
    for profile, step, fwhm in ((lateral, 0.05, 0.45), (axial, 0.2, 1.8)):
        falling = profile[40:] / profile[40]
        half = np.interp(0.5, falling[::-1], step * np.arange(len(falling))[::-1])
        assert 2 * half == pytest.approx(fwhm, rel=0.02)


def test_photons_are_what_the_axis_of_a_reference_dendrite_shows():
    x = np.arange(-60, 61) * 0.12
    centre = np.column_stack([0 * x, 0 * x, x])
    disc = np.column_stack([0 * x, 0 * x, 0 * x + 0.12, 0 * x + REFERENCE_RADIUS_UM, 0 * x + 1])
    points, volume = _fill(centre, disc, np.arange(len(x)))
    assert volume.sum() == pytest.approx(math.pi * REFERENCE_RADIUS_UM**2 * 0.12 * len(x))
    axis = blurred_points(
        points, volume, box_of((0, 0, -10), (1, 1, 21)), spacing=PHANTOM.spacing, sigma=PHANTOM.psf_sigma
    )
    shown = axis / _tube_fraction(PHANTOM.psf_sigma, REFERENCE_RADIUS_UM)
    np.testing.assert_allclose(shown, 1, atol=0.03)


def test_the_volume_has_bright_neurites_on_a_dark_background():
    truth = Phantom(shape=(1, 1, 1), seed=5).truth(box_of((0, 0, 0), (48, 128, 128)))
    assert truth.dtype == np.float32
    assert truth.min() > 0
    assert np.median(truth) < 3 * PHANTOM.background
    assert truth.max() > PHANTOM.photons / 2


def test_counts_scatter_about_the_truth_with_a_variance_equal_to_the_mean(truth_around_zero, counts_around_zero):
    mean, counts = truth_around_zero.astype(float), counts_around_zero.astype(float)
    assert counts_around_zero.dtype == np.uint16
    # For a Poisson number (n − m)²/m has mean 1 and variance 2 + 1/m; 5 standard errors.
    ratio = (counts - mean) ** 2 / mean
    assert ratio.mean() == pytest.approx(1, abs=5 * math.sqrt((2 + 1 / mean).mean() / mean.size))
    assert (counts - mean).sum() == pytest.approx(0, abs=5 * math.sqrt(mean.sum()))


def test_coarse_noise_is_that_of_the_coarse_expectation():
    box = AROUND_ZERO_COARSE[2]
    mean, counts = PHANTOM.expected(box, 2).astype(float), PHANTOM.measured(box, 2).astype(float)
    ratio = (counts - mean) ** 2 / mean
    assert ratio.mean() == pytest.approx(1, abs=5 * math.sqrt((2 + 1 / mean).mean() / mean.size))


def test_poisson_quantile_agrees_with_scipy():
    from scipy.stats import poisson

    rng = np.random.default_rng(0)
    mean = np.exp(rng.uniform(-5, 8, size=2000))
    probability = np.concatenate(
        [rng.random(1900), 10.0 ** rng.uniform(-15, -1, size=50), 1 - 2.0 ** -np.arange(3, 53)]
    )
    np.testing.assert_array_equal(poisson_quantile(probability, mean), poisson.ppf(probability, mean))


def test_noise_of_neighbours_is_independent_and_darkness_is_silent():
    counts = poisson_counts(np.full((64, 64, 64), 7.0), np.array([-32, 0, 5]), key=(3,)).astype(float)
    for axis in range(3):
        a, b = np.take(counts, range(63), axis).ravel(), np.take(counts, range(1, 64), axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)
    assert not poisson_counts(np.zeros((5, 5, 5)), np.zeros(3, int), key=(3,)).any()


def test_counts_saturate_and_do_not_wrap():
    assert (poisson_counts(np.full((2, 2, 2), 1e6), np.zeros(3, int), key=(3,)) == 65535).all()


def test_cubic_reduction_by_two_has_the_known_eight_taps():
    np.testing.assert_allclose(keys_taps(2) * 256, [-3, -9, 29, 111, 111, 29, -9, -3], atol=1e-12)


@pytest.mark.parametrize("factor", [2, 4])
def test_cubic_reduction_keeps_a_ramp_at_the_centres_of_coarse_voxels(factor):
    fine = np.arange(8 * factor, dtype=np.float64)
    first_centre = 2 * factor - 0.5  # in the middle of the first 4·factor voxels
    expected = first_centre + factor * np.arange(5)
    np.testing.assert_allclose(reduce_cubic(fine, factor), expected)


def test_cubic_reduction_acts_on_each_axis_with_its_own_factor():
    z, y, x = np.random.default_rng(1).random((3, 24))
    coarse = reduce_cubic(np.einsum("z,y,x->zyx", z, y, x), (1, 2, 4))
    np.testing.assert_allclose(coarse, np.einsum("z,y,x->zyx", z, reduce_cubic(y, 2), reduce_cubic(x, 4)))


def test_cubic_reduction_of_too_few_voxels_says_so():
    with pytest.raises(UsageError, match="axis 0: 7 voxels are fewer than the 8 taps"):
        reduce_cubic(np.zeros(7), 2)


def test_expected_is_the_reduction_of_the_truth_that_reaches_three_voxels_further():
    coarse = PHANTOM.expected(box_of((2, 3, 5), (3, 4, 6)), (1, 2, 2))
    truth = PHANTOM.truth((slice(2, 5), slice(2 * 3 - 3, 2 * 7 + 3), slice(2 * 5 - 3, 2 * 11 + 3)))
    np.testing.assert_allclose(coarse, reduce_cubic(truth, (1, 2, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("what", "factor"), [("truth", None), ("counts", None), ("expected", 2), ("measured", (1, 2, 4))]
)
def test_a_volume_shows_the_phantom_chunk_by_chunk(what, factor):
    phantom = Phantom(shape=(8, 48, 40), seed=5)
    volume = as_volume(phantom, what, factor=factor, chunks=(5, 13, 40))
    assert volume.grid.shape == volume.voxels.shape == volume.source.shape
    whole = tuple(slice(0, n) for n in volume.voxels.shape)
    direct = getattr(phantom, what)(whole, *([] if factor is None else [factor]))
    found = volume.voxels.compute(scheduler="synchronous")
    assert found.dtype == volume.dtype == direct.dtype
    np.testing.assert_array_equal(found, direct)
    np.testing.assert_array_equal(volume.source[-1, :, 3:7], direct[-1, :, 3:7])


def test_the_fine_grid_is_the_coarse_grid_made_finer():
    fine, coarse = (as_volume(PHANTOM, what, factor=f).grid for what, f in (("truth", None), ("measured", (1, 2, 4))))
    assert coarse.shape == (64, 128, 64)
    assert coarse.units == ("micrometer",) * 3
    assert coarse.spacing == pytest.approx((0.8, 0.4, 0.8))
    assert coarse.origin == pytest.approx((0, 0.1, 0.3))
    again = coarse.finer((1, 2, 4))
    assert (again.shape, again.spacing) == (fine.shape, pytest.approx(fine.spacing))
    assert again.origin == pytest.approx(fine.origin)


def test_a_volume_of_a_brain_opens_and_any_chunk_of_it_can_be_made():
    phantom = Phantom(shape=(16384, 65536, 65536), seed=5)
    volume = as_volume(phantom, "measured", factor=2, chunks=(512, 1024, 1024))
    assert math.prod(phantom.shape) > 10**12
    assert len(pickle.dumps(volume.source)) < 1000
    corner = volume.voxels[-5:, -17:, -19:].compute(scheduler="synchronous")
    first = [n - k for n, k in zip(volume.grid.shape, (5, 17, 19), strict=True)]
    np.testing.assert_array_equal(corner, phantom.measured(box_of(first, (5, 17, 19)), 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (4, 4)}, "three numbers"),
        ({"shape": (4, 0, 4)}, "shape above 0"),
        ({"shape": (4, 4, 4), "spacing": (0.8, 0.4, 0.4)}, "at most 1.8"),
        ({"shape": (4, 4, 4), "seed": -1}, "must not be negative"),
    ],
)
def test_a_phantom_that_cannot_be_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        Phantom(**given)


@pytest.mark.parametrize(
    ("what", "factor", "message"),
    [
        ("noise", None, "what='noise': allowed are"),
        ("truth", 2, "a factor belongs to"),
        ("measured", None, "a factor belongs to"),
        ("measured", 3, "allowed are 1, 2 and 4"),
        ("measured", (4, 4, 4), "must divide"),
    ],
)
def test_a_volume_that_cannot_be_is_refused(what, factor, message):
    with pytest.raises(UsageError, match=message):
        as_volume(Phantom(shape=(6, 8, 8)), what, factor=factor)


def test_a_box_without_an_end_is_refused():
    with pytest.raises(UsageError, match="start and stop"):
        PHANTOM.truth((slice(0, 4), slice(0, None), slice(0, 4)))
    with pytest.raises(UsageError, match="has a step"):
        as_volume(PHANTOM, "truth").source[::2]
