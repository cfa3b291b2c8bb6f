"""Voxels whose axes are stored in another order than that of volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.geometry import Shape
from svision_dask.volume import Box, Source, split_box


def transposed(source: Source, order: Shape) -> Source:
    """Put the axes of a source into ``order``, which says of each axis which stored one it is; lazily."""
    return source if order == tuple(range(len(order))) else TransposedSource(source, order)


@dataclass(frozen=True)
class TransposedSource:
    """A source with its axes in another order."""

    source: Source
    order: Shape
    """For each axis, which axis of ``source`` it is."""

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        return tuple(self.source.shape[axis] for axis in self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, in any byte order."""
        return self.source.dtype

    def __getitem__(self, box: Any, /) -> npt.NDArray[Any]:
        """Read a box in one request."""
        ranges, rest = split_box(box, self.shape)
        block = np.asarray(self.source[self._stored(tuple(slice(*r) for r in ranges))]).transpose(self.order)
        # In memory as any other volume: how operators add must not depend on how a file is laid out.
        voxels: npt.NDArray[Any] = np.ascontiguousarray(block)[rest]
        return voxels

    def absent(self, box: Box) -> list[str]:
        """List the stored chunks that ``box`` touches and that are not there."""
        find = getattr(self.source, "absent", None)
        if find is None:
            return []
        found: list[str] = find(self._stored(box))
        return found

    def _stored(self, box: Box) -> Box:
        return tuple(box[self.order.index(axis)] for axis in range(len(self.order)))
