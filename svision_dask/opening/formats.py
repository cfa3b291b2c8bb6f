"""Open whatever the user names, by what it contains, and put single-channel volumes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import Grid, Shape, Vector
from svision_dask.omezarr.metadata import is_omezarr
from svision_dask.opening.in_memory import open_array
from svision_dask.opening.selection import Channels, Times, select
from svision_dask.stores.locations import Location, Remote, located
from svision_dask.tiff.companion import is_companion
from svision_dask.tiff.files import is_files, open_tiff_files
from svision_dask.tiff.read import Spacing, is_tiff, open_tiff
from svision_dask.volume import Box, Missing, Source, Volume, native, split_box

READABLE = (
    "an OME-Zarr folder (0.4 or 0.5), a TIFF file (OME-TIFF, ImageJ, or a plain stack with --axes), or a folder of "
    "TIFF planes"
)
_SAME_SPACING = 1e-6
"""Relative; ImageJ writes six decimals of its resolution."""


def open_volume(
    path: Any,
    *,
    level: int = 0,
    series: int | str | None = None,
    channel: Channels | None = None,
    time: Times | None = None,
    axes: str | None = None,
    spacing: Spacing | None = None,
    unit: str | None = None,
    missing: Missing = "error",
) -> Volume:
    """Open an image as a lazy volume; the format is found by content, not by name.

    Parameters
    ----------
    path
        OME-Zarr folder, or its URL (s3, gs, https); TIFF file; a folder or pattern of TIFF files; or an array of numpy,
        dask or xarray, as `in_memory.open_array` takes it.
    level
        Level of the OME-Zarr pyramid; 0 is the finest.
    series
        Which image of a TIFF file, of bioformats2raw, or of a plate or well: counted from 0, or its name or path.
    channel, time
        Which of them; all by default, as in `selection.select`.
    axes, spacing, unit
        For TIFF files and arrays, what these do not say, as in `open_tiff` and `open_array`.
    missing
        Whether a chunk of an OME-Zarr that is not there is an error, or is empty, as `open_omezarr`.

    Returns
    -------
    Volume
        Lazy: its metadata are read, its voxels are not.

    Raises
    ------
    ImageError
        If there is no such file, or it is not an image that can be read without guessing.
    UsageError
        If an option is not for this format.

    Examples
    --------
    >>> import numpy as np
    >>> volume = open_volume(np.zeros((3, 4, 8, 8), "uint8"), axes="czyx", spacing=0.5, unit="um", channel=[0, 2])
    >>> volume.grid.axes, volume.grid.shape, volume.grid.units
    ('czyx', (2, 4, 8, 8), (None, 'micrometer', 'micrometer', 'micrometer'))
    """
    if not isinstance(path, (str, Path, Remote)):
        _refuse("the array", "no file", level=level or None, series=series)
        array = open_array(path, axes=axes, spacing=spacing, unit=unit)
        return select(array, channel=channel, time=time)
    volume = _open(located(path), level, series, missing, axes=axes, spacing=spacing, unit=unit)
    return select(volume, channel=channel, time=time)


def _open(path: Location, level: int, series: int | str | None, missing: Missing, **given: Any) -> Volume:
    if not isinstance(path, Remote) and is_files(path) and not is_omezarr(path):
        _refuse(path, "several TIFF files, each read as a whole", level=level or None, series=series)
        return open_tiff_files(path, **given)
    if isinstance(path, Remote) or path.is_dir():
        _refuse(path, "an OME-Zarr, which says this itself", **given)
        return replace(_open_folder(path, level, series, missing), paths=(str(path),))
    if not path.exists():
        raise ImageError(f"{path} does not exist; give {READABLE}.")
    if not is_tiff(path) and not is_companion(path):
        raise ImageError(f"{path} is neither OME-Zarr nor TIFF; give {READABLE}.")
    _refuse(path, "a TIFF, of which only level 0 is read", level=level or None)
    return replace(open_tiff(path, series=series or 0, **given), paths=(str(path),))


def _open_folder(path: Location, level: int, series: int | str | None, missing: Missing) -> Volume:
    from svision_dask.omezarr.labels import read_labels
    from svision_dask.omezarr.read import open_omezarr

    image = find_image(path, series)
    volume = open_omezarr(image, level=level, missing=missing)
    labels, dropped = read_labels(image, volume, missing)
    return replace(volume, labels=labels, dropped=(*volume.dropped, *dropped))


def find_image(path: Location, series: int | str | None) -> Location:
    """Find the one image that is meant: an OME-Zarr itself, or one of those that it holds.

    Raises
    ------
    ImageError
        If it is no OME-Zarr, or holds several images and ``series`` is None.
    UsageError
        If ``series`` is none of them, or there are none.
    """
    from svision_dask.omezarr.collections import read_collection

    if not isinstance(path, Remote) and not is_omezarr(path):
        raise ImageError(f"{path} is a folder without zarr metadata; give {READABLE}.")
    collection = read_collection(path)
    if collection is None:
        _refuse(path, "an OME-Zarr, which has no series", series=series)
        return path
    return path / collection.find(path, series)


def _refuse(path: Location | str, reason: str, **options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{path} is {reason}: leave out {' and '.join(given)}.")


@dataclass(frozen=True)
class StackedSource:
    """Sources of equal shape as one, with a new axis that counts them."""

    sources: tuple[Source, ...]
    axis: int
    """Position of the new axis."""
    shape: Shape
    dtype: np.dtype[Any]
    """In the machine's byte order."""

    def __getitem__(self, box: Any, /) -> npt.NDArray[Any]:
        """Read a box from those sources that it touches."""
        ranges, rest = split_box(box, self.shape)
        block = np.empty([stop - start for start, stop in ranges], self.dtype)
        boxes = [slice(*r) for r in ranges]
        start, stop = ranges[self.axis]
        inner = (*boxes[: self.axis], *boxes[self.axis + 1 :])
        for channel, source in zip(np.moveaxis(block, self.axis, 0), self.sources[start:stop], strict=True):
            channel[...] = source[inner]
        voxels: npt.NDArray[Any] = block[rest]
        return voxels

    @property
    def kept_bytes(self) -> int:
        """What reading it may keep in memory."""
        return sum(getattr(source, "kept_bytes", 0) for source in self.sources)

    def absent(self, box: Box) -> list[str]:
        """List the stored chunks that are not there, of all sources that ``box`` touches."""
        inner = (*box[: self.axis], *box[self.axis + 1 :])
        touched = (source for source in self.sources[box[self.axis]] if hasattr(source, "absent"))
        return [key for source in touched for key in source.absent(inner)]


