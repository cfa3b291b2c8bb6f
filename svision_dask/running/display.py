"""How the channels of an output are shown by viewers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from svision_dask.geometry import Grid
from svision_dask.omezarr.write import open_level
from svision_dask.running.patience import patiently
from svision_dask.stores.locations import Location
from svision_dask.volume import Shown, Volume

MEASURED = 384
"""Voxels per axis, at most, that percentiles are taken of."""
SHOWN = (0.1, 99.9)
"""Percentiles of the coarsest level between which viewers show a channel at first."""


def show_channels(
    volume: Volume, output: Location, levels: Sequence[Grid], dtype: str, limits: dict[int, tuple[float, float]]
) -> list[Shown]:
    """Show each channel as the input does, or from its own voxels where the input does not say.

    Voxels of another type have the same intensities, so what is shown stays; the limits of the control, which often are
    those of the type, become those of the voxels, as they do where the input does not say them.
    """
    given = volume.shown or (Shown(),) * len(limits)
    measured = None
    shown = []
    for channel, (each, (low, high)) in enumerate(zip(given, (limits[c] for c in sorted(limits)), strict=True)):
        window = each.window
        if window is None:
            measured = measured or _windows(output, levels, limits)
            window = measured[channel]
        elif np.dtype(dtype) != volume.dtype or None in window:
            window = (min(low, window[2]), max(high, window[3]), *window[2:])
        shown.append(replace(each, window=window))
    return shown


def _windows(
    output: Location, levels: Sequence[Grid], limits: dict[int, tuple[float, float]]
) -> list[tuple[float, float, float, float]]:
    """Per channel: lowest and highest voxel, and percentiles to show, of the first time point's coarsest level.

    Of a level that is not small, because few are wanted, the middle is looked at.
    """
    axes = levels[0].axes
    coarsest = open_level(output, len(levels) - 1)
    windows = []
    for channel, (low, high) in sorted(limits.items()):
        chosen = {"t": slice(0, 1), "c": slice(channel, channel + 1)}
        spatial = (slice(max(0, (n - MEASURED) // 2), (n + MEASURED) // 2) for n in coarsest.shape)
        voxels = _read(coarsest, tuple(chosen.get(a, s) for a, s in zip(axes, spatial, strict=True)))
        finite = voxels[np.isfinite(voxels)].astype(np.float64)
        start, end = (float(v) for v in np.percentile(finite, SHOWN)) if finite.size else (low, high)
        if end <= start:  # nearly all voxels are alike
            end = high if high > start else start + 1
        windows.append((low, high, start, end))
    return windows


def _read(array: zarr.Array[Any], box: tuple[slice, ...]) -> npt.NDArray[Any]:
    """Read the voxels of a box, in no order: each shard by itself, and again where that fails of what passes."""
    cuts = []
    for wanted, n, unit in zip(box, array.shape, array.shards or array.chunks, strict=True):
        stop = min(wanted.stop, n)
        starts = range(wanted.start // unit * unit, stop, unit)
        cuts.append([slice(max(wanted.start, at), min(stop, at + unit)) for at in starts])
    parts = [patiently(partial(array.__getitem__, part)) for part in itertools.product(*cuts)]
    return np.concatenate([np.ravel(np.asarray(part)) for part in parts])
