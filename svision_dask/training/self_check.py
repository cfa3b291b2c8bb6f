"""What a model gains on the volume that it was trained on, measured without any truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svision_dask.geometry import Shape
from svision_dask.metrics import psnr, ssim
from svision_dask.network.baselines import cubic, cubic_back_projected, reduced
from svision_dask.network.model import Model
from svision_dask.training.sample import Sample
from svision_dask.volume import middle, mirror_pad

EXTENT = {2: (1, 1024, 1024), 3: (64, 128, 128)}
"""Voxels (z, y, x) of the sample that are checked, at most, in planes and in volumes."""
SHORTEST = 12
"""Voxels along an axis below which there is little to measure between the faces; a plane has one along z."""
OUTLIERS = 0.1
"""Percent of the voxels at each end that lie outside the data range."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """How close the once more reduced sample, enhanced, comes to the sample; and what does it without a network.

    The data range of PSNR and SSIM is that of the sample without its outliers, per channel; both are means over the
    channels. It is a check of the method, one scale below its use: structures are sampled half as well as in the
    volume, so its gain is as a rule smaller, and of noise the reduction has less.
    """

    psnr: float
    """In dB."""
    ssim: float
    cubic_psnr: float
    cubic_ssim: float
    cubic_bp_psnr: float
    """Of cubic interpolation and ten back projections, clamped at 0 or not, whichever is better."""
    cubic_bp_ssim: float

    @property
    def gain(self) -> float:
        """Decibels by which the enhanced is closer than the better of both baselines."""
        return self.psnr - max(self.cubic_psnr, self.cubic_bp_psnr)


def self_check(model: Model, sample: Sample) -> SelfCheck | None:
    """Reduce the middle of the sample once more, enhance it, and compare; None where the sample is too small."""
    size = _size(sample.voxels.shape[1:], model.factor, EXTENT[len(model.architecture.axes)])
    if size is None:
        return None
    rows, how = [], model.architecture.stages[0].degradation
    for number, channel in enumerate(sample.voxels):
        wanted = middle(channel, size)
        low, high = np.percentile(channel, (OUTLIERS, 100 - OUTLIERS))
        coarse, data_range = reduced(wanted, model.factor, how), max(float(high - low), 1e-30)
        enhanced = model.refine(mirror_pad(coarse, model.halo), channel=number)
        projected = [cubic_back_projected(coarse, model.factor, how, clamp=clamp) for clamp in (False, True)]
        best = max(projected, key=lambda fine: psnr(fine, wanted, data_range=data_range))
        rows.append(
            [
                measure(fine, wanted, data_range=data_range)
                for fine in (enhanced, cubic(coarse, model.factor, how), best)
                for measure in (psnr, ssim)
            ]
        )
    means = [float(value) for value in np.mean(rows, axis=0)]
    return SelfCheck(
        psnr=means[0],
        ssim=means[1],
        cubic_psnr=means[2],
        cubic_ssim=means[3],
        cubic_bp_psnr=means[4],
        cubic_bp_ssim=means[5],
    )


def _size(shape: Shape, factor: Shape, extent: Shape) -> Shape | None:
    """Fit ``extent`` to the sample, in whole coarse voxels."""
    size = tuple(min(n, e) // f * f for n, e, f in zip(shape, extent, factor, strict=True))
    enough = all(s >= SHORTEST or (s == 1 and f == 1) for s, f in zip(size, factor, strict=True))
    return size if enough else None