def stack_channels(volumes: Sequence[Volume]) -> Volume:
    """Put single-channel volumes together as the channels of one, without reading; they are named after the volumes.

    Parameters
    ----------
    volumes
        Volumes without a channel axis, of equal grids and voxel types.

    Returns
    -------
    Volume
        The channel axis comes after t, before space.

    Raises
    ------
    UsageError
        If there are no volumes.
    ImageError
        If a volume has a channel axis, or two differ in axes, shape, voxel type, spacing, units or origin.

    Examples
    --------
    >>> import numpy as np
    >>> plane = open_volume(np.zeros((4, 8)), spacing=0.5)
    >>> both = stack_channels([plane, plane])
    >>> both.grid.axes, both.grid.shape
    ('cyx', (2, 4, 8))
    """
    if not volumes:
        raise UsageError("no volumes to put together; give at least one.")
    first = volumes[0]
    for volume in volumes:
        if "c" in volume.grid.axes:
            raise ImageError(
                f"{volume.name} has channels already (axes {volume.grid.axes}); give one channel per file."
            )
        _check_equal(first, volume)
    axis = int("t" in first.grid.axes)
    grid = _with_channels(first.grid, axis, len(volumes))
    source = _stacked_source(volumes, axis, grid.shape)
    if source is not None:  # a graph that grows with the number of volumes, not of their chunks
        chunks = tuple(int(n) for n in (*first.voxels.chunksize[:axis], 1, *first.voxels.chunksize[axis:]))
        stacked = Volume.from_source(source, grid, chunks=chunks)
    else:
        stacked = Volume(voxels=da.stack([volume.voxels for volume in volumes], axis=axis), grid=grid)
    return replace(
        stacked,
        channels=tuple(volume.name for volume in volumes),
        stored=first.stored and (*first.stored[:axis], 1, *first.stored[axis:]),
        name=" + ".join(volume.name for volume in volumes),
        paths=tuple(path for volume in volumes for path in volume.paths),
        identity=", ".join(v.identity for v in volumes) if all(v.identity for v in volumes) else "",
    )


def _stacked_source(volumes: Sequence[Volume], axis: int, shape: Shape) -> StackedSource | None:
    """Stack what the volumes are read from; None where one is computed, and has no source."""
    sources = tuple(volume.source for volume in volumes if volume.source is not None)
    return StackedSource(sources, axis, shape, volumes[0].dtype) if len(sources) == len(volumes) else None


def _with_channels(grid: Grid, axis: int, count: int) -> Grid:
    def inserted(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*values[:axis], value, *values[axis:])

    return replace(
        grid,
        axes="".join(inserted(tuple(grid.axes), "c")),
        shape=inserted(grid.shape, count),
        spacing=inserted(grid.spacing, 1.0),
        origin=inserted(grid.origin, 0.0),
        units=inserted(grid.units, None),
    )


def _check_equal(first: Volume, other: Volume) -> None:
    a, b = first.grid, other.grid
    pairs: list[tuple[str, Any, Any]] = [
        ("axes", a.axes, b.axes),
        ("shape", a.shape, b.shape),
        ("voxel type", native(first.dtype).name, native(other.dtype).name),
        ("units", a.units, b.units),
    ]
    differences = [pair for pair in pairs if pair[1] != pair[2]]
    if not differences:
        placements = [("spacing", a.spacing, b.spacing), ("origin", a.origin, b.origin)]
        differences = [pair for pair in placements if not _close(pair[1], pair[2], a.spacing)]
    for what, one, two in differences[:1]:
        raise ImageError(
            f"{other.name} has {what} {two}, {first.name} has {one}. "
            "Channels of one volume must be equal in this; convert them apart."
        )


def _close(a: Vector, b: Vector, spacing: Vector) -> bool:
    return all(abs(x - y) <= _SAME_SPACING * step for x, y, step in zip(a, b, spacing, strict=True))
