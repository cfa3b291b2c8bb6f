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

from svision_dask.geometry import Shape
from svision_dask.noise_estimate import Noise
from svision_dask.pairs import Zoom, enlarged, reduced
from svision_dask.volume import middle

EXTENT = (48, 96, 96)
"""Voxels (z, y, x) that are looked at, at most."""
TYPICAL = 1.5
"""Zoom of the other axes while one is measured."""
SHARE = 0.6
"""Of the way from 1 to the zoom that matches. All the way was worse in trials: the target then has nothing left at high
frequencies to learn from. Shares between were not compared."""
HALVINGS = 6


def matched_zoom(voxels: npt.NDArray[np.float32], factor: Shape, noise: Sequence[Noise]) -> Zoom:
    """Find the zoom of each axis, from 1 to 2, whose reduction is about as rough along it as the volume.

    Parameters
    ----------
    voxels
        (c, z, y, x), in the units of ``noise``.
    factor
        Of the stage, for z, y, x; axes of factor 1 keep their scale.
    noise
        Per channel; the roughness it adds does not count.

    Returns
    -------
    tuple of float
        For z, y, x.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(channel))[None, None] for channel in middle(voxels, EXTENT)]
    wanted = [_roughness(t, n) for t, n in zip(tensors, noise, strict=True)]
    zooms = []
    for axis, f in enumerate(factor):
        matches = [
            _bisected(tensor, factor, axis, own[axis])
            for tensor, own in zip(tensors, wanted, strict=True)
            if f > 1 and tensor.shape[axis + 2] >= 2 * f
        ]
        zooms.append(1 + SHARE * (float(np.mean(matches)) - 1) if matches else 1.0)
    return zooms[0], zooms[1], zooms[2]


def _bisected(voxels: torch.Tensor, factor: Shape, axis: int, wanted: float) -> float:
    """Halve the interval from 1 to 2: the more it is enlarged, the smoother the reduction is."""
    low, high = 1.0, 2.0
    for _ in range(HALVINGS):
        zoom = [TYPICAL] * 3
        zoom[axis] = (low + high) / 2
        reduction = reduced(enlarged(voxels, factor, (zoom[0], zoom[1], zoom[2])), factor)
        if _roughness(reduction, None)[axis] > wanted:
            low = zoom[axis]
        else:
            high = zoom[axis]
    return (low + high) / 2


def _roughness(voxels: torch.Tensor, noise: Noise | None) -> list[float]:
    """Mean squared difference of neighbours along z, y, x, relative to the variance; without that of the noise."""
    variance = float(voxels.var(correction=0))
    noisy = 0.0 if noise is None else noise.variance(float(voxels.mean()))
    squares = [float(voxels.diff(dim=axis).square().mean()) if voxels.shape[axis] > 1 else 0.0 for axis in (2, 3, 4)]
    return [max(square - 2 * noisy, 0.0) / max(variance - noisy, 1e-6 * variance, 1e-30) for square in squares]
