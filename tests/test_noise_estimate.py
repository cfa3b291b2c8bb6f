from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from svision_dask.noise_estimate import QUANTILE, QUANTILE_OF_NORMAL, Noise, estimate_noise
from svision_dask.simulate import Phantom

BOX = (slice(0, 32), slice(0, 128), slice(0, 128))
SILENT = Noise(floor=0.0, gain=0.0)


def test_the_quantile_of_the_normal_distribution_is_what_scipy_says():
    assert pytest.approx(norm.ppf((1 + QUANTILE) / 2), rel=1e-14) == QUANTILE_OF_NORMAL


@pytest.mark.parametrize("seed", range(3))
def test_photon_counts_have_a_gain_of_one(seed):
    noise = estimate_noise(Phantom(shape=(64, 256, 256), seed=seed).measured(BOX, 2).astype(np.float32))
    assert noise.gain == pytest.approx(1, rel=0.15)
    assert noise.floor < 0.5  # of a mean of four photons


def test_expectations_have_hardly_any_noise_although_they_have_edges():
    noise = estimate_noise(Phantom(shape=(64, 256, 256)).expected(BOX, 2))
    assert noise.gain < 0.01
    assert noise.floor < 0.01


def test_floor_and_gain_are_told_apart():
    rng = np.random.default_rng(0)
    mean = np.broadcast_to(rng.uniform(20, 500, (24, 1, 1)), (24, 128, 128))
    voxels = 3 * rng.poisson(mean / 3) + rng.normal(0, 8, mean.shape)
    noise = estimate_noise(voxels.astype(np.float32))
    assert noise.gain == pytest.approx(3, rel=0.15)
    assert noise.floor == pytest.approx(64, rel=0.5)


def test_straight_edges_are_not_taken_for_noise():
    stripes = np.zeros((4, 64, 64), np.float32)
    stripes[:, 13:40] += 100
    stripes[:, :, 31:] += 50
    assert estimate_noise(stripes) == SILENT


@pytest.mark.parametrize("value", [0, -3, 0.5, 1000, 65535])
def test_a_constant_has_no_noise(value):
    assert estimate_noise(np.full((4, 32, 32), value, np.float32)) == SILENT


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 100), (100, 1, 2), (1, 2, 2), (3, 5, 9)])
def test_too_few_voxels_tell_nothing(shape):
    assert estimate_noise(np.random.default_rng(0).random(shape, dtype=np.float32)) == SILENT


@pytest.mark.parametrize("shape", [(1, 16, 16), (64, 2, 2), (2, 9, 17)])
def test_small_volumes_give_finite_numbers_that_are_not_negative(shape):
    noise = estimate_noise(np.random.default_rng(0).random(shape, dtype=np.float32))
    assert 0 <= noise.floor < 1
    assert 0 <= noise.gain < 1
