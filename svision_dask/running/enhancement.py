"""Apply a model to lazy voxels: one ``dask.array.map_overlap``, from which the result does not know how it was cut."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from svision_dask.backend import CPU, Backend
from svision_dask.errors import ImageError, ModelError, PlanError
from svision_dask.geometry import SPATIAL, Shape, spatial_shape
from svision_dask.network.model import Model
from svision_dask.plan import largest_tile, lighter_tile, tile_chunks
from svision_dask.volume import Volume, check_volume, mirror

TILE_BYTES = 2**30
"""Memory that one forward pass may take where nobody planned it."""
MANY_TILES = 10_000
"""Above this a single dask graph takes minutes and gigabytes to build (28 tasks and 70 kB per tile)."""
TOO_MANY_TILES = 50_000


class ManyTilesWarning(UserWarning):
    """The volume is large for a single dask graph."""


def enhance(volume: Volume, model: Model, *, tile: Mapping[str, int] | None = None, backend: Backend = CPU) -> Volume:
    """Enhance a lazy volume; the result is lazy too, and has the volume's dtype.

    For volumes of up to some ten thousand tiles; ``enhance_to_zarr`` has no such limit.

    Parameters
    ----------
    volume
        The coarse volume, as `open_volume` makes it of a file or an array; channels and time points are enhanced one by
        one.
    model
        Trained on this volume, or on one like it.
    tile
        Coarse voxels per spatial axis that one forward pass is responsible for; the halo comes on top. By default, as
        large as 1 GiB allows; on a processor smaller, down to 88 MiB, as far as halos allow.
    backend
        What computes, and in which precision.

    Returns
    -------
    Volume
        ``factor`` times finer; voxel edges stay where they are in the world, or, where the coarse volume skipped
        positions (point sampling), the centre of the first voxel.

    Raises
    ------
    UsageError
        If this is no volume.
    ModelError
        If the model is for other axes or another number of channels.
    PlanError
        If a tile is shorter than its halo, or there are too many tiles for one graph.

    Examples
    --------
    >>> import numpy as np
    >>> import svision_dask as sv
    >>> voxels = np.random.default_rng(0).poisson(9, (8, 32, 32)).astype("uint8")
    >>> volume = sv.open_volume(voxels, spacing={"z": 2, "y": 0.5, "x": 0.5}, unit="um")
    >>> model = sv.train(volume, factor={"z": 1, "y": 2, "x": 2}, steps=1)  # 1 is for the example; leave it out
    >>> fine = sv.enhance(volume, model)
    >>> fine.grid.shape, fine.grid.spacing
    ((8, 64, 64), (2.0, 0.25, 0.25))
    >>> fine.read((slice(0, 1), slice(0, 4), slice(0, 4))).dtype
    dtype('uint8')
    """
    check_volume(volume)
    axes = volume.grid.axes
    check_model(model, volume)
    size = _full(axes, _default_tile(model, volume, backend) | dict(tile or {}))
    halo = _full(axes, dict(zip(SPATIAL, model.halo, strict=True)), missing=0)
    _check_tiles(volume.grid.shape, size, halo, axes)
    haloed = volume.voxels
    for axis, (n, t, h) in enumerate(zip(volume.grid.shape, size, halo, strict=True)):
        haloed = _continued(haloed, axis, mirror(-h, -(-n // t) * t + h, n))
    fine = enhance_haloed(haloed, model, axes=axes, tile=size, dtype=volume.dtype, backend=backend)
    grid = volume.grid.finer(full_factor(model, axes), model.architecture.sampling)
    return Volume(
        voxels=fine[tuple(slice(0, n) for n in grid.shape)],
        grid=grid,
        channels=volume.channels,
        name=volume.name,
        paths=volume.paths,
    )


def enhance_haloed(
    haloed: da.Array,
    model: Model,
    *,
    axes: str,
    tile: Shape,
    dtype: np.dtype[Any],
    channel: int = 0,
    backend: Backend = CPU,
) -> da.Array:
    """Enhance voxels that carry their halo: a whole number of tiles per axis, and the halo on both sides of them.

    ``channel`` is the channel of the first voxel, for boxes that are cut out of a larger volume.
    """
    halo = _full(axes, dict(zip(SPATIAL, model.halo, strict=True)), missing=0)
    factor = full_factor(model, axes)
    inner = tuple(n - 2 * h for n, h in zip(haloed.shape, halo, strict=True))
    tiled = haloed.rechunk(tile_chunks(inner, tile, halo))
    return da.map_overlap(
        partial(_enhance_tile, model=model, axes=axes, dtype=dtype, channel=channel, backend=backend),
        tiled,
        depth=dict(enumerate(halo)),
        boundary="none",  # the faces are mirrored already, the same way as in training; dask's way doubles the graph
        trim=False,  # dask would trim coarse voxels off a block that has finer ones
        allow_rechunk=False,  # the chunks stay as planned, or the shapes that a tile has would change
        chunks=tuple((t * f,) * (n // t) for n, t, f in zip(inner, tile, factor, strict=True)),
        dtype=dtype,
        meta=np.empty((0,) * len(axes), dtype=dtype),  # without it dask runs the network on the client, on no voxels
    )


def check_model(model: Model, volume: Volume) -> None:
    """Check that ``model`` can enhance ``volume``.

    Raises
    ------
    ModelError
        If the spatial axes or the channels differ.
    """
    spatial = "".join(axis for axis in volume.grid.axes if axis in SPATIAL)
    if model.architecture.axes != spatial:
        raise ModelError(
            f"model is for axes {model.architecture.axes}; the volume {volume.name} has {spatial}. "
            "Train on this volume, or use a model for its axes."
        )
    model.for_channels(volume.grid.shape[volume.grid.axes.index("c")] if "c" in volume.grid.axes else 1)


def full_factor(model: Model, axes: str) -> Shape:
    """Spread the model's factor over every axis of ``axes``."""
    return _full(axes, dict(zip(SPATIAL, model.factor, strict=True)))


