"""Whether the places where a volume was cut can be told from any other: jumps at faces against parallel planes.

A *face* is a plane between two tiles or shards. Where a tile was made wrongly, intensities jump there. Structure jumps
everywhere, so each patch of a face is compared with the same patch of planes parallel to it, between it and the next
faces. Planes at the phase of the faces only: interpolation makes every other plane look different anyway.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from svision_dask.geometry import Shape

Voxels = npt.NDArray[Any]
Line = npt.NDArray[np.float64]

BEFORE, AFTER = 2, 1
"""Planes needed on either side of a jump."""
MOST_PATCHES = 48
"""Along each axis of a face; in volumes of more tiles, a patch spans several, so that memory is for no more."""
SHARE_OF_ALL = 0.25
"""How much the mean square of all patches counts beside that of a patch's own parallel planes."""
MOST_SCORES = 2**20
"""Parallel patches whose scores are kept, by chance where there are more: those of 10¹² voxels would fill gigabytes."""
FEWEST = 8
"""Parallel planes that a face needs to be judged."""
TAIL = 0.1
"""Share of the scores of parallel planes, of those above 0, that the tail of their distribution is fitted to."""
FEWEST_IN_TAIL = 20
"""Scores in the tail; with fewer of them, p-values are counted, not fitted."""

Kind = Literal["tile", "shard"]


@dataclass(frozen=True, kw_only=True)
class Seam:
    """The patch of a face that stands out most."""

    axis: int
    """0, 1, 2 for z, y, x: across it the intensity jumps."""
    index: int
    """Voxel behind the face; the jump is between it and the one before."""
    start: Shape
    """First voxel of the patch (z, y, x)."""
    stop: Shape
    """One past the last."""
    kind: Kind
    """What ends at the face."""
    step: float
    """Mean jump, in intensities; the slope to either side is taken off."""
    excess: float
    """Mean absolute jump minus the median of the parallel planes, in intensities."""


@dataclass(frozen=True, kw_only=True)
class SeamScore:
    """Whether faces can be told from parallel planes."""

    p: float
    """Probability of a patch that stands out as much, anywhere, if faces were like any other plane."""
    patches: int
    """Of faces that were judged."""
    planes: int
    """Parallel patches that they were judged by."""
    of: int
    """Parallel patches that there are: of more than ``MOST_SCORES``, as many are drawn by chance."""
    worst: Seam


@dataclass(frozen=True)
class Cuts:
    """Where a volume was cut, along z, y and x, as voxels that begin a tile or a shard; 0 is no cut."""

    tiles: tuple[Shape, Shape, Shape]
    shards: tuple[Shape, Shape, Shape]

    def faces(self, axis: int) -> Shape:
        """All cuts across ``axis``."""
        return tuple(sorted({*self.tiles[axis], *self.shards[axis]} - {0}))


def regular_cuts(shape: Shape, tile: Shape, shard: Shape) -> Cuts:
    """Cut ``shape`` into shards, and each of them into tiles, from its first voxel on."""
    tiles, shards = [], []
    for n, t, s in zip(shape, tile, shard, strict=True):
        starts = range(0, n, s)
        shards.append(tuple(starts))
        tiles.append(tuple(a + k for a in starts for k in range(0, min(s, n - a), t)))
    return Cuts((tiles[0], tiles[1], tiles[2]), (shards[0], shards[1], shards[2]))


