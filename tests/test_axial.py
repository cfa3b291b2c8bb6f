from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from svision_dask.degradation import CUBIC
from svision_dask.errors import SampleError
from svision_dask.training.axial import SPREAD, lateral_pairs, lateral_zoom
from svision_dask.training.noise_estimate import SILENT, Noise


def structure(sigmas: tuple[float, float, float], shape: tuple[int, int, int] = (32, 64, 64)) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(0).standard_normal(shape), sigmas).astype(np.float32)[None]


def test_the_smoother_z_is_the_more_lateral_lines_are_enlarged():
    zooms = [lateral_zoom(structure((sigma, 1.0, 1.0)), [SILENT]) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert zooms == sorted(zooms)
    assert zooms[0] < 1.2 < zooms[-1]
    assert all(0.5 <= zoom <= 2 for zoom in zooms)


@pytest.mark.parametrize("unit", [1e-3, 40.0])
def test_the_unit_does_not_matter_to_the_zoom(unit):
    voxels = structure((1.5, 1.0, 1.0))
    assert lateral_zoom(unit * voxels - 500 * unit, [SILENT]) == pytest.approx(lateral_zoom(voxels, [SILENT]), rel=0.02)


def pairs_of(voxels: np.ndarray, zoom: float = 1.0):
    n = len(voxels)
    return lateral_pairs(
        voxels, zoom=zoom, margin=(3, 3, 3), noise=[SILENT] * n, offsets=[0.0] * n, scales=[1.0] * n, how=CUBIC
    )


def test_y_and_x_stand_for_z_and_z_is_never_looked_along():
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (6, 20, 24)), indexing="ij")
    pairs = pairs_of((100 * z + 10 * y + x)[None])
    assert len(pairs.scales) == 2 * len(SPREAD)
    slopes = {tuple(round(float(s.fine.diff(dim=d).median())) for d in (3, 4)) for s in pairs.scales}
    assert slopes == {(100, 1), (100, 10)}  # across the planes, and along the other lateral axis
    rng = np.random.default_rng(0)
    for _ in range(40):
        coarse, fine = pairs.draw(rng, (4, 3, 6), 2, (3, 0, 3))
        assert coarse.shape == (2, 1, 10, 3, 12)
        assert fine.shape == (2, 1, 8, 3, 6)
        assert abs(round(float(fine.diff(dim=3).median()))) == 100  # never exchanged with a lateral axis


def test_every_channel_and_side_of_the_zoom_has_its_pairs():
    pairs = pairs_of(np.concatenate([structure((1, 1, 1))] * 2), zoom=1.5)
    assert len(pairs.scales) == 2 * 2 * len(SPREAD)
    assert {s.fine.shape[2] for s in pairs.scales} == {int(64 * 1.5 * side) // 2 * 2 for side in SPREAD}


@pytest.mark.parametrize("shape", [(12, 64, 64), (12, 80, 64), (12, 64, 80)])
def test_the_same_slab_of_the_volume_is_held_back_from_y_and_from_x(shape):
    pairs = pairs_of(np.random.default_rng(0).random((1, *shape), dtype=np.float32))
    learned, held = pairs.hold_back()
    assert len(learned.scales) == 2 * len(pairs.scales)
    cut = set()
    for whole, slab in zip(pairs.scales, held.scales, strict=True):
        shares = [n / m for n, m in zip(slab.fine.shape[2:], whole.fine.shape[2:], strict=True)]
        cut |= {axis for axis, share in zip(whole.axes, shares, strict=True) if share < 1}
        assert 0.08 < min(shares) < 0.2
    assert len(cut) == 1


@pytest.mark.parametrize("shape", [(1, 24, 24), (8, 1, 24), (8, 24, 1)])
def test_one_voxel_along_an_axis_is_too_few(shape):
    with pytest.raises(SampleError, match="axial needs 2 along each axis"):
        lateral_zoom(np.random.default_rng(0).random((1, *shape), dtype=np.float32), [SILENT])


def test_noise_does_not_pass_for_sharpness():
    clean = 100 * structure((1.0, 1.0, 1.0), (48, 96, 96)) / structure((1.0, 1.0, 1.0), (48, 96, 96)).std()
    noisy = clean + np.random.default_rng(1).normal(0, 60, clean.shape).astype(np.float32)
    noise = Noise(floor=3600.0, gain=0.0)
    assert lateral_zoom(noisy, [noise]) == pytest.approx(lateral_zoom(clean, [SILENT]), rel=0.15)
