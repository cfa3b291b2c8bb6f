"""Open TIFF files as lazy volumes: OME-TIFF, ImageJ hyperstacks, and plain stacks whose axes the user names."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import AXES, SPATIAL, Grid, Shape, per_spatial_axis
from svision_dask.tiff.metadata import channel_names, check_unit
from svision_dask.tiff.planes import PlaneIndex, plane_index, read_box, series_number
from svision_dask.volume import Volume, split_box

logger = logging.getLogger(__name__)

Spacing = float | Sequence[float] | Mapping[str, float]

CHUNK_BYTES = 32 * 2**20
"""Bytes of a dask chunk: a task reads for much longer than it is scheduled, and many fit in memory."""
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF or BigTIFF file, little and big endian."""


@dataclass(frozen=True)
class TiffSource:
    """The voxels of one series; it pickles as its fields, and each process opens the file itself."""

    path: str
    """Absolute, because workers start elsewhere."""
    series: int
    order: tuple[int, ...]
    """For each axis of ``shape``, which stored axis it is."""
    shape: Shape
    dtype: np.dtype[Any]
    """In the machine's byte order, whatever the file's."""

    def __getitem__(self, box: Any, /) -> npt.NDArray[Any]:
        """Read a box; integers and steps are allowed because dask hands them down from indexing.

        Raises
        ------
        ImageError
            If the file is damaged, or is not the one that was opened.
        IndexError
            If the box is no box of this shape.
        """
        ranges, rest = split_box(box, self.shape)
        block = np.empty([stop - start for start, stop in ranges], self.dtype)
        if block.size:
            index = plane_index(self.path, self.series)
            self._check_unchanged(index)
            stored = sorted(range(len(self.order)), key=self.order.__getitem__)
            read_box(index, [ranges[axis] for axis in stored], block.transpose(stored))
        voxels: npt.NDArray[Any] = block[rest]
        return voxels

    @property
    def kept_bytes(self) -> int:
        """What reading it may keep in memory."""
        return plane_index(self.path, self.series).kept_bytes

    def _check_unchanged(self, index: PlaneIndex) -> None:
        if tuple(index.shape[axis] for axis in self.order) != self.shape or index.dtype != self.dtype:
            raise ImageError(f"{self.path} has changed since it was opened; open it again.")


