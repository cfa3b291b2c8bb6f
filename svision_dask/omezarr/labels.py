"""Labels of an OME-Zarr image: which there are, and what they are on another grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from ome_zarr_models.common.image_label_types import LabelBase

from svision_dask.errors import ImageError
from svision_dask.geometry import SPATIAL, Grid, Shape
from svision_dask.omezarr.metadata import folder_inside, is_omezarr, read_attributes
from svision_dask.omezarr.read import open_omezarr
from svision_dask.stores.locations import Location
from svision_dask.volume import Box, Label, Missing, Source, Volume, split_box

ROUNDING = 2.0**20
"""World coordinates are compared in millionths of a voxel: a place halfway between two must not depend on rounding."""
AT_ONCE = 2**22
"""Stored voxels read in one piece where most are of no use: on a coarse level, only one in many is the nearest."""


def read_labels(path: Location, image: Volume, missing: Missing) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """Open all labels of an image, without reading voxels; also say which cannot be brought to another grid, and why.

    OME-Zarr 0.4, 0.5: "The special group "labels" found under an image Zarr contains the key "labels" containing the
    paths to label objects".
    """
    if not is_omezarr(path / "labels"):
        return (), ()
    try:
        folder = folder_inside(path, "labels", f"{path}, labels")
        zarr_format, attributes = read_attributes(folder)
    except ImageError:
        return (), ("labels (they cannot be read)",)
    held = attributes.get("ome", {}) if zarr_format == 3 else attributes
    names = held.get("labels") if isinstance(held, dict) else None
    labels, dropped = [], []
    for name in names if isinstance(names, list) else ():
        try:
            labels.append(_label(folder, str(name), image, missing))
        except ImageError as error:
            dropped.append(f"labels/{name} ({error})")
    return tuple(labels), tuple(dropped)


def _label(folder: Location, name: str, image: Volume, missing: Missing) -> Label:
    place = folder_inside(folder, name, f"{folder}, labels {name!r}")
    volume = open_omezarr(place, missing=missing)
    if volume.dtype.kind not in "iu":  # 0.4: "The pixels of the label images MUST be integer data types"
        raise ImageError(f"voxels are {volume.dtype}, not integers")
    own, others = (",".join(a for a in grid.axes if a in SPATIAL) for grid in (volume.grid, image.grid))
    if own != others:
        raise ImageError(f"their spatial axes are {own}, those of the image {others}")
    if not _is_same_place(volume.grid, image.grid):
        raise ImageError("they cover another place than the image")
    zarr_format, attributes = read_attributes(place)
    held = attributes.get("ome", {}) if zarr_format == 3 else attributes
    return Label(name=name, volume=volume, described=_described(held))


def _described(held: Any) -> dict[str, Any]:
    """Take colours and properties, where they are what the specification says."""
    described = held.get("image-label") if isinstance(held, dict) else None
    kept = {"source": {"image": "../../"}}
    if not isinstance(described, dict):
        return kept
    for keys in (("colors", "properties"), ("colors",), ("properties",)):  # they may contradict each other
        chosen = {key: described[key] for key in keys if isinstance(described.get(key), list)}
        try:
            LabelBase.model_validate(chosen)
        except ValueError:
            continue
        return {**chosen, **kept}
    return kept


def _is_same_place(labels: Grid, image: Grid) -> bool:
    """Whether both cover the same box, to a voxel of the coarser one: levels of a pyramid may differ by so much."""
    for i, axis in enumerate(labels.axes):
        k = image.axes.find(axis)
        if axis in SPATIAL:
            tolerance = 1.001 * max(labels.spacing[i], image.spacing[k])
            if any(abs(a - b) > tolerance for a, b in zip(_edges(labels, i), _edges(image, k), strict=True)):
                return False
        elif labels.shape[i] not in (1, image.shape[k] if k >= 0 else 1):
            return False
    return True


def _edges(grid: Grid, i: int) -> tuple[float, float]:
    first = grid.origin[i] - grid.spacing[i] / 2
    return first, first + grid.spacing[i] * grid.shape[i]


def label_grid(labels: Grid, image: Grid) -> Grid:
    """Make the grid of labels for an image on ``image``: its spatial axes, and the labels' own channels and times."""
    of_image = {axis: i for i, axis in enumerate(image.axes) if axis in SPATIAL}

    def mixed(own: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(other[of_image[a]] if a in of_image else value for a, value in zip(labels.axes, own, strict=True))

    return replace(
        labels,
        shape=mixed(labels.shape, image.shape),
        spacing=mixed(labels.spacing, image.spacing),
        origin=mixed(labels.origin, image.origin),
        units=mixed(labels.units, image.units),
    )


def on_grid(labels: Volume, grid: Grid) -> Volume:
    """Bring labels to another grid of the same axes, lazily: each voxel is the nearest one, by world coordinates.

    Halfway between two, the first counts. Nothing is ever averaged: the mean of two labels is a third.
    """
    assert labels.source is not None, labels
    source = NearestSource(labels.source, labels.grid, grid, grid.shape, labels.source.dtype)
    chunks = tuple(min(256, n) if axis in SPATIAL else 1 for axis, n in zip(grid.axes, grid.shape, strict=True))
    volume = Volume.from_source(source, grid, chunks=chunks, name=labels.name, identity=labels.identity)
    return replace(volume, paths=labels.paths)


@dataclass(frozen=True)
class NearestSource:
    """A source on another grid: each voxel is the nearest one."""

    source: Source
    stored: Grid
    """Of the source."""
    grid: Grid
    shape: Shape
    dtype: np.dtype[Any]
    """Voxel type, in any byte order."""

    def __getitem__(self, box: Any, /) -> npt.NDArray[Any]:
        """Read a box in one request."""
        ranges, rest = split_box(box, self.shape)
        voxels: npt.NDArray[Any] = self._nearest([self._places(axis, *r) for axis, r in enumerate(ranges)])[rest]
        return voxels

    def _nearest(self, places: list[npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
        """Read the stored voxels at ``places`` along each axis; where they lie far apart, part by part."""
        around = _around(places)
        longest = max(range(len(places)), key=lambda axis: places[axis].size)
        if math.prod(b.stop - b.start for b in around) > max(AT_ONCE, 2 * math.prod(p.size for p in places)):
            halves = np.array_split(places[longest], 2)
            parts = [self._nearest([*places[:longest], half, *places[longest + 1 :]]) for half in halves if half.size]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=longest)
        return np.asarray(self.source[around])[np.ix_(*(p - p[0] for p in places))]

    def absent(self, box: Box) -> list[str]:
        """List the stored chunks that ``box`` touches and that are not there."""
        find = getattr(self.source, "absent", None)
        if find is None:
            return []
        found: list[str] = find(_around([self._places(axis, b.start, b.stop) for axis, b in enumerate(box)]))
        return found

    def _places(self, axis: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Which stored voxels are nearest, along one axis, for voxels ``start … stop``; they only ever go up."""
        world = self.grid.origin[axis] + self.grid.spacing[axis] * np.arange(start, stop)
        place = (world - self.stored.origin[axis]) / self.stored.spacing[axis]
        nearest = np.ceil(np.round(place * ROUNDING) / ROUNDING - 0.5).astype(np.int64)
        return np.clip(nearest, 0, self.stored.shape[axis] - 1)


def _around(places: list[npt.NDArray[np.int64]]) -> Box:
    return tuple(slice(int(p[0]), int(p[-1]) + 1) if p.size else slice(0, 0) for p in places)
