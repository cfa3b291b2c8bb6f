from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from svision_dask.simulation.simulate import Phantom
from svision_dask.training.noise_estimate import SILENT, Noise
from svision_dask.training.psf import gaussian_psf
from svision_dask.training.zoom import SHARE, SPREAD, around, matched_zoom, psf_zoom


def blurred(sigma: tuple[float, float, float], shape=(48, 96, 96), seed: int = 0) -> np.ndarray:
    rough = np.random.default_rng(seed).standard_normal(shape)
    smooth = gaussian_filter(rough, sigma)
    return (100 + 20 * smooth / smooth.std()).astype(np.float32)


def test_the_more_blurred_a_volume_is_the_more_it_is_enlarged():
    # A volume far smoother than the reduction's own blur looks like its reduction when it is twice as large.
    zooms = [matched_zoom(blurred((s, s, s))[None], (2, 2, 2), [SILENT])[1] for s in (0.4, 0.8, 1.6, 3.2)]
    assert zooms == sorted(zooms)
    assert zooms[-1] == pytest.approx(1 + SHARE, abs=0.05)
    assert zooms[0] < 1.3


def test_every_axis_has_its_own_zoom_and_those_not_refined_have_none():
    z, y, x = matched_zoom(blurred((3, 0.5, 1))[None], (2, 2, 1), [SILENT])
    assert z > y + 0.1
    assert x == 1


def test_intensities_do_not_matter():
    voxels = blurred((1, 1, 1))
    first, second = (matched_zoom(v[None], (2, 2, 2), [SILENT]) for v in (voxels, 300 * voxels - 5000))
    assert first == pytest.approx(second, abs=1e-3)


def test_known_noise_hardly_changes_the_zoom():
    voxels = blurred((1.2, 1.2, 1.2))
    noisy = voxels + np.random.default_rng(1).normal(0, 10, voxels.shape).astype(np.float32)
    clean = matched_zoom(voxels[None], (2, 2, 2), [SILENT])
    assert matched_zoom(noisy[None], (2, 2, 2), [Noise(floor=100.0, gain=0.0)]) == pytest.approx(clean, abs=0.1)
    assert matched_zoom(noisy[None], (2, 2, 2), [SILENT]) != pytest.approx(clean, abs=0.1)


def test_a_phantom_measured_is_enlarged_like_its_expectation():
    phantom = Phantom(shape=(96, 192, 192))
    box = (slice(0, 48), slice(0, 96), slice(0, 96))
    noisy = matched_zoom(phantom.measured(box, 2).astype(np.float32)[None], (2, 2, 2), [Noise(floor=0.0, gain=1.0)])
    assert noisy == pytest.approx(matched_zoom(phantom.expected(box, 2)[None], (2, 2, 2), [SILENT]), abs=0.25)


@pytest.mark.parametrize("shape", [(1, 3, 40), (2, 2, 2), (3, 3, 3)])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_small_and_constant_volumes_have_a_zoom_too(shape, factor):
    for voxels in (np.full(shape, 7, np.float32), blurred((0.5, 0.5, 0.5), shape)):
        assert all(1 <= zoom <= 1 + SHARE for zoom in matched_zoom(voxels[None], factor, [SILENT]))


def test_the_wider_the_psf_the_larger_its_zoom():
    zooms = [psf_zoom(gaussian_psf((1, width, width)), (1, 2, 2)) for width in (0.5, 1, 2, 4)]
    assert [z for z, _, _ in zooms] == [1.0] * 4
    for axis in (1, 2):
        assert sorted(zoom[axis] for zoom in zooms) == [zoom[axis] for zoom in zooms]
    assert zooms[0][1] < 1.1
    assert zooms[-1][1] > 1 + 0.95 * SHARE


def test_scales_beside_a_zoom_keep_what_is_not_refined_and_never_reduce():
    assert around((1.0, 1.0, 1.0)) == ((1.0, 1.0, 1.0),)
    scales = around((1.0, 1.4, 1.05))
    assert len(scales) == 3
    assert {z for z, _, _ in scales} == {1.0}
    assert sorted(y for _, y, _ in scales) == pytest.approx([1.4 - SPREAD, 1.4, 1.4 + SPREAD])
    assert min(x for _, _, x in scales) == 1.0
