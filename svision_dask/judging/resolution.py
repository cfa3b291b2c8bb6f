"""Up to which detail: correlations in frequency space of two volumes, of one with itself, and decorrelation analysis.

*Lateral* is what the planes (y, x) show: rings, summed over all planes. *Axial* are details whose direction is within
30° of z in world units, counted along z: a sector (Koho et al. 2019, doi:10.1038/s41467-019-11024-z).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from svision_dask.errors import UsageError
from svision_dask.geometry import Shape
from svision_dask.metrics import BORDER, inside

Voxels = npt.NDArray[Any]
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Frequencies, in cycles per unit of the spacing, and what was measured at each."""
Spectrum = npt.NDArray[np.complexfloating[Any]]
Direction = Literal["all", "lateral", "axial"]

RESOLVED = 1 / 7
"""Correlation down to which detail counts as shared (Rosenthal, Henderson 2003, doi:10.1016/j.jmb.2003.07.013)."""
FEWEST_SHELLS = 4
"""Below which there is nothing to tell a resolution from."""
SECTOR = math.radians(30)
"""Half the opening of the axial sector."""
PASSES = 10
"""High-pass filters of a decorrelation analysis, as published."""
NARROWEST = 0.15
"""Standard deviation, in voxels, of the weakest of them, as published."""
PEAK = 5e-4
"""By how much a decorrelation must fall behind its maximum for that to be one, as published."""
ALIKE = 0.05
"""How high it must be there, as published."""


class Shells:
    """Products of spectra, summed up shell by shell over as many blocks of one shape as are added."""

    def __init__(self, shape: Shape, spacing: Sequence[float] | None = None, direction: Direction = "all") -> None:
        steps = spacing or (1.0,) * len(shape)
        along = {"all": range(len(shape)), "lateral": range(len(shape))[-2:], "axial": range(len(shape))[:1]}[direction]
        count, self.finest = max((shape[axis], 0.5 / steps[axis]) for axis in along)
        if count < 2 * FEWEST_SHELLS or 0 in shape:  # half of an axis of one voxel has none
            raise UsageError(
                f"block of {shape} voxels: a resolution ({direction}) needs an axis of {2 * FEWEST_SHELLS}. "
                "Give a larger volume, or a smaller border."
            )
        self.edges = np.linspace(0, self.finest, count // 2 + 1)
        frequencies = np.meshgrid(
            *(np.fft.fftfreq(n, d) for n, d in zip(shape, steps, strict=True)), indexing="ij", sparse=True
        )
        counted = {"all": frequencies, "lateral": frequencies[-2:], "axial": frequencies[:1]}[direction]
        radius = np.broadcast_to(np.sqrt(sum(f**2 for f in counted)), shape)
        self._shell = np.digitize(radius.ravel(), self.edges) - 1
        if direction == "axial":  # the last shell holds what is not counted
            outside = radius < math.cos(SECTOR) * np.sqrt(sum(f**2 for f in frequencies))
            self._shell[outside.ravel()] = len(self.edges) - 1
        self.modes = self._sum(np.ones(shape))
        self.products = np.zeros((3, len(self.edges) - 1))
        self.amplitudes = np.zeros(len(self.edges) - 1)
        self.pairs = 0

    def add(self, first: Spectrum, second: Spectrum) -> None:
        """Count a pair of spectra."""
        pair = (first * second.conj()).real, np.abs(first) ** 2, np.abs(second) ** 2
        self.products += [self._sum(product) for product in pair]
        self.amplitudes += self._sum(np.abs(first))
        self.pairs += 1

    def _sum(self, values: Voxels) -> npt.NDArray[np.float64]:
        sums: npt.NDArray[np.float64] = np.bincount(self._shell, values.ravel(), minlength=len(self.edges)).astype(
            np.float64
        )
        return sums[: len(self.edges) - 1]

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """The middle of each shell that has modes."""
        return np.asarray(((self.edges[:-1] + self.edges[1:]) / 2)[self.modes > 0])

    def correlation(self) -> Curve:
        """Correlate the pairs, from −1 to 1 in each shell; 0 where one of them has nothing."""
        cross, own, other = self.products[:, self.modes > 0]
        norm = np.sqrt(own * other)
        return self.frequencies, np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)

    def cut_off(self) -> float | None:
        """Find the highest frequency that is not noise alone, by decorrelation analysis of the first of each pair.

        Descloux, Großmayer, Radenovic 2019 (doi:10.1038/s41592-019-0515-7): the correlation of a spectrum with its own
        phases has a maximum where structure ends, and the highest of those under some high-pass filters is the cut-off.
        As published, a second search looks at more filters, between the neighbours of the one that gave the highest.
        Filters act on shells, so that sums over them are enough; the second search has no finer radii than these,
        because the window mixes neighbours.

        Returns
        -------
        float or None
            In cycles per unit of the spacing; None if there is no maximum, as in noise without structure.
        """
        has = self.modes > 0
        amplitudes, powers, modes = self.amplitudes[has], self.products[1][has], self.pairs * self.modes[has]
        relative = self.frequencies / self.finest

        def peak(width: float) -> int:
            passed = 1 - np.exp(-0.5 * (np.pi * width * relative) ** 2)
            return _peak(amplitudes * passed, powers * passed**2, modes)

        whole = 2.0 * relative.size  # a filter as wide as the block lets everything pass
        plain = peak(whole)
        widest = 2 / relative[plain] if plain else whole / 2
        widths = [whole, whole / 4, *np.geomspace(widest, NARROWEST, PASSES)]
        found = [peak(width) for width in widths]
        best = max(range(len(widths)), key=lambda i: (found[i], i))
        between = np.geomspace(widths[max(best - 1, 0)], widths[min(best + 1, len(widths) - 1)], PASSES)
        highest = max(*found, *(peak(width) for width in between))
        return float(self.edges[1:][has][highest]) if highest else None


