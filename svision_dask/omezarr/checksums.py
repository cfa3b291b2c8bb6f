"""Checksums of the voxels, kept in the store, so that it can be verified wherever it is copied."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zarr

from svision_dask.errors import OutputError
from svision_dask.geometry import Shape
from svision_dask.omezarr.metadata import PROVENANCE, first_problem
from svision_dask.stores.locations import Location, located
from svision_dask.stores.remote_store import store_at

CHECKSUMS = f"{PROVENANCE}/crc32"
"""Group of the checksums, an array per level."""


def store_checksums(path: str | Location, level: int, checksums: npt.NDArray[np.uint32], *, unit: Shape) -> None:
    """Keep the checksums of all regions of a level in the store, so that it can be verified wherever it is copied.

    Parameters
    ----------
    path
        Of the store.
    level
        Of the pyramid.
    checksums
        CRC-32 of the voxels of every region, one axis per axis of the image.
    unit
        Voxels per region.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        group = zarr.open_group(store_at(located(path)), mode="r+", use_consolidated=False).require_group(CHECKSUMS)
        array = group.create_array(str(level), data=checksums, attributes={"unit": list(unit)}, overwrite=True)
        array.attrs["voxels"] = "CRC-32, as zlib's, of the voxels of each box of `unit`, in C order, little-endian"
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_problem(error)}. Run the command again.") from error


def read_checksums(path: str | Location, level: int) -> tuple[npt.NDArray[np.uint32], Shape]:
    """Read what `store_checksums` wrote, and the unit.

    Raises
    ------
    OutputError
        If there is nothing like it, or it is damaged.
    """
    try:
        array = zarr.open_array(store_at(located(path) / CHECKSUMS / str(level)), mode="r")
        unit = tuple(int(n) for n in array.attrs["unit"])  # type: ignore[union-attr, arg-type]
        checksums = np.asarray(array[:], np.uint32)
    except Exception as error:  # damaged metadata make zarr raise nearly anything
        raise OutputError(f"{path}: no checksums of level {level} can be read: {first_problem(error)}.") from error
    return checksums, unit
