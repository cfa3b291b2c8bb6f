"""``Volume``: lazy voxels and where they sit in the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import dask.array as da
import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import Grid, Shape, Vector
from svision_dask.notebook import html_table, per_axis
from svision_dask.workload import DECODED_BYTES

Box = tuple[slice, ...]
"""One slice with start and stop per axis."""
Range = tuple[int, int]
"""Start and stop."""
Missing = Literal["error", "empty"]
"""What it means that a stored chunk is not there."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a channel is shown by viewers."""

    colour: str = ""
    """``"RRGGBB"``; empty for the writer's choice."""
    window: tuple[float | None, float | None, float, float] | None = None
    """The limits of the control (min, max; None where nobody says), then what is shown (start, end), in intensities."""
    active: bool = True


class Source(Protocol):
    """What voxels are read from: a Zarr array, a TIFF series, a simulation. Must pickle to a few kilobytes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, in any byte order."""

    def __getitem__(self, box: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A lazy volume: nothing is read until it is asked for."""

    voxels: da.Array
    """One dask axis per axis of ``grid``."""
    grid: Grid
    """Axes, shape, and where the voxels are in the world."""
    channels: tuple[str, ...] = ()
    """Channel names, one per channel, or none when the volume has no channel axis."""
    name: str = ""
    """What messages and outputs call it."""
    paths: tuple[str, ...] = ()
    """What its voxels are read from; an output must not be there."""
    identity: str = ""
    """Another one if the input is changed, as far as can be told without reading it; empty if nobody can tell."""
    source: Source | None = field(default=None, repr=False)
    """What ``voxels`` was made from; workers read boxes from it without a graph."""
    shown: tuple[Shown, ...] = ()
    """How the channels are shown, one each, or none where the file does not say."""
    carried: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What other programs wrote into the attributes of the image; outputs carry it on."""
    dropped: tuple[str, ...] = ()
    """What else the file holds that outputs will not have, in words."""
    stored: Shape | None = None
    """Voxels per axis that are read as a whole: a chunk; None where nobody knows."""
    levels: tuple[Vector, ...] = ()
    """Spacing of each level of its pyramid, its own first; none where there is no pyramid."""
    labels: tuple[Label, ...] = field(default=(), repr=False)
    """Label images on the same place, which outputs get by the nearest voxel."""
    chosen: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """Which channels ``"c"`` and time points ``"t"`` of the image these are, where not all of them."""

    @property
    def bare(self) -> Volume:
        """Only what it takes to read it: what travels to workers with every task."""
        return replace(self, carried={}, dropped=(), labels=())

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            raise UsageError(f"volume {self.name}: voxels of {self.voxels.shape} on a grid of {self.grid.shape}.")

    @classmethod
    def from_source(
        cls,
        source: Source,
        grid: Grid,
        *,
        chunks: tuple[int, ...],
        channels: tuple[str, ...] = (),
        name: str = "",
        identity: str = "",
    ) -> Volume:
        """Wrap ``source`` (shape as in ``grid``) in a dask array of ``chunks`` voxels, without reading.

        ``channels``, ``name`` and ``identity`` are those of the volume.
        """
        meta = np.empty((0,) * len(chunks), dtype=native(source.dtype))
        voxels = da.from_array(  # type: ignore[no-untyped-call]  # dask leaves it unannotated
            source, chunks=chunks, asarray=True, meta=meta, name=False
        )
        voxels = voxels.astype(meta.dtype)  # dask goes by the dtype of the source, whatever meta says
        return cls(voxels=voxels, grid=grid, channels=channels, name=name, identity=identity, source=source)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, in the machine's byte order."""
        return native(self.voxels.dtype)

    def _repr_html_(self) -> str:
        axes, grid = self.grid.axes, self.grid
        rows = {
            "shape": per_axis(axes, grid.shape),
            "spacing": per_axis(
                axes, (f"{s:g} {u or ''}".strip() for s, u in zip(grid.spacing, grid.units, strict=True))
            ),
            "origin": per_axis(axes, (f"{o:g}" for o in grid.origin)),
            "voxels": f"{self.dtype}, {self.voxels.nbytes / 2**20:.1f} MiB",
            "chunks": per_axis(axes, self.voxels.chunksize),
            "channels": ", ".join(self.channels),
        }
        return html_table(f"Volume {self.name}", {name: value for name, value in rows.items() if value})

    @property
    def kept_bytes(self) -> int:
        """What reading it may keep in the memory of a process, beside what is read."""
        return min(DECODED_BYTES, getattr(self.source, "kept_bytes", 0))

    def absent(self, box: Box) -> int:
        """Count the stored chunks that ``box`` touches and that are not there."""
        count = getattr(self.source, "absent", None)
        return len(count(box)) if count is not None else 0

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read the voxels of ``box`` in one request, in the machine's byte order.

        >>> import numpy as np, svision_dask as sv
        >>> volume = sv.open_volume(np.arange(12).reshape(3, 4), spacing=0.5)
        >>> volume.read((slice(0, 2), slice(1, 3)))
        array([[1, 2],
               [5, 6]])
        """
        if self.source is not None:
            block = np.asarray(self.source[box])
        else:
            # Inside a worker, plain compute() would submit to the whole cluster.
            block = self.voxels[box].compute(scheduler="synchronous")
        return block.astype(self.dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class Label:
    """Labels of the objects in a volume: an image of its own, in the same world."""

    name: str
    volume: Volume
    described: Mapping[str, Any] = field(default_factory=dict)
    """Colours and properties of the labels, as OME-Zarr's ``image-label`` has them."""


def check_volume(given: object) -> None:
    """Check that a program gave a volume, and not what one is made of.

    Raises
    ------
    UsageError
        If it did.
    """
    if not isinstance(given, Volume):
        name = type(given).__name__
        raise UsageError(f"{name} in place of a volume. Make one: open_volume(path), open_volume(array, spacing=0.5).")


def split_box(box: Any, shape: Shape) -> tuple[list[Range], tuple[Any, ...]]:
    """Cut ``box`` into the range to read along each axis, and the integers and steps to apply to what was read."""
    box = box if isinstance(box, tuple) else (box,)
    if len(box) > len(shape) or not all(isinstance(item, slice | int | np.integer) for item in box):
        raise IndexError(f"index {box}: give at most {len(shape)} slices or integers.")
    ranges: list[Range] = []
    rest: list[Any] = []
    for item, length in zip((*box, *[slice(None)] * (len(shape) - len(box))), shape, strict=True):
        steps = range(length)[item]
        if isinstance(steps, int):
            ranges.append((steps, steps + 1))
            rest.append(0)
            continue
        ordered = steps if steps.step > 0 else steps[::-1]
        ranges.append((ordered[0], ordered[-1] + 1) if ordered else (0, 0))
        rest.append(slice(None, None, steps.step))
    return ranges, tuple(rest)


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """``dtype`` in the machine's byte order, which torch requires."""
    return np.dtype(dtype).newbyteorder("=")


def mirror(start: int, stop: int, size: int) -> npt.NDArray[np.intp]:
    """List the voxels ``start … stop`` of an axis that goes on as its own mirror image beyond its faces.

    The voxel at the face is repeated: numpy calls this ``symmetric``, dask ``reflect``. It is the one way in which
    svision-dask continues a volume, in training and in use.
    """
    position = np.arange(start, stop) % (2 * size)
    return np.minimum(position, 2 * size - 1 - position)


def mirror_pad(voxels: npt.NDArray[Any], margin: tuple[int, ...]) -> npt.NDArray[Any]:
    """Continue every axis by ``margin`` voxels at both ends; the margin may be longer than the axis."""
    return np.pad(voxels, [(m, m) for m in margin], mode="symmetric")


def read_mirrored(volume: Volume, start: tuple[int, ...], stop: tuple[int, ...]) -> npt.NDArray[Any]:
    """Read a box that may reach beyond the volume, in one request for what lies inside it."""
    indices = [mirror(a, b, n) for a, b, n in zip(start, stop, volume.grid.shape, strict=True)]
    block = volume.read(tuple(slice(int(i.min()), int(i.max()) + 1) for i in indices))
    for axis, index in enumerate(indices):
        inside = index - index.min()
        if not np.array_equal(inside, np.arange(block.shape[axis])):
            block = np.take(block, inside, axis=axis)
    return block


def middle(voxels: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Cut out the middle ``size`` voxels of the last axes, or all where there are fewer."""
    lengths = voxels.shape[voxels.ndim - len(size) :]
    taken = [min(n, s) for n, s in zip(lengths, size, strict=True)]
    box = tuple(slice((n - t) // 2, (n - t) // 2 + t) for n, t in zip(lengths, taken, strict=True))
    return voxels[(slice(None),) * (voxels.ndim - len(size)) + box]
