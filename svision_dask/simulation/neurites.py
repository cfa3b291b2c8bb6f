"""A world of dendrites, spines and axons without end, in micrometres, made cell by cell from a seed.

The world is cut into cubes (*cells*). A cell owns the trees rooted in it, drawn by a random generator keyed by
(seed, cell), and no tree reaches further than ``REACH_UM`` from its cell: whoever wants the structure in some box
looks at the cells around it and nowhere else. Every neurite is a stack of thin *discs* of fluorophore along its axis.

A world stays the same as long as NumPy's random generators do, which may change from one version of NumPy to the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Cell = tuple[int, int, int]

CELL_UM = 40.0
"""Edge of a cell: about one dendrite and two axons are rooted in each."""
ARM_UM = 60.0
"""Longest path from a root to a tip; a path bounds the distance, so this bounds the reach."""
SPINE_UM = 3.5
"""Nothing extends further from the axis of its dendrite; of that at most half is the radius of a disc."""
REACH_UM = ARM_UM + SPINE_UM
"""No fluorophore lies further outside the cell of its root."""
STEP_UM = 0.12
"""Distance between discs, well below the lateral resolution of two-photon microscopy."""
DISC = ("z", "y", "x", "axis z", "axis y", "axis x", "radius", "brightness")
"""Columns of a disc; the length of the axis is the thickness of the disc, positions start at the corner of the cell."""

DENDRITES_PER_CELL = 0.8
AXONS_PER_CELL = 1.8
SPINES_PER_UM = 1.0
AXIAL_PREFERENCE = np.array([0.5, 1.0, 1.0])
"""The dendrites one images run along the focal plane rather than along the optical axis."""

# Even filling of a disc without random numbers: Vogel's sunflower, doi:10.1016/0025-5564(79)90080-4.
_TURNS = np.arange(4096) * math.pi * (3 - math.sqrt(5))
_COS, _SIN = np.cos(_TURNS), np.sin(_TURNS)
_POINT_AREA_UM2 = STEP_UM**2


def points_near(seed: int, low: Array, high: Array) -> tuple[Array, Array]:
    """Points of fluorophore in and around the box from ``low`` to ``high``, always in the same order.

    Parameters
    ----------
    seed
        The world.
    low, high
        Corners of the box, (z, y, x) in µm.

    Returns
    -------
    position
        Float64 (n, 3) in µm: every point inside the box, and some outside.
    volume
        Float64 (n,): brightness times the volume in µm³ that a point stands for.
    """
    parts = [_points_of(seed, cell, low, high) for cell in _cells_near(low, high)]
    return np.concatenate([p for p, _ in parts]), np.concatenate([v for _, v in parts])


def _cells_near(low: Array, high: Array) -> Iterator[Cell]:
    first = np.floor((low - REACH_UM) / CELL_UM).astype(int).tolist()
    last = np.floor((high + REACH_UM) / CELL_UM).astype(int).tolist()
    z, y, x = (range(a, b + 1) for a, b in zip(first, last, strict=True))
    return itertools.product(z, y, x)


def _points_of(seed: int, cell: Cell, low: Array, high: Array) -> tuple[Array, Array]:
    discs = _discs_of(seed, cell)
    corner = CELL_UM * np.array(cell, float)
    position = discs[:, :3] + corner
    # A disc lies within its radius and thickness of its centre, and both together are below SPINE_UM.
    is_near = ((position > low - SPINE_UM) & (position < high + SPINE_UM)).all(axis=1)
    chosen = np.flatnonzero(is_near)
    return _fill(position[chosen], discs[chosen, 3:].astype(np.float64), chosen)


def _fill(centre: Array, disc: Array, number: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Spread points evenly over each disc.

    Only +, −, ×, ÷ and square roots, which IEEE 754 rounds the same way in every code path of NumPy: the points of a
    disc do not depend on which other discs were chosen. The sines come from a table.
    """
    axis, radius, brightness = disc[:, :3], disc[:, 3], disc[:, 4]
    thickness = np.sqrt((axis * axis).sum(axis=1))
    area = math.pi * radius * radius
    count = np.ceil(area / _POINT_AREA_UM2).astype(int)
    of = np.repeat(np.arange(len(count)), count)  # (n,) disc of each point
    k = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)  # (n,) number of each point in its disc
    turn = (k + 619 * number[of]) % len(_COS)  # a shift in the table turns the disc
    r = radius[of] * np.sqrt((k + 0.5) / count[of])
    across, along = _frame(axis / thickness[:, None])
    lift = (0.7548776662466927 * (k + 1)) % 1.0 - 0.5  # spreads the points through the thickness
    position = (
        centre[of]
        + (r * _COS[turn])[:, None] * across[of]
        + (r * _SIN[turn])[:, None] * along[of]
        + lift[:, None] * axis[of]
    )
    return position, (brightness * area * thickness / count)[of]


