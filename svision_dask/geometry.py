"""Where voxels sit in the world: axes, spacing and origin, and how they change on finer and coarser grids; and boxes.

Pure values; no arrays. Tuples run in axis order, one entry per axis, slowest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from svision_dask.degradation import Sampling
from svision_dask.errors import UsageError

AXES = "tczyx"
"""The axes a volume may have, in the only order in which it may have them (OME-Zarr 0.4, 0.5: time, channel, space)."""
SPATIAL = "zyx"
FACTORS = (1, 2, 4)
"""How many times finer an axis can become: each stage doubles."""

Shape = tuple[int, ...]
Vector = tuple[float, ...]
Factor = int | Sequence[int] | Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular grid of voxels and its place in the world."""

    axes: str
    """Axis names, a subset of ``"tczyx"`` in that order; y and x are always there."""
    shape: Shape
    """Voxels along each axis."""
    spacing: Vector
    """Distance between the centres of neighbouring voxels, in ``units``; 1.0 where the file does not say."""
    origin: Vector
    """World position of the centre of voxel 0."""
    units: tuple[str | None, ...]
    """Unit of each axis as OME-Zarr spells it (``"micrometer"``), or None."""

    def __post_init__(self) -> None:
        check_axes(self.axes)
        lengths = {len(self.shape), len(self.spacing), len(self.origin), len(self.units), len(self.axes)}
        if len(lengths) != 1:
            raise UsageError(
                f"grid {self.axes}: shape, spacing, origin and units must have one entry per axis: {self}."
            )

    @property
    def spatial(self) -> tuple[int, ...]:
        """Positions of the spatial axes."""
        return tuple(i for i, axis in enumerate(self.axes) if axis in SPATIAL)

    def finer(self, factor: Shape, sampling: Sampling = "area") -> Grid:
        """Make the grid with ``factor`` times more voxels, of which ``sampling`` says what the coarse ones are.

        Where voxels are means over their area, their edges stay put, so the first centre moves towards the edge by
        ``spacing·(f − 1)/(2f)``. Where they are points, the first centre stays put.

        >>> grid = Grid(axes="yx", shape=(4, 8), spacing=(1.0, 0.5), origin=(0.0, 0.0), units=("micrometer",) * 2)
        >>> grid.finer((2, 1)).shape, grid.finer((2, 1)).spacing, grid.finer((2, 1)).origin
        ((8, 8), (0.5, 0.5), (-0.25, 0.0))
        """
        shift = [(f - 1) / (2 * f) if sampling == "area" else 0.0 for f in factor]
        return replace(
            self,
            shape=tuple(n * f for n, f in zip(self.shape, factor, strict=True)),
            spacing=tuple(s / f for s, f in zip(self.spacing, factor, strict=True)),
            origin=tuple(o - s * d for o, s, d in zip(self.origin, self.spacing, shift, strict=True)),
        )

    def coarser(self, factor: Shape) -> Grid:
        """Make the grid of block means over ``factor`` voxels; a last, partial block counts as a voxel."""
        return replace(
            self,
            shape=tuple(-(-n // f) for n, f in zip(self.shape, factor, strict=True)),
            spacing=tuple(s * f for s, f in zip(self.spacing, factor, strict=True)),
            origin=tuple(o + s * (f - 1) / 2 for o, s, f in zip(self.origin, self.spacing, factor, strict=True)),
        )

    def world(self, index: Sequence[float]) -> Vector:
        """World position of a voxel index; fractions allowed, 0 is the centre of the first voxel.

        >>> Grid(axes="yx", shape=(4, 8), spacing=(1.0, 0.5), origin=(10.0, 0.0), units=(None, None)).world((2, 3))
        (12.0, 1.5)
        """
        return tuple(o + s * i for o, s, i in zip(self.origin, self.spacing, index, strict=True))


@dataclass(frozen=True, kw_only=True)
class Region:
    """What one task owns: a box of whole shards, cut off at the volume's end."""

    index: int
    start: Shape
    """First output voxel, per axis."""
    stop: Shape
    """One past the last output voxel, per axis."""

    @property
    def box(self) -> tuple[slice, ...]:
        """As slices of the output."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, kw_only=True)
class Regions:
    """An array cut into boxes of ``unit`` voxels, the last axis fastest; made one by one, never as a list."""

    shape: Shape
    unit: Shape

    @property
    def counts(self) -> Shape:
        """Regions along each axis."""
        return tuple(-(-n // u) for n, u in zip(self.shape, self.unit, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def at(self, index: int) -> Region:
        """Make the region with number ``index``."""
        rest, start = index, []
        for count, length in zip(reversed(self.counts), reversed(self.unit), strict=True):
            rest, position = divmod(rest, count)
            start.append(position * length)
        first = tuple(reversed(start))
        stop = tuple(min(a + u, n) for a, u, n in zip(first, self.unit, self.shape, strict=True))
        return Region(index=index, start=first, stop=stop)

    def __iter__(self) -> Iterator[Region]:
        return (self.at(index) for index in range(len(self)))


def check_axes(axes: str) -> str:
    """Return ``axes`` if they are a subset of tczyx, in that order, with y and x.

    Raises
    ------
    UsageError
        Otherwise.
    """
    if "".join(a for a in AXES if a in axes) != axes or not {"y", "x"} <= set(axes):
        raise UsageError(
            f"axes {axes!r}: allowed is a subset of {AXES!r} in that order, with y and x. Use --axes, such as zyx."
        )
    return axes


def parse_factor(factor: Factor, axes: str) -> Shape:
    """Factor per axis of ``axes`` from one number, one per spatial axis in order, or a mapping by axis name.

    One number applies to every spatial axis; axes not named in a mapping keep their sampling (factor 1).

    Raises
    ------
    UsageError
        If a factor is not 1, 2 or 4, names an axis the volume lacks, or none is above 1.
    """
    named = per_spatial_axis(factor, axes, what="factor", missing=1)
    for axis, f in named.items():
        if f not in FACTORS:
            raise UsageError(
                f"factor {axis}={f}: allowed are 1, 2 and 4 per axis. Use --factor 2 or --factor z=1,y=2,x=2."
            )
    if all(f == 1 for f in named.values()):
        raise UsageError(
            f"factor {factor}: 1 on every axis leaves nothing to do. Use --factor 2 or --factor z=1,y=2,x=2."
        )
    return tuple(int(named.get(axis, 1)) for axis in axes)


def per_spatial_axis(
    value: float | Sequence[float] | Mapping[str, float], axes: str, *, what: str, missing: float | None = None
) -> dict[str, float]:
    """Spread ``value`` over the spatial axes of ``axes``: one for all, one each in order, or by name.

    Raises
    ------
    UsageError
        If an axis is unknown, or one has no value and ``missing`` is None.
    """
    spatial = [a for a in axes if a in SPATIAL]
    if isinstance(value, Mapping):
        unknown = [a for a in value if a not in spatial]
        if unknown:
            raise UsageError(
                f"{what}: no axis {','.join(unknown)}; the volume's spatial axes are {','.join(spatial)}. Use these."
            )
        named = {a: value.get(a, missing) for a in spatial}
    elif isinstance(value, Sequence):
        if len(value) != len(spatial):
            raise UsageError(
                f"{what} {tuple(value)}: give one number, or {len(spatial)} in the order {','.join(spatial)}."
            )
        named = dict(zip(spatial, value, strict=True))
    else:
        named = dict.fromkeys(spatial, value)
    absent = [a for a, v in named.items() if v is None]
    if absent:
        raise UsageError(f"{what}: no value for axis {','.join(absent)}. Name it, such as {absent[0]}=1.")
    wrong = [v for v in named.values() if not isinstance(v, Real)]
    if wrong:
        raise UsageError(f"{what}: {wrong[0]!r} is no number. Give one, or one per axis: {','.join(spatial)}.")
    return {a: v for a, v in named.items() if v is not None}


def spatial_shape(axes: str, shape: Shape) -> Shape:
    """Pick the entries for z, y, x; a plane is a volume of one slice."""
    return tuple(shape[axes.index(axis)] if axis in axes else 1 for axis in SPATIAL)