def cast(voxels: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Round and clip to ``dtype``; integers never wrap."""
    if dtype.kind == "f":
        limit = np.finfo(dtype).max
        return (voxels.clip(-limit, limit) if dtype.itemsize < 4 else voxels).astype(dtype, copy=False)
    if dtype.kind == "b":
        return voxels >= 0.5
    limits = np.iinfo(dtype)
    if dtype.itemsize < 4:
        rounded = np.empty(voxels.shape, dtype)
        for i, plane in enumerate(voxels):  # one at a time they stay in the processor's cache
            rounded[i] = np.rint(plane).clip(limits.min, limits.max)
        return rounded
    # float32 cannot hold the largest 32-bit integers: clip and convert where they are exact.
    wide = np.rint(voxels.astype(np.longdouble)).clip(limits.min, limits.max)
    return wide.astype(dtype)


def _enhance_tile(
    block: npt.NDArray[Any],
    *,
    model: Model,
    axes: str,
    dtype: np.dtype[Any],
    channel: int,
    backend: Backend,
    block_id: tuple[int, ...] | None = None,
) -> npt.NDArray[Any]:
    """Enhance one haloed tile of one channel and time point."""
    assert block_id is not None
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        raise ImageError(
            f"tile {block_id} ({axes}) holds voxels that are NaN or infinite; all must be finite. Fill them: they "
            "would spread over the halo."
        )
    own = channel + (block_id[axes.index("c")] if "c" in axes else 0)
    fine = _refined(model, block.reshape(spatial_shape(axes, block.shape)), own, backend)
    expected = tuple(
        f * (n - 2 * h) for n, f, h in zip(spatial_shape(axes, block.shape), model.factor, model.halo, strict=True)
    )
    if not np.isfinite(fine).all():
        raise ModelError(
            f"tile {block_id} ({axes}): the result in {backend.precision} is not finite. Use --precision float32, or "
            "train on a --sample that has the brightest voxels."
        )
    # dask believes whatever shape it was told.
    assert fine.shape == expected, (fine.shape, expected)
    return cast(fine, dtype).reshape(
        *(n for axis, n in zip(axes, block.shape, strict=True) if axis not in SPATIAL), *_drop(fine.shape, axes)
    )


def _refined(model: Model, coarse: npt.NDArray[Any], channel: int, backend: Backend) -> npt.NDArray[np.float32]:
    """Enhance a tile; one that holds a single value, as most of many volumes do, needs no pass of its own.

    Every coarse voxel of such a tile has the same surroundings, so its fine voxels are those of the first, to the bit.
    """
    value = coarse.flat[0]
    if not (coarse == value).all():
        return model.refine(coarse, channel=channel, backend=backend)
    size = tuple(n - 2 * h for n, h in zip(coarse.shape, model.halo, strict=True))
    key = model.digest, channel, coarse.shape, float(value), backend
    known = _constant.get(key)
    if known is not None:
        return np.tile(known, size)
    fine = model.refine(coarse, channel=channel, backend=backend)
    first = fine[tuple(slice(0, f) for f in model.factor)].copy()
    if np.array_equal(np.tile(first, size), fine):  # or the machine's arithmetic depends on the place
        _constant.clear()  # one volume has one background
        _constant[key] = first
    return fine


_constant: dict[tuple[str, int, Shape, float, Backend], npt.NDArray[np.float32]] = {}


def _drop(shape: Shape, axes: str) -> Shape:
    return tuple(n for axis, n in zip(SPATIAL, shape, strict=True) if axis in axes)


def _full(axes: str, named: Mapping[str, int], *, missing: int = 1) -> Shape:
    return tuple(named[axis] if axis in SPATIAL else missing for axis in axes)


def _default_tile(model: Model, volume: Volume, backend: Backend) -> dict[str, int]:
    shape = spatial_shape(volume.grid.axes, volume.grid.shape)
    tile = largest_tile(shape, model.halo, lambda t: _fits(model, t))
    if tile is None:
        raise PlanError(f"no tile with halo {model.halo} fits into {TILE_BYTES / 2**20:.0f} MiB. Give a tile.")
    if backend.device == "cpu":
        tile = lighter_tile(tile, model.halo, model.architecture.tile_bytes)
    return dict(zip(SPATIAL, tile, strict=True))


def _fits(model: Model, tile: Shape) -> bool:
    try:
        return model.architecture.tile_bytes(tile) <= TILE_BYTES
    except ValueError:
        return False


def _check_tiles(shape: Shape, tile: Shape, halo: Shape, axes: str) -> None:
    for axis, n, t, h in zip(axes, shape, tile, halo, strict=True):
        if t < 1 or (t < h and -(-n // t) > 2):
            raise PlanError(f"axis {axis}: a tile of {t} voxels is shorter than its halo of {h}. Use {h} or more.")
    count = math.prod(-(-n // t) for n, t in zip(shape, tile, strict=True))
    advice = "Use enhance_to_zarr, which cuts the volume into regions, or larger tiles."
    if count > TOO_MANY_TILES:
        raise PlanError(f"{count} tiles in one dask graph; at most {TOO_MANY_TILES}. {advice}")
    if count > MANY_TILES:
        warnings.warn(
            f"{count} tiles in one dask graph will take minutes and gigabytes. {advice}", ManyTilesWarning, stacklevel=3
        )


def _continued(voxels: da.Array, axis: int, index: npt.NDArray[np.intp]) -> da.Array:
    """Take ``index`` along ``axis``, as slices forwards and backwards: dask would shuffle a list of numbers."""
    if np.array_equal(index, np.arange(voxels.shape[axis])):
        return voxels
    pieces = []
    for run in np.split(index, _turns(index)):
        step = -1 if len(run) > 1 and run[1] < run[0] else 1
        end = int(run[-1]) + step
        window = slice(int(run[0]), end if end >= 0 else None, step)
        pieces.append(voxels[(*[slice(None)] * axis, window)])
    return da.concatenate(pieces, axis=axis)


def _turns(index: npt.NDArray[np.intp]) -> list[int]:
    """Where a mirrored index turns round: at each face its voxel comes twice."""
    return [int(i) + 1 for i in np.flatnonzero(np.diff(index) == 0)]
