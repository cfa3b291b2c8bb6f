"""A comparison as one HTML file to look at: works offline, in light and dark, by mouse and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from svision_dask.geometry import SPATIAL
from svision_dask.judging.charts import Line, draw_lines, draw_map
from svision_dask.judging.comparison import Comparison
from svision_dask.judging.report_views import chart, edges, trust_maps, unit_of, views
from svision_dask.judging.verdict import of_reference, of_self_check

ROWS = (
    ("psnr", "PSNR", "dB", "psnr"),
    ("ssim", "SSIM", "", "ssim"),
    ("cubic.psnr", "PSNR of cubic interpolation", "dB", "psnr"),
    ("cubic.ssim", "SSIM of cubic interpolation", "", "ssim"),
    ("cubic_bp.psnr", "PSNR of cubic with back projection", "dB", "psnr"),
    ("cubic_bp.ssim", "SSIM of cubic with back projection", "", "ssim"),
    ("frc.lateral.resolution", "FRC with the reference, lateral", "length", "frc"),
    ("frc.axial.resolution", "FRC with the reference, axial", "length", "frc"),
    ("one_image_frc.before.lateral.resolution", "One-image FRC of before, lateral", "length", "one"),
    ("one_image_frc.before.axial.resolution", "One-image FRC of before, axial", "length", "one"),
    ("decorrelation.before.lateral", "Decorrelation of before, lateral", "length", "decorrelation"),
    ("decorrelation.after.lateral", "Decorrelation of after, lateral", "length", "decorrelation"),
    ("decorrelation.before.axial", "Decorrelation of before, axial", "length", "decorrelation"),
    ("decorrelation.after.axial", "Decorrelation of after, axial", "length", "decorrelation"),
    ("consistency.rmse", "Consistency, root mean square", "intensity", "consistency"),
    ("consistency.rmse_percent", "Consistency, of the range", "%", "consistency"),
    ("consistency.worst.error", "Consistency, worst voxel", "intensity", "consistency"),
    ("seam.p", "Seam, p-value of the worst face", "", "seam"),
    ("seam.worst.step_percent", "Seam, step in that face, of the range", "%", "seam"),
)
"""Key, name, unit and definition of each row of the table of figures."""
SAME_PLACE = 2
"""Coarse voxels between two places, at most, for them to be shown as one."""
BOTH = f"the largest inconsistency is at most {SAME_PLACE} coarse voxels from it"
DEFINITIONS = {
    "psnr": "10·log₁₀(range² / mean squared error against the reference); 2 voxels at the faces left out",
    "ssim": "mean structural similarity with the reference, 1 for equal volumes; windows of {window} voxels",
    "frc": "period of the finest detail that AFTER and the reference share: their correlation falls below 1/7",
    "one": "period at which halves of BEFORE that share no voxel no longer correlate by 1/7",
    "decorrelation": "period of the highest frequency that is not noise alone",
    "consistency": "AFTER reduced to the coarse grid, minus BEFORE; holds invented structure, and noise removed",
    "seam": "jumps in the faces of tiles and shards, against parallel planes; p below 0.01 is a seam that shows",
}


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write a comparison as one HTML file that needs nothing else, of a few MB at most.

    Parameters
    ----------
    comparison
        Its volumes are read again, at two places.
    path
        File to write; one that is there is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    template = Template(files("svision_dask.judging").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(f"{_name(comparison, 'after')} compared with {_name(comparison, 'before')}"),
        header="\n".join(_header(comparison)),
        body="\n".join(_body(comparison)),
    )
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(target)


def _name(comparison: Comparison, which: str) -> str:
    return Path(str(comparison.figures[which]["path"]) or which).name


def _header(comparison: Comparison) -> Iterator[str]:
    figures, unit = comparison.figures, unit_of(comparison)
    yield f"<h1>{escape(_name(comparison, 'after'))}</h1>"
    yield f'<p class="soft">compared with {escape(_name(comparison, "before"))}</p>'
    for name in ("before", "after", "reference"):
        if name in figures:
            about = figures[name]
            shape, spacing = ("×".join(f"{v:.6g}" for v in about[key]) for key in ("shape", "spacing"))
            yield f'<p class="soft">{name}: {shape} voxels of {spacing} {escape(unit)} (z, y, x), {about["dtype"]}</p>'


def _body(comparison: Comparison) -> Iterator[str]:
    yield from _verdict(comparison)
    yield "<h2>Figures</h2>"
    yield from _table(comparison)
    through = comparison.figures["profiles"][0]["through"]
    brightest = tuple(through[axis] for axis in SPATIAL)
    errors, why = comparison.scan.errors, "where BEFORE varies most, at its brightest voxel"
    apart = 0 if errors is None else max(abs(a - b) for a, b in zip(errors.where, brightest, strict=True))
    if errors is not None and apart <= SAME_PLACE:
        yield from views(comparison, "An informative place, and the worst", brightest, f"{why}; {BOTH}")
    else:
        yield from views(comparison, "An informative place", brightest, why)
    if errors is not None and apart > SAME_PLACE:
        yield from views(comparison, "The worst place", errors.where, "at the largest inconsistency")
    if errors is not None:
        yield from _consistency_map(comparison)
    yield from trust_maps(comparison)
    yield from _charts(comparison)
    yield from _provenance(comparison)


def _verdict(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Verdict</h2>"
    for verdict in (of_self_check(comparison.compared.provenance), of_reference(comparison.figures)):
        if verdict:
            yield f'<p class="verdict">{escape(verdict)}</p>'
    for text in comparison.warnings:
        yield f'<p class="warning" role="note">Warning: {escape(text)}</p>'
    if not comparison.warnings:
        yield "<p>No warnings from what could be measured; what could not is below the figures.</p>"


def _table(comparison: Comparison) -> Iterator[str]:
    whole = comparison.figures["data_range"]
    caption = escape(f"Range of intensities: {whole['value']:.6g}, {whole['definition']}")
    yield f"<table><caption>{caption}</caption>"
    yield "<thead><tr><th scope='col'>Figure</th><th scope='col'>Value</th><th scope='col'>Definition</th></tr></thead>"
    yield "<tbody>"
    window = comparison.figures.get("fidelity", {}).get("window")
    for key, name, unit, definition in ROWS:
        value = _found(comparison.figures, key)
        if value is not None:
            label = unit_of(comparison) if unit == "length" else "(intensity)" if unit == "intensity" else unit
            text = f"{value:.4g} {label}".strip()
            if _found(comparison.figures, key.rsplit(".", 1)[0] + ".at_limit"):
                text = f"≤ {text}"
            meaning = escape(DEFINITIONS[definition].format(window=window))
            cells = f"<td class='number'>{escape(text)}</td><td>{meaning}</td>"
            yield f"<tr><th scope='row'>{escape(name)}</th>{cells}</tr>"
    yield from _bead_rows(comparison)
    yield "</tbody></table>"
    yield "<details><summary>What could not be measured, and why</summary><ul>"
    yield from (f"<li><code>{escape(key)}</code>: {escape(why)}</li>" for key, why in comparison.absent.items())
    yield "</ul></details>"


def _bead_rows(comparison: Comparison) -> Iterator[str]:
    beads, unit = comparison.figures.get("beads", {}), unit_of(comparison)
    for name, row in beads.items():
        if isinstance(row, Mapping):
            text = ", ".join(f"{axis} {row[axis]:.3g}" for axis in SPATIAL if axis in row)
            cells = f"<td class='number'>{text} {escape(unit)}</td><td>{escape(beads['definition'])}</td>"
            yield f"<tr><th scope='row'>FWHM of {row['count']} beads of {name}</th>{cells}</tr>"


def _found(figures: Mapping[str, Any], key: str) -> Any:
    value: Any = figures
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _consistency_map(comparison: Comparison) -> Iterator[str]:
    errors, stack, unit = comparison.scan.errors, comparison.compared.before, unit_of(comparison)
    assert errors is not None
    spacing = (stack.spacing[0], *(d * c for d, c in zip(stack.spacing[1:], errors.cell, strict=True)))
    first = tuple(o + (c - 1) / 2 * d for o, c, d in zip(stack.origin, (1, *errors.cell), stack.spacing, strict=True))
    where = stack.world(errors.where)
    yield "<h2>Consistency</h2>"
    yield chart(
        draw_map(
            errors.map,
            extent=edges(first, spacing, errors.map.shape),
            x=f"x ({unit})",
            y=f"y ({unit})",
            colours="largest |error| along z (intensities)",
            mark=(where[2], where[1]),
        ),
        "map of the largest consistency error along z",
        "Largest |AFTER made coarse − BEFORE| along z, of the whole volume; the ring is around the worst voxel. What "
        "was invented stands out here, if it is large enough to be measured.",
    )


def _charts(comparison: Comparison) -> Iterator[str]:
    unit = unit_of(comparison)
    yield "<h2>Profiles</h2><div class='row'>"
    for profile in comparison.figures["profiles"]:
        lines = []
        for name, values in profile["values"].items():
            places = profile["coarse_positions" if name == "before" else "fine_positions"]
            lines.append(Line(name=name, x=places, y=values, steps=name == "before"))
        axis = profile["axis"]
        through = ", ".join(f"{a} {v}" for a, v in profile["through"].items())
        caption = f"Intensity along {axis}, through the brightest coarse voxel of the informative place: {through}."
        svg = draw_lines(lines, x=f"{axis} ({unit})", y="intensity")
        yield chart(svg, f"line profile along {axis}", caption)
    yield "</div><h2>Histograms</h2>"
    yield chart(
        _histogram(comparison), "histograms of intensities", "Share of voxels per bin; outer bins hold the rest."
    )
    yield from _correlation_charts(comparison)
    yield from _training_chart(comparison)


def _histogram(comparison: Comparison) -> str:
    edges = np.array(comparison.figures["histogram"]["edges"])
    lines = [
        Line(name=name, x=(edges[1:] + edges[:-1]) / 2, y=np.maximum(np.array(c) / max(sum(c), 1), 1e-9), steps=True)
        for name, c in comparison.figures["histogram"]["counts"].items()
    ]
    return draw_lines(lines, x="intensity", y="share of voxels", log=True, floor=1e-7)


CORRELATED = {"after": "AFTER with the reference", "before": "two halves of the voxels of BEFORE"}


def _correlation_charts(comparison: Comparison) -> Iterator[str]:
    unit, charts = unit_of(comparison), []
    known = {"after": comparison.figures.get("frc", {}), "before": comparison.figures.get("one_image_frc", {})}
    known["before"] = known["before"].get("before", {})
    for direction in ("lateral", "axial"):
        lines = [
            Line(name=name, x=row[direction]["frequencies"], y=row[direction]["correlations"])
            for name, row in known.items()
            if direction in row
        ]
        if lines:
            svg = draw_lines(lines, x=f"frequency (1/{unit})", y="correlation", level=(1 / 7, "1/7"))
            shown = ", and ".join(CORRELATED[line.name] for line in lines)
            caption = f"Fourier correlation, {direction}: {shown}."
            charts.append(chart(svg, f"Fourier correlation, {direction}", caption))
    if charts:
        yield "<h2>Resolution</h2><div class='row'>" + "".join(charts) + "</div>"


def _training_chart(comparison: Comparison) -> Iterator[str]:
    model = comparison.compared.model
    curves = model.provenance.get("loss") if model else None
    yield "<h2>Training</h2>"
    if not isinstance(curves, list) or not curves or model is None:
        yield "<p>No training curve: the model is not beside AFTER, under the name that it was kept by.</p>"
        return
    for number, curve in enumerate(curves, start=1):
        position = _at_steps(model.provenance, number, len(curve))
        svg = draw_lines(
            [Line(name="after", x=position, y=curve)],
            x="step",
            y="loss (residual units)",
            log=max(curve) > 10 * min(curve),
        )
        yield chart(svg, f"training loss of stage {number}", f"Training loss of stage {number}, smoothed.")
    exams = model.provenance.get("exam")
    for number, gains in enumerate(exams if isinstance(exams, list) else (), start=1):
        values = np.array([np.nan if gain is None else gain for gain in gains])
        position = _at_steps(model.provenance, number, len(values))
        svg = draw_lines([Line(name="after", x=position, y=values)], x="step", y="gain over cubic (dB)")
        verdicts = model.provenance.get("verdict")
        spared = isinstance(verdicts, list) and len(verdicts) >= number and verdicts[number - 1].get("held_back")
        pairs = "pairs that training never saw" if spared else "its own pairs, of which none could be spared"
        caption = (
            f"Stage {number} on {pairs}: by how many decibels it was closer than cubic interpolation, without back "
            "projection. The best weights were kept."
        )
        yield chart(svg, f"exams of stage {number} during training", caption)


def _at_steps(provenance: Mapping[str, Any], stage: int, points: int) -> npt.NDArray[np.float64]:
    """Place the ``points`` of a curve along the steps of training; number them where a model does not tell."""
    known = provenance.get("steps")
    steps = known[stage - 1] if isinstance(known, list) and len(known) >= stage else known
    ends = np.arange(1, points + 1, dtype=np.float64)
    return ends * steps / points if isinstance(steps, int) else ends


def _times(known: Mapping[str, Any]) -> dict[str, str]:
    """Say when AFTER was made, and how long that took; outputs of others, or of earlier versions, do not say."""
    busy = known.get("worker_seconds") or {}
    before = known.get("regions_of_runs_before")
    whose = "the run that finished it" if before else "in one run"
    rows = {
        "begun (UTC)": known.get("begun"),
        "finished (UTC)": known.get("finished"),
        "training": _seconds(known.get("training_seconds")),
        "enhancing and pyramid": _seconds(known.get("seconds"), f", {whose}"),
        "time of all workers": _seconds(sum(busy.values()) if busy else None, ", of all runs"),
        "regions of earlier runs": str(before) if before else None,
    }
    return {name: value for name, value in rows.items() if value} or {"times": "unknown: AFTER does not say"}


def _seconds(value: Any, remark: str = "") -> str | None:
    return f"{value:.4g} s{remark}" if isinstance(value, int | float) else None


def _provenance(comparison: Comparison) -> Iterator[str]:
    about, figures = comparison.compared.provenance, comparison.figures
    rows = {
        "before": figures["before"]["path"],
        "after": figures["after"]["path"],
        "reference": figures.get("reference", {}).get("path", "none"),
        "made by": about.get("package", "unknown: not an output of svision-dask"),
        "model": about.get("model", "unknown"),
        **_times(about.get("times") or {}),
        "compared by": f"svision-dask {figures['versions']['svision-dask']}",
        "compared in": f"{figures['seconds']:g} s",
        "degradation": figures["degradation"],
        "factor (z, y, x)": "×".join(str(f) for f in figures["factor"].values()),
    }
    if "fidelity" in figures:
        measured = figures["fidelity"]
        rows["PSNR and SSIM of"] = f"{measured['blocks']} of {measured['of']} blocks, spread evenly"
    yield "<h2>What was done</h2><table><tbody>"
    yield from (f"<tr><th scope='row'>{k}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    yield "</tbody></table>"
    for title, value in (("Plan", about.get("plan")), ("Training", about.get("training"))):
        if value:
            text = escape(json.dumps(value, indent=1, default=str))
            yield f"<details><summary>{title}</summary><pre>{text}</pre></details>"
    short = {
        k: v for k, v in comparison.to_json().items() if k not in ("histogram", "profiles", "units", "definitions")
    }
    text = escape(json.dumps(short, indent=1))
    yield f"<details><summary>All figures as JSON, but profiles and histograms</summary><pre>{text}</pre></details>"
