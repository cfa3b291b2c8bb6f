"""Training pairs made from the volume itself: patches of it, and their reductions, with matching noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.architecture import CUBIC_REACH
from svision_dask.errors import SampleError
from svision_dask.geometry import SPATIAL, Shape
from svision_dask.noise_estimate import Noise
from svision_dask.resample import degrade
from svision_dask.volume import mirror_pad


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One zoom of one channel."""

    coarse: torch.Tensor
    """(1, 1, z, y, x): the reduction of ``fine``, with the halo mirrored at its faces."""
    fine: torch.Tensor
    """(1, 1, fz·z, fy·y, fx·x) without the halo: what the network shall predict."""
    missing_noise: tuple[float, float]
    """Floor and gain of the variance to add to ``coarse``: ``floor + gain · max(v + shift, 0)``, standardised."""
    shift: float
    """Offset over scale of the channel, to get back to intensities."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All zooms of all channels, to draw patches from."""

    scales: tuple[Scale, ...]
    halo: Shape
    """Coarse voxels per side that the network uses up."""
    factor: Shape
    """Of this stage, for z, y, x."""

    def draw(self, rng: np.random.Generator, patch: Shape, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ``batch`` patches, flipped and turned alike at random.

        Returns
        -------
        tuple of Tensor
            Coarse (n, 1, pz + 2hz, …) with noise, and fine (n, 1, fz·pz, …); p is ``patch``, at most the volume.
        """
        scale = self.scales[rng.integers(len(self.scales))]
        inner = tuple(n - 2 * h for n, h in zip(scale.coarse.shape[2:], self.halo, strict=True))
        size = tuple(min(p, n) for p, n in zip(patch, inner, strict=True))
        coarse, fine = [], []
        for _ in range(batch):
            first = [int(rng.integers(n - s + 1)) for n, s in zip(inner, size, strict=True)]
            coarse.append(scale.coarse[_window(first, size, (1, 1, 1), self.halo)])
            fine.append(scale.fine[_window(first, size, self.factor, (0, 0, 0))])
        flips = [axis + 2 for axis in range(3) if size[axis] > 1 and rng.integers(2)]
        turn = self.factor[1] == self.factor[2] and bool(rng.integers(2))
        noisy = _add_noise(torch.cat(coarse), scale, rng)
        return _turned(noisy, flips, turn), _turned(torch.cat(fine), flips, turn)


def make_pairs(
    voxels: npt.NDArray[np.float32],
    *,
    factor: Shape,
    halo: Shape,
    zooms: Sequence[float],
    noise: Sequence[Noise],
    offsets: Sequence[float],
    scales: Sequence[float],
) -> Pairs:
    """Reduce every channel of ``voxels`` (c, z, y, x; standardised) at every zoom.

    A microscope's images are blurred by its point spread function, so they do not look alike at all scales: the
    reduction of the volume is sharper, in its voxels, than the volume. Zooming the volume up before reducing it makes
    pairs that are as blurred as what the network will meet.

    Parameters
    ----------
    voxels
        The sample.
    factor, halo
        Of the stage, for z, y, x.
    zooms
        1 or more; applied to the axes that the stage refines.
    noise, offsets, scales
        Per channel: noise in intensity units, and the constants that standardised it.

    Raises
    ------
    SampleError
        If an axis is too short to be reduced.
    """
    for axis, n, f in zip(SPATIAL, voxels.shape[1:], factor, strict=True):
        if n < f:
            keep = ",".join(f"{a}={1 if a == axis else g}" for a, g in zip(SPATIAL, factor, strict=True))
            raise SampleError(f"sample of {n} voxel along {axis}: at least {f} are needed. Use --factor {keep}.")
    made = []
    for channel, model, offset, scale in zip(voxels, noise, offsets, scales, strict=True):
        for zoom in zooms:
            fine = _zoomed(torch.from_numpy(channel)[None, None], factor, zoom)
            coarse = _reduced(fine, factor)
            kept = _noise_kept(factor, zoom)
            made.append(
                Scale(
                    coarse=_padded(coarse, halo),
                    fine=fine,
                    missing_noise=((1 - kept) * model.floor / scale**2, (1 - kept) * model.gain / scale),
                    shift=offset / scale,
                )
            )
    return Pairs(scales=tuple(made), halo=halo, factor=factor)


def _zoomed(voxels: torch.Tensor, factor: Shape, zoom: float) -> torch.Tensor:
    """Cubic enlargement of the refined axes by about ``zoom``, to a multiple of the factor."""
    for axis, f in enumerate(factor, start=2):
        size = max(f, math.floor(voxels.shape[axis] * (zoom if f > 1 else 1)) // f * f)
        if zoom == 1 or f == 1:
            voxels = voxels.narrow(axis, 0, min(size, voxels.shape[axis]))
        else:
            voxels = _resized(voxels, axis, size)
    return voxels.contiguous()


def _resized(voxels: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Keys' cubic interpolation of one axis; torch has the a = −1/2 kernel only with ``antialias``."""
    last = voxels.movedim(axis, -1)
    rows = last.reshape(1, 1, -1, last.shape[-1])
    rows = torch.nn.functional.interpolate(rows, size=(rows.shape[2], size), mode="bicubic", antialias=True)
    return rows.reshape(*last.shape[:-1], size).movedim(-1, axis)


def _reduced(fine: torch.Tensor, factor: Shape) -> torch.Tensor:
    return degrade(_padded(fine, tuple(2 * CUBIC_REACH if f == 2 else 0 for f in factor)), factor)


def _padded(voxels: torch.Tensor, margin: Shape) -> torch.Tensor:
    return torch.from_numpy(mirror_pad(voxels.numpy(), (0, 0, *margin)))


def _noise_kept(factor: Shape, zoom: float) -> float:
    """Share of the variance of independent noise that is left after zooming and reducing."""
    generator = torch.Generator().manual_seed(0)
    sizes = [48 if f == 2 else 4 for f in factor]
    white = torch.randn(1, 1, *sizes, generator=generator)
    return min(1.0, float(_reduced(_zoomed(white, factor, zoom), factor).var()))


def _add_noise(coarse: torch.Tensor, scale: Scale, rng: np.random.Generator) -> torch.Tensor:
    floor, gain = scale.missing_noise
    if floor <= 0 and gain <= 0:
        return coarse
    variance = floor + gain * (coarse + scale.shift).clamp_min(0)
    normal = torch.from_numpy(rng.standard_normal(coarse.shape, dtype=np.float32))
    return coarse + normal * variance.sqrt()


def _window(first: Sequence[int], size: Shape, factor: Shape, halo: Shape) -> tuple[slice, ...]:
    inside = (slice(f * a, f * (a + s) + 2 * h) for a, s, f, h in zip(first, size, factor, halo, strict=True))
    return (slice(None), slice(None), *inside)


def _turned(voxels: torch.Tensor, flips: list[int], turn: bool) -> torch.Tensor:
    flipped = voxels.flip(flips) if flips else voxels
    return flipped.transpose(3, 4) if turn else flipped
