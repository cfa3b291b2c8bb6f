"""Arrays that a program has already: numpy, dask, or xarray's, which says where its voxels are."""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np

from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import AXES, SPATIAL, Grid, Vector, check_axes, per_spatial_axis
from svision_dask.volume import Volume

UNITS = {"nm": "nanometer", "um": "micrometer", "µm": "micrometer", "μm": "micrometer", "micron": "micrometer"} | {
    "mm": "millimeter",
    "s": "second",
}
"""Short names, and what OME-Zarr calls them."""
UNEVEN = 1e-3
"""By how much of the spacing a coordinate may be off: more than decimals rounded away, less than a voxel left out."""


def open_array(array: Any, *, axes: str | None = None, spacing: Any = None, unit: str | None = None) -> Volume:
    """Take an array for a volume.

    Parameters
    ----------
    array
        numpy, dask, or what is sliced as numpy is, such as an array of zarr or h5py, which is not read as a whole; or
        xarray's DataArray, with dimensions among t, c, z, y and x in any order.
    axes
        Of each dimension; by default ``"yx"`` or ``"zyx"`` for two or three. DataArrays say so themselves.
    spacing
        Distance of voxel centres: for all spatial axes, one each in order, or by name. DataArrays that have evenly
        spaced coordinates say so themselves.
    unit
        Of ``spacing``, such as ``"micrometer"``; coordinates of DataArrays may have it as attribute ``units``.

    Returns
    -------
    Volume
        Lazy, where the array is.

    Raises
    ------
    ImageError
        If the voxels are no numbers, or coordinates are not evenly spaced.
    UsageError
        If it is no array, or axes or spacing are missing, doubled or not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> open_array(np.zeros((4, 8, 8), "uint8"), spacing={"z": 2, "y": 0.5, "x": 0.5}, unit="um").grid.spacing
    (2.0, 0.5, 0.5)
    """
    if hasattr(array, "data_vars"):
        names = ", ".join(repr(name) for name in array.data_vars) or "none"
        raise UsageError(f"{type(array).__name__} with the variables {names}: choose one variable, data[NAME].")
    named = hasattr(array, "dims") and hasattr(array, "coords")
    if named and axes is not None:
        raise UsageError(f"axes {axes!r}: the array says {tuple(array.dims)}. Leave them out, or give its .data.")
    if named:
        dims = [str(dim).lower() for dim in array.dims]
        if len(set(dims)) < len(dims) or not set(dims) <= set(AXES):
            raise UsageError(f"dimensions {tuple(array.dims)}: allowed are {', '.join(AXES)}. Rename or select them.")
        array = array.transpose(*sorted(array.dims, key=lambda dim: AXES.index(str(dim).lower())))
        axes = "".join(str(dim).lower() for dim in array.dims)
    data = array.data if named else array
    if not isinstance(getattr(data, "dtype", None), np.dtype) or not hasattr(data, "shape"):
        raise UsageError(f"{type(array).__name__}: allowed are a path, and arrays of numpy, dask or xarray. Give one.")
    axes = check_axes(axes or {2: "yx", 3: "zyx"}.get(len(data.shape), ""))
    if len(axes) != len(data.shape):
        raise UsageError(f"axes {axes!r} for an array of {len(data.shape)} dimensions. Name each of them.")
    if data.dtype.kind not in "biuf" or 0 in data.shape:
        raise ImageError(f"array of {data.shape}, {data.dtype}: allowed are numbers, at least one along each axis.")
    coordinates = [_coordinates(array, number) if named else None for number in range(len(axes))]
    # Without a name, dask would read all of it to make one.
    voxels = data if isinstance(data, da.Array) else da.from_array(data, name=False)  # type: ignore[no-untyped-call]
    return Volume(
        voxels=voxels,
        grid=Grid(
            axes=axes,
            shape=tuple(voxels.shape),
            spacing=_spacing(axes, spacing, [c[0] if c else None for c in coordinates]),
            origin=tuple(c[1] if c else 0.0 for c in coordinates),
            units=tuple(
                _unit(unit if unit is not None and axis in SPATIAL else c[2] if c else None)
                for axis, c in zip(axes, coordinates, strict=True)
            ),
        ),
        channels=_channels(array, axes) if named else (),
        name=str(getattr(array, "name", None) or "array"),
    )


def _spacing(axes: str, given: Any, found: list[float | None]) -> Vector:
    """Take what was given, then what coordinates say; along space there must be something."""
    if given is not None:
        chosen = per_spatial_axis(given, axes, what="spacing")
    else:
        chosen = {axis: value for axis, value in zip(axes, found, strict=True) if value is not None}
    missing = [axis for axis in axes if axis in SPATIAL and axis not in chosen]
    if missing:
        raise UsageError(
            f"spacing of {','.join(missing)}: the array does not say. Give it: open_volume(array, spacing=0.5)."
        )
    wrong = [f"{axis}={value}" for axis, value in chosen.items() if not (math.isfinite(value) and value > 0)]
    if wrong:
        raise UsageError(f"spacing {','.join(wrong)}: allowed are numbers above 0. Give what the microscope says.")
    return tuple(float(chosen.get(axis, 1.0)) for axis in axes)


def _coordinates(array: Any, number: int) -> tuple[float | None, float, str | None] | None:
    """Spacing, first position and unit that the coordinates of a dimension say; None where there are none."""
    dim = array.dims[number]
    if dim not in array.coords or str(dim).lower() == "c":
        return None
    labels = array.coords[dim]
    positions, unit = np.asarray(labels.values), labels.attrs.get("units", labels.attrs.get("unit"))
    if positions.dtype.kind not in "iuf":
        return None
    positions = positions.astype(np.float64)  # unsigned differences would wrap
    if len(positions) == 1:
        return None, float(positions[0]), unit
    steps = np.diff(positions)
    step = float(positions[-1] - positions[0]) / (len(positions) - 1)
    if step < 0:
        raise ImageError(
            f"coordinates of {dim} fall from {positions[0]:g} to {positions[-1]:g}; they must rise. "
            f"Turn the array round: array.isel({dim}=slice(None, None, -1))."
        )
    if not step > 0 or not np.abs(steps - step).max() <= UNEVEN * step:
        raise ImageError(
            f"coordinates of {dim}: steps of {steps.min():g} to {steps.max():g}; they must rise evenly. "
            "Interpolate, or drop them and give spacing."
        )
    return step, float(positions[0]), unit


def _channels(array: Any, axes: str) -> tuple[str, ...]:
    if "c" not in axes or array.dims[axes.index("c")] not in array.coords:
        return ()
    return tuple(str(name) for name in array.coords[array.dims[axes.index("c")]].values)


def _unit(given: Any) -> str | None:
    return UNITS.get(str(given), str(given)) if given else None
