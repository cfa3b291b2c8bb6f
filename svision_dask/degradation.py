"""How a coarse voxel comes about from fine ones, along each axis, in one ×2 step: what training undoes.

Pure values. Where coarse voxels are means over an area, coarse voxel i covers the fine voxels 2i and 2i + 1; where the
microscope skipped every other position, it *is* the fine voxel 2i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Taps = tuple[float, ...]
Degrade = Literal["cubic", "box", "point", "psf"]
DEGRADES: tuple[Degrade, ...] = ("cubic", "box", "point", "psf")
Sampling = Literal["area", "point"]
NoiseModel = Literal["auto", "none"]
NOISE_MODELS: tuple[NoiseModel, ...] = ("auto", "none")
"""What training may be told of the detector's noise; the first is to measure it."""

UP_REACH = 2
"""Coarse voxels per side that interpolation uses up."""
LONGEST = 16
"""Taps of a measured PSF along an axis, in fine voxels; more of it is cut off."""


def _keys(distance: float) -> float:
    """Keys' cubic convolution kernel with a = −1/2 (IEEE Trans. ASSP 29, 1981, eq. 15)."""
    d = abs(distance)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


# The centre of coarse voxel i lies between the fine voxels 2i and 2i + 1; the kernel is widened by the factor.
_CUBIC_DOWN = tuple(_keys((k - 0.5) / 2) / 2 for k in range(-3, 5))
# Fine voxel 2i sits a quarter of a coarse voxel before voxel i: taps for the coarse voxels i − 2 … i + 1.
_AREA_EVEN = tuple(_keys(k + 0.25) for k in range(-2, 2))
# Or it is voxel i itself, and fine voxel 2i + 1 lies half-way to voxel i + 1.
_POINT_EVEN, _POINT_ODD = (0.0, 0.0, 1.0, 0.0), tuple(_keys(k - 0.5) for k in range(-1, 3))
_DOWN: dict[str, Taps] = {"cubic": _CUBIC_DOWN, "box": (0.5, 0.5), "point": (1.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """The reduction D of one step, and the interpolation U on the same positions."""

    kind: Degrade = "cubic"
    """Antialiased cubic; mean of two, as binning does; every other position; or the blur of a measured PSF."""
    psf: tuple[Taps, ...] = ()
    """Of kind ``"psf"``: for z, y, x, the weights of 2m fine voxels around a coarse one; symmetric, with the sum 1."""

    @property
    def sampling(self) -> Sampling:
        """What a coarse voxel is: a mean over its area, or the value at a point."""
        return "point" if self.kind == "point" else "area"

    @property
    def down(self) -> tuple[Taps, ...]:
        """For z, y, x: weights of the fine voxels 2i + 1 − m … 2i + m of coarse voxel i, m being half their number."""
        return self.psf or (_DOWN[self.kind],) * 3

    @property
    def up(self) -> tuple[Taps, Taps]:
        """Weights of the coarse voxels i − 2 … i + 1 for fine voxel 2i, and of i − 1 … i + 2 for 2i + 1."""
        return (_POINT_EVEN, _POINT_ODD) if self.kind == "point" else (_AREA_EVEN, _AREA_EVEN[::-1])

    @property
    def reach(self) -> int:
        """Coarse voxels per side that the reduction uses up."""
        return max(len(taps) // 4 for taps in self.down)

    @property
    def step(self) -> int:
        """Coarse voxels per side by which one more back projection widens its kernel: the reach of D·U."""
        return max((len(taps) // 2 + 3) // 2 for taps in self.down)

    def of_step(self, number: int) -> Degradation:
        """Degradation that step ``number`` undoes, counted from the coarsest: a PSF blurs only once."""
        return CUBIC if self.psf and number else self

    @classmethod
    def from_json(cls, value: Any) -> Degradation:
        """From plain values, checked.

        Raises
        ------
        ValueError
            If it is none of the kinds, or the weights are not those of a PSF.
        """
        kind, psf = value["kind"], tuple(tuple(taps) for taps in value["psf"])
        if kind not in DEGRADES or len(psf) != 3 * (kind == "psf") or not all(_is_blur(taps) for taps in psf):
            raise ValueError(f"degradation {kind!r}")
        return cls(kind=kind, psf=psf)


CUBIC = Degradation()


def _is_blur(taps: Taps) -> bool:
    return (
        2 <= len(taps) <= LONGEST
        and len(taps) % 2 == 0
        and all(type(tap) is float and 0 <= tap <= 1 for tap in taps)
        and taps == taps[::-1]
        and math.isclose(sum(taps), 1, abs_tol=1e-6)
    )