def is_tiff(path: str | Path) -> bool:
    """Whether the file starts like a TIFF; False if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) in MAGIC
    except OSError:
        return False


def open_tiff(
    path: str | Path,
    *,
    series: int | str = 0,
    axes: str | None = None,
    spacing: Spacing | None = None,
    unit: str | None = None,
) -> Volume:
    """Open one series of a TIFF file without reading voxels; its axes are put in the order tczyx.

    Parameters
    ----------
    path
        OME-TIFF, or the companion file of several, ImageJ hyperstack, or any stack of grey planes.
    series
        Which image of the file, counted from 0, or the name that the file gives it.
    axes
        A letter of ``tczyx`` for each stored axis, in the stored order, instead of what the file says.
    spacing
        Voxel size along z, y and x, instead of what the file says: one number, one per spatial axis, or by axis name.
    unit
        Unit of ``spacing``, and of axes whose unit the file does not say.

    Returns
    -------
    Volume
        Spacing 1.0 and unit None where neither the file nor the caller gives one.

    Raises
    ------
    ImageError
        If the file is missing, damaged, RGB, needs an absent codec, or does not say what its axes are.
    UsageError
        If ``axes``, ``spacing`` or ``unit`` do not fit the file.
    """
    path = Path(path).absolute()
    series = series_number(str(path), series)
    index = plane_index(str(path), series)
    if index.series_count > 1:
        logger.warning("%s holds %d series; series %d is read.", path, index.series_count, series)
    stored = _stored_axes(path, index, axes)
    order = tuple(stored.index(axis) for axis in AXES if axis in stored)
    source = TiffSource(str(path), series, order, tuple(index.shape[axis] for axis in order), index.dtype)
    grid = _grid(path, index, stored, source.shape, spacing, unit)
    return Volume.from_source(
        source,
        grid,
        chunks=_chunks(source, index.segment[0]),
        channels=channel_names(index.calibration.channels, grid.shape[grid.axes.index("c")]) if "c" in stored else (),
        name=_name(path, series),
        identity=_identity(index, source),
    )


def _name(path: Path, series: int) -> str:
    stem = path.name
    for ending in (".tiff", ".tif", ".ome", ".companion"):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    return f"{stem}-{series}" if series else stem


def _identity(index: PlaneIndex, source: TiffSource) -> str:
    """Size and time of all files of the series, and what is read from them in which order."""
    beside = [index.described_in] if index.described_in else []
    seen = [Path(file).stat() for file in (*beside, *(each.path for each in index.files))]
    files = ", ".join(f"{each.st_size} bytes of {each.st_mtime_ns}" for each in seen)
    return f"series {source.series}, axes {source.order}, {files}"


def _stored_axes(path: Path, index: PlaneIndex, axes: str | None) -> str:
    """Take one letter of tczyx per stored axis, from the caller or else from the file."""
    stored = (index.axes if axes is None else axes).lower()
    allowed = len(set(stored)) == len(stored) and set("yx") <= set(stored) <= set(AXES)
    if allowed and len(stored) == len(index.shape):
        return stored
    found = f"{path}: series of axes {index.axes} and shape {index.shape}"
    if axes is not None:
        raise UsageError(f"{found}; --axes {axes} does not fit. {_axes_advice(index)}")
    raise ImageError(f"{found}; the file does not say what each axis is. {_axes_advice(index)}")


def _axes_advice(index: PlaneIndex) -> str:
    count = len(index.shape)
    example = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}.get(count)
    if example is None:
        return "At most five axes, a subset of tczyx, can be read."
    return f"Name its {count} axes in the order of the shape, each one of tczyx: such as --axes {example}."


def _grid(path: Path, index: PlaneIndex, stored: str, shape: Shape, spacing: Spacing | None, unit: str | None) -> Grid:
    axes = "".join(axis for axis in AXES if axis in stored)
    said = index.axes.lower()
    # What the file says of z belongs to the axis that it calls z, unless it calls none so.
    same = {axis for axis in stored if said.find(axis) in (-1, stored.index(axis))}
    steps = {axis: step for axis, step in index.calibration.spacing.items() if axis in same}
    units: dict[str, str | None] = {axis: name for axis, name in index.calibration.units.items() if axis in steps}
    given = given_spacing(spacing, axes)
    units |= given_units(path, axes, units, given, unit)
    steps |= given
    return Grid(
        axes=axes,
        shape=shape,
        spacing=tuple(steps.get(axis, 1.0) for axis in axes),
        origin=(0.0,) * len(axes),
        units=tuple(units.get(axis) for axis in axes),
    )


def given_spacing(spacing: Spacing | None, axes: str) -> dict[str, float]:
    """Take the spacing that the caller gives, by axis.

    Raises
    ------
    UsageError
        If it is not positive, or not for these axes.
    """
    if spacing is None:
        return {}
    named = per_spatial_axis(spacing, axes, what="spacing", missing=math.nan)
    named = {axis: float(step) for axis, step in named.items() if not isinstance(spacing, Mapping) or axis in spacing}
    for axis, step in named.items():
        if not (math.isfinite(step) and step > 0):
            raise UsageError(f"spacing {axis}={step}: give a positive number, such as --spacing {axis}=0.5.")
    return named


def given_units(
    path: Path, axes: str, said: Mapping[str, str | None], given: Mapping[str, float], unit: str | None
) -> dict[str, str | None]:
    """Name the units of the spatial axes that the caller's ``spacing`` and ``unit`` change.

    Raises
    ------
    UsageError
        If ``unit`` is no unit of length, or contradicts what the file says.
    """
    spatial = [axis for axis in axes if axis in SPATIAL]
    if unit is None:
        # A spacing without a unit counts in the file's own, where that is one.
        others = {said[axis] for axis in spatial if axis in said}
        return {axis: said.get(axis) or (next(iter(others)) if len(others) == 1 else None) for axis in given}
    name = check_unit(unit)
    kept = [axis for axis in spatial if axis in said and axis not in given and said[axis] != name]
    if kept:
        raise UsageError(
            f"{path} gives the spacing of {','.join(kept)} in {said[kept[0]]}, not {name}. Give --spacing with --unit."
        )
    return dict.fromkeys(spatial, name)


def _chunks(source: TiffSource, segment_length: int) -> Shape:
    """Whole planes, as many as fit in `CHUNK_BYTES`; planes above twice that are cut between strips or tiles."""
    *leading, rows, columns = source.shape
    row_bytes = max(1, columns * source.dtype.itemsize)
    if rows * row_bytes > 2 * CHUNK_BYTES:
        bands = max(1, CHUNK_BYTES // (row_bytes * segment_length))
        return (*(1,) * len(leading), min(rows, bands * segment_length), columns)
    left = max(1, CHUNK_BYTES // max(1, rows * row_bytes))
    chunks: list[int] = []
    for length in reversed(leading):
        chunks.insert(0, _even(length, left))
        left = max(1, left // length)
    return (*chunks, rows, columns)


def _even(length: int, most: int) -> int:
    """Find the largest part when ``length`` is cut into equal parts of at most ``most``."""
    return -(-length // -(-length // most))
