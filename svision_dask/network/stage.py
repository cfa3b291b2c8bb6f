"""One ×2 step as a finite operator: network + cubic interpolation, then back projection on the coarse grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from svision_dask.degradation import UP_REACH, Degradation
from svision_dask.geometry import Shape
from svision_dask.network.architecture import StageSpec, network_axes, stage_reach
from svision_dask.network.ensemble import orientations
from svision_dask.network.layers import Network, interleave
from svision_dask.network.resample import correction_kernel, degrade, upsample


class Stage(nn.Module):
    """Map standardised coarse voxels (n, 1, z, y, x) to fine ones (n, 1, fz·(z − 2rz), …); r is ``reach``."""

    kernel: torch.Tensor

    def __init__(self, spec: StageSpec, axes: str, *, residual_scale: float = 1.0, damping: float = 1.0) -> None:
        super().__init__()
        self.spec = spec
        self.network = Network(spec.layers, network_axes(spec, axes), spec.slope)
        self.margin = _either(self.network.reach) if spec.axial else self.network.reach
        self.residual_scale = residual_scale
        self.damping = damping
        self.precision: torch.dtype | None = None
        """Of the network's weights and features, where it is not that of the voxels."""
        self.reach = stage_reach(spec, axes)
        kernel = correction_kernel(spec.factor, max(spec.back_projections, 1), spec.kernel_radius, spec.degradation)
        self.register_buffer("kernel", torch.from_numpy(kernel).float()[None, None], persistent=False)

    def forward(self, coarse: torch.Tensor, *, one_pass: bool = False) -> torch.Tensor:
        """Enhance all but the outermost ``reach`` voxels."""
        fine = self.predict(coarse, one_pass=one_pass)
        return self.correct(coarse, fine) if self.spec.back_projections else fine

    def predict(self, coarse: torch.Tensor, *, one_pass: bool = False) -> torch.Tensor:
        """Cubic interpolation plus the network's residual; uses up its reach in the orientations that it has."""
        scaled = self._per_axis(UP_REACH)
        reach = self.network.reach if one_pass else self.margin
        margin = tuple(max(r, s) for r, s in zip(reach, scaled, strict=True))
        # The residual first: at its widest the network needs more memory than the interpolation.
        context = trim(coarse, _minus(margin, reach))
        residual = self.one_pass(context) if one_pass else self.residual(context)
        fine = upsample(trim(coarse, _minus(margin, scaled)), self.spec.factor, self.spec.degradation)
        return fine.add_(residual, alpha=self.residual_scale)

    def residual(self, coarse: torch.Tensor) -> torch.Tensor:
        """Apply the network in all its orientations, and put the mean of its outputs on the fine grid."""
        if not self.spec.averaged:
            return self.one_pass(coarse)
        members = self._orientations()
        total = self._member(coarse, *members[0])
        for flips, swap in members[1:]:
            total.add_(self._member(coarse, flips, swap))
        return total.div_(len(members))

    def one_pass(self, coarse: torch.Tensor) -> torch.Tensor:
        """Apply the network once, and put its output on the fine grid: what training fits."""
        if self.precision is None:
            return interleave(self.network(coarse), self.spec.factor)
        return interleave(self.network(coarse.to(self.precision)), self.spec.factor).float()

    def correct(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Apply all back projections at once: ``y₀ + d · U K (x − D y₀)``; D and U run once, K on the coarse grid.

        Cubic interpolation and reduction commute with flips and rotations, so correcting an ensemble's mean is the
        same as correcting its members and then averaging. Where the coarse voxels are noisy, what they and the fine
        ones disagree about is noise as well; the damping d, from 0 to 1, is how much of it to believe.
        """
        if self.damping == 0:
            unused = self._per_axis(self.spec.degradation.reach + self.spec.kernel_radius + UP_REACH)
            return trim(fine, tuple(f * u for f, u in zip(self.spec.factor, unused, strict=True)))
        change = correction(coarse, fine, self.spec.factor, self.kernel, self.spec.degradation)
        lost = tuple((n - m) // 2 for n, m in zip(fine.shape[2:], change.shape[2:], strict=True))
        return trim(fine, lost) + change.mul_(self.damping)

    def _member(self, coarse: torch.Tensor, flips: list[int], swap: bool) -> torch.Tensor:
        """Flip, turn, apply the network; then undo both in the opposite order."""
        turned = coarse.flip(flips)
        turned = turned.transpose(3, 4) if swap else turned
        fine = self.one_pass(trim(turned, _minus(self.margin, self.network.reach)))
        return (fine.transpose(3, 4) if swap else fine).flip(flips)

    def _orientations(self) -> list[tuple[list[int], bool]]:
        """List the lateral flips of an ensemble, each with and without the exchange of y and x where both are alike."""
        every = orientations([self.spec])
        return [([a + 2 for a in flips], swap) for flips, swap in every if self.spec.ensemble or not flips]

    def _per_axis(self, voxels: int) -> Shape:
        """Count ``voxels`` on the axes that this stage refines, 0 on the others."""
        return tuple(voxels * (f == 2) for f in self.spec.factor)


def correction(
    coarse: torch.Tensor, fine: torch.Tensor, factor: Shape, kernel: torch.Tensor, how: Degradation
) -> torch.Tensor:
    """Apply ``U K (x − D y)``: how back projection changes the fine voxels y so that they agree with the coarse x.

    ``fine`` may be short of ``coarse`` at all faces alike. Of the fine voxels it loses those without a margin of the
    reaches of D and U and the radius of ``kernel`` (1, 1, z, y, x), in coarse voxels.
    """
    margin = tuple(
        (c - n // f) // 2 + how.reach * (f == 2)
        for c, n, f in zip(coarse.shape[2:], fine.shape[2:], factor, strict=True)
    )
    error = trim(coarse, margin) - degrade(fine, factor, how)
    if kernel.numel() > 1:
        error = F.conv3d(error, kernel)
    return upsample(error, factor, how)


def trim(voxels: torch.Tensor, margin: Shape) -> torch.Tensor:
    """Take ``margin`` voxels off both ends of z, y and x."""
    z, y, x = (slice(m, n - m) for m, n in zip(margin, voxels.shape[2:], strict=True))
    return voxels[:, :, z, y, x]


def _either(reach: Shape) -> Shape:
    """Reach of an operator that runs both as it is and with y and x exchanged."""
    z, y, x = reach
    return z, max(y, x), max(y, x)


def _minus(a: Shape, b: Shape) -> Shape:
    return tuple(p - q for p, q in zip(a, b, strict=True))
