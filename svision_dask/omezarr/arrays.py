"""The arrays of an OME-Zarr: chunks, shards and codecs of each level."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr

from svision_dask.codec import Codec, check_bytes
from svision_dask.errors import PlanError, UsageError
from svision_dask.geometry import Grid, Shape
from svision_dask.stores.locations import Location
from svision_dask.stores.remote_store import store_at
from svision_dask.wishes import Version


def storage_shapes(shape: Shape, chunks: Shape, shards: Shape | None) -> tuple[Shape, Shape | None]:
    """Fit chunks and shards to a level that may be smaller than they are.

    Chunks end with the level; shards are whole chunks, no more than the level needs.
    """
    fitted = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    if shards is None:
        return fitted, None
    whole = (-(-n // c) * c for c, n in zip(fitted, shape, strict=True))
    return fitted, tuple(min(s, w) for s, w in zip(shards, whole, strict=True))


def check_storage(chunks: Shape, shards: Shape | None, dtype: np.dtype[Any], grid: Grid, version: Version) -> None:
    """Refuse chunks and shards that cannot be stored, whatever the shape of the level."""
    if shards is not None and version == "0.4":
        raise UsageError(f"shards {shards}: OME-Zarr 0.4 has none. Leave out --shards, or write 0.5.")
    for what, lengths in (("chunks", chunks), ("shards", shards or chunks)):
        if len(lengths) != len(grid.axes) or min(lengths) < 1:
            raise PlanError(f"{what} {lengths}: allowed is 1 or more voxels for each of the axes {grid.axes}.")
    if any(s % c for s, c in zip(shards or chunks, chunks, strict=True)):
        raise PlanError(f"shards of {shards} voxels are not whole chunks of {chunks}. Use multiples of the chunks.")
    fitted, whole = storage_shapes(grid.shape, chunks, shards)
    check_bytes("chunks" if whole is None else "shards", whole or fitted, dtype.itemsize)


def create_level(
    group: zarr.Group,
    path: str,
    grid: Grid,
    *,
    dtype: np.dtype[Any],
    chunks: Shape,
    shards: Shape | None,
    codec: Codec,
) -> None:
    """Make the empty array of one level; chunks of zeros are stored, too."""
    chunks, shards = storage_shapes(grid.shape, chunks, shards)
    compressors = codec.spelled(group.metadata.zarr_format) or None
    form: dict[str, Any]
    if group.metadata.zarr_format == 2:
        form = {"compressors": compressors, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    else:
        form = {"compressors": compressors, "shards": shards, "dimension_names": list(grid.axes)}
    config: Any = {"write_empty_chunks": True}
    group.create_array(path, shape=grid.shape, dtype=dtype, chunks=chunks, fill_value=0, config=config, **form)


def dimension_names(folder: Location) -> list[str]:
    """Say what a stored array calls its axes; those without names are d0, d1 and so on, as neuroglancer has them."""
    array = zarr.open_array(store_at(folder), mode="r")
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    known = names if isinstance(names, list | tuple) and len(names) == array.ndim else [None] * array.ndim
    return [str(name) if name else f"d{i}" for i, name in enumerate(known)]
