"""Choose channels and time points of a volume, by number or by name, without reading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import Shape
from svision_dask.volume import Box, Source, Volume, split_box

Channels = int | str | Sequence[int | str]
Times = int | str | slice


@dataclass(frozen=True)
class TakenSource:
    """Those positions of a source along one axis that were chosen; nothing else of it is ever read."""

    source: Source
    axis: int
    positions: tuple[int, ...]
    shape: Shape
    dtype: np.dtype[Any]
    """Voxel type, in any byte order."""

    def __getitem__(self, box: Any, /) -> npt.NDArray[Any]:
        """Read a box: in one request where the positions are neighbours, otherwise one by one."""
        ranges, rest = split_box(box, self.shape)
        wanted = self.positions[slice(*ranges[self.axis])]
        boxes = [slice(*r) for r in ranges]
        spans = [slice(wanted[0], wanted[-1] + 1)] if _are_neighbours(wanted) else [slice(p, p + 1) for p in wanted]
        parts = [np.asarray(self.source[tuple(self._with(boxes, span))]) for span in spans]
        voxels: npt.NDArray[Any] = np.concatenate(parts, axis=self.axis)[rest]
        return voxels

    def absent(self, box: Box) -> list[str]:
        """List the stored chunks that ``box`` touches and that are not there."""
        find = getattr(self.source, "absent", None)
        if find is None:
            return []
        touched = [slice(p, p + 1) for p in self.positions[box[self.axis]]]
        found = [key for span in touched for key in find(tuple(self._with(list(box), span)))]
        return list(dict.fromkeys(found))  # positions share chunks

    @property
    def kept_bytes(self) -> int:
        """What reading it may keep in memory."""
        return int(getattr(self.source, "kept_bytes", 0))

    def _with(self, boxes: list[slice], span: slice) -> list[slice]:
        return [*boxes[: self.axis], span, *boxes[self.axis + 1 :]]


def select(volume: Volume, *, channel: Channels | None = None, time: Times | None = None) -> Volume:
    """Choose channels and time points; all axes stay, and the time of the first chosen point is the origin.

    Parameters
    ----------
    volume
        With an axis c, or t, for what is chosen.
    channel
        Numbers from 0, or names; as one text with commas between them, or one by one. They come in the order given.
    time
        A number from 0, ``start:stop``, ``start:stop:step``, or a slice.

    Raises
    ------
    UsageError
        If the volume has no such axis, or no such channel or time.
    """
    if channel is not None:
        _check_axis(volume, "c", "--channel")
        chosen = _channels(volume, channel)
        volume = _taken(volume, "c", chosen)
    if time is not None:
        _check_axis(volume, "t", "--time")
        volume = _taken(volume, "t", _times(volume, time))
    return volume


def _check_axis(volume: Volume, axis: str, option: str) -> None:
    if axis not in volume.grid.axes:
        raise UsageError(f"{volume.name} has axes {volume.grid.axes}, without {axis}: leave out {option}.")


def _channels(volume: Volume, channel: Channels) -> tuple[int, ...]:
    names, count = volume.channels, volume.grid.shape[volume.grid.axes.index("c")]
    if isinstance(channel, str) and channel not in names:  # a name may have a comma in it
        channel = [part.strip() for part in channel.split(",")]
    wanted = [channel] if isinstance(channel, str | int) else list(channel)
    chosen = tuple(channel_number(name, names, count) for name in wanted)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UsageError(f"--channel {channel}: give each channel once, at least one.")
    return chosen


def channel_number(wanted: int | str, names: Sequence[str], count: int) -> int:
    """Find the number of one channel: a name goes before a number, and a name that occurs twice is none.

    Raises
    ------
    UsageError
        If there is none such.
    """
    if isinstance(wanted, str) and names.count(wanted) == 1:
        return names.index(wanted)
    number = int(wanted) if isinstance(wanted, int) or wanted.isdecimal() else -1
    if not 0 <= number < count:
        named = f", or by name: {', '.join(names)}" if names else ""
        raise UsageError(f"--channel {wanted}: allowed are 0 to {count - 1}{named}. Use one of them.")
    return number


def _times(volume: Volume, time: Times) -> tuple[int, ...]:
    count = volume.grid.shape[volume.grid.axes.index("t")]
    chosen = range(count)[_span(time)] if _is_inside(time, count) else range(0)
    if not chosen or (isinstance(time, slice) and chosen.step < 1):
        raise UsageError(f"--time {time}: allowed are 0 to {count - 1}, or start:stop in order, such as 0:{count}.")
    return tuple(chosen)


def _span(time: Times) -> slice:
    if isinstance(time, slice):
        return time
    if isinstance(time, int) or time.isdecimal():
        return slice(int(time), int(time) + 1)
    match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*(?::\s*([1-9]\d*)\s*)?", time)
    if match is None:
        raise UsageError(f"--time {time}: give a number from 0, or start:stop, such as 0:10.")
    return slice(*(int(end) if end else None for end in match.groups()))


def _is_inside(time: Times, count: int) -> bool:
    """Whether no end lies outside: Python's slices would silently be shorter."""
    span = _span(time)
    return (span.start or 0) >= 0 and (span.stop is None or 0 <= span.stop <= count)


