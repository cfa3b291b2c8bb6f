"""What the viewer shows of each image: where it is read from, where it lies, and what is black and what is white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import FACTORS, SPATIAL, Grid, Regions, Shape
from svision_dask.judging.compared import Stack
from svision_dask.judging.picking import Held, Picked, held, held_so_far
from svision_dask.judging.scan import OUTLIERS, SAMPLED_BLOCKS, sample_voxels, spread
from svision_dask.omezarr.arrays import dimension_names
from svision_dask.omezarr.metadata import read_attributes, read_metadata, read_provenance
from svision_dask.omezarr.read import is_omezarr
from svision_dask.omezarr.write import open_level
from svision_dask.opening.formats import find_image, open_volume
from svision_dask.running.output import begun_record
from svision_dask.stores.locations import Location, Remote, located

if TYPE_CHECKING:
    from svision_dask.volume import Box, Volume

LOOKED_AT = 64
"""Voxels along each side of a block that the contrast of an output in the making is taken from."""
LOCAL = "c'"
"""What neuroglancer calls the channels of an OME-Zarr; the quote makes them each layer's own."""
UNITS = {"meter": "m", "millimeter": "mm", "micrometer": "um", "nanometer": "nm", "second": "s"}
"""As OME-Zarr and as neuroglancer spells them."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that is to be shown."""

    place: Location
    """Its folder, where the browser reads it, or its file."""
    stored: bool
    """Whether it is an OME-Zarr, which the browser reads itself."""
    grid: Grid
    level: str | None
    """Path of the only level that is to be shown; None for all of them."""
    held: Held
    volume: Volume | None
    """None for an output in the making, which cannot be opened yet."""
    order: Shape = ()
    """For each axis of ``grid``, which axis of ``level`` it is; empty where they are the same."""

    @property
    def is_made(self) -> bool:
        """Whether it is finished, so that its attributes say where it lies."""
        return self.volume is not None


def find(given: str | Location, before: Image | None = None, **opening: Any) -> Image:
    """Find an image and what is known of it; ``before`` is what it is made of, if it is in the making.

    Raises
    ------
    ImageError
        If it cannot be read.
    UsageError
        If an option is not for it, or nobody knows where it lies.
    """
    place = located(given)
    if not isinstance(place, Remote) and not is_omezarr(place):
        volume = open_volume(place, **opening)
        return Image(place=place, stored=False, grid=volume.grid, level=None, held=held(volume), volume=volume)
    place = find_image(place, opening.get("series"))
    made = read_provenance(place)
    if made.get("state") == "incomplete":
        grid = growing(place, before.grid if before else None)
        name = held_so_far(str(place), grid, made)
        return Image(place=place, stored=True, grid=grid, level="0", held=name, volume=None)
    volume = open_volume(place, **{**opening, "series": None})
    level = opening.get("level") or 0
    said = read_metadata(place)
    path, about = said.datasets[level].path if level else None, held(volume, made)
    return Image(place=place, stored=True, grid=volume.grid, level=path, held=about, volume=volume, order=said.order)


def source_of(neuroglancer: Any, image: Image, url: str) -> Any:
    """Say where neuroglancer reads an image: at ``url``, or from this process."""
    if not image.stored:
        assert image.volume is not None
        data = neuroglancer.LocalVolume(_Readable(image.volume), dimensions=_space(neuroglancer, image.grid))
        return _placed(neuroglancer, data, image.grid)
    version, _ = read_attributes(image.place)
    if image.level is None:
        return f"{url}|zarr{version}:"
    names = dimension_names(image.place / image.level)  # of others, a transform is left out without a word
    return _placed(neuroglancer, f"{url}{image.level}/|zarr{version}:", image.grid, names, image.order)


@dataclass(frozen=True)
class _Readable:
    """What neuroglancer asks of an array: parts of it, read when they are wanted."""

    volume: Volume

    @property
    def shape(self) -> Shape:
        return self.volume.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.volume.dtype

    def __getitem__(self, box: Any) -> npt.NDArray[Any]:
        return self.volume.read(box)


def contrast_of(image: Image, picked: Picked) -> tuple[float, float] | None:
    """Find what is black and what is white: what the image asks for, or else percentiles; None where all is one."""
    volume = image.volume
    if volume is None:
        return contrast_so_far(image.place, tuple(picked[axis] for axis in image.grid.axes if axis not in SPATIAL))
    channel = picked.get("c", 0)
    window = volume.shown[channel].window if channel < len(volume.shown) else None
    if window is not None and window[2] < window[3]:
        return window[2:]
    low, high = np.percentile(sample_voxels(Stack(volume=volume, picked=picked)), OUTLIERS)
    return (float(low), float(high)) if low < high else None


