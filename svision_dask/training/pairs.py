"""Training pairs made from the volume itself: patches of it, and their reductions, with matching noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.degradation import CUBIC, Degradation
from svision_dask.errors import SampleError
from svision_dask.geometry import SPATIAL, Shape
from svision_dask.network.resample import degrade
from svision_dask.training.brightness import black_level, matched_gain
from svision_dask.training.noise_estimate import Noise
from svision_dask.volume import mirror_pad

Zoom = tuple[float, float, float]
"""Enlargement of z, y, x."""
HELD_BACK = 1 / 8
"""Share of the pairs that is not trained on."""
THINNEST = 3
"""Coarse voxels below which a slab is too thin to judge by."""
ATYPICAL = 2.0
"""A slab with more than so many times its share of the volume's squared contrast, or as much less, is not typical."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One channel at one zoom, or a part of it."""

    coarse: torch.Tensor
    """(1, 1, z, y, x): the reduction of ``fine``, with a margin, mirrored at its faces."""
    fine: torch.Tensor
    """(1, 1, fz·z, fy·y, fx·x) without the margin: what the network shall predict."""
    noise: tuple[float, float]
    """Floor and gain of its variance where the network is applied: ``floor + gain · max(v + shift, 0)``."""
    kept: float
    """Share of that variance which ``coarse`` has already."""
    axes: str
    """Which axis of the volume each of the three is: not z, y, x where another axis stands for z."""
    shift: float
    """What to add to a standardised voxel to get its distance from the offset of the noise."""
    black: float = 0.0
    """Level above which things are bright."""
    gain: float = 1.0
    """By how much brighter they are where the network is applied."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All channels at all scales, to draw patches from."""

    scales: tuple[Scale, ...]
    margin: Shape
    """Coarse voxels per side that surround what is to be predicted."""
    factor: Shape
    """Of this stage, for z, y, x."""
    how: Degradation = CUBIC
    turned: bool = True
    """Whether y and x may be exchanged where they are refined alike."""

    def draw(
        self, rng: np.random.Generator, patch: Shape, batch: int, halo: Shape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ``batch`` patches, flipped and turned alike at random.

        Parameters
        ----------
        patch
            Coarse voxels (z, y, x) to predict from; at most those there are.
        halo
            Coarse voxels around them, per side, at most the margin.

        Returns
        -------
        tuple of Tensor
            Coarse (n, 1, pz + 2hz, …) with noise, and fine (n, 1, fz·pz, …).
        """
        scale = self.scales[rng.integers(len(self.scales))]
        inner = self._inner(scale)
        size = tuple(min(p, n) for p, n in zip(patch, inner, strict=True))
        spare = tuple(m - h for m, h in zip(self.margin, halo, strict=True))
        points = tuple(f == 2 and self.how.sampling == "point" for f in self.factor)
        flips = [s > 1 and n - s >= p and bool(rng.integers(2)) for n, s, p in zip(inner, size, points, strict=True)]
        # A fine voxel that follows a point precedes it in reversed order: such a pair begins one fine voxel earlier.
        early = [int(p and flip) for p, flip in zip(points, flips, strict=True)]
        coarse, fine = [], []
        for _ in range(batch):
            first = [int(rng.integers(e, n - s + 1)) for e, n, s in zip(early, inner, size, strict=True)]
            shifted = [a + s for a, s in zip(first, spare, strict=True)]
            coarse.append(scale.coarse[_window(shifted, size, (1, 1, 1), halo)])
            fine.append(scale.fine[_window(first, size, self.factor, (0, 0, 0), early)])
        turn = self.turned and self.factor[1] == self.factor[2] and bool(rng.integers(2))
        gain = scale.gain ** rng.random()
        bright = _brighter(torch.cat(coarse), scale.black, gain), _brighter(torch.cat(fine), scale.black, gain)
        return _turned(_add_noise(bright[0], scale, gain, rng), flips, turn), _turned(bright[1], flips, turn)

    def hold_back(self) -> tuple[Pairs, Pairs] | None:
        """Split into what to train on and what to judge by: a slab across the longest axis, near its middle.

        It is the same slab of the volume at every scale, to a coarse voxel, and no fine voxel of it is trained on. None
        where it would be thinner than ``THINNEST``.
        """
        learned, held = [], []
        first = self.scales[0]
        longest = max(first.axes, key=lambda axis: self._inner(first)[first.axes.index(axis)])
        place = self._typical_place(longest)
        for scale in self.scales:
            axis = scale.axes.index(longest)
            length = self._inner(scale)[axis]
            slab = round(length * HELD_BACK)
            if slab < THINNEST:
                return None
            start = int(place * (length - slab))
            learned += [self._part(scale, axis, 0, start), self._part(scale, axis, start + slab, length)]
            held.append(self._part(scale, axis, start, start + slab))
        return replace(self, scales=tuple(learned)), replace(self, scales=tuple(held))

    def _typical_place(self, along: str) -> float:
        """Find a slab with about its share of what there is to see, from 0 at one end of an axis to 1 at the other.

        The middle of an image of one bead is all of it: nothing would be left to learn from.
        """
        axis = self.scales[0].axes.index(along)
        length = self._inner(self.scales[0])[axis]
        slab = round(length * HELD_BACK)
        alike = [s for s in self.scales if s.axes.find(along) == axis and self._inner(s)[axis] == length]
        squares = sum(self._squares(scale, axis) for scale in alike)
        running = np.concatenate([[0.0], np.cumsum(squares)])
        starts = np.arange(THINNEST, length - slab - THINNEST + 1)
        if slab < THINNEST or not starts.size or running[-1] == 0:
            return 0.5
        shares = (running[starts + slab] - running[starts]) / running[-1] * length / slab
        middle = (length - slab) // 2
        typical = (shares >= 1 / ATYPICAL) & (shares <= ATYPICAL)
        if not typical.any():
            return 0.5
        start = min(starts[typical], key=lambda s: abs(int(s) - middle))
        return 0.5 if start == middle else (float(start) + 0.5) / (length - slab)

    def _squares(self, scale: Scale, axis: int) -> npt.NDArray[np.float64]:
        """Sum the squared distances from the mean over each plane across ``axis`` that is predicted from."""
        inner = scale.coarse[0, 0][
            tuple(slice(m, n - m) for m, n in zip(self.margin, scale.coarse.shape[2:], strict=True))
        ]
        planes = (inner - inner.mean()).square().movedim(axis, 0).flatten(1).sum(1, dtype=torch.float64)
        squares: npt.NDArray[np.float64] = planes.numpy()
        return squares

    def _inner(self, scale: Scale) -> Shape:
        return tuple(n - 2 * m for n, m in zip(scale.coarse.shape[2:], self.margin, strict=True))

    def _part(self, scale: Scale, axis: int, start: int, stop: int) -> Scale:
        factor, margin = self.factor[axis], self.margin[axis]
        return replace(
            scale,
            coarse=scale.coarse.narrow(axis + 2, start, stop - start + 2 * margin),
            fine=scale.fine.narrow(axis + 2, factor * start, factor * (stop - start)),
        )


def make_pairs(
    voxels: npt.NDArray[np.float32],
    *,
    factor: Shape,
    margin: Shape,
    zooms: Sequence[Zoom],
    noise: Sequence[Noise],
    offsets: Sequence[float],
    scales: Sequence[float],
    how: Degradation = CUBIC,
    axes: str = SPATIAL,
    match_brightness: bool = False,
) -> Pairs:
    """Enlarge every channel of ``voxels`` (c, z, y, x; standardised) by every zoom, and reduce it.

    Parameters
    ----------
    voxels
        The sample.
    factor
        Of the stage, for z, y, x.
    margin
        Coarse voxels to keep around what is to be predicted: the most that anything drawn from the pairs needs.
    zooms
        Applied to the axes that the stage refines.
    noise, offsets, scales
        Per channel: noise in intensity units, and the constants that standardised it.
    how
        To reduce.
    axes
        Of the volume, that the last three of ``voxels`` are.
    match_brightness
        Whether both of a pair get back the brightness that reduction took away.

    Raises
    ------
    SampleError
        If an axis is too short to be reduced.
    """
    for axis, n, f in zip(SPATIAL, voxels.shape[1:], factor, strict=True):
        if n < f:
            keep = ",".join(f"{a}={1 if a == axis else g}" for a, g in zip(SPATIAL, factor, strict=True))
            raise SampleError(f"sample of {n} voxel along {axis}: at least {f} are needed. Use --factor {keep}.")
    made: list[Scale] = []
    for channel, model, offset, scale in zip(voxels, noise, offsets, scales, strict=True):
        pairs = []
        for zoom in zooms:
            fine = enlarged(torch.from_numpy(channel)[None, None], factor, zoom)
            pairs.append(
                Scale(
                    coarse=_padded(reduced(fine, factor, how), margin),
                    fine=fine,
                    noise=(model.floor / scale**2, model.gain / scale),
                    kept=noise_kept(factor, zoom, how),
                    axes=axes,
                    shift=(offset - model.offset) / scale,
                )
            )
        made += _matched(pairs, torch.from_numpy(channel)) if match_brightness else pairs
    return Pairs(scales=tuple(made), margin=margin, factor=factor, how=how, turned=how.down[1] == how.down[2])


def enlarged(voxels: torch.Tensor, factor: Shape, zoom: Zoom) -> torch.Tensor:
    """Cubic enlargement of the refined axes by about ``zoom``, to a multiple of the factor."""
    for axis, (f, z) in enumerate(zip(factor, zoom, strict=True), start=2):
        size = max(f, math.floor(voxels.shape[axis] * (z if f > 1 else 1)) // f * f)
        if z == 1 or f == 1:
            voxels = voxels.narrow(axis, 0, min(size, voxels.shape[axis]))
        else:
            voxels = _resized(voxels, axis, size)
    return voxels.contiguous()


def _resized(voxels: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Keys' cubic interpolation of one axis; torch has the a = −1/2 kernel only with ``antialias``."""
    last = voxels.movedim(axis, -1)
    rows = last.reshape(1, 1, -1, last.shape[-1])
    rows = torch.nn.functional.interpolate(rows, size=(rows.shape[2], size), mode="bicubic", antialias=True)
    return rows.reshape(*last.shape[:-1], size).movedim(-1, axis)


def reduced(fine: torch.Tensor, factor: Shape, how: Degradation = CUBIC) -> torch.Tensor:
    """Reduce with mirrored faces."""
    return degrade(_padded(fine, tuple(2 * how.reach * (f == 2) for f in factor)), factor, how)


def _padded(voxels: torch.Tensor, margin: Shape) -> torch.Tensor:
    return torch.from_numpy(mirror_pad(voxels.numpy(), (0, 0, *margin)))


def noise_kept(factor: Shape, zoom: Zoom, how: Degradation) -> float:
    """Share of the variance of independent noise that is left after enlarging and reducing."""
    generator = torch.Generator().manual_seed(0)
    sizes = [48 if f == 2 else 4 for f in factor]
    white = torch.randn(1, 1, *sizes, generator=generator)
    return min(1.0, float(reduced(enlarged(white, factor, zoom), factor, how).var()))


def _matched(pairs: Sequence[Scale], voxels: torch.Tensor) -> list[Scale]:
    """Find by how much brighter ``voxels`` are than their reductions; noise does not count."""
    noisy = [_add_noise(pair.coarse, pair, 1.0, np.random.default_rng(0)) for pair in pairs]
    gain = matched_gain(voxels, noisy)
    return [replace(pair, black=black_level(voxels), gain=gain) for pair in pairs]


def _brighter(voxels: torch.Tensor, black: float, gain: float) -> torch.Tensor:
    return voxels if gain == 1 else (voxels - black).mul_(gain).add_(black)


def _add_noise(coarse: torch.Tensor, scale: Scale, by: float, rng: np.random.Generator) -> torch.Tensor:
    """Add what is missing: made brighter, the variance has grown with the square, and is to grow like the signal."""
    floor = scale.noise[0] * max(0.0, 1 - scale.kept * by**2)
    gain = scale.noise[1] * max(0.0, 1 - scale.kept * by)
    if floor <= 0 and gain <= 0:
        return coarse
    variance = floor + gain * (coarse + scale.shift).clamp_min(0)
    normal = torch.from_numpy(rng.standard_normal(coarse.shape, dtype=np.float32))
    return coarse + normal * variance.sqrt()


def _window(
    first: Sequence[int], size: Shape, factor: Shape, halo: Shape, early: Sequence[int] = (0, 0, 0)
) -> tuple[slice, ...]:
    inside = (
        slice(f * a - e, f * (a + s) + 2 * h - e)
        for a, s, f, h, e in zip(first, size, factor, halo, early, strict=True)
    )
    return (slice(None), slice(None), *inside)


def _turned(voxels: torch.Tensor, flips: Sequence[bool], turn: bool) -> torch.Tensor:
    flipped = voxels.flip([axis for axis, flip in enumerate(flips, start=2) if flip])
    return flipped.transpose(3, 4) if turn else flipped