def _taken(volume: Volume, axis: str, chosen: tuple[int, ...]) -> Volume:
    grid, at = volume.grid, volume.grid.axes.index(axis)
    if chosen == tuple(range(grid.shape[at])):
        return volume
    step = chosen[1] - chosen[0] if axis == "t" and len(chosen) > 1 else 1
    first = chosen[0] if axis == "t" else 0

    def changed(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*values[:at], value, *values[at + 1 :])

    grid = replace(
        grid,
        shape=changed(grid.shape, len(chosen)),
        spacing=changed(grid.spacing, grid.spacing[at] * step),
        origin=changed(grid.origin, grid.origin[at] + first * grid.spacing[at]),
    )
    if volume.source is not None:
        source = TakenSource(volume.source, at, chosen, grid.shape, volume.source.dtype)
        chunks = tuple(min(int(c), n) for c, n in zip(volume.voxels.chunksize, grid.shape, strict=True))
        voxels = Volume.from_source(source, grid, chunks=chunks).voxels
    else:
        source, voxels = None, da.take(volume.voxels, list(chosen), axis=at)
    known = volume.chosen.get(axis, range(volume.grid.shape[at]))
    return replace(
        volume,
        voxels=voxels,
        source=source,
        grid=grid,
        chosen={**volume.chosen, axis: tuple(known[i] for i in chosen)},
        channels=_of_chosen(volume.channels, axis, chosen),
        stored=volume.stored if volume.stored is not None and volume.stored[at] == 1 else None,
        shown=_of_chosen(volume.shown, axis, chosen),
        labels=tuple(replace(label, volume=_taken_label(label.volume, axis, chosen)) for label in volume.labels),
        identity=f"{volume.identity}, {axis} {chosen}" if volume.identity else "",
    )


def _of_chosen(values: tuple[Any, ...], axis: str, chosen: tuple[int, ...]) -> tuple[Any, ...]:
    """Pick what belongs to the chosen channels, where there is anything."""
    return tuple(values[i] for i in chosen) if axis == "c" and values else values


def _taken_label(volume: Volume, axis: str, chosen: tuple[int, ...]) -> Volume:
    """Labels need not have every axis, nor more than one channel or time for all."""
    at = volume.grid.axes.find(axis)
    return volume if at < 0 or volume.grid.shape[at] == 1 else _taken(volume, axis, chosen)


def _are_neighbours(positions: Sequence[int]) -> bool:
    return bool(positions) and all(b == a + 1 for a, b in pairwise(positions))