class SeamSums:
    """Jumps across planes, summed up patch by patch while a volume is read block by block."""

    def __init__(self, shape: Shape, cuts: Cuts, phase: Shape) -> None:
        self.shape, self.cuts, self.phase = shape, cuts, phase
        self.bounds = [_bounds(cuts.faces(axis), n) for axis, n in enumerate(shape)]
        patches = [len(b) - 1 for b in self.bounds]
        self.sums: dict[int, Voxels] = {}
        for axis in range(3):
            if cuts.faces(axis):
                planes = -(-shape[axis] // phase[axis])
                self.sums[axis] = np.zeros((2, *[planes if a == axis else n for a, n in enumerate(patches)]))

    def add(self, block: Voxels, start: Shape) -> None:
        """Count a block whose voxel 0 is behind ``BEFORE`` voxels of margin, and which has ``AFTER`` behind it.

        Parameters
        ----------
        block
            (z, y, x), with the margin on every axis; an axis of one voxel has it too.
        start
            Of the block without the margin, in voxels of the volume.
        """
        for axis, sums in self.sums.items():
            jump = _jumps(block, axis)
            first = -start[axis] % self.phase[axis]
            planes = np.arange(start[axis] + first, start[axis] + jump.shape[axis], self.phase[axis])
            jump = jump[tuple(slice(first, None, self.phase[axis]) if a == axis else slice(None) for a in range(3))]
            place: list[Any] = [None] * 3
            place[axis] = planes // self.phase[axis]
            absolute = np.abs(jump)
            for other in (a for a in range(3) if a != axis):
                place[other], edges = self._patches(other, start[other], jump.shape[other])
                jump, absolute = (np.add.reduceat(part, edges, axis=other) for part in (jump, absolute))
            sums[(0, *np.ix_(*place))] += jump
            sums[(1, *np.ix_(*place))] += absolute

    def _patches(self, axis: int, start: int, length: int) -> tuple[Voxels, Voxels]:
        """Which patches a block touches along an axis, and where in the block each begins."""
        bounds = self.bounds[axis]
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, start + length, side="left"))
        return np.arange(first, last), np.maximum(bounds[first:last] - start, 0)

    def score(self, least: float = 0.0) -> SeamScore | None:
        """Judge the faces; None where there are none with enough planes beside them.

        Parameters
        ----------
        least
            Jumps, in intensities, that nobody could see: rounding alone makes planes differ.
        """
        if not (beside := self._beside(least)).patches:
            return None
        # Where hardly anything varies, anything would stand out; so the spread of all patches has a say, as in the
        # statistics of many tests at once (Tusher et al. 2001, doi:10.1073/pnas.091062498).
        usual = SHARE_OF_ALL * beside.squares / beside.patches + least**2 + 1e-300
        # All patches of faces are scored; of the planes beside them, so many that memory is for no more.
        kept, draw = min(1.0, MOST_SCORES / beside.planes), np.random.default_rng(0)
        best, worst, others = -math.inf, None, []
        for face in self._faces_judged(least):
            spread = np.sqrt(np.square(face.beside).mean(axis=-1) + usual[:, None])
            own = (face.own / spread).max(axis=0)
            top = int(np.argmax(own))
            if own[top] > best:
                best, worst = float(own[top]), self._seam(face, top)
            scores = face.scores(usual).ravel()
            others.append(scores if kept == 1 else scores[draw.random(len(scores)) < kept])
        scores = np.concatenate(others)
        assert worst is not None
        p = -math.expm1(beside.patches * math.log1p(-min(_exceeded(best, scores), 1 - 1e-16)))
        return SeamScore(p=float(p), patches=beside.patches, planes=len(scores), of=beside.planes, worst=worst)

    def _beside(self, least: float) -> _Beside:
        """Sum up what lies beside the faces, before any of them is scored by it."""
        beside = _Beside()
        for face in self._faces_judged(least):
            beside.patches += face.beside.shape[1]
            beside.planes += math.prod(face.beside.shape[1:])
            beside.squares = beside.squares + np.square(face.beside).mean(axis=-1).sum(axis=-1)
        return beside

    @property
    def faces_left_out(self) -> int:
        """How many faces are not at the phase of the planes that could judge them."""
        return sum(face % self.phase[axis] != 0 for axis in self.sums for face in self.cuts.faces(axis))

    def _faces_judged(self, least: float) -> Iterator[_Face]:
        """Take the faces that have planes to be judged by, one after the other: all patches of each at once."""
        for axis, sums in self.sums.items():
            area = np.expand_dims(np.moveaxis(self._area(axis), axis, -1)[..., 0], -1)
            every = np.moveaxis(sums, axis + 1, -1)
            for face in self.cuts.faces(axis):
                found = self._face(axis, face, every, area)
                if found is not None:
                    yield found.above(least)

    def _area(self, axis: int) -> Voxels:
        """Voxels of each patch."""
        lengths = [np.diff(b) if a != axis else np.ones(1) for a, b in enumerate(self.bounds)]
        return np.asarray(lengths[0][:, None, None] * lengths[1][:, None] * lengths[2])

    def _face(self, axis: int, face: int, sums: Voxels, area: Voxels) -> _Face | None:
        """Take a face, and the parallel planes between it and the faces next to it; ``sums`` has these planes last."""
        phase, faces = self.phase[axis], (0, *self.cuts.faces(axis), self.shape[axis])
        number = bisect_left(faces, face)
        # Mirrored faces of the volume, and the planes next to a seam, whose jumps it is a part of, do not count.
        wide = AFTER + BEFORE
        low, high = faces[number - 1] + wide, faces[number + 1] - wide
        between = range(-(-low // phase) * phase, high, phase)
        planes = np.array([p for p in between if abs(p - face) >= wide], np.intp)
        if len(planes) < FEWEST or face % phase:
            return None
        step, size = (sums[..., face // phase] / area[..., 0]).reshape(2, -1)
        steps, sizes = (sums[..., planes // phase] / area).reshape(2, -1, len(planes))
        middle = np.median(sizes, axis=-1)
        own, beside = np.stack([abs(step), size - middle]), np.stack([np.abs(steps), np.abs(sizes - middle[:, None])])
        return _Face(axis=axis, index=face, step=step, excess=own[1], own=own, beside=beside, planes=planes)

    def _seam(self, face: _Face, patch: int) -> Seam:
        axis, index = face.axis, face.index
        counts = [len(b) - 1 for a, b in enumerate(self.bounds) if a != axis]
        number = [int(k) for k in np.unravel_index(patch, counts)]
        number.insert(axis, 0)
        start = tuple(index if a == axis else int(self.bounds[a][k]) for a, k in enumerate(number))
        stop = tuple(index + 1 if a == axis else int(self.bounds[a][k + 1]) for a, k in enumerate(number))
        kind: Kind = "shard" if index in self.cuts.shards[axis] else "tile"
        step, excess = float(face.step[patch]), float(face.excess[patch])
        return Seam(axis=axis, index=index, start=start, stop=stop, kind=kind, step=step, excess=excess)


@dataclass
class _Beside:
    """What lies beside all faces together."""

    patches: int = 0
    """Of faces."""
    planes: int = 0
    """Parallel patches."""
    squares: Line = field(default_factory=lambda: np.zeros(2))
    """Sum over patches of the mean square of both measures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Face:
    """All patches of a face, and of the planes that it is judged by.

    There are two measures: the step that all of a patch shares, and by how much jumps of either sign exceed the usual.
    """

    axis: int
    index: int
    """Voxel behind the face."""
    step: Line
    excess: Line
    """Per patch."""
    own: Voxels
    """Both measures (rows) of each patch."""
    beside: Voxels
    """Both measures of each patch and parallel plane (measure, patch, plane)."""
    planes: npt.NDArray[np.intp]
    """Where those are."""

    def above(self, least: float) -> _Face:
        """Take off what nobody could see."""
        own, beside = (np.maximum(values - least, 0) for values in (self.own, self.beside))
        return replace(self, own=own, beside=beside)

    def scores(self, usual: Line) -> Voxels:
        """Score each plane by the others, as the face is scored: without those next to it, which share its jumps."""
        far = np.abs(self.planes[:, None] - self.planes) >= AFTER + BEFORE
        rest = np.square(self.beside) @ far / far.sum(axis=0)
        return np.asarray((self.beside / np.sqrt(rest + usual[:, None, None])).max(axis=0))


def _bounds(faces: Shape, size: int) -> npt.NDArray[np.intp]:
    """Find where patches begin along an axis, and where the last one ends."""
    every = -(-(len(faces) + 1) // MOST_PATCHES)
    return np.array((0, *faces[every - 1 :: every], size), np.intp)


def _jumps(block: Voxels, axis: int) -> Voxels:
    """Tell the step between each voxel and the one before it, less the mean of the steps next to it; margins go."""
    core = [slice(BEFORE, n - AFTER) for n in block.shape]
    count = block.shape[axis] - BEFORE - AFTER

    def window(first: int) -> Voxels:
        core[axis] = slice(first, first + count)
        return block[tuple(core)]

    return np.asarray(1.5 * (window(2) - window(1)) - 0.5 * (window(3) - window(0)), np.float64)


def _exceeded(score: float, others: Line) -> float:
    """Tell the probability of a higher score, by the tail of a generalised Pareto distribution where it is needed.

    Counting alone cannot tell less than one in as many planes as there are (Knijnenburg et al. 2009,
    doi:10.1093/bioinformatics/btp211). Tails with an end are taken for exponential ones: never less likely.
    """
    from scipy.stats import genpareto

    counted = (1 + int((others >= score).sum())) / (1 + len(others))
    # In empty patches nothing is above what nobody could see; zeros would make the tail look shorter than it is.
    above = int(TAIL * (others > 0).sum())
    if above < FEWEST_IN_TAIL or counted > above / len(others) / 2:
        return counted
    ordered = np.sort(others)
    threshold = (ordered[-above] + ordered[-above - 1]) / 2
    excesses = ordered[-above:] - threshold
    shape, _, scale = genpareto.fit(excesses, floc=0)
    if shape < 0:
        shape, scale = 0.0, float(excesses.mean())
    return float(above / len(others) * genpareto.sf(score - threshold, shape, scale=scale))
