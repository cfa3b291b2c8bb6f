"""One pass over all that is compared, block by block: sums, maps and histograms, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.degradation import CUBIC
from svision_dask.errors import UsageError
from svision_dask.geometry import Region, Regions, Shape
from svision_dask.judging.compared import Compared, Stack
from svision_dask.judging.seams import SeamSums
from svision_dask.metrics import BORDER, ssim_map, ssim_window
from svision_dask.network.baselines import cubic, cubic_back_projected, reduced
from svision_dask.volume import Box

Voxels = npt.NDArray[Any]

SIDE = 128
"""Fine voxels along each side of a block; of a volume of one plane, eight times as many."""
REACH = 8
"""Coarse voxels beyond a block that baselines are made from; ten back projections have weights below 1e-4 beyond."""
MARGIN = 4
"""Fine voxels beyond a block that windows of SSIM and jumps across planes need, at most; a multiple of every factor."""
BINS = 128
"""Of a histogram."""
MAP = 512
"""Cells of a map along each axis, at most."""
SAMPLED = 2**22
"""Voxels that percentiles are taken from; all where there are no more."""
SAMPLED_BLOCKS = 32
"""Blocks that they are spread over."""
OUTLIERS = (0.1, 99.9)
"""Percentiles between which the data range lies."""
ITERATIONS = 10
"""Back projections of the baseline."""


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Intensities, as far as the sampled voxels tell."""

    low: float
    high: float
    """Between them lies the data range: percentiles of the reference, or of BEFORE where there is none."""
    edges: npt.NDArray[np.float64]
    """Of the histograms' bins; the first and last also count what lies beyond."""
    sampled: bool
    """Whether there were more voxels than were looked at."""

    @property
    def width(self) -> float:
        """The data range."""
        return self.high - self.low


def find_ranges(stacks: Mapping[str, Stack]) -> Ranges:
    """Take percentiles of voxels that are spread evenly over each volume.

    Raises
    ------
    UsageError
        If all of them are equal, or one is not a number.
    """
    values = {name: sample_voxels(stack) for name, stack in stacks.items()}
    for name, sample in values.items():
        if not np.isfinite(sample).all():
            raise UsageError(f"{stacks[name].name} holds voxels that are no finite numbers. Compare it without them.")
    judged = values.get("reference", values["before"])
    low, high = (float(v) for v in np.percentile(judged, OUTLIERS))
    if high <= low:
        low, high = float(judged.min()), float(judged.max())
    if high <= low:
        name = stacks["reference" if "reference" in stacks else "before"].name
        raise UsageError(f"{name} holds one intensity only, {low:g}: there is no range to measure errors in.")
    everything = np.concatenate(list(values.values()))
    ends = np.percentile(everything, (OUTLIERS[0] / 10, 100 - OUTLIERS[0] / 10))
    first, last = (float(v) for v in (ends if ends[1] > ends[0] else (low, high)))
    edges = np.linspace(first, last, BINS + 1)
    most = max(math.prod(stack.shape) for stack in stacks.values())
    return Ranges(low=low, high=high, edges=edges, sampled=most > SAMPLED)


