"""Randomness that belongs to places: Poisson noise and clouds as pure functions of a key and of voxel coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Corner = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

CLOUDS_UM = ((14.0, 0.7), (4.0, 0.3))
"""Size in µm and share of each octave of the clouds."""
CLOUD_CONTRAST = 6.0
_COUNTS, _CLOUDS = 1, 2  # a purpose in the key, so that noise and clouds of one seed have nothing in common


def poisson_counts(mean: npt.NDArray[np.floating[Any]], first: Corner, *, key: Sequence[int]) -> npt.NDArray[np.uint16]:
    """Draw a Poisson number in every voxel of a box.

    Parameters
    ----------
    mean
        Expectation, at least 0; any number of axes.
    first
        Coordinates of voxel 0 of ``mean``, one per axis; may be negative.
    key
        Integers; another key gives independent noise.

    Returns
    -------
    counts
        Uint16, at most 65535.
    """
    words = coordinate_words(first, np.array(mean.shape), key=(_COUNTS, *key))
    return poisson_quantile(uniform(words), mean.astype(np.float64)).clip(0, 65535).astype(np.uint16, copy=False)


def poisson_quantile(probability: Array, mean: Array) -> Array:
    """Find the smallest count whose cumulative Poisson probability reaches ``probability``; float64.

    One uniform number per voxel keeps voxels independent of each other; a rejection sampler, as NumPy's, uses more
    numbers for some voxels than for others.
    """
    from scipy.special import ndtri, pdtr

    z = ndtri(probability)
    # The Cornish-Fisher guess is rarely more than 1 off; the loops make it exact.
    count = np.maximum(0, np.floor(mean + np.sqrt(mean) * z + (z * z + 2) / 6)).ravel()
    p, mean = probability.ravel(), mean.ravel()
    low = np.flatnonzero(pdtr(count, mean) < p)
    while low.size:
        count[low] += 1
        low = low[pdtr(count[low], mean[low]) < p[low]]
    high = np.flatnonzero(count > 0)
    while high.size:
        high = high[pdtr(count[high] - 1, mean[high]) >= p[high]]
        count[high] -= 1
        high = high[count[high] > 0]
    return np.asarray(count.reshape(probability.shape))


def cloudiness(seed: int, first: Corner, shape: Corner, spacing: Sequence[float]) -> Array:
    """Make a smooth uneven field of mean about 1, at least 0.1, over a box of voxels; float64.

    It changes over some µm, far more than a point spread function, and therefore needs no blur.
    """
    field = np.ones(shape)
    for octave, (size, share) in enumerate(CLOUDS_UM):
        values = _random_spline((seed, octave), first, shape, [d / size for d in spacing])
        values -= 0.5
        values *= CLOUD_CONTRAST * share
        field += values
    return np.maximum(0.1, field)


def _random_spline(key: Sequence[int], first: Corner, shape: Corner, steps: Sequence[float]) -> Array:
    """Cubic B-spline with uniformly random coefficients at the integers, sampled at ``steps`` times the voxel index."""
    positions = [(a + np.arange(n)) * d for a, n, d in zip(first.tolist(), shape.tolist(), steps, strict=True)]
    knot = np.array([math.floor(p[0]) - 1 for p in positions])
    count = np.array([math.floor(p[-1]) + 3 for p in positions]) - knot
    values = uniform(coordinate_words(knot, count, key=(_CLOUDS, *key)))
    for axis, position in enumerate(positions):
        values = _spline_along(values, axis, position, int(knot[axis]))
    return values


def _spline_along(coefficients: Array, axis: int, position: Array, knot: int) -> Array:
    """Evaluate along one axis; in plain sums, as a matrix product may order its sums by the shape of the box."""
    base = np.floor(position)
    f = position - base  # from the position itself, so that it does not depend on where the box starts
    g = 1 - f
    weights = (g**3 / 6, (3 * f**3 - 6 * f**2 + 4) / 6, (3 * g**3 - 6 * g**2 + 4) / 6, f**3 / 6)
    moved = np.moveaxis(coefficients, axis, 0)
    index = base.astype(int) - knot
    column = (-1,) + (1,) * (moved.ndim - 1)
    values = weights[0].reshape(column) * moved[index - 1]
    for t in (1, 2, 3):
        values += weights[t].reshape(column) * moved[index - 1 + t]
    return np.moveaxis(values, 0, axis)


def coordinate_words(first: Corner, shape: Corner, *, key: Sequence[int]) -> Words:
    """Hash ``key`` and the coordinates of every voxel of a box to 64 random bits."""
    state = np.zeros((1,) * len(shape), np.uint64)
    for number in key:
        state = _mix(state ^ np.uint64(number % 2**64))
    for axis, (start, size) in enumerate(zip(first.tolist(), shape.tolist(), strict=True)):
        index = np.arange(start, start + size, dtype=np.int64).astype(np.uint64)
        state = _mix(state ^ index.reshape([-1 if a == axis else 1 for a in range(len(shape))]))
    return state


def _mix(state: Words) -> Words:
    """One step of SplitMix64 modulo 2**64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(words: Words) -> Array:
    """Turn random bits into uniform numbers strictly between 0 and 1."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
