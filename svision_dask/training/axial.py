"""Learn from the sharp lateral planes how to refine z: training pairs for strongly anisotropic volumes.

A stack of few planes has little along z to learn from, but thousands of lines along y and x through the same
structures. Enlarged or reduced until they are as rough as z, they stand for lines along z (Weigert et al. 2017,
doi:10.1007/978-3-319-66185-8_15). The network looks along them and the other lateral axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.degradation import CUBIC, Degradation
from svision_dask.errors import SampleError
from svision_dask.geometry import Shape
from svision_dask.training.noise_estimate import Noise
from svision_dask.training.pairs import Pairs, enlarged, make_pairs, noise_kept, reduced
from svision_dask.training.zoom import roughness
from svision_dask.volume import middle

FACTOR: Shape = (2, 1, 1)
ORDERS = {"yzx": (0, 2, 1, 3), "xzy": (0, 3, 1, 2)}
"""Axes (c, z, y, x) rearranged so that y or x stands for z, and the other lateral axis for x."""
FEWEST = 2
"""Voxels that every axis needs."""
EXTENT = (48, 192, 192)
"""Voxels (z, y, x) that are looked at, at most."""
WIDEST = 4.0
"""Zoom of the lateral lines, and its inverse, beyond which nothing is looked for."""
SHARE = 0.5
"""Of the way from 1 to the zoom that matches, on a logarithmic scale. On volumes whose true z was known, sometimes the
one and sometimes the other was better."""
SPREAD = (0.95, 1.0, 1.05)
"""Scales at which pairs are made, times the zoom."""
HALVINGS = 8

Voxels = npt.NDArray[np.float32]


def lateral_zoom(voxels: Voxels, noise: Sequence[Noise], how: Degradation = CUBIC) -> float:
    """Find the zoom of lateral lines whose reduction is about as rough as the volume is along z.

    Parameters
    ----------
    voxels
        (c, z, y, x), in the units of ``noise``.
    noise
        Per channel; the roughness it adds does not count.
    how
        To reduce.

    Returns
    -------
    float
        From 1/2 to 2: above 1 where the volume is smoother along z, voxel for voxel, than along y and x.

    Raises
    ------
    SampleError
        If there are fewer than two voxels along an axis.
    """
    if min(voxels.shape[1:]) < FEWEST:
        shape = "×".join(map(str, voxels.shape[1:]))
        raise SampleError(f"sample of {shape} voxels: axial needs {FEWEST} along each axis. Leave out --axial.")
    core = middle(voxels, EXTENT)
    wanted = [roughness(_tensor(channel), n)[0] for channel, n in zip(core, noise, strict=True)]
    low, high = -math.log(WIDEST), math.log(WIDEST)
    for _ in range(HALVINGS):
        zoom = math.exp((low + high) / 2)
        kept = noise_kept(FACTOR, (zoom, 1.0, 1.0), how)
        excess = 0.0
        for order in ORDERS.values():
            for channel, own, n in zip(core.transpose(order), wanted, noise, strict=True):
                line = enlarged(_tensor(channel), FACTOR, (zoom, 1.0, 1.0))
                left = replace(n, floor=kept * n.floor, gain=kept * n.gain)
                excess += roughness(reduced(line, FACTOR, how), left)[0] - own
        low, high = (math.log(zoom), high) if excess > 0 else (low, math.log(zoom))
    return math.exp(SHARE * (low + high) / 2)


def lateral_pairs(
    voxels: Voxels,
    *,
    zoom: float,
    margin: Shape,
    noise: Sequence[Noise],
    offsets: Sequence[float],
    scales: Sequence[float],
    how: Degradation = CUBIC,
    match_brightness: bool = False,
) -> Pairs:
    """Make pairs in which y, and then x, stands for z.

    Parameters
    ----------
    voxels
        The sample (c, z, y, x; standardised).
    zoom
        Of what stands for z.
    margin, noise, offsets, scales, how, match_brightness
        As `pairs.make_pairs`.

    Raises
    ------
    SampleError
        As `lateral_zoom`.
    """
    made = []
    for axes, order in ORDERS.items():
        pairs = make_pairs(
            np.ascontiguousarray(voxels.transpose(order)),
            factor=FACTOR,
            margin=margin,
            zooms=[(zoom * side, 1.0, 1.0) for side in SPREAD],
            noise=noise,
            offsets=offsets,
            scales=scales,
            how=how,
            axes=axes,
            match_brightness=match_brightness,
        )
        made += list(pairs.scales)
    return Pairs(scales=tuple(made), margin=margin, factor=FACTOR, how=how, turned=False)


def _tensor(channel: Voxels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(channel))[None, None]
