"""PSNR and SSIM: formulas worked out by hand, borders, small axes, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svision_dask.errors import UsageError
from svision_dask.metrics import BORDER, psnr, ssim

SHAPE = (11, 13, 17)


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random(shape)


def test_psnr_of_a_constant_error_is_the_range_over_the_error_in_decibels():
    reference = noise()
    assert psnr(reference + 0.3, reference, data_range=3.0) == pytest.approx(20.0)


def test_psnr_of_one_wrong_voxel_counts_the_voxels_inside_the_border():
    reference, image = np.zeros(SHAPE), np.zeros(SHAPE)
    image[5, 6, 7] = 2.0
    inside = (11 - 4) * (13 - 4) * (17 - 4)
    assert psnr(image, reference, data_range=5.0) == pytest.approx(10 * math.log10(25 * inside / 4))


def test_equal_volumes_have_no_error_and_full_similarity():
    assert psnr(noise(), noise(), data_range=1) == math.inf
    assert ssim(noise(), noise(), data_range=1) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, -1])
def test_the_two_outermost_voxels_do_not_count_and_the_third_does(metric, axis, side):
    def with_fault(depth):
        image = noise(seed=1)
        np.moveaxis(image, axis, 0)[depth if side == 0 else -1 - depth] += 1
        return metric(image, noise(), data_range=1)

    untouched = metric(noise(seed=1), noise(), data_range=1)
    assert [with_fault(0), with_fault(BORDER - 1)] == [untouched, untouched]
    assert with_fault(BORDER) != untouched


def test_unsigned_voxels_do_not_wrap_when_they_are_subtracted():
    low, high = np.full(SHAPE, 1, np.uint16), np.full(SHAPE, 11, np.uint16)
    assert psnr(low, high, data_range=100) == psnr(high, low, data_range=100) == pytest.approx(20.0)


def test_twice_the_data_range_is_six_decibels_more():
    once, twice = (psnr(noise(), noise(seed=1), data_range=r) for r in (1, 2))
    assert twice - once == pytest.approx(20 * math.log10(2))


def test_ssim_of_constant_volumes_is_the_luminance_term():
    # Without variance, SSIM is (2ab + c) / (a² + b² + c), with c = (0.01 · range)²: Wang et al. 2004, eq. 13.
    a, b, c = 3.0, 7.0, (0.01 * 10) ** 2
    expected = (2 * a * b + c) / (a * a + b * b + c)
    assert ssim(np.full(SHAPE, a), np.full(SHAPE, b), data_range=10) == pytest.approx(expected)


def test_ssim_is_the_mean_over_windows_computed_one_by_one():
    image, reference, c1, c2 = noise((11, 11, 12)), noise((11, 11, 12), seed=1), 0.01**2, 0.03**2
    values = []
    for corner in np.ndindex(1, 1, 2):  # where a window of 7³ fits into 7 × 7 × 8 voxels
        window = tuple(slice(2 + c, 9 + c) for c in corner)
        a, b = image[window].ravel(), reference[window].ravel()
        covariance = np.cov(a, b)
        luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        values.append(luminance * (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2))
    assert ssim(image, reference, data_range=1) == pytest.approx(np.mean(values))


def test_a_volume_of_one_plane_is_measured_as_that_plane():
    image, reference = noise(SHAPE[1:]), noise(SHAPE[1:], seed=1)
    for metric in (psnr, ssim):
        assert metric(image[None], reference[None], data_range=1) == metric(image, reference, data_range=1)


@pytest.mark.parametrize("shortest", [7, 8, 9, 10])
def test_ssim_takes_a_smaller_window_where_an_axis_is_short(shortest):
    window = {7: 3, 8: 3, 9: 5, 10: 5}[shortest]  # 3, 4, 5 and 6 voxels are inside the border
    from skimage.metrics import structural_similarity

    image, reference = noise((shortest, 20, 20)), noise((shortest, 20, 20), seed=1)
    core = (slice(2, -2),) * 3
    expected = structural_similarity(image[core], reference[core], data_range=1, win_size=window)
    assert ssim(image, reference, data_range=1) == pytest.approx(expected)


def test_ssim_refuses_a_volume_too_thin_for_any_window():
    with pytest.raises(UsageError, match="each axis needs 3"):
        ssim(noise((6, 20, 20)), noise((6, 20, 20)), data_range=1)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_different_shapes_are_refused_even_where_numpy_would_broadcast(metric):
    with pytest.raises(UsageError, match="must be equal"):
        metric(noise((11, 13, 17)), noise((1, 13, 17)), data_range=1)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("data_range", [0, -1, math.nan, math.inf])
def test_a_data_range_that_is_no_positive_number_is_refused(metric, data_range):
    with pytest.raises(UsageError, match="data_range"):
        metric(noise(), noise(), data_range=data_range)


@pytest.mark.parametrize("shape", [(4, 20, 20), (2, 20, 20), (0, 20, 20)])
def test_a_volume_that_is_all_border_is_refused(shape):
    with pytest.raises(UsageError, match="nothing is left"):
        psnr(noise(shape), noise(shape), data_range=1)
