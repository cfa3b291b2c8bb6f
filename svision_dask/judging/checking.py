"""Check an OME-Zarr: by published models and schemas, by opening it as we do, and by rules that no schema can state."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import numpy as np

from svision_dask.errors import ImageError, UnsupportedError, one_line
from svision_dask.geometry import SPATIAL, Grid
from svision_dask.omezarr.collections import read_collection
from svision_dask.omezarr.conformance import kinds_of, metadata_problems
from svision_dask.omezarr.extras import is_number
from svision_dask.omezarr.metadata import folder_inside, is_omezarr, read_attributes
from svision_dask.omezarr.read import ImageInfo, describe_omezarr, open_omezarr
from svision_dask.running.trust_images import map_place
from svision_dask.running.trust_maps import MAPS
from svision_dask.stores.locations import Location, located
from svision_dask.tiff.metadata import LENGTHS, TIMES
from svision_dask.volume import Box, Volume

UNITS = {"t": set(TIMES.values()), **{axis: set(LENGTHS.values()) for axis in SPATIAL}}
"""Names of UDUNITS-2; OME-Zarr 0.4, 0.5: "unit … SHOULD be one of the following strings"."""
SAME_PLACE = 0.05
"""Of a voxel of the finest level: how exactly the levels of a pyramid must lie on each other to go unmentioned."""
SAME_MEAN, OTHER_MEAN = 0.25, 1.0
"""Of the standard deviation of level 0: from where on the mean of a level is told, and from where on it is an error."""

Severity = Literal["error", "warning"]
Moments = tuple[float, float]
"""Mean and standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it must be, or should be."""

    where: str
    problem: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.severity}  {self.where}: {self.problem}"


def check(path: str | Location, *, data: bool = False) -> Iterator[Finding]:
    """Find what is wrong with an OME-Zarr, 0.4 or 0.5: an image with its labels, a well, a plate or series.

    Parameters
    ----------
    path
        Folder or URL.
    data
        Read all voxels: every chunk must be there and whole, and levels must have the same mean. Otherwise the first
        and the last shard of each level are read.

    Raises
    ------
    ImageError
        If it is no zarr group at all.
    """
    place = located(path)
    version, attributes = _attributes(place)
    if not kinds_of(version, attributes):
        yield Finding(where=str(place), problem="a zarr group that is no OME-Zarr 0.4 or 0.5")
        return
    yield from _check_group(place, data)


def _attributes(place: Location) -> tuple[Literal["0.4", "0.5"], Any]:
    zarr_format, attributes = read_attributes(place)
    return ("0.5" if zarr_format == 3 else "0.4"), attributes


def _check_group(place: Location, data: bool) -> Iterator[Finding]:
    """Check a group and all that it names."""
    try:
        version, attributes = _attributes(place)
    except ImageError as error:
        yield Finding(where=str(place), problem=str(error))
        return
    if stated := _other_version(version, attributes):
        yield Finding(where=str(place), problem=f"OME-Zarr {stated}; what can be judged is 0.4 and 0.5")
        return
    problems = list(metadata_problems(version, attributes))
    yield from (Finding(where=str(place), problem=problem) for problem in problems)
    kinds = kinds_of(version, attributes)
    if "multiscales" in kinds:
        ome = attributes if version == "0.4" else attributes["ome"]
        yield from _check_image(place, ome, data, is_valid=not problems)
    elif not {"labels"}.issuperset(kinds):
        yield from _check_collection(place, data)


def _other_version(version: Literal["0.4", "0.5"], attributes: Any) -> str | None:
    """Find a version of OME-Zarr that no judge here knows, where one is stated."""
    if version == "0.5":
        ome = attributes.get("ome")
        stated = ome.get("version") if isinstance(ome, dict) else None
    else:
        entries = attributes.get("multiscales")
        first = entries[0] if isinstance(entries, list) and entries else None
        stated = first.get("version") if isinstance(first, dict) else None
    return stated if isinstance(stated, str) and re.fullmatch(r"0\.[1236789].*", stated) else None


def _check_collection(place: Location, data: bool) -> Iterator[Finding]:
    try:
        collection = read_collection(place)
    except ImageError as error:
        yield Finding(where=str(place), problem=str(error))
        return
    images = collection.images if collection else ()
    wells = {image.rpartition("/")[0] for image in images} if collection and collection.kind == "plate" else set()
    yield from _check_between(place, images)
    for well in sorted(wells):
        version, attributes = _attributes(place / well)
        for problem in metadata_problems(version, attributes):
            yield Finding(where=str(place / well), problem=problem)
    for image in images:
        yield from _check_group(place / image, data)


def _check_between(place: Location, paths: Iterable[str]) -> Iterator[Finding]:
    """Look for the metadata of the groups between a group and what it names: zarr v3 has no implicit groups."""
    above = {path.rsplit("/", n)[0] for path in paths for n in range(1, path.count("/") + 1)}
    for group in sorted(above):
        if not is_omezarr(place / group):
            yield Finding(where=str(place / group), problem="a folder on the way to an image that is no zarr group")


def _check_image(place: Location, ome: Any, data: bool, *, is_valid: bool) -> Iterator[Finding]:
    try:
        described = describe_omezarr(place)
    except UnsupportedError as error:
        valid = "its metadata are valid, but " if is_valid else ""
        yield Finding(where=str(place), problem=f"{valid}not read by svision-dask: {error}", severity="warning")
        return
    except ImageError as error:
        yield Finding(where=str(place), problem=str(error))
        return
    is_label = "image-label" in ome
    where = str(place)
    yield from _check_levels(where, described)
    yield from _check_display(where, described, ome.get("omero"))
    if is_label and any(np.dtype(level.dtype).kind not in "iu" for level in described.levels):
        yield Finding(where=where, problem=f"labels of {described.levels[0].dtype}; allowed are integers")
    yield from _check_voxels(place, described, data=data, is_label=is_label)
    if is_omezarr(place / "labels"):
        yield from _check_labels(place, len(described.levels), data)
    for kind in MAPS if _has_maps(described) else ():
        yield from _check_group(map_place(place, kind), data)


def _has_maps(described: ImageInfo) -> bool:
    """Whether an image says that it was made with trust maps."""
    plan = described.provenance.get("plan")
    return isinstance(plan, dict) and plan.get("trust") is True


def _check_labels(place: Location, count: int, data: bool) -> Iterator[Finding]:
    folder = place / "labels"
    try:
        version, attributes = _attributes(folder)
    except ImageError as error:
        yield Finding(where=str(folder), problem=str(error))
        return
    for problem in metadata_problems(version, attributes):
        yield Finding(where=str(folder), problem=problem)
    held = attributes if version == "0.4" else attributes.get("ome", {})
    names = held.get("labels") if isinstance(held, dict) else None
    if isinstance(names, list):
        yield from _check_between(folder, [name for name in names if isinstance(name, str)])
    for name in names if isinstance(names, list) else ():
        try:
            label = folder_inside(folder, str(name), f"{folder}, labels {name!r}")
            found = len(describe_omezarr(label).levels)
        except UnsupportedError:  # which is said below
            found = count
        except ImageError as error:
            yield Finding(where=str(folder), problem=str(error))
            continue
        if found != count:
            # 0.4: "MUST have the same number of entries (scale levels) as the original unlabeled image"; 0.5 likewise
            yield Finding(where=str(label), problem=f"{found} levels for an image of {count}", severity="warning")
        yield from _check_group(label, data)


def _check_levels(where: str, described: ImageInfo) -> Iterator[Finding]:
    """Compare all levels with the finest: one dtype, units that have a name, one place in the world."""
    first = described.levels[0]
    if described.axes != first.grid.axes:
        # 0.4, 0.5: "the spatial axes SHOULD be ordered as "zyx""
        problem = f"axes are stored in the order {','.join(described.axes)}, which few programs read; usual is z,y,x"
        yield Finding(where=where, problem=problem, severity="warning")
    for axis, unit in zip(first.grid.axes, first.grid.units, strict=True):
        if unit is not None and unit not in UNITS.get(axis, set()):
            problem = f"axis {axis} has the unit {unit!r}, which is no name of UDUNITS-2, such as micrometer or second"
            yield Finding(where=where, problem=problem, severity="warning")
    for level in described.levels[1:]:
        at = f"{where}/{level.path}"
        if level.dtype != first.dtype:
            yield Finding(where=at, problem=f"voxels are {level.dtype}, those of the finest level {first.dtype}")
        yield from _check_place(at, level.grid, first.grid)


def _check_place(where: str, grid: Grid, finest: Grid) -> Iterator[Finding]:
    for i, axis in enumerate(grid.axes):
        if axis not in SPATIAL:
            continue
        coarse, fine = grid.spacing[i], finest.spacing[i]
        off = grid.origin[i] - coarse / 2 - (finest.origin[i] - fine / 2)
        longer = coarse * grid.shape[i] - fine * finest.shape[i]
        if abs(off) > coarse or not -coarse <= longer + off <= 2 * coarse:
            problem = f"along {axis} it covers another place than the finest level"
            yield Finding(where=where, problem=problem)
        elif abs(off) > SAME_PLACE * fine:
            problem = f"along {axis} its translation is off by {abs(off) / fine:.3g} voxels of the finest level"
            yield Finding(where=where, problem=problem, severity="warning")


def _check_display(where: str, described: ImageInfo, omero: Any) -> Iterator[Finding]:
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        return
    grid = described.levels[0].grid
    count = grid.shape[grid.axes.index("c")] if "c" in grid.axes else 1
    if len(channels) != count:
        yield Finding(where=where, problem=f"display settings for {len(channels)} channels; the image has {count}")
    for number, channel in enumerate(channels):
        window = channel.get("window") if isinstance(channel, dict) else None
        if not isinstance(window, dict):
            problem = f"channel {number} has no window to show it in"
            yield Finding(where=where, problem=problem, severity="warning")
        elif not _is_window(window):
            problem = f"channel {number}: window {window}; min, max, start and end must be numbers, in order"
            yield Finding(where=where, problem=problem)


def _is_window(window: dict[str, Any]) -> bool:
    found = [window.get(key) for key in ("min", "max", "start", "end")]
    numbers = [float(n) for n in found if is_number(n)]
    return len(numbers) == len(found) and numbers[0] <= numbers[1] and numbers[2] <= numbers[3]


def _check_voxels(place: Location, described: ImageInfo, *, data: bool, is_label: bool) -> Iterator[Finding]:
    """Read the first and the last shard of each level, or all; compare the means of all levels."""
    known: list[Moments] = []
    for number, level in enumerate(described.levels):
        at, volume = f"{place}/{level.path}", open_omezarr(place, level=number, missing="empty")
        looked_at = [tuple(slice(0, n) for n in volume.grid.shape)] if data else _ends(volume)
        try:
            absent = sum(volume.absent(box) for box in looked_at)
            if absent:  # ours never leave out a chunk; other programs leave out empty ones
                severity: Severity = "error" if described.provenance else "warning"
                problem = f"{absent} chunks are not there, and read as empty"
                yield Finding(where=at, problem=problem, severity=severity)
            if data:
                known.append(_mean(volume))
            for box in () if data else looked_at:
                volume.read(box)
        except Exception as error:  # codecs raise nearly anything on damaged bytes
            yield Finding(where=at, problem=f"cannot be read: {one_line(error)[:300]}")
            return
        if known and not is_label:
            yield from _compare(at, known[0], known[-1], rounding=0.5 if volume.dtype.kind in "iub" else 1e-6)


def _compare(where: str, finest: Moments, level: Moments, *, rounding: float) -> Iterator[Finding]:
    """Compare mean and standard deviation with those of the finest level."""
    off = max(0.0, abs(level[0] - finest[0]) - rounding)
    problem = f"its voxels have a mean of {level[0]:.6g}, those of the finest level {finest[0]:.6g}"
    if level[1] == 0 < finest[1] - rounding:
        yield Finding(where=where, problem=f"all of its voxels are {level[0]:.6g}; those of the finest level differ")
    elif off > OTHER_MEAN * finest[1]:
        yield Finding(where=where, problem=problem)
    elif off > SAME_MEAN * finest[1]:
        yield Finding(where=where, problem=problem, severity="warning")


def _ends(volume: Volume) -> list[Box]:
    """Cut out the first and the last shard, or chunk."""
    chunks = volume.voxels.chunks
    return [tuple(slice(0, c[0]) for c in chunks), tuple(slice(sum(c[:-1]), sum(c)) for c in chunks)]


def _mean(volume: Volume) -> Moments:
    """Mean and standard deviation of all voxels that are finite, read chunk by chunk."""
    voxels = volume.voxels.astype(np.float64)
    finite = da.where(da.isfinite(voxels), voxels, np.nan)
    mean, spread = da.compute(da.nanmean(finite), da.nanstd(finite), scheduler="threads", num_workers=2)
    return (float(mean), float(spread)) if math.isfinite(mean) else (0.0, 0.0)
