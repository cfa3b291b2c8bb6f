"""Compare a volume before and after it was enhanced: how close, how fine, how consistent, and whether seams show."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from svision_dask.degradation import Degrade
from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, Shape
from svision_dask.judging import fineness
from svision_dask.judging.compared import Compared, described, find_compared
from svision_dask.judging.meanings import meanings
from svision_dask.judging.scan import OUTLIERS, Ranges, Scan, find_ranges, place_at
from svision_dask.judging.seams import SeamScore
from svision_dask.metrics import BORDER, WINDOW, check_range, ssim_window
from svision_dask.omezarr.extras import is_number
from svision_dask.running.trust_maps import MAPS
from svision_dask.volume import Box

if TYPE_CHECKING:
    from svision_dask.stores.locations import Location
    from svision_dask.volume import Volume

MOST_VOXELS = 2**24
"""Fine voxels on which PSNR and SSIM are measured."""
PLACES = 8
"""Where the finest detail is measured."""
NO_REFERENCE = "there is no reference; --reference takes a truth on the fine grid"
NO_DEGRADATION = "the PSF that was undone is in the model, which is not beside AFTER; --degrade takes another reduction"
INVISIBLE = 1e-4
"""Share of the range below which a step cannot be seen, whatever its p-value."""
CERTAIN = 0.01
"""P-value of a seam below which it is warned of."""
MOST_SHIFT = 0.25
"""Coarse voxels by which AFTER may be shifted against BEFORE."""
MOST_OFFSET = 0.05
"""Share of the range by which AFTER may be brighter or darker than BEFORE on average."""
SATURATED = 1e-3
"""Share of voxels at the highest intensity above which it is a limit of the detector."""
LITTLE_GAIN = 0.1
"""Decibels over the better baseline in the self-check below which a network has learned little."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found; what could not be measured is absent, with a reason."""

    figures: Mapping[str, Any]
    """Everything measured, as JSON values; docs/compare.md lists the keys."""
    absent: Mapping[str, str]
    """Why a figure is not there, by its key."""
    warnings: tuple[str, ...]
    """What makes AFTER less trustworthy than it looks, a sentence each."""
    compared: Compared
    """The volumes, and what is known of how AFTER was made."""
    scan: Scan
    """Sums, maps and histograms of the one pass over them."""
    ranges: Ranges
    """Intensities between which the voxels lie."""
    informative: Box
    """Coarse voxels of the place where BEFORE varies most."""
    worst: Box
    """Coarse voxels around the largest inconsistency; the informative place where consistency is not known."""

    def to_json(self) -> dict[str, Any]:
        """As plain values, for ``svision-dask compare --json``."""
        return {**self.figures, "absent": dict(self.absent), "warnings": list(self.warnings)}