def sample_voxels(stack: Stack) -> Voxels:
    """Read voxels that are spread evenly over a volume: all of them, or about ``SAMPLED``."""
    blocks = Regions(shape=stack.shape, unit=block_shape(stack.shape, (1, 1, 1)))
    chosen = [blocks.at(index) for index in spread(len(blocks), SAMPLED_BLOCKS)]
    step = -(-sum(math.prod(s.stop - s.start for s in block.box) for block in chosen) // SAMPLED)
    # Copies: a slice would hold on to all of its block.
    return np.concatenate([stack.read(block.start, block.stop).ravel()[::step].copy() for block in chosen])


def block_shape(coarse: Shape, factor: Shape) -> Shape:
    """Coarse voxels per block."""
    side = SIDE if coarse[0] > 1 else 8 * SIDE
    return tuple(max(1, min(n, side // f)) for n, f in zip(coarse, factor, strict=True))


def spread(count: int, wanted: int) -> list[int]:
    """Pick ``wanted`` of ``count`` numbers, as far from each other as can be."""
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, min(wanted, count))})


class Errors:
    """What BEFORE has, and AFTER, made coarse again, has not; in intensities."""

    def __init__(self, shape: Shape) -> None:
        self.count, self.sum, self.squares, self.most = 0, 0.0, 0.0, -1.0
        self.where: Shape = (0, 0, 0)
        self.cell = tuple(-(-n // MAP) for n in shape[1:])
        self.map = np.zeros([-(-n // c) for n, c in zip(shape[1:], self.cell, strict=True)], np.float32)
        """Largest |error| along z, in cells of ``cell`` coarse voxels (y, x)."""

    def add(self, error: Voxels, start: Shape) -> None:
        """Count a block of D(AFTER) − BEFORE that begins at the coarse voxel ``start``."""
        self.count += error.size
        self.sum += float(error.sum(dtype=np.float64))
        self.squares += float(np.square(error, dtype=np.float64).sum())
        size = np.abs(error)
        top = np.unravel_index(int(size.argmax()), size.shape)
        if float(size[top]) > self.most:
            self.most, self.where = float(size[top]), tuple(int(a + i) for a, i in zip(start, top, strict=True))
        flat, place = size.max(axis=0), []
        for axis, (first, cell) in enumerate(zip(start[1:], self.cell, strict=True)):
            number = np.arange(first, first + flat.shape[axis]) // cell
            begins = np.flatnonzero(np.diff(number, prepend=-1))
            place.append(number[begins])
            flat = np.maximum.reduceat(flat, begins, axis=axis)
        cells = np.ix_(*place)
        self.map[cells] = np.maximum(self.map[cells], flat)

    @property
    def rmse(self) -> float:
        """Root mean square error."""
        return math.sqrt(self.squares / self.count)

    @property
    def mean(self) -> float:
        """Mean error: how much brighter AFTER is."""
        return self.sum / self.count


class Fidelity:
    """How close a fine volume comes to the reference: PSNR and SSIM, as sums over blocks."""

    def __init__(self) -> None:
        self.squares, self.count, self.similar, self.windows = 0.0, 0, 0.0, 0

    def psnr(self, data_range: float) -> float:
        """In dB; infinite where nothing differs."""
        if self.squares == 0:
            return math.inf
        return 10 * math.log10(data_range**2 * self.count / self.squares)

    @property
    def ssim(self) -> float | None:
        """Mean over all windows; None where the volume is too small for any."""
        return self.similar / self.windows if self.windows else None


class Scan:
    """Everything that is summed up while all blocks are read once."""

    def __init__(self, compared: Compared, ranges: Ranges, *, data_range: float, most_voxels: int) -> None:
        self.compared, self.ranges, self.data_range = compared, ranges, data_range
        shape, factor = compared.before.shape, compared.factor
        self.blocks = Regions(shape=shape, unit=block_shape(shape, factor))
        self.stacks = {"before": compared.before, "after": compared.after}
        if compared.reference is not None:
            self.stacks["reference"] = compared.reference
        fine = math.prod(compared.after.shape)
        self.sampled = set(spread(len(self.blocks), max(1, len(self.blocks) * most_voxels // max(fine, most_voxels))))
        self.errors = Errors(shape) if compared.how is not None else None
        self.seams = SeamSums(compared.after.shape, compared.cuts, factor) if compared.cuts is not None else None
        self.histograms = {name: np.zeros(BINS, np.int64) for name in self.stacks}
        self.fidelity = {name: Fidelity() for name in ("after", "cubic", "cubic_bp", "cubic_bp_clamped")}
        self.highest, self.at_highest = -math.inf, 0
        """The brightest voxel of BEFORE, and how many are as bright."""
        self.cell = place_shape(shape, factor)
        self.detail = np.zeros([-(-n // c) for n, c in zip(shape, self.cell, strict=True)])
        """How much BEFORE varies from voxel to voxel, in cells of ``cell`` coarse voxels."""

    def run(self, on_progress: Callable[[int, int], None]) -> None:
        """Read everything once.

        Raises
        ------
        UsageError
            If a voxel is not a number.
        """
        for block in self.blocks:
            self._add(block)
            on_progress(block.index + 1, len(self.blocks))

    def _add(self, block: Region) -> None:
        compared, factor = self.compared, self.compared.factor
        how, sampled = compared.how or CUBIC, block.index in self.sampled and compared.reference is not None
        reach = max(REACH if sampled else 0, how.reach + 2, MARGIN)
        margin = tuple(reach if f > 1 else MARGIN for f in factor)
        fine_start, fine_stop = (_times(corner, factor) for corner in (block.start, block.stop))
        fine_margin = _times(margin, factor)
        coarse = compared.before.read(_minus(block.start, margin), _plus(block.stop, margin))
        fine = compared.after.read(_minus(fine_start, fine_margin), _plus(fine_stop, fine_margin))
        core = inner(coarse, margin)
        self._count("before", core, block.start)
        self._count("after", inner(fine, fine_margin), fine_start)
        if self.errors is not None:
            self.errors.add(inner(reduced(fine, factor, how), margin) - core, block.start)
        if self.seams is not None:
            # What interpolation has as well is structure: it was not cut.
            added = fine - cubic(coarse, factor, how)
            near = inner(added, tuple(m - 2 for m in fine_margin), tuple(m - 1 for m in fine_margin))
            self.seams.add(near, fine_start)
        self._look(core, block.start)
        if compared.reference is not None:
            wide = (MARGIN,) * 3
            truth = compared.reference.read(_minus(fine_start, wide), _plus(fine_stop, wide))
            self._count("reference", inner(truth, wide), fine_start)
            if sampled:
                spare = _minus(fine_margin, wide)
                for name, image in self._rivals(coarse, inner(fine, spare), spare):
                    self._judge(self.fidelity[name], image, truth, fine_start)

    def _rivals(self, coarse: Voxels, after: Voxels, spare: Shape) -> Iterator[tuple[str, Voxels]]:
        """AFTER, and what there is without a network."""
        factor, how = self.compared.factor, self.compared.how
        yield "after", after
        yield "cubic", inner(cubic(coarse, factor, how or CUBIC), spare)
        if how is not None:
            for name, clamp in (("cubic_bp", False), ("cubic_bp_clamped", True)):
                made = cubic_back_projected(coarse, factor, how, iterations=ITERATIONS, clamp=clamp)
                yield name, inner(made, spare)

    def _judge(self, sums: Fidelity, image: Voxels, truth: Voxels, start: Shape) -> None:
        shape = self.compared.after.shape
        wanted = _within(shape, start, truth.shape, BORDER)
        error = np.subtract(image[wanted], truth[wanted], dtype=np.float64)
        sums.squares += float(np.square(error).sum())
        sums.count += error.size
        try:
            window = ssim_window(shape)
        except UsageError:
            return
        similar = ssim_map(image, truth, data_range=self.data_range, window=window, flat=shape[0] == 1)
        counted = similar[_within(shape, start, truth.shape, BORDER + window // 2)]
        sums.similar += float(counted.sum())
        sums.windows += counted.size

    def _count(self, name: str, voxels: Voxels, start: Shape) -> None:
        """Count a block into the histogram; every voxel comes by here, before anything is summed up.

        Raises
        ------
        UsageError
            If one is not a number.
        """
        if not np.isfinite(voxels).all():
            raise UsageError(
                f"{self.stacks[name].name} holds voxels that are no finite numbers, in the block that begins at "
                f"{start} (z, y, x). Compare it without them."
            )
        edges = self.ranges.edges
        clipped = np.clip(voxels, edges[0], edges[-1])
        self.histograms[name] += np.histogram(clipped, BINS, (edges[0], edges[-1]))[0]
        if name == "before":
            top = float(voxels.max())
            if top >= self.highest:
                self.at_highest = (self.at_highest if top == self.highest else 0) + int((voxels == top).sum())
                self.highest = top

    def _look(self, core: Voxels, start: Shape) -> None:
        """Bright voxels count as equal, so that many dim structures outweigh a single bright one."""
        dimmed = np.minimum(core, self.ranges.high)
        energy = np.zeros(core.shape)
        for axis, n in enumerate(core.shape):
            if n > 1:
                change = np.square(np.diff(dimmed, axis=axis), dtype=np.float64)
                energy[tuple(slice(1, None) if a == axis else slice(None) for a in range(3))] += change
        place = []
        for axis, (first, cell) in enumerate(zip(start, self.cell, strict=True)):
            number = np.arange(first, first + energy.shape[axis]) // cell
            begins = np.flatnonzero(np.diff(number, prepend=-1))
            place.append(number[begins])
            energy = np.add.reduceat(energy, begins, axis=axis)
        self.detail[np.ix_(*place)] += energy

    def places(self, count: int) -> list[Box]:
        """Find where BEFORE varies most: at most ``count`` boxes of ``cell`` coarse voxels, the richest first."""
        order = np.argsort(-self.detail, axis=None, kind="stable")[:count]
        cells = np.stack(np.unravel_index(order, self.detail.shape), axis=1) * self.cell
        return [place_at(self.compared.before.shape, self.cell, tuple(start)) for start in cells.tolist()]


PLACE = (64, 128, 128)
"""Fine voxels (z, y, x) of a place that is looked at closely."""


def place_shape(coarse: Shape, factor: Shape) -> Shape:
    """Coarse voxels of such a place."""
    return tuple(max(1, min(n, p // f)) for n, p, f in zip(coarse, PLACE, factor, strict=True))


def place_at(shape: Shape, size: Shape, start: Shape) -> Box:
    """Move a box of ``size`` voxels inside the volume."""
    first = (max(0, min(a, n - s)) for a, n, s in zip(start, shape, size, strict=True))
    return tuple(slice(a, a + s) for a, s in zip(first, size, strict=True))


def inner(block: Voxels, before: Shape, after: Shape | None = None) -> Voxels:
    """Cut a margin off."""
    ends = zip(block.shape, before, after or before, strict=True)
    return block[tuple(slice(b, n - a) for n, b, a in ends)]


def _within(shape: Shape, start: Shape, block: Shape, border: int) -> Box:
    """Where in a block with its margin its own voxels lie that are further than ``border`` from the volume's faces."""
    box = []
    for n, first, length in zip(shape, start, block, strict=True):
        faces = border if n > 1 else 0
        low, high = max(first, faces), min(first + length - 2 * MARGIN, n - faces)
        box.append(slice(low - first + MARGIN, max(low, high) - first + MARGIN))
    return tuple(box)


def _times(a: Shape, b: Shape) -> Shape:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def _plus(a: Shape, b: Shape) -> Shape:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _minus(a: Shape, b: Shape) -> Shape:
    return tuple(x - y for x, y in zip(a, b, strict=True))
