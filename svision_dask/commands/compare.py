"""``svision-dask compare``: judge an enhanced volume, in words, as JSON, or as a page to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svision_dask.commands.given import describing_given
from svision_dask.commands.options import describing, picking
from svision_dask.commands.progress import progress
from svision_dask.degradation import DEGRADES
from svision_dask.geometry import SPATIAL
from svision_dask.running.arguments import parse_lengths

if TYPE_CHECKING:
    from svision_dask.judging.comparison import Comparison


@click.command()
@click.argument("before")
@click.argument("after")
@click.option("--reference", metavar="TRUTH", help="A truth on the grid of AFTER; PSNR, SSIM and FRC need one.")
@click.option("-o", "--output", metavar="HTML", help="Write a page to look at, such as report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@picking
@click.option(
    "--degrade",
    type=click.Choice([kind for kind in DEGRADES if kind != "psf"]),
    help="How coarse voxels came about; by default, what AFTER was made for.",
)
@click.option("--tile", help="Fine voxels between the cuts of AFTER; by default, what it says.")
@click.option("--range", "data_range", type=float, help="Intensities that count as the full range.")
@click.option("--beads", is_flag=True, help="Measure the widths of bright spots.")
@describing
@click.option("--overwrite", is_flag=True, help="Replace the page, if it is there.")
def compare(before: str, after: str, **given: Any) -> None:
    """Compare the volume BEFORE with AFTER, the OME-Zarr or TIFF that was made of it.

    How an image is to be read (--level, --series, --spacing, --unit, --missing) is for BEFORE.
    """
    from svision_dask.judging.comparison import compare as measure
    from svision_dask.judging.report import write_report
    from svision_dask.opening.formats import open_volume
    from svision_dask.running.output import check_page

    if given["output"]:
        check_page(Path(given["output"]), overwrite=given["overwrite"])
    paths = {"before": before, "after": after, "reference": given["reference"]}
    paths = {name: path for name, path in paths.items() if path}
    volumes: dict[str, Any] = {
        name: open_volume(path, **{**(describing_given(given) if name == "before" else {}), "axes": axes})
        for name, path, axes in _with_axes(paths, given["axes"])
    }
    tile = parse_lengths(given["tile"], volumes["after"].grid.axes, option="--tile") if given["tile"] else None
    with progress() as update:
        found = measure(
            **volumes,
            channel=given["channel"],
            time=given["time"],
            degrade=given["degrade"],
            tile=tile,
            data_range=given["data_range"],
            beads=given["beads"],
            on_progress=lambda done, total: update("compare", done, total, "blocks"),
        )
    if given["as_json"]:
        click.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(comparison_lines(found)))
    if given["output"]:
        click.echo(str(write_report(found, given["output"])), err=given["as_json"])


def _with_axes(paths: Mapping[str, str], axes: str | None) -> Iterator[tuple[str, str, str | None]]:
    """Give ``--axes`` to the paths that are not OME-Zarr; to all, where it is for none of them, to be refused."""
    from svision_dask.omezarr.read import is_omezarr
    from svision_dask.stores.locations import Remote, located

    stored = {name: isinstance(located(path), Remote) or is_omezarr(path) for name, path in paths.items()}
    for name, path in paths.items():
        yield name, path, None if stored[name] and not all(stored.values()) else axes


def comparison_lines(found: Comparison) -> Iterator[str]:
    """Put a comparison into words."""
    figures, unit = found.figures, found.compared.after.unit or "without a unit"
    for name, row in (
        ("after", figures),
        ("cubic", figures.get("cubic", {})),
        ("cubic+BP", figures.get("cubic_bp", {})),
    ):
        if "psnr" in row or "ssim" in row:
            yield f"{name:12} {_psnr(row)}"
    if "fidelity" in figures:
        blocks, total = figures["fidelity"]["blocks"], figures["fidelity"]["of"]
        yield f"             of {'all voxels' if blocks == total else f'{blocks} of {total} blocks, spread evenly'}"
    for key, words in (("frc", "FRC with the reference"), ("decorrelation", "decorrelation")):
        yield from _resolution_lines(words, figures.get(key, {}), unit)
    for name, row in figures.get("one_image_frc", {}).items():
        if isinstance(row, Mapping):
            yield from _resolution_lines(f"one-image FRC of {name}", row, unit)
    yield from _bead_lines(figures.get("beads", {}), unit)
    if "consistency" in figures:
        error, worst = figures["consistency"], figures["consistency"]["worst"]
        yield (
            f"consistency  root mean square {error['rmse']:.4g} intensities, {error['rmse_percent']:.2f} % of the "
            f"range; at most {worst['error']:.4g} intensities at coarse voxel {_named(worst['index'])}"
        )
    if "shift" in figures:
        yield f"shift        {_named(figures['shift']['voxels'])} coarse voxels"
    if "seam" in figures:
        seam = figures["seam"]
        yield (
            f"seam         p = {seam['p']:.2g}: how likely a jump as in the worst of {seam['faces']} faces would be if "
            "they were like other planes; below 0.01, a seam shows"
        )
    yield from (f"trust        {line}" for line in figures.get("trust", {}).get("words", ()))
    yield f"range        {figures['data_range']['value']:.6g} intensities: {figures['data_range']['definition']}"
    yield from (f"no {key}: {reason}" for key, reason in found.absent.items())
    yield from (f"warning: {text}" for text in found.warnings)


def _psnr(row: Mapping[str, Any]) -> str:
    parts = [f"{row['psnr']:.2f} dB"] if "psnr" in row else []
    return ", ".join(parts + ([f"SSIM {row['ssim']:.4f}"] if "ssim" in row else []))


def _resolution_lines(words: str, row: Mapping[str, Any], unit: str) -> Iterator[str]:
    """Say how fine details are, of one volume or of several."""
    for name, value in row.items():
        if name in ("lateral", "axial"):
            finest = value if isinstance(value, float) else value["resolution"]
            limit = " or finer, the limit of the sampling" if isinstance(value, Mapping) and value["at_limit"] else ""
            yield f"{words}, {name}: {finest:.4g} {unit}{limit}"
        elif isinstance(value, Mapping):
            yield from _resolution_lines(f"{words} of {name}", value, unit)


def _bead_lines(row: Mapping[str, Any], unit: str) -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            lengths = {axis: value[axis] for axis in SPATIAL if axis in value}
            yield f"FWHM of {value['count']} beads of {name}: {_named(lengths)} {unit}"


def _named(values: Mapping[str, float]) -> str:
    return ", ".join(f"{axis} {value:.4g}" for axis, value in values.items())