def compare(
    before: Volume | str | Location,
    after: Volume | str | Location,
    *,
    reference: Volume | str | Location | None = None,
    channel: int | str | None = None,
    time: int | None = None,
    degrade: Degrade | None = None,
    tile: Mapping[str, int] | None = None,
    data_range: float | None = None,
    beads: bool = False,
    most_voxels: int = MOST_VOXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Judge an enhanced volume, of any size: all of it is read once, block by block.

    Consistency, seams and histograms are of all voxels. PSNR and SSIM are of all blocks of 128³ fine voxels up to
    ``most_voxels``, or of as many spread evenly; baselines are measured on the same. Resolution, beads and profiles are
    of the places where ``before`` varies most.

    Parameters
    ----------
    before, after
        The coarse volume, and the fine one that was made of it: volumes, paths or URLs.
    reference
        A truth on the grid of ``after``. PSNR, SSIM and correlations need one.
    channel, time
        Which one of ``before``, counted from 0, or by name; by default, the first that ``after`` was made of.
    degrade
        How coarse voxels come about; by default, what ``after`` says it was made for, or cubic.
    tile
        Fine voxels per axis at whose multiples ``after`` was cut, by default what it says, or how it is stored.
    data_range
        What counts as the full range of intensities; by default, that between the percentiles 0.1 and 99.9 of the
        reference, or of ``before``.
    beads
        Whether to measure the widths of bright spots.
    most_voxels
        Fine voxels on which PSNR and SSIM are measured, at least one block of them.
    on_progress
        Called after each block with how many are done, and how many there are.

    Returns
    -------
    Comparison
        Lengths are in the unit of the spacing, intensities in that of the voxels, PSNR in dB.

    Raises
    ------
    ImageError
        If one cannot be read, or they are not of one place.
    UsageError
        If there is no such channel or time point, no range of intensities, or a voxel is not a number.
    """
    started = clock.monotonic()
    compared = find_compared(before, after, reference, channel=channel, time=time, degrade=degrade, tile=tile)
    ranges = find_ranges(_stacks(compared))
    width = ranges.width if data_range is None else data_range
    check_range(width)
    scan = Scan(compared, ranges, data_range=width, most_voxels=most_voxels)
    scan.run(on_progress or _nobody)
    places = scan.places(PLACES)
    absent: dict[str, str] = {}
    figures = {
        **described(compared),
        "factor": dict(zip(SPATIAL, compared.factor, strict=True)),
        "degradation": compared.how.kind if compared.how else "psf",
        "channel": compared.before.picked.get("c", 0),
        "time": compared.before.picked.get("t", 0),
        "data_range": _range_figures(ranges, data_range, compared),
        **_fidelity_figures(scan, width, absent),
        **_consistency_figures(scan, width, places[0], absent),
        **_seam_figures(scan, width, absent),
        **_trust_figures(compared.provenance),
        **fineness.figures(compared, places, absent, beads=beads),
        "histogram": _histogram_figures(scan),
        "places": {"informative": _box(compared, places[0])},
    }
    worst = _around(scan, places[0])
    if scan.errors is not None:
        figures["places"]["worst"] = _box(compared, worst)
    figures["versions"] = {"svision-dask": version("svision-dask")}
    figures["seconds"] = round(clock.monotonic() - started, 1)
    figures |= meanings(figures, compared.after.unit)
    return Comparison(
        figures=figures,
        absent=absent,
        warnings=(*compared.warnings, *_warnings(compared, scan, figures)),
        compared=compared,
        scan=scan,
        ranges=ranges,
        informative=places[0],
        worst=worst,
    )


def _nobody(done: int, total: int) -> None:
    """Take a report, where nobody wants it."""


def _stacks(compared: Compared) -> dict[str, Any]:
    named = {"before": compared.before, "after": compared.after, "reference": compared.reference}
    return {name: stack for name, stack in named.items() if stack is not None}


def _range_figures(ranges: Ranges, given: float | None, compared: Compared) -> dict[str, Any]:
    whose = "BEFORE" if compared.reference is None else "the reference"
    if given is not None:
        return {"value": given, "definition": "as given"}
    sampled = ", of voxels spread evenly over it" if ranges.sampled else ""
    definition = f"percentiles {OUTLIERS[0]:g} to {OUTLIERS[1]:g} of {whose}{sampled}"
    return {"value": ranges.width, "low": ranges.low, "high": ranges.high, "definition": definition}


def _fidelity_figures(scan: Scan, width: float, absent: dict[str, str]) -> dict[str, Any]:
    keys = ("psnr", "ssim", "cubic.psnr", "cubic.ssim", "cubic_bp.psnr", "cubic_bp.ssim")
    if scan.compared.reference is None:
        absent.update(dict.fromkeys(keys, NO_REFERENCE))
        return {}
    found = dict(scan.fidelity)
    clamped = found.pop("cubic_bp_clamped")
    if scan.errors is None:
        absent.update(dict.fromkeys(keys[4:], NO_DEGRADATION))
        del found["cubic_bp"]
    elif clamped.squares < found["cubic_bp"].squares:
        found["cubic_bp"] = clamped
    rows: dict[str, dict[str, Any]] = {}
    for name, sums in found.items():
        prefix = "" if name == "after" else f"{name}."
        rows[name] = {}
        if sums.ssim is None:
            absent[f"{prefix}ssim"] = f"fewer than 3 voxels along an axis inside a border of {BORDER}"
        else:
            rows[name]["ssim"] = sums.ssim
        if not sums.count:
            absent[f"{prefix}psnr"] = f"there are no voxels inside a border of {BORDER}"
        elif math.isinf(psnr := sums.psnr(width)):
            absent[f"{prefix}psnr"] = "it equals the reference, so that there is no error to compare with the range"
        else:
            rows[name]["psnr"] = psnr
    total, window = len(scan.blocks), _window(scan.compared.after.shape)
    measured = {
        "blocks": len(scan.sampled),
        "of": total,
        "border": BORDER,
        "window": window,
        "definition": "10·log10(range² / mean squared error) in dB; mean structural similarity, "
        f"windows of {window} voxels",
    }
    return {**rows.pop("after"), **rows, "fidelity": measured}


def _window(shape: Shape) -> int:
    """Voxels along each side of the window of SSIM; of volumes too small for any, those of larger ones."""
    try:
        return ssim_window(shape)
    except UsageError:
        return WINDOW


def _consistency_figures(scan: Scan, width: float, place: Box, absent: dict[str, str]) -> dict[str, Any]:
    errors, compared = scan.errors, scan.compared
    if errors is None:
        absent["consistency"] = NO_DEGRADATION
        absent["shift"] = NO_DEGRADATION
        return {}
    found: dict[str, Any] = {
        "consistency": {
            "definition": "AFTER reduced to the coarse grid, minus BEFORE; all voxels, in intensities",
            "rmse": errors.rmse,
            "mean": errors.mean,
            "rmse_percent": 100 * errors.rmse / width,
            "worst": {
                "error": errors.most,
                "percent": 100 * errors.most / width,
                "index": dict(zip(SPATIAL, errors.where, strict=True)),
                "world": dict(zip(SPATIAL, compared.before.world(errors.where), strict=True)),
            },
        }
    }
    shift = fineness.shift(compared, place)
    if isinstance(shift, str):
        absent["shift"] = shift
        return found
    short = f"fewer than {fineness.SHORTEST} coarse voxels along it"
    absent.update({f"shift.{axis}": short for axis in SPATIAL if axis not in shift})
    spacing = dict(zip(SPATIAL, compared.before.spacing, strict=True))
    found["shift"] = {
        "definition": "how far AFTER, made coarse again, lies from BEFORE at the informative place, in coarse voxels",
        "voxels": shift,
        "world": {axis: moved * spacing[axis] for axis, moved in shift.items()},
    }
    return found


def _seam_figures(scan: Scan, width: float, absent: dict[str, str]) -> dict[str, Any]:
    if scan.seams is None:
        absent["seam"] = "AFTER does not say where it was cut; --tile takes the fine voxels between two cuts"
        return {}
    if scan.seams.faces_left_out:
        absent["seam.faces"] = (
            f"{scan.seams.faces_left_out} cuts are no multiples of the factor and are not judged: interpolation makes "
            "the planes beside them different anyway"
        )
    score = scan.seams.score(least=INVISIBLE * width)
    if score is None:
        absent["seam"] = "AFTER was not cut, or into pieces too small to tell a seam from what lies between"
        return {}
    return {"seam": _seam(score, scan.compared, width)}


def _seam(score: SeamScore, compared: Compared, width: float) -> dict[str, Any]:
    worst = score.worst
    corner = compared.after.world(worst.start)
    return {
        "definition": "jumps of AFTER minus cubic interpolation, in the faces of tiles and shards, against parallel "
        "planes; p is for the worst of all faces, and a step is in intensities",
        "p": score.p,
        "faces": score.patches,
        "planes": score.planes,
        "planes_of": score.of,
        "worst": {
            "axis": SPATIAL[worst.axis],
            "index": worst.index,
            "world": corner[worst.axis],
            "start": dict(zip(SPATIAL, worst.start, strict=True)),
            "stop": dict(zip(SPATIAL, worst.stop, strict=True)),
            "kind": worst.kind,
            "step": worst.step,
            "step_percent": 100 * worst.step / width,
            "excess": worst.excess,
        },
    }


def _trust_figures(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Repeat what the trust maps of AFTER came to, if it was made with them: of all channels and times."""
    trust = provenance.get("trust")
    words = trust.get("words") if isinstance(trust, Mapping) else None
    if not isinstance(trust, Mapping) or not isinstance(words, list):
        return {}
    maps = {kind: trust[kind] for kind in MAPS if isinstance(trust.get(kind), Mapping)}
    numbers = {kind: {k: v for k, v in known.items() if v is None or is_number(v)} for kind, known in maps.items()}
    return {"trust": {**numbers, "words": [str(each) for each in words]}}


def _histogram_figures(scan: Scan) -> dict[str, Any]:
    counts = {name: values.tolist() for name, values in scan.histograms.items()}
    return {"edges": scan.ranges.edges.tolist(), "counts": counts}


def _around(scan: Scan, other: Box) -> Box:
    """Find the place whose middle is the largest inconsistency."""
    if scan.errors is None:
        return other
    shape, size = scan.compared.before.shape, scan.cell
    return place_at(shape, size, tuple(i - s // 2 for i, s in zip(scan.errors.where, size, strict=True)))


def _box(compared: Compared, place: Box) -> dict[str, Any]:
    """Describe a place by its fine voxels."""
    spans: list[Shape] = [(s.start * f, s.stop * f) for s, f in zip(place, compared.factor, strict=True)]
    return dict(zip(SPATIAL, [list(span) for span in spans], strict=True))


def _warnings(compared: Compared, scan: Scan, figures: Mapping[str, Any]) -> list[str]:
    found = [f"unlike the volume that the model was trained on: {text}" for text in _drift(compared)]
    seam = figures.get("seam")
    if seam and seam["p"] < CERTAIN:
        worst = seam["worst"]
        found.append(
            f"a seam shows in the face of a {worst['kind']} across {worst['axis']} at voxel {worst['index']}, "
            f"{_spans(worst)}: a step of {worst['step_percent']:.2g} % of the range, p = {seam['p']:.2g}"
        )
    for axis, moved in figures.get("shift", {}).get("voxels", {}).items():
        if abs(moved) > MOST_SHIFT:
            found.append(f"AFTER is shifted against BEFORE by {moved:+.2f} coarse voxels along {axis}")
    offset = figures.get("consistency", {}).get("mean", 0.0) / figures["data_range"]["value"]
    if abs(offset) > MOST_OFFSET:
        found.append(
            f"AFTER, made coarse, is {abs(offset):.0%} of the range {'brighter' if offset > 0 else 'darker'} than "
            "BEFORE on average: are they on one scale of intensities?"
        )
    share = scan.at_highest / math.prod(compared.before.shape)
    if share > SATURATED and scan.at_highest > 1 and scan.highest > scan.ranges.low:  # one is always the brightest
        found.append(f"{share:.1%} of BEFORE are saturated at {scan.highest:g}: what was brighter is lost")
    return found + _of_training(compared) + fineness.warnings(compared, figures)


def _spans(worst: Mapping[str, Any]) -> str:
    others = [axis for axis in SPATIAL if axis != worst["axis"]]
    return ", ".join(f"{axis} {worst['start'][axis]} to {worst['stop'][axis]}" for axis in others)


def _drift(compared: Compared) -> list[str]:
    drift = compared.provenance.get("drift")
    return [str(text) for text in drift] if isinstance(drift, list) else []


def _of_training(compared: Compared) -> list[str]:
    """Warn of a network that gained little in its self-check."""
    gain = self_check_gain(compared.provenance)
    if gain is None or gain >= LITTLE_GAIN:
        return []
    return [
        f"in its self-check, the network gained {gain:+.2f} dB over the better of both baselines: little or nothing"
    ]


def self_check_gain(provenance: Mapping[str, Any]) -> float | None:
    """Decibels that a model gained on its own sample; None where its output does not say."""
    training = provenance.get("training")
    checked = training.get("self_check") if isinstance(training, Mapping) else None
    try:
        return float(checked["psnr"] - max(checked["cubic_psnr"], checked["cubic_bp_psnr"])) if checked else None
    except (KeyError, TypeError):
        return None  # made by another version
