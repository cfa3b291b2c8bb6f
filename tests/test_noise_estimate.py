from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from svision_dask.network.baselines import reduced
from svision_dask.simulation.simulate import Phantom
from svision_dask.training.noise_estimate import QUANTILE, QUANTILE_OF_NORMAL, SILENT, _roughness, estimate_noise

BOX = (slice(0, 32), slice(0, 128), slice(0, 128))


def test_the_quantile_of_the_normal_distribution_is_what_scipy_says():
    assert pytest.approx(norm.ppf((1 + QUANTILE) / 2), rel=1e-14) == QUANTILE_OF_NORMAL


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_photon_counts_is_their_mean(seed):
    counts = Phantom(shape=(64, 256, 256), seed=seed).measured(BOX, 2).astype(np.float32)
    noise = estimate_noise(counts)
    for mean, tolerance in ((np.mean(counts), 0.1), (np.percentile(counts, 99), 0.2)):
        assert noise.variance(mean) == pytest.approx(mean, rel=tolerance)


def test_noise_added_to_a_real_volume_is_found_again(data_dir):
    from tifffile import imread

    voxels = imread(data_dir / "lsfm_nuclei_c5/c5image.ome.tif").squeeze().astype(np.float32)
    before = estimate_noise(voxels)
    added = np.random.default_rng(0).normal(0, 30, voxels.shape).astype(np.float32)
    after = estimate_noise(voxels + added)
    level = float(np.median(voxels))
    assert after.variance(level) - before.variance(level) == pytest.approx(900, rel=0.25)


def test_a_sharp_volume_of_few_planes_is_not_all_noise():
    # Reduced by two, the expectation is as undersampled as a microscope's volume: the worst case for differences.
    expected = Phantom(shape=(24, 256, 256)).expected((slice(0, 12), slice(0, 128), slice(0, 128)), 2)
    noise = estimate_noise(expected)
    assert noise.variance(np.percentile(expected, 99)) < 0.02 * expected.var()


def test_beads_smaller_than_a_voxel_do_not_pass_for_shot_noise(data_dir):
    from tifffile import imread

    beads = imread(data_dir / "beads_simulated/beads_coarse_x4.ome.tif").squeeze().astype(np.float32)
    noise, rough = estimate_noise(beads), _roughness(beads, (0, 1, 2))  # there is none but that of rounding
    assert noise.floor < 0.1
    assert noise.gain < 0.5 * rough.gain


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
    assert noise.variance(0) == pytest.approx(noise.variance(noise.offset))  # nothing is darker than the darkest
    assert noise.floor - 3 * noise.offset == pytest.approx(64, rel=0.5)


@pytest.mark.parametrize("offset", [-1000, 100, 32768])
def test_an_offset_of_the_camera_is_not_taken_for_light(offset):
    counts = Phantom(shape=(64, 256, 256)).measured(BOX, 2).astype(np.float32)
    plain, lifted = estimate_noise(counts), estimate_noise(counts + offset)
    assert lifted.gain == pytest.approx(plain.gain, rel=1e-2)
    assert lifted.floor == pytest.approx(plain.floor, rel=1e-2, abs=1e-2)
    assert lifted.offset == pytest.approx(plain.offset + offset, abs=1e-2)


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


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_noise_that_a_reduction_left_is_not_a_detectors(factor):
    counts = Phantom(shape=(64, 256, 256)).measured(BOX, 2).astype(np.float32)
    assert estimate_noise(counts, factor).variance(counts.mean()) == pytest.approx(counts.mean(), rel=0.1)
    assert estimate_noise(reduced(counts, factor), factor) == SILENT


@pytest.mark.parametrize(
    "path",
    [
        "plant_ovule/ovule_1135_mini.ome.tif",
        "beads_measured/psf_bead_pycudadecon.tif",
        "lsfm_nuclei_c5/c5image.ome.tif",
    ],
)
def test_what_a_microscope_recorded_has_a_detectors_noise_and_its_reduction_has_not(data_dir, path):
    from tifffile import imread

    voxels = imread(data_dir / path).squeeze().astype(np.float32)
    even = voxels[tuple(slice(0, n // 2 * 2) for n in voxels.shape)]
    assert estimate_noise(voxels) != SILENT
    assert estimate_noise(reduced(even, 2)) == SILENT
