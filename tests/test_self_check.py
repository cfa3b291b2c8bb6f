from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from svision_dask.metrics import psnr, ssim
from svision_dask.network.baselines import cubic, cubic_back_projected, reduced
from svision_dask.network.model import Normalisation
from svision_dask.simulation.simulate import Phantom
from svision_dask.training.sample import Sample
from svision_dask.training.self_check import SelfCheck, self_check
from svision_dask.volume import mirror_pad
from tests.models import fast

BOX = (slice(0, 24), slice(0, 40), slice(0, 36))


def sample_of(*channels: np.ndarray) -> Sample:
    constants = tuple(Normalisation(offset=float(c.mean()), scale=float(c.std())) for c in channels)
    return Sample(voxels=np.stack(channels), box=BOX, normalisation=constants)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return Phantom(shape=(48, 80, 72)).expected(BOX, 2)


def test_the_sample_is_reduced_enhanced_and_compared_with_itself(voxels):
    model = fast((2, 2, 2))
    checked = self_check(model, sample_of(voxels))
    assert checked is not None
    low, high = np.percentile(voxels, (0.1, 99.9))
    coarse = reduced(voxels, 2)
    projected = [cubic_back_projected(coarse, 2, clamp=clamp) for clamp in (False, True)]
    best = max(projected, key=lambda fine: psnr(fine, voxels, data_range=high - low))
    for name, fine in (
        ("", model.refine(mirror_pad(coarse, model.halo))),
        ("cubic_", cubic(coarse, 2)),
        ("cubic_bp_", best),
    ):
        assert asdict(checked)[f"{name}psnr"] == pytest.approx(psnr(fine, voxels, data_range=high - low), abs=1e-3)
        assert asdict(checked)[f"{name}ssim"] == pytest.approx(ssim(fine, voxels, data_range=high - low), abs=1e-4)


def test_the_unit_of_the_intensities_does_not_matter_and_channels_are_averaged(voxels):
    model = replace(fast((2, 2, 2), back_projections=1), normalisation=(Normalisation(offset=4.0, scale=3.0),))
    scaled = replace(model, normalisation=(Normalisation(offset=4.0 * 50 + 900, scale=150.0),))
    first, second = self_check(model, sample_of(voxels)), self_check(scaled, sample_of(50 * voxels + 900))
    assert first is not None
    assert second is not None
    # Clamping at 0 is not the same after a shift; everything else is.
    for key in ("psnr", "ssim", "cubic_psnr", "cubic_ssim"):
        assert asdict(first)[key] == pytest.approx(asdict(second)[key], abs=0.01)
    both = self_check(model, sample_of(voxels, voxels[::-1].copy()))
    alone = [self_check(model, sample_of(v)) for v in (voxels, voxels[::-1].copy())]
    assert both is not None
    assert both.psnr == pytest.approx(np.mean([a.psnr for a in alone if a]), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 40, 36), (24, 11, 36)])
def test_a_sample_too_thin_to_measure_is_not_checked(voxels, shape):
    part = voxels[tuple(slice(0, n) for n in shape)]
    assert self_check(fast((1, 2, 2)), sample_of(part)) is None


def test_the_gain_is_over_the_better_baseline():
    checked = SelfCheck(psnr=30, ssim=0.9, cubic_psnr=28, cubic_ssim=0.8, cubic_bp_psnr=29, cubic_bp_ssim=0.85)
    assert checked.gain == 1