def contrast_so_far(place: Location, of: tuple[int, ...] = ()) -> tuple[float, float] | None:
    """Take percentiles of blocks spread over one channel ``of`` an output in the making; 0 is not done yet, or dark."""
    array = open_level(place, 0)
    shape = array.shape[len(of) :]
    blocks = Regions(shape=shape, unit=tuple(min(n, LOOKED_AT) for n in shape))
    read = [np.asarray(array[_inside(of, blocks.at(i).box)]).ravel() for i in spread(len(blocks), SAMPLED_BLOCKS)]
    done = np.concatenate([values[(values != 0) & np.isfinite(values)] for values in read])
    low, high = np.percentile(done, OUTLIERS) if done.size else (0.0, 0.0)
    return (float(low), float(high)) if low < high else None


def _inside(of: tuple[int, ...], box: Box) -> tuple[int | slice, ...]:
    return (*of, *box)


def growing(place: Location, coarse: Grid | None) -> Grid:
    """Find where an output lies that does not say so yet: by the record of its run, or by what it is made of.

    Raises
    ------
    UsageError
        If there is no record here, as for outputs at URLs, and ``coarse`` is not what it is made of.
    """
    shape, record = open_level(place, 0).shape, begun_record(place)
    if record is not None:
        return Grid(
            axes=record["axes"],
            shape=shape,
            spacing=tuple(record["output_spacing"]),
            origin=tuple(record["output_origin"]),
            units=tuple(record["units"]),
        )
    if coarse is None:
        raise UsageError(f"{place} is being made: give what it is made of first, which says where it lies.")
    if len(shape) != len(coarse.shape):
        raise UsageError(f"{place} is being made of another volume. Give that one first.")
    each = zip(coarse.axes, shape, coarse.shape, strict=True)  # it may have been made of a few channels
    coarse = replace(coarse, shape=tuple(m if axis in SPATIAL else n for axis, n, m in each))
    factor = tuple(n // m for n, m in zip(shape, coarse.shape, strict=True))
    training = read_provenance(place).get("training") or {}
    if any(f not in FACTORS for f in factor):
        raise UsageError(f"{place} is being made of another volume. Give that one first.")
    return coarse.finer(factor, training.get("sampling", "area"))


def apart(before: Grid, after: Grid) -> str | None:
    """Say how AFTER lies elsewhere than BEFORE by more than a coarse voxel, if it does."""
    if before.units != after.units and _units(before) != _units(after):
        return f"AFTER is in {_units(after)}, BEFORE in {_units(before)}"
    for axis in SPATIAL:
        if axis in before.axes and axis in after.axes:
            (a, b), (c, d) = (_extent(grid, axis) for grid in (before, after))
            if max(abs(a - c), abs(b - d)) > before.spacing[before.axes.index(axis)]:
                return f"AFTER covers {axis} = {c:.4g} to {d:.4g}, BEFORE {a:.4g} to {b:.4g}"
    return None


def _units(grid: Grid) -> str:
    return ", ".join(sorted({grid.units[i] or "no unit" for i in grid.spatial}))


def _extent(grid: Grid, axis: str) -> tuple[float, float]:
    """Where the outer edges of the first and the last voxel are."""
    i = grid.axes.index(axis)
    first = grid.origin[i] - grid.spacing[i] / 2
    return first, first + grid.shape[i] * grid.spacing[i]


def _space(neuroglancer: Any, grid: Grid) -> Any:
    """Count in voxels; the channels are each layer's own, as neuroglancer has those of an OME-Zarr."""
    units = [UNITS.get(unit or "", "") for unit in grid.units]
    names = [LOCAL if axis == "c" else axis for axis in grid.axes]
    return neuroglancer.CoordinateSpace(names=names, units=units, scales=list(grid.spacing))


def _placed(neuroglancer: Any, source: Any, grid: Grid, names: Sequence[str] = (), order: Shape = ()) -> Any:
    """Put voxels where they are in the world: neuroglancer counts in voxels, and voxel 0 begins half of one earlier."""
    shift = [o / s - 0.5 * (axis in SPATIAL) for axis, o, s in zip(grid.axes, grid.origin, grid.spacing, strict=True)]
    order = order or tuple(range(len(shift)))
    matrix = np.column_stack([np.eye(len(shift))[list(order)], shift])
    own, stored = _space(neuroglancer, grid), _space(neuroglancer, grid)
    if names:
        units, scales = ([each[order.index(axis)] for axis in range(len(names))] for each in (own.units, own.scales))
        stored = neuroglancer.CoordinateSpace(names=names, units=units, scales=scales)
    transform = neuroglancer.CoordinateSpaceTransform(input_dimensions=stored, output_dimensions=own, matrix=matrix)
    return neuroglancer.LayerDataSource(url=source, transform=transform)


def layer(neuroglancer: Any, source: Any, shader: str, picked: Picked) -> Any:
    """Make a layer that shows one channel: neuroglancer would begin with the one in the middle."""
    if "c" not in picked:
        return neuroglancer.ImageLayer(source=source, shader=shader)
    own = neuroglancer.CoordinateSpace(names=[LOCAL], units=[""], scales=[1])
    return neuroglancer.ImageLayer(source=source, shader=shader, local_dimensions=own, local_position=[picked["c"]])
