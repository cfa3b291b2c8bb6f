"""How much to enlarge a volume so that its reduction looks like the volume itself: the scale to train at.

A microscope blurs, so its volumes are not alike at all scales: the reduction of one is sharper, voxel for voxel, than
the volume. A network trained on that is applied to something it has never seen, and sharpens too much. Enlarged before
it is reduced, the volume makes pairs that are as blurred as what the network will meet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.degradation import CUBIC, Degradation
from svision_dask.geometry import Shape
from svision_dask.training.noise_estimate import SILENT, Noise
from svision_dask.training.pairs import Zoom, enlarged, reduced
from svision_dask.training.psf import Psf
from svision_dask.volume import middle

EXTENT = (48, 96, 96)
"""Voxels (z, y, x) that are looked at, at most."""
TYPICAL = 1.5
"""Zoom of the other axes while one is measured."""
SHARE = 0.6
"""Of the way from 1 to the zoom that matches. All the way was worse in trials: the target then has nothing left at high
frequencies to learn from. Shares between were not compared."""
HALVINGS = 6
SPREAD = 0.08
"""How far off the scales are at which pairs are made. Three gained half a decibel on volumes of few planes, one on
beads, and nothing elsewhere; 0.12 and more cost 0.15 on others."""


def matched_zoom(
    voxels: npt.NDArray[np.float32], factor: Shape, noise: Sequence[Noise], how: Degradation = CUBIC
) -> Zoom:
    """Find the zoom of each axis, from 1 to 2, whose reduction is about as rough along it as the volume.

    Parameters
    ----------
    voxels
        (c, z, y, x), in the units of ``noise``.
    factor
        Of the stage, for z, y, x; axes of factor 1 keep their scale.
    noise
        Per channel; the roughness it adds does not count.
    how
        To reduce.

    Returns
    -------
    tuple of float
        For z, y, x.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(channel))[None, None] for channel in middle(voxels, EXTENT)]
    wanted = [roughness(t, n) for t, n in zip(tensors, noise, strict=True)]
    zooms = []
    for axis, f in enumerate(factor):
        matches = [
            _bisected(tensor, factor, axis, own[axis], how)
            for tensor, own in zip(tensors, wanted, strict=True)
            if f > 1 and tensor.shape[axis + 2] >= 2 * f
        ]
        zooms.append(1 + SHARE * (float(np.mean(matches)) - 1) if matches else 1.0)
    return zooms[0], zooms[1], zooms[2]


def psf_zoom(psf: Psf, factor: Shape, how: Degradation = CUBIC) -> Zoom:
    """Find the zooms that match a scene of independent points seen through ``psf``: no volume is looked at.

    Parameters
    ----------
    psf
        Of the coarse volume.
    factor, how
        As `matched_zoom`.

    Returns
    -------
    tuple of float
        For z, y, x.
    """
    scene = torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(2 * n for n in EXTENT), dtype=np.float32))
    seen = scene[None, None]
    for axis in range(3):
        reach = (seen.shape[axis + 2] - 1) // 4
        weights = psf.weights(axis, [k / 2 for k in range(-reach, reach + 1)])
        spectrum = torch.fft.rfft(torch.from_numpy(weights).float(), n=seen.shape[axis + 2])
        shape = [-1 if a == axis + 2 else 1 for a in range(5)]
        blurred = torch.fft.rfft(seen, dim=axis + 2) * spectrum.abs().view(shape)
        seen = torch.fft.irfft(blurred, n=seen.shape[axis + 2], dim=axis + 2)
    return matched_zoom(reduced(seen, (2, 2, 2), how)[0].numpy(), factor, [SILENT], how)


def around(zoom: Zoom, spread: float = SPREAD) -> tuple[Zoom, ...]:
    """List three scales next to ``zoom``, each axis a little off by another amount; axes that keep theirs keep it.

    Every voxel then lies elsewhere between its neighbours, so that a network learns less of a few planes by heart.
    """
    z, y, x = zoom
    shifts = ((-spread, spread, 0.0), (0.0, -spread, spread), (spread, 0.0, -spread))
    return tuple(dict.fromkeys((_off(z, dz), _off(y, dy), _off(x, dx)) for dz, dy, dx in shifts))


def _off(zoom: float, shift: float) -> float:
    return max(1.0, zoom + shift) if zoom > 1 else 1.0


def _bisected(voxels: torch.Tensor, factor: Shape, axis: int, wanted: float, how: Degradation) -> float:
    """Halve the interval from 1 to 2: the more it is enlarged, the smoother the reduction is."""
    low, high = 1.0, 2.0
    for _ in range(HALVINGS):
        zoom = [TYPICAL] * 3
        zoom[axis] = (low + high) / 2
        reduction = reduced(enlarged(voxels, factor, (zoom[0], zoom[1], zoom[2])), factor, how)
        if roughness(reduction, None)[axis] > wanted:
            low = zoom[axis]
        else:
            high = zoom[axis]
    return (low + high) / 2


def roughness(voxels: torch.Tensor, noise: Noise | None) -> list[float]:
    """Mean squared difference of neighbours along z, y, x, relative to the variance; without that of the noise."""
    variance = float(voxels.var(correction=0))
    noisy = 0.0 if noise is None else noise.variance(float(voxels.mean()))
    squares = [float(voxels.diff(dim=axis).square().mean()) if voxels.shape[axis] > 1 else 0.0 for axis in (2, 3, 4)]
    return [max(square - 2 * noisy, 0.0) / max(variance - noisy, 1e-6 * variance, 1e-30) for square in squares]
