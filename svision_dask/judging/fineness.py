"""How fine the details are at a few places: resolution, widths of beads, line profiles, and a shift between volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.degradation import CUBIC
from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, Shape
from svision_dask.judging.beads import alone, peaks, well_inside, widths
from svision_dask.judging.compared import Compared, Stack
from svision_dask.judging.resolution import RESOLVED, Direction, Shells, period, spectrum, split_spectra
from svision_dask.network.baselines import cubic, reduced
from svision_dask.training.noise_estimate import SHORTEST as LONG_ENOUGH
from svision_dask.training.noise_estimate import is_independent
from svision_dask.volume import Box

Voxels = npt.NDArray[Any]
Figures = dict[str, Any]

DIRECTIONS: tuple[Direction, ...] = ("lateral", "axial")
ACROSS = {"lateral": (1, 2), "axial": (0,)}
"""Axes along which a volume is split for a one-image correlation."""
BRIGHT = 0.2
"""Share of the way from the median to the brightest voxel of a place above which a local maximum is a bead."""
APART = 8.0
"""Voxels from its neighbours that a bead must be for its width to be measured."""
FINER = 20
"""Steps per voxel in which a shift is found."""
WASTED = 2.0
"""Coarse voxels per period of the finest detail of AFTER from which on BEFORE could have held it."""
SHORTEST = 8
"""Voxels along an axis for a shift along it to be measured."""
NOT_ITS_OWN = (
    "halves of it would correlate by how it was made: each is computed from the same coarse voxels, and shares their "
    "noise, so that the figure would be the interpolation's; frc needs a reference, decorrelation.after needs none"
)
UNFAIR = "neighbours along it share their noise, have none, or are too few to tell; halves could agree by that alone"


def fine_box(place: Box, factor: Shape) -> tuple[Shape, Shape]:
    """Start and stop of a place in fine voxels."""
    start = tuple(s.start * f for s, f in zip(place, factor, strict=True))
    return start, tuple(s.stop * f for s, f in zip(place, factor, strict=True))


def read_place(stack: Stack, compared: Compared, place: Box) -> Voxels:
    """Read a place, given in coarse voxels, of any of the volumes."""
    if stack is compared.before:
        return stack.read(tuple(s.start for s in place), tuple(s.stop for s in place))
    return stack.read(*fine_box(place, compared.factor))


def figures(compared: Compared, places: Sequence[Box], absent: dict[str, str], *, beads: bool) -> Figures:
    """Measure how fine the details are at ``places`` (coarse voxels); why something is not there goes to ``absent``."""
    found: Figures = {}
    frc = _frc(compared, places, absent)
    if frc:
        found["frc"] = frc
    one_image = _one_image(compared, places, absent)
    if one_image:
        found["one_image_frc"] = one_image
    decorrelation = _decorrelation(compared, places, absent)
    if decorrelation:
        found["decorrelation"] = decorrelation
    if beads:
        measured = _beads(compared, places, absent)
        if measured:
            found["beads"] = measured
    else:
        absent["beads"] = "not asked for; --beads measures the widths of bright spots"
    found["profiles"] = _profiles(compared, places[0])
    return found


def _frc(compared: Compared, places: Sequence[Box], absent: dict[str, str]) -> Figures:
    reference = compared.reference
    if reference is None:
        absent["frc"] = "there is no reference; one_image_frc and decorrelation need none"
        return {}
    found: Figures = {}
    for direction in DIRECTIONS:
        try:
            shells = Shells(_fine_shape(places, compared), compared.after.spacing, direction)
        except UsageError:
            absent[f"frc.{direction}"] = "too few voxels along it"
            continue
        for place in places:
            shells.add(*(spectrum(read_place(stack, compared, place)) for stack in (compared.after, reference)))
        _note(found, absent, "frc", direction, shells)
    return found and {**found, **_about("of AFTER and the reference", compared, places)}


def _one_image(compared: Compared, places: Sequence[Box], absent: dict[str, str]) -> Figures:
    """Correlate halves of BEFORE; fine voxels come from coarse ones that they share, and so does their noise."""
    absent["one_image_frc.after"] = NOT_ITS_OWN
    stack, key, found = compared.before, "one_image_frc.before", Figures()
    blocks = [read_place(stack, compared, place) for place in places]
    for direction in DIRECTIONS:
        axes = ACROSS[direction]
        halved = tuple(n // 2 if a in axes else n for a, n in enumerate(blocks[0].shape))
        spacing = tuple(2 * d if a in axes else d for a, d in enumerate(stack.spacing))
        try:
            shells = Shells(halved, spacing, direction)
        except UsageError:
            absent[f"{key}.{direction}"] = "too few voxels along it"
            continue
        if not _is_split_fairly(blocks, axes):
            absent[f"{key}.{direction}"] = UNFAIR
            continue
        for pair in (pair for block in blocks for pair in split_spectra(block, axes)):
            shells.add(*pair)
        _note(found, absent, key, direction, shells)
    return found and {"before": found, **_about("of halves of BEFORE that share no voxel", compared, places)}


def _is_split_fairly(blocks: Sequence[Voxels], axes: Shape) -> bool:
    """Whether halves share no noise: they lie diagonally, so that one of ``axes`` along which it is white will do."""
    along = tuple(2 if a in axes and n >= LONG_ENOUGH else 1 for a, n in enumerate(blocks[0].shape))
    scaled = ((block / (np.abs(block).max() or 1)).astype(np.float32) for block in blocks)  # squares must stay finite
    return max(along) > 1 and any(is_independent(block, along) for block in scaled)


def _decorrelation(compared: Compared, places: Sequence[Box], absent: dict[str, str]) -> Figures:
    found: Figures = {}
    stacks = {"before": compared.before, "after": compared.after, "reference": compared.reference}
    for name, stack in ((name, stack) for name, stack in stacks.items() if stack is not None):
        blocks = [read_place(stack, compared, place) for place in places]
        for direction in DIRECTIONS:
            try:
                shells = Shells(blocks[0].shape, stack.spacing, direction)
            except UsageError:
                absent[f"decorrelation.{name}.{direction}"] = "too few voxels along it"
                continue
            for transformed in map(spectrum, blocks):
                shells.add(transformed, transformed)
            cut_off = shells.cut_off()
            if cut_off is None:
                absent[f"decorrelation.{name}.{direction}"] = "no frequency stands out as the end of structure"
            else:
                found.setdefault(name, {})[direction] = 1 / cut_off
    definition = "period of the highest frequency that is not noise alone (Descloux et al. 2019)"
    return found and {**found, "unit": compared.after.unit, "definition": definition, "places": len(places)}


def _note(found: Figures, absent: dict[str, str], key: str, direction: Direction, shells: Shells) -> None:
    curve = shells.correlation()
    detail = period(curve, shells.finest)
    if math.isinf(detail):
        absent[f"{key}.{direction}"] = "not even the coarsest detail is shared"
        return
    found[direction] = {
        "resolution": detail,
        "at_limit": bool(detail <= 1 / shells.finest),
        "frequencies": curve[0].tolist(),
        "correlations": curve[1].tolist(),
    }


def _about(what: str, compared: Compared, places: Sequence[Box]) -> Figures:
    definition = f"period at which the correlation {what} first falls below 1/7; at_limit where it never does"
    return {"unit": compared.after.unit, "threshold": RESOLVED, "definition": definition, "places": len(places)}


def _fine_shape(places: Sequence[Box], compared: Compared) -> Shape:
    return tuple((s.stop - s.start) * f for s, f in zip(places[0], compared.factor, strict=True))


def _beads(compared: Compared, places: Sequence[Box], absent: dict[str, str]) -> Figures:
    """Measure each volume's own beads; the medians do not compare single ones."""
    found: Figures = {}
    stacks = {"before": compared.before, "after": compared.after, "reference": compared.reference}
    for name, stack in ((name, stack) for name, stack in stacks.items() if stack is not None):
        measured: list[Voxels] = []
        axes = [axis for axis, n in enumerate(stack.shape) if n > 1]
        for place in places:
            voxels = read_place(stack, compared, place).astype(np.float64)
            voxels = voxels - np.median(voxels)
            centres = peaks(voxels, BRIGHT * float(voxels.max()))
            lone = centres[alone(centres, APART)]
            inside = lone[well_inside(lone, voxels.shape, _margins(voxels.shape))]
            rows = (np.array(widths(voxels, centre))[axes] for centre in inside)
            measured += [row for row in rows if np.isfinite(row).all()]
        if not measured:
            absent[f"beads.{name}"] = f"no bright spot is {APART:g} voxels from all others and falls to half beside it"
            continue
        medians = np.median(measured, axis=0) * np.array(stack.spacing)[axes]
        found[name] = {"count": len(measured), **{SPATIAL[a]: float(m) for a, m in zip(axes, medians, strict=True)}}
    definition = "median full width at half maximum of bright spots that stand alone, the place's median taken off"
    return found and {**found, "unit": compared.after.unit, "definition": definition, "places": len(places)}


