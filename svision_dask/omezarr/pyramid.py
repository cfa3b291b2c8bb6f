"""Coarser levels of a volume: which grids a pyramid has, and the block means that fill them.

Pure functions of arrays and grids; who reads and writes the blocks is decided in ``regions``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import Grid, Shape, Vector
from svision_dask.wishes import Pyramid

ISOTROPY = math.sqrt(2)
"""An axis is halved while its spacing is below this many times the finest one.

Halving changes a ratio of spacings by two, so with a threshold of sqrt(2) every ratio ends between 1/sqrt(2) and
sqrt(2): the nearest to isotropic that powers of two can reach. With a threshold of 2, a ratio of 1.9 would stay.
"""

FEW = 64
"""Voxels of 16 bits whose sum float32 holds, and whose mean it tells from half a voxel value."""

Block = npt.NDArray[Any]


def pyramid_grids(
    grid: Grid, *, smallest: int = 256, kind: Pyramid = "isotropic", steps: Sequence[Shape] = ()
) -> list[Grid]:
    """Choose the grids of a pyramid, ``grid`` first.

    By default, every step halves the spatial axes that are about as fine as the finest (`ISOTROPY`), so that levels
    become isotropic before all axes shrink together. Time and channels are never halved.

    Parameters
    ----------
    grid
        Level 0.
    smallest
        The last level is the first one with at most this many voxels along every axis that is halved.
    kind
        ``"isotropic"``; ``"xy"``, for viewers that cannot take levels with fewer planes; ``"match"``, as ``steps`` say;
        ``"none"`` for level 0 alone.
    steps
        By how much each level is coarser than the one before it, per axis.

    Returns
    -------
    list of Grid
        At least ``grid`` itself.

    Raises
    ------
    UsageError
        If ``smallest`` is below 1.
    """
    if smallest < 1:
        raise UsageError(f"smallest level {smallest}: allowed is 1 voxel or more per axis.")
    grids = [grid]
    if kind == "match":
        for step in steps:
            grids.append(grids[-1].coarser(step))
        return grids
    halved = {"isotropic": grid.spatial, "xy": tuple(grid.axes.index(axis) for axis in "yx"), "none": ()}[kind]
    while any(grids[-1].shape[i] > smallest for i in halved):
        grids.append(grids[-1].coarser(halving(grids[-1], halved)))
    return grids


def halving(grid: Grid, axes: Sequence[int] | None = None) -> Shape:
    """Factor per axis from ``grid`` to the next coarser level: 2 along the finest of ``axes``, otherwise 1.

    ``axes`` are positions; all spatial axes by default.
    """
    # An axis of one voxel cannot be halved, however fine; it must not hold the others back.
    divisible = [i for i in (grid.spatial if axes is None else axes) if grid.shape[i] > 1]
    finest = min((grid.spacing[i] for i in divisible), default=math.inf)
    chosen = {i for i in divisible if grid.spacing[i] < ISOTROPY * finest}
    return tuple(2 if i in chosen else 1 for i in range(len(grid.axes)))


def step_between(finer: Grid, coarser: Grid) -> Shape:
    """By how much one level of a pyramid of ours is coarser than the one before it, per axis."""
    return tuple(round(c / f) for c, f in zip(coarser.spacing, finer.spacing, strict=True))


def coarser_region(shape: Shape, region: Shape, step: Shape, chunks: Shape) -> Shape | None:
    """Say which voxels of the next level a region has all voxels of; None where they are not whole chunks of it.

    Where they are, a region can make its part of the next level while it has it in memory.

    Parameters
    ----------
    shape, region
        Voxels of a level, and of each of its regions.
    step
        By how much the next level is coarser.
    chunks
        Of the next level.

    Returns
    -------
    tuple of int or None
        Unit of regions of the next level: as many along each axis as the level has, in the same places.
    """
    unit = []
    for n, r, s, c in zip(shape, region, step, chunks, strict=True):
        length = -(-n // s)
        c = min(c, length)
        if r >= n:
            unit.append(-(-length // c) * c)
        elif r % s or (r // s) % c:
            return None
        else:
            unit.append(r // s)
    return tuple(unit)


def whole_steps(spacings: Sequence[Vector]) -> tuple[Shape, ...] | None:
    """By how much each level is coarser than the one before it, from their spacings; None where a step is not whole.

    Some writers round shapes down, and then state a spacing that is off by that; a twentieth of a step is taken for it.
    """
    steps = []
    for finer, coarser in itertools.pairwise(spacings):
        ratios = [c / f for c, f in zip(coarser, finer, strict=True)]
        step = tuple(max(1, round(r)) for r in ratios)
        if any(not math.isclose(r, s, rel_tol=0.05) for r, s in zip(ratios, step, strict=True)):
            return None
        steps.append(step)
    return tuple(steps)


def block_mean(block: Block, factor: Shape) -> Block:
    """Average every ``factor`` voxels; a last, partial block is the mean of the voxels that are there.

    Sums of integers are exact and means are rounded half to even, once; floats are summed in float64. Blocks that
    start at multiples of ``factor`` give, piece by piece, what the whole array gives.

    Parameters
    ----------
    block
        Any number of axes; bool, integer or real floating point.
    factor
        Voxels to average along each axis.

    Returns
    -------
    numpy.ndarray
        Shape ``ceil(shape / factor)``, dtype of ``block``. A bool is the majority; a tie is False.

    Raises
    ------
    UsageError
        If ``factor`` does not have one entry of at least 1 per axis of ``block``.
    """
    if len(factor) != block.ndim or min(factor, default=1) < 1:
        raise UsageError(f"factor {factor}: give one whole number of at least 1 for each of {block.ndim} axes.")
    if math.prod(factor) == 1:
        return block.copy()
    count = _voxels_per_mean(block.shape, factor)
    if block.dtype.kind in "iu" and block.dtype.itemsize == 8:
        return _mean_of_long_integers(block, factor, count)
    # Sums of narrower integers stay below 2**53, so float64 holds them exactly, and a mean is either half a voxel
    # value exactly or much further from it than the rounding of the division. Of 16 bits and few voxels, so does
    # float32, in half the time.
    short = block.dtype.kind in "biu" and block.dtype.itemsize <= 2 and math.prod(factor) <= FEW
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as in any mean
        total = _block_sum(block, factor, np.float32 if short else np.float64)
        mean: Block = total / count.astype(total.dtype)
    return (mean if block.dtype.kind == "f" else np.rint(mean)).astype(block.dtype)


def _block_sum(block: Block, factor: Shape, dtype: npt.DTypeLike) -> Block:
    """Sum over blocks of ``factor``, one axis at a time."""
    for axis, f in enumerate(factor):
        if f == 1:  # the block would only be copied, into wider numbers
            continue
        before = (slice(None),) * axis
        total = block[(*before, slice(None, None, f))].astype(dtype)
        for first in range(1, f):
            part = block[(*before, slice(first, None, f))]
            total[(*before, slice(part.shape[axis]))] += part  # the last block may lack this voxel
        block = total
    return block


def _voxels_per_mean(shape: Shape, factor: Shape) -> npt.NDArray[np.int64]:
    """How many voxels each mean is made of: the product of ``factor`` but for partial blocks, broadcastable."""
    counts = [np.minimum(f, n - np.arange(0, n, f)) for n, f in zip(shape, factor, strict=True)]
    if all(n % f == 0 for n, f in zip(shape, factor, strict=True)):
        return np.array(math.prod(factor))
    return np.array(list(itertools.accumulate(np.ix_(*counts), np.multiply))[-1])


def _mean_of_long_integers(block: Block, factor: Shape, count: npt.NDArray[np.int64]) -> Block:
    """Exact block means of 64-bit integers, whose sums overflow 64 bits: by long division in halves of 32 bits."""
    wide = block.dtype
    count = count.astype(wide)
    half = wide.type(32)
    high, rest = np.divmod(_block_sum(block >> half, factor, wide), count)
    low = _block_sum(block & wide.type(2**32 - 1), factor, wide) + (rest << half)
    quotient, rest = np.divmod(low, count)
    mean = (high << half) + quotient
    twice = rest + rest
    round_up = (twice > count) | ((twice == count) & (mean & wide.type(1)).astype(bool))
    return np.asarray((mean + round_up.astype(wide)).astype(wide))