def _frame(axis: Array) -> tuple[Array, Array]:
    """Two unit vectors (n, 3) perpendicular to the unit vectors ``axis`` (n, 3) and to each other."""
    helper = np.zeros_like(axis)
    helper[np.arange(len(axis)), np.abs(axis).argmin(axis=1)] = 1.0
    across = _unit(np.cross(axis, helper))
    return across, np.cross(axis, across)


def _unit(vector: Array) -> Array:
    return np.asarray(vector / np.sqrt((vector * vector).sum(axis=-1, keepdims=True)))


@lru_cache(maxsize=256)  # some 40 MB; neighbouring boxes share most of their cells
def _discs_of(seed: int, cell: Cell) -> npt.NDArray[np.float32]:
    """All discs of a cell, (n, 8) as in ``DISC``."""
    # Seeds of NumPy are not negative; cells may be.
    rng = np.random.Generator(np.random.Philox([seed, *(c + 2**40 for c in cell)]))
    parts = [np.empty((0, len(DISC)))]
    for _ in range(rng.poisson(DENDRITES_PER_CELL)):
        parts += _dendrite(rng)
    for _ in range(rng.poisson(AXONS_PER_CELL)):
        parts += _axon(rng)
    discs = np.concatenate(parts).astype(np.float32)
    discs.flags.writeable = False
    return discs


def _dendrite(rng: np.random.Generator) -> list[Array]:
    """Two arms that leave the root in opposite directions, their branches, and the spines of all of them."""
    root, heading = CELL_UM * rng.random(3), _heading(rng)
    radius, brightness = float(rng.uniform(0.4, 0.75)), _brightness(rng)
    shafts = []
    for sign in (1, -1):
        arm = _shaft(rng, root, sign * heading, rng.uniform(0.7, 1.0) * ARM_UM, radius, brightness)
        shafts += [arm, *_branches(rng, arm)]
    return shafts + [_spines(rng, shaft) for shaft in shafts]


def _branches(rng: np.random.Generator, arm: Array) -> list[Array]:
    """Up to two daughters of ``arm``; with the path on the arm they are no longer than ``ARM_UM``."""
    branches = []
    for fraction in rng.uniform(0.1, 0.7, size=min(2, rng.poisson(1.2))):
        at = arm[int(fraction * len(arm))]
        turned = _unit(_unit(at[3:6]) + rng.uniform(0.5, 1.1) * _across(rng, _unit(at[3:6])))
        length = rng.uniform(0.4, 1.0) * (ARM_UM - fraction * len(arm) * STEP_UM)
        branches.append(_shaft(rng, at[:3], turned, length, rng.uniform(0.6, 0.8) * at[6], at[7]))
    return branches


def _shaft(
    rng: np.random.Generator, start: Array, heading: Array, length: float, radius: float, brightness: float
) -> Array:
    """Discs (n, 8) of an unbranched dendrite that tapers towards its tip."""
    centre, axis = _walk(rng, start, heading * AXIAL_PREFERENCE, length, persistence=60.0)
    way = np.linspace(0, 1, len(centre))
    swelling = (1 + 0.15 * _smooth_noise(rng, len(centre), every=2.0)).clip(0.7, 1.3)
    return _discs(centre, axis, np.maximum(0.28, radius * (1 - 0.55 * way) * swelling), brightness)


def _axon(rng: np.random.Generator) -> list[Array]:
    """Draw a thin winding fibre with boutons, in two arms from the root."""
    root, heading = CELL_UM * rng.random(3), _heading(rng)
    radius, brightness = rng.uniform(0.12, 0.18), 1.3 * _brightness(rng)
    arms = []
    for sign in (1, -1):
        centre, axis = _walk(rng, root, sign * heading, rng.uniform(0.5, 1.0) * ARM_UM, persistence=10.0)
        arms.append(_discs(centre, axis, np.maximum(radius, _boutons(rng, len(centre))), brightness))
    return arms