def _peak(amplitudes: Voxels, powers: Voxels, modes: Voxels) -> int:
    """Find the shell up to which a spectrum resembles its phases most, if the resemblance falls after it, or else 0."""
    total = powers.sum()
    if total == 0:
        return 0
    alike = np.cumsum(amplitudes) / np.sqrt(total * np.cumsum(modes))
    for highest in range(len(alike), 1, -1):  # from the end, where noise may rise again
        top = int(alike[:highest].argmax())
        if 0 < top < highest - 1 and alike[top] - alike[top:highest].min() >= PEAK:
            return top if alike[top] >= ALIKE else 0
    return 0


def spectrum(voxels: Voxels) -> Spectrum:
    """Transform the voxels without their mean, faded out towards the faces, where they would pass for detail."""
    faded = voxels - voxels.mean(dtype=np.float64)
    for axis, n in enumerate(voxels.shape):
        if n > 1:
            faded = faded * np.hanning(n + 2)[1:-1].reshape([-1 if a == axis else 1 for a in range(voxels.ndim)])
    return np.asarray(np.fft.fftn(faded))


def split_spectra(voxels: Voxels, axes: Sequence[int]) -> list[tuple[Spectrum, Spectrum]]:
    """Split a volume into halves that share no voxel, for one-image correlations (Koho et al. 2019).

    Every other voxel along ``axes`` goes to either half, in diagonal pairs. They lie one voxel apart, which their
    phases tell; here it is undone, instead of calibrated as in the publication.

    Returns
    -------
    list of pairs
        Spectra of 1, 2 or 4 pairs of halves, for 1, 2 or 3 axes; voxels along ``axes`` are twice as wide in them.
    """
    even = voxels[tuple(slice(n - n % 2) if a in axes else slice(None) for a, n in enumerate(voxels.shape))]
    pairs = []
    for rest in itertools.product((0, 1), repeat=len(axes) - 1):
        corner = dict(zip(axes, (0, *rest), strict=True))
        first, second = (
            even[tuple(slice(abs(corner[a] - far), None, 2) if a in corner else slice(None) for a in range(even.ndim))]
            for far in (0, 1)
        )
        apart = spectrum(second)
        for axis, start in corner.items():
            shape = [-1 if a == axis else 1 for a in range(even.ndim)]
            phase = np.exp(-1j * np.pi * (1 - 2 * start) * np.fft.fftfreq(first.shape[axis]))
            apart = apart * phase.reshape(shape)
        pairs.append((spectrum(first), apart))
    return pairs


def period(curve: Curve, finest: float) -> float:
    """Find the period of the finest detail: where a correlation first falls below 1/7, between two shells.

    Returns
    -------
    float
        In units of the spacing; ``1/finest`` if it never falls, infinite where even the coarsest detail differs.
    """
    frequencies, correlations = curve
    below = np.flatnonzero(correlations < RESOLVED)
    if not below.size:
        return 1 / finest
    k = int(below[0])
    if k == 0:
        return math.inf
    share = (correlations[k - 1] - RESOLVED) / (correlations[k - 1] - correlations[k])
    return float(1 / (frequencies[k - 1] + share * (frequencies[k] - frequencies[k - 1])))


def fsc(image: Voxels, reference: Voxels, *, border: int = BORDER) -> Curve:
    """Correlate two volumes shell by shell in frequency space (van Heel 1987, doi:10.1016/0304-3991(87)90010-1).

    Means are taken off, and a Hann window takes the faces off, where they would pass for detail.

    Parameters
    ----------
    image, reference
        Of equal shape, any number of axes and any dtype.
    border
        Voxels to leave out at every face; an axis of one voxel is taken whole.

    Returns
    -------
    frequencies, correlations
        Middle of each shell in cycles per voxel, up to 1/2, and the correlation in it, from −1 to 1; 0 for a shell that
        is empty in one of them.

    Raises
    ------
    UsageError
        If the shapes differ, or nothing is left inside the border.
    """
    return _shells(image, reference, border).correlation()


def fsc_resolution(image: Voxels, reference: Voxels, *, border: int = BORDER) -> float:
    """Find the period, in voxels, of the finest detail that both volumes share: where ``fsc`` first falls below 1/7.

    Parameters
    ----------
    image, reference, border
        As `fsc`.

    Returns
    -------
    float
        2 or more; infinite where even the coarsest detail differs.

    Raises
    ------
    UsageError
        As `fsc`.
    """
    shells = _shells(image, reference, border)
    return period(shells.correlation(), shells.finest)


def _shells(image: Voxels, reference: Voxels, border: int) -> Shells:
    parts = inside(image, reference, border)
    shells = Shells(parts[0].shape)
    shells.add(*(spectrum(part) for part in parts))
    return shells
