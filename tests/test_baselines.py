"""The baselines against plain matrices, against the stage's shortcut, and against what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from svision_dask.errors import UsageError
from svision_dask.network.architecture import architecture
from svision_dask.network.baselines import best_smoothed, cubic, cubic_back_projected
from svision_dask.network.stage import Stage
from svision_dask.simulation.simulate import keys_taps
from svision_dask.volume import mirror, mirror_pad

COARSE = np.random.default_rng(0).normal(100, 20, (5, 7, 6)).astype(np.float32)
FACTORS = [(2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 4, 2), (4, 4, 4)]


def interpolation_matrix(size):
    """Keys' kernel (a = −1/2) at every distance between a fine and a coarse voxel, on an axis that goes on mirrored."""
    matrix = np.zeros((2 * size, size))
    for fine in range(2 * size):
        position = (fine + 0.5) / 2 - 0.5
        for index in range(-3, size + 3):
            d = abs(position - index)
            weight = 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0
            matrix[fine, mirror(index, index + 1, size)[0]] += weight
    return matrix


def reduction_matrix(size):
    """The kernel of the simulated detector, on an axis of ``2·size`` fine voxels that goes on mirrored."""
    matrix = np.zeros((size, 2 * size))
    for coarse in range(size):
        for source, weight in zip(mirror(2 * coarse - 3, 2 * coarse + 5, 2 * size), keys_taps(2), strict=True):
            matrix[coarse, source] += weight
    return matrix


def applied(matrices, voxels):
    for axis, matrix in enumerate(matrices):
        voxels = np.moveaxis(np.tensordot(matrix, voxels, axes=(1, axis)), 0, axis)
    return voxels


def matrices(make, shape, factor):
    """One matrix per axis; a factor of 4 is the product of two steps."""
    made = []
    for n, f in zip(shape, factor, strict=True):
        steps = {1: [], 2: [make(n)], 4: [make(n), make(2 * n)]}[f]
        steps = steps if make is interpolation_matrix else steps[::-1]
        matrix = np.eye(n if make is interpolation_matrix else n * f)
        for step in steps:
            matrix = step @ matrix
        made.append(matrix)
    return made


@pytest.mark.parametrize("factor", FACTORS)
def test_cubic_is_the_kernel_written_out_as_matrices(factor):
    expected = applied(matrices(interpolation_matrix, COARSE.shape, factor), COARSE.astype(float))
    fine = cubic(COARSE, factor)
    assert fine.dtype == np.float32
    np.testing.assert_allclose(fine, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("factor", FACTORS)
def test_back_projection_is_the_iteration_written_out_as_matrices(factor, clamp):
    coarse = COARSE.astype(float) - 100  # half of it negative, so that clamping bites
    up, down = (matrices(make, COARSE.shape, factor) for make in (interpolation_matrix, reduction_matrix))
    expected = applied(up, coarse)
    for _ in range(3):
        expected = expected + applied(up, coarse - applied(down, expected))
        expected = np.maximum(expected, 0) if clamp else expected
    fine = cubic_back_projected(coarse, factor, iterations=3, clamp=clamp)
    np.testing.assert_allclose(fine, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_a_stage_without_network_gives_the_same_by_its_shortcut_on_the_coarse_grid(factor):
    (spec,) = architecture("paper", factor, "zyx").stages
    stage = Stage(spec, "zyx", residual_scale=0.0)
    with torch.inference_mode():
        shortcut = stage(torch.from_numpy(mirror_pad(COARSE, stage.reach))[None, None])[0, 0].numpy()
    literal = cubic_back_projected(COARSE, factor, iterations=spec.back_projections)
    np.testing.assert_allclose(shortcut, literal, rtol=0, atol=1e-3)


def test_a_constant_volume_stays_what_it_is():
    constant = np.full((5, 4, 6), 37, np.uint16)
    np.testing.assert_allclose(cubic(constant, 4), 37, rtol=1e-6)
    np.testing.assert_allclose(cubic_back_projected(constant, 4), 37, rtol=1e-6)


def test_more_back_projections_agree_better_with_the_coarse_volume():
    def disagreement(iterations):
        fine = cubic_back_projected(COARSE, 2, iterations=iterations)
        return np.abs(applied(matrices(reduction_matrix, COARSE.shape, (2, 2, 2)), fine.astype(float)) - COARSE).max()

    none, some, many = (disagreement(n) for n in (0, 3, 10))
    assert none > 2 * some > 4 * many


def test_clamping_leaves_nothing_below_zero_where_the_plain_form_does():
    spike = np.zeros((7, 7, 7), np.float32)
    spike[3, 3, 3] = 100
    assert cubic_back_projected(spike, 2).min() < -1
    assert cubic_back_projected(spike, 2, clamp=True).min() == 0


def test_the_coarse_volume_is_not_changed():
    before = COARSE.copy()
    cubic_back_projected(COARSE, 2, clamp=True)
    np.testing.assert_array_equal(COARSE, before)


def test_a_single_plane_is_refined_across_only():
    plane = COARSE[:1]
    assert cubic_back_projected(plane, {"y": 2, "x": 4}).shape == (1, 14, 24)


def test_best_smoothed_finds_the_width_that_was_used():
    sharp = np.random.default_rng(1).random((12, 12, 12)).astype(np.float32)
    reference = gaussian_filter(sharp, 0.6)
    np.testing.assert_array_equal(best_smoothed(sharp, reference, widths=(0.4, 0.6, 0.8)), reference)


@pytest.mark.parametrize("volume", [COARSE[0], COARSE[None], COARSE[:, :0]])
def test_a_volume_that_is_not_zyx_is_refused(volume):
    with pytest.raises(UsageError, match="needs the axes zyx"):
        cubic(volume, 2)


def test_a_factor_that_no_stages_make_is_refused():
    with pytest.raises(UsageError, match="allowed are 1, 2 and 4"):
        cubic(COARSE, 3)
