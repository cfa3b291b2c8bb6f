"""Judge a stage on pairs that it was not trained on: what it gains, and how much of its back projection to believe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from svision_dask.backend import Device
from svision_dask.degradation import UP_REACH, Degradation
from svision_dask.geometry import Shape
from svision_dask.network.resample import correction_kernel, upsample
from svision_dask.network.stage import Stage, correction, trim
from svision_dask.training.pairs import Pairs

PATCH = {2: (1, 64, 64), 3: (16, 24, 24)}
"""Coarse voxels (z, y, x) of each patch that is judged, in planes and in volumes."""
BATCH, BATCHES = 4, 2
"""Patches in a batch, and batches, but one at least per scale and channel: 10⁵ voxels tell hundredths of a decibel."""
BASELINE = 10
"""Back projections of the baseline, as in the published system."""
BASELINE_RADIUS, PSF_RADIUS = 6, 12
"""Where its kernel is cut; undoing a PSF reaches further. Weights beyond 6 are below a thousandth, but for a PSF."""


def decibels(other: float, own: float) -> float:
    """By how many decibels a mean squared error of ``own`` is less than one of ``other``."""
    if other == 0 or own == 0:
        return 0.0 if other == own else math.copysign(math.inf, other - own)
    return 10 * math.log10(other / own)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How close a stage, and what needs no network, come to fine voxels that no training saw; mean squared errors."""

    stage: float
    cubic: float
    back_projected: float
    held_back: bool
    """Whether the pairs were kept out of training; a sample of few voxels cannot spare any."""

    @property
    def gain(self) -> float:
        """Decibels by which the stage is closer than the better of both baselines."""
        return decibels(min(self.cubic, self.back_projected), self.stage)

    @property
    def trained(self) -> bool:
        """Whether the network has learned anything at all: a dead one leaves cubic interpolation as it is."""
        return self.stage < self.cubic


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Fixed patches, with their noise, to judge every attempt alike."""

    patches: Sequence[tuple[torch.Tensor, torch.Tensor]]
    """Coarse (n, 1, …) with the margin, and fine (n, 1, …), in standardised units."""
    margin: Shape
    factor: Shape
    held_back: bool
    one_pass: bool = False
    """Whether the patches are for one orientation of the network only."""

    @staticmethod
    def margin_of(stage: Stage) -> Shape:
        """Coarse voxels per side that an exam of ``stage`` needs around its patches."""
        how = stage.spec.degradation
        reach = 2 * UP_REACH + how.reach + _baseline_radius(how)
        baseline = tuple(reach * (f == 2) for f in stage.spec.factor)
        return tuple(max(r, b) for r, b in zip(stage.reach, baseline, strict=True))

    @staticmethod
    def of(pairs: Pairs, stage: Stage, *, held_back: bool, device: Device = "cpu") -> Exam:
        """Draw the patches; they are the same for the same pairs."""
        rng = np.random.default_rng(0)
        patch = PATCH[2 if stage.network.planar else 3]
        drawn = [pairs.draw(rng, patch, BATCH, pairs.margin) for _ in range(max(BATCHES, len(pairs.scales)))]
        return Exam(
            patches=[(coarse.to(device), fine.to(device)) for coarse, fine in drawn],
            margin=pairs.margin,
            factor=pairs.factor,
            held_back=held_back,
            one_pass=stage.spec.axial,
        )

    def loss(self, stage: Stage) -> float:
        """Mean squared error of one pass of the network, without back projection: what training lowers."""
        needed = tuple(max(r, UP_REACH * (f == 2)) for r, f in zip(stage.network.reach, self.factor, strict=True))
        unused = tuple(m - n for m, n in zip(self.margin, needed, strict=True))
        with torch.inference_mode():
            return self._mean(
                [_squares(stage.predict(trim(c, unused), one_pass=True), fine) for c, fine in self.patches]
            )

    def cubic_loss(self, stage: Stage) -> float:
        """Mean squared error of cubic interpolation, of the same voxels as ``loss``."""
        scaled = (UP_REACH * (f == 2) for f in self.factor)
        spare = tuple(m - s for m, s in zip(self.margin, scaled, strict=True))
        how = stage.spec.degradation
        return self._mean([_squares(upsample(trim(c, spare), self.factor, how), fine) for c, fine in self.patches])

    def damping(self, stage: Stage) -> float:
        """Find the share of the back projection, from 0 to 1, that brings the patches closest to their fine voxels.

        Least squares: of the error that is left without back projection, what the correction explains. A coarse volume
        without noise is to be believed, and gives 1; photon noise in it gives nearly 0.
        """
        explained = total = 0.0
        with torch.inference_mode():
            for coarse, fine in self.patches:
                plain = stage.predict(coarse, one_pass=self.one_pass)
                change = correction(coarse, plain, self.factor, stage.kernel, stage.spec.degradation)
                wanted, plain, change = _common(fine, plain, change)
                explained += float(((wanted - plain) * change).sum())
                total += float(change.square().sum())
        return min(1.0, max(0.0, explained / total)) if total > 0 else 1.0

    def verdict(self, stage: Stage) -> Verdict:
        """Compare the stage as it will be used with cubic interpolation, and with ten back projections of it."""
        how = stage.spec.degradation
        kernel = correction_kernel(self.factor, BASELINE, _baseline_radius(how), how)
        taps = torch.from_numpy(kernel).float()[None, None].to(stage.kernel.device)
        own, cubic, projected = [], [], []
        with torch.inference_mode():
            for coarse, fine in self.patches:
                plain = upsample(coarse, self.factor, how)
                change = correction(coarse, plain, self.factor, taps, how)
                own.append(_squares(stage(coarse, one_pass=self.one_pass), fine))
                cubic.append(_squares(plain, fine))
                inner, change = _common(plain, change)
                projected.append(_squares(inner + change, fine))
        return Verdict(
            stage=self._mean(own),
            cubic=self._mean(cubic),
            back_projected=self._mean(projected),
            held_back=self.held_back,
        )

    @staticmethod
    def _mean(squares: Sequence[float]) -> float:
        return sum(squares) / len(squares)


def _baseline_radius(how: Degradation) -> int:
    return PSF_RADIUS if how.psf else BASELINE_RADIUS


def _squares(guess: torch.Tensor, fine: torch.Tensor) -> float:
    """Mean squared difference, over what ``guess`` and ``fine`` share around their common centre."""
    guess, fine = _common(guess, fine)
    return float((guess - fine).square().mean())


def _common(*voxels: torch.Tensor) -> list[torch.Tensor]:
    """Trim all to what they share around their common centre."""
    shape = [min(sizes) for sizes in zip(*(v.shape[2:] for v in voxels), strict=True)]
    return [trim(v, tuple((n - m) // 2 for n, m in zip(v.shape[2:], shape, strict=True))) for v in voxels]
