"""What each figure of a comparison is, and in which unit: no number goes without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LENGTH, FREQUENCY = "length", "1/length"
"""Stand for the unit of the spacing, and for its inverse."""
INTENSITIES, PERCENT, COARSE, FINE = "intensities", "% of the range", "coarse voxels", "fine voxels"
UNITS = {
    "*.shape": "voxels",
    "*.spacing": LENGTH,
    "*.origin": LENGTH,
    "factor": "fine voxels per coarse voxel",
    "channel": "number, from 0",
    "time": "number, from 0",
    "data_range": INTENSITIES,
    "psnr": "dB",
    "ssim": "1 for equal volumes",
    "*.psnr": "dB",
    "*.ssim": "1 for equal volumes",
    "fidelity": "blocks",
    "fidelity.border": FINE,
    "fidelity.window": FINE,
    "consistency": INTENSITIES,
    "consistency.rmse_percent": PERCENT,
    "consistency.worst.percent": PERCENT,
    "consistency.worst.index": COARSE,
    "consistency.worst.world": LENGTH,
    "shift.voxels": COARSE,
    "shift.world": LENGTH,
    "seam.p": "probability",
    "seam.faces": "faces",
    "seam.planes": "patches of planes",
    "seam.planes_of": "patches of planes",
    "seam.worst": FINE,
    "seam.worst.world": LENGTH,
    "seam.worst.step": INTENSITIES,
    "seam.worst.step_percent": PERCENT,
    "seam.worst.excess": INTENSITIES,
    "trust": INTENSITIES,
    "trust.consistency.beyond_3_sigma": "share of voxels",
    "frc.*.resolution": LENGTH,
    "frc.*.frequencies": FREQUENCY,
    "frc.*.correlations": "correlation",
    "frc.threshold": "correlation",
    "frc.places": "places",
    "one_image_frc.*.*.resolution": LENGTH,
    "one_image_frc.*.*.frequencies": FREQUENCY,
    "one_image_frc.*.*.correlations": "correlation",
    "one_image_frc.threshold": "correlation",
    "one_image_frc.places": "places",
    "decorrelation.*": LENGTH,
    "decorrelation.places": "places",
    "beads.*": LENGTH,
    "beads.*.count": "beads",
    "beads.places": "places",
    "profiles.through": COARSE,
    "profiles.coarse_positions": LENGTH,
    "profiles.fine_positions": LENGTH,
    "profiles.values": INTENSITIES,
    "histogram.edges": INTENSITIES,
    "histogram.counts": "voxels",
    "places": FINE,
    "seconds": "s",
}
"""By key, or by that of what holds it; ``*`` stands for any one name."""
FIDELITY = "against the reference, 2 fine voxels at the faces left out; of the blocks that fidelity counts"
DEFINITIONS = {
    "before": "what was measured",
    "after": "what was made of it",
    "reference": "the truth on the grid of AFTER",
    "factor": "how many times finer AFTER is, along each axis",
    "channel": "which one of BEFORE is compared",
    "time": "which time point of BEFORE is compared",
    "data_range": "what counts as the full range of intensities",
    "psnr": f"10·log10(range² / mean squared error) of AFTER, {FIDELITY}",
    "ssim": f"mean structural similarity of AFTER, {FIDELITY}",
    "cubic": "PSNR and SSIM of cubic interpolation of BEFORE, measured as those of AFTER",
    "cubic_bp": "the same after ten back projections, clamped at 0 or not, whichever is closer to the reference",
    "fidelity": "what PSNR and SSIM are of: blocks of 128³ fine voxels, of how many, and the windows of SSIM",
    "trust": "what the trust maps of AFTER came to when they were made: the median and the 99th percentile of the "
    "standard deviation over orientations (spread) and of |AFTER made coarse − input| (consistency), and how many "
    "voxels of the latter are beyond three standard deviations of the noise; all channels and times",
    "profiles": "intensities on lines through the brightest voxel of BEFORE at the informative place",
    "histogram": "voxels in bins of equal width between the edges; the outer bins also hold what lies beyond",
    "places": "first voxel, and one past the last, of where BEFORE varies most, and of the largest inconsistency",
    "seconds": "how long comparing took",
}
"""Of figures that do not hold one themselves."""


def meanings(figures: Mapping[str, Any], unit: str | None) -> dict[str, dict[str, str]]:
    """Name the unit of every number in ``figures``, by its key, and define what they are, by the first part of it.

    ``unit`` is that of lengths.
    """
    length = unit or "without a unit"
    stands_for = {LENGTH: length, FREQUENCY: f"1/{length}"}
    units = {key: unit_of(key) for key in numbers(figures)}
    known = {key: stands_for.get(name, name) for key, name in units.items() if name is not None}
    return {"units": known, "definitions": {key: text for key, text in DEFINITIONS.items() if key in figures}}


def numbers(figures: Any, key: str = "") -> Iterator[str]:
    """Walk over the keys of all numbers, parts joined by dots; all entries of a list have one."""
    if isinstance(figures, Mapping):
        for name, value in figures.items():
            yield from numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(figures, list):
        yield from dict.fromkeys(found for value in figures for found in numbers(value, key))
    elif isinstance(figures, int | float) and not isinstance(figures, bool):
        yield key


def unit_of(key: str) -> str | None:
    """Find the unit of a figure, or of the smallest group around it that has one; None where nobody knows."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        for pattern, unit in sorted(UNITS.items(), key=lambda item: item[0].count("*")):
            names = pattern.split(".")
            if len(names) == length and all(n in ("*", part) for n, part in zip(names, parts, strict=False)):
                return unit
    return None