def _margins(shape: Shape) -> Voxels:
    """Voxels that a bead must be from the faces; of thin volumes, half of each axis is left, and a plane has none."""
    return np.array([min(APART, (n - 1) / 4) if n > 1 else -1.0 for n in shape])


def _profiles(compared: Compared, place: Box) -> list[Figures]:
    """Draw lines through the brightest coarse voxel of a place, along each axis of more than one voxel."""
    coarse = read_place(compared.before, compared, place)
    top = tuple(int(i) for i in np.unravel_index(int(coarse.argmax()), coarse.shape))
    interpolated = cubic(coarse, compared.factor, compared.how or CUBIC)
    fine_top = tuple(i * f + (f - 1) // 2 for i, f in zip(top, compared.factor, strict=True))
    volumes = {"before": coarse, "cubic": interpolated, "after": read_place(compared.after, compared, place)}
    if compared.reference is not None:
        volumes["reference"] = read_place(compared.reference, compared, place)
    lines = []
    for axis, n in enumerate(coarse.shape):
        if n < 2:
            continue
        values = {}
        for name, voxels in volumes.items():
            centre: Shape = top if name == "before" else fine_top
            line = np.moveaxis(voxels, axis, -1)[tuple(c for a, c in enumerate(centre) if a != axis)]
            values[name] = line.tolist()
        first, start = compared.before.world(tuple(s.start for s in place)), fine_box(place, compared.factor)[0]
        lines.append(
            {
                "axis": SPATIAL[axis],
                "unit": compared.after.unit,
                "through": dict(zip(SPATIAL, [i + s.start for i, s in zip(top, place, strict=True)], strict=True)),
                "coarse_positions": _positions(first[axis], compared.before.spacing[axis], n),
                "fine_positions": _positions(
                    compared.after.world(start)[axis], compared.after.spacing[axis], n * compared.factor[axis]
                ),
                "values": values,
            }
        )
    return lines


def _positions(first: float, step: float, count: int) -> list[float]:
    return [first + step * i for i in range(count)]


def shift(compared: Compared, place: Box) -> dict[str, float] | str:
    """Find how far AFTER, made coarse again, lies from BEFORE, in coarse voxels; or say why that cannot be told.

    Axes of fewer than ``SHORTEST`` voxels are left out.
    """
    from skimage.registration import phase_cross_correlation

    coarse = read_place(compared.before, compared, place).astype(np.float64)
    again = reduced(read_place(compared.after, compared, place), compared.factor, compared.how or CUBIC)
    again = again.astype(np.float64)
    axes = [a for a, n in enumerate(coarse.shape) if n >= SHORTEST]
    if len(axes) < 2 or coarse.std() == 0 or again.std() == 0:
        return "the informative place is too small or too uniform"
    kept = tuple(slice(None) if a in axes else n // 2 for a, n in enumerate(coarse.shape))
    faded = [_faded(block[kept]) for block in (again, coarse)]
    moved, _, _ = phase_cross_correlation(*faded, upsample_factor=FINER, normalization=None)  # type: ignore[no-untyped-call]
    return {SPATIAL[a]: float(value) + 0.0 for a, value in zip(axes, moved, strict=True)}  # no −0


def _faded(block: Voxels) -> Voxels:
    """Take off the mean, and fade out towards the faces, which would hold a shift in place."""
    block = block - block.mean()
    for axis, n in enumerate(block.shape):
        block = block * np.hanning(n + 2)[1:-1].reshape([-1 if a == axis else 1 for a in range(block.ndim)])
    return block


def warnings(compared: Compared, found: Mapping[str, Any]) -> list[str]:
    """Warn of a factor that is larger than what the details need."""
    details = found.get("frc") or found.get("decorrelation", {}).get("after", {})
    lines = []
    for direction, axes in (("lateral", (1, 2)), ("axial", (0,))):
        detail = details.get(direction)
        detail = detail.get("resolution") if isinstance(detail, Mapping) else detail
        refined = [a for a in axes if compared.factor[a] > 1]
        coarsest = max((compared.before.spacing[a] for a in refined), default=math.inf)
        if detail is not None and detail > WASTED * coarsest:
            unit = compared.after.unit or ""
            lines.append(
                f"the factor may be too high: the finest {direction} detail of AFTER has a period of {detail:.3g} "
                f"{unit}, which BEFORE could hold with its voxels of {coarsest:.3g} {unit}"
            )
    return lines