def _boutons(rng: np.random.Generator, count: int) -> Array:
    """Radius (count,) that the boutons of a fibre give to its discs, 0 between boutons."""
    boutons = 1 + rng.poisson(count * STEP_UM / 5.0)
    centre, radius = rng.uniform(0, count * STEP_UM, size=boutons), rng.uniform(0.3, 0.5, size=boutons)
    along = (np.arange(count)[:, None] * STEP_UM - centre) / 1.4  # longer than wide
    return np.asarray(np.sqrt(np.maximum(0, radius**2 - along**2)).max(axis=1))


def _spines(rng: np.random.Generator, shaft: Array) -> Array:
    """Discs of the spines of ``shaft``: a neck of half the lateral resolution and a head at its end."""
    at = shaft[rng.integers(len(shaft), size=rng.poisson(SPINES_PER_UM * STEP_UM * len(shaft)))]
    if not len(at):
        return np.empty((0, len(DISC)))
    n, axis = len(at), _unit(at[:, 3:6])
    direction = _unit(_across(rng, axis) + rng.uniform(-0.5, 0.5, size=(n, 1)) * axis)
    neck = np.exp(rng.normal(math.log(0.65), 0.45, size=n)).clip(0.2, 1.3)  # µm, beyond the shaft
    head = np.exp(rng.normal(math.log(0.32), 0.25, size=n)).clip(0.2, 0.5)
    # Slabs 0..7 are the neck, out of the shaft; slabs 8..15 the head.
    slab = (np.arange(8) + 0.5) / 8
    foot = 0.8 * at[:, 6:7]
    neck_length = at[:, 6:7] - foot + neck[:, None]
    distance = np.hstack([foot + neck_length * slab, foot + neck_length + 2 * head[:, None] * slab])  # (n, 16)
    thickness = np.hstack([np.repeat(neck_length / 8, 8, axis=1), np.repeat(head[:, None] / 4, 8, axis=1)])
    sphere = 2 * head[:, None] * np.sqrt(slab * (1 - slab))
    radius = np.hstack([np.repeat(rng.uniform(0.07, 0.13, size=(n, 1)), 8, axis=1), sphere])
    centre = at[:, None, :3] + distance[..., None] * direction[:, None]  # (n, 16, 3)
    return _discs(
        centre.reshape(-1, 3),
        (thickness[..., None] * direction[:, None]).reshape(-1, 3),
        radius.ravel(),
        np.repeat(at[:, 7], 16),
    )


def _walk(
    rng: np.random.Generator, start: Array, heading: Array, length: float, *, persistence: float
) -> tuple[Array, Array]:
    """Centres and axes (n, 3) of discs on a path that forgets its direction over ``persistence`` µm."""
    count = max(2, int(length / STEP_UM))
    bends = rng.normal(scale=math.sqrt(2 * STEP_UM / persistence), size=(count, 3)) * AXIAL_PREFERENCE
    axis = STEP_UM * _unit(_unit(heading) + np.cumsum(bends, axis=0))
    return start + np.cumsum(axis, axis=0), axis


def _smooth_noise(rng: np.random.Generator, count: int, *, every: float) -> Array:
    """Noise (count,) of unit size that varies over ``every`` µm of path."""
    knots = rng.normal(size=2 + int(count * STEP_UM / every))
    return np.asarray(np.interp(np.arange(count) * STEP_UM / every, np.arange(len(knots)), knots))


def _discs(centre: Array, axis: Array, radius: Array, brightness: float | Array) -> Array:
    return np.column_stack([centre, axis, radius, np.broadcast_to(brightness, radius.shape)])


def _heading(rng: np.random.Generator) -> Array:
    return _unit(rng.normal(size=3))


def _across(rng: np.random.Generator, axis: Array) -> Array:
    """Random unit vectors perpendicular to the unit vectors ``axis`` (..., 3)."""
    direction = rng.normal(size=axis.shape)
    return _unit(direction - (direction * axis).sum(axis=-1, keepdims=True) * axis)


def _brightness(rng: np.random.Generator) -> float:
    """How strongly a neuron is labelled, against a mean of about 1."""
    return float(np.exp(rng.normal(0.0, 0.25)).clip(0.6, 1.5))
