"""The demonstration: simulate a measurement, enhance it as a user would, compare with the truth; about a minute."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from svision_dask.errors import OutputError
from svision_dask.geometry import Grid, Shape
from svision_dask.judging.figure import Panel, draw_comparison, informative_place
from svision_dask.metrics import psnr, ssim
from svision_dask.network.baselines import best_smoothed, cubic, cubic_back_projected
from svision_dask.opening.formats import open_volume
from svision_dask.simulation.simulate import Phantom, as_volume
from svision_dask.stores.locations import local_path

if TYPE_CHECKING:
    from svision_dask.running.progress import RunProgress
    from svision_dask.training.train import Progress

Voxels = npt.NDArray[Any]

SHAPE = (96, 256, 256)
"""Fine voxels (z, y, x): 77 µm deep, 51 µm wide."""
FACTOR = 2
PLACE = (16, 64, 64)
"""Fine voxels (z, y, x) that the picture shows enlarged: a cube of 12.8 µm."""
MEASURED, TRUTH, MODEL = "measured.ome.tif", "truth.ome.tif", "model.safetensors"
ENHANCED, FIGURE, RESULTS = "enhanced.ome.zarr", "comparison.png", "results.json"
VERSIONS = ("svision-dask", "torch", "numpy", "dask", "distributed", "zarr", "ome-zarr", "scikit-image", "tifffile")


Report = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is to do, and a remark."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How close one fine volume comes to the truth."""

    name: str
    psnr: float
    """In dB, for the data range of the result."""
    ssim: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demonstration found, and where it left it."""

    folder: str
    seed: int
    shape: Shape
    """Fine voxels (z, y, x)."""
    data_range: float
    """Photons that count as the full range for PSNR and SSIM: those on the axis of a dendrite of mean brightness."""
    scores: tuple[Score, ...]
    """Without a network first, the enhanced volume last."""
    train_seconds: float
    enhance_seconds: float
    """With starting worker processes, writing, reading back, and the pyramid."""
    seconds: float
    """Of everything."""
    versions: dict[str, str]

    @property
    def gain(self) -> float:
        """Decibels by which the enhanced volume is closer to the truth than the best that uses no network."""
        *others, enhanced = self.scores
        return enhanced.psnr - max(score.psnr for score in others)

    def table(self) -> str:
        """Write the scores as text, a line each, and the seconds."""
        width = max(len(score.name) for score in self.scores)
        lines = [f"{'':{width}}  PSNR dB    SSIM"]
        lines += [f"{score.name:{width}}  {score.psnr:7.2f}  {score.ssim:6.4f}" for score in self.scores]
        return "\n".join([*lines, f"trained in {self.train_seconds:.0f} s, enhanced in {self.enhance_seconds:.0f} s"])

    @property
    def enhanced(self) -> Path:
        """The enhanced OME-Zarr."""
        return Path(self.folder) / ENHANCED

    @property
    def figure(self) -> Path:
        """The picture."""
        return Path(self.folder) / FIGURE


def run_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    shape: Shape = SHAPE,
    steps: int | None = None,
    overwrite: bool = False,
    on_progress: Report | None = None,
) -> DemoResult:
    """Simulate a two-photon measurement in ``folder``, enhance it two-fold from file to file, and compare.

    The measurement is an OME-TIFF with photon noise, twice as coarse as the truth on every axis. From there on it is
    treated as any user's file: opened, trained on, enhanced into an OME-Zarr; the truth is used only to compare. PSNR
    and SSIM are against the truth, which has no noise, two voxels at the faces left out; the data range is 200 photons.

    The folder then holds the measurement, the truth, the model, the enhanced volume, a picture, and ``results.json``.
    The enlarged place in the picture is where, in the truth, coarse voxels hold most detail of their own; no result
    has a say in it.

    Parameters
    ----------
    folder
        Made if it is not there; other files in it are left alone.
    seed
        Of the volume, its noise, and the training.
    shape
        Fine voxels (z, y, x), even; at least 16 along each axis.
    steps
        Of training; the preset's by default.
    overwrite
        Replace a finished demonstration, or files of the same names. An unfinished one is always started again.
    on_progress
        Called with ``"simulate"``, ``"train"``, ``"enhance"`` or ``"compare"``, what is done of it, what there is to
        do, and a remark: at the start or end of each, and within training and enhancing.

    Returns
    -------
    DemoResult
        What ``results.json`` holds.

    Raises
    ------
    OutputError
        If the folder holds a finished demonstration, or files of the same names.
    UsageError
        If the seed or the shape is not allowed.
    """
    started = time.monotonic()
    phantom = Phantom(shape=shape, seed=seed)
    measurement = as_volume(phantom, "measured", factor=FACTOR)
    folder = _prepared(local_path(folder, "the demonstration").absolute(), overwrite=overwrite)
    report = on_progress or _nobody
    report("simulate", 0, 1, "")
    truth = phantom.truth(tuple(slice(0, n) for n in shape))
    measured = measurement.read(tuple(slice(0, n) for n in measurement.grid.shape))
    _write_tiff(folder / TRUTH, truth, phantom.grid)
    _write_tiff(folder / MEASURED, measured, measurement.grid)
    report("simulate", 1, 1, "")
    train_seconds = _train(folder, seed, steps, report)
    enhance_seconds = _enhance(folder, report)
    report("compare", 0, 1, "")
    scores = _compare(folder, phantom, measured, truth)
    result = DemoResult(
        folder=str(folder),
        seed=seed,
        shape=shape,
        data_range=phantom.photons,
        scores=scores,
        train_seconds=train_seconds,
        enhance_seconds=enhance_seconds,
        seconds=time.monotonic() - started,
        versions={"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    )
    _write_results(folder, {**_values(result), "finished": True})
    report("compare", 1, 1, "")
    return result


def _nobody(activity: str, done: int, total: int, remark: str) -> None:
    """Take a report, where nobody wants it."""


def _prepared(folder: Path, *, overwrite: bool) -> Path:
    """Make ``folder`` ready for a new demonstration, and mark it as unfinished."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the demonstration.")
    present = [name for name in (MEASURED, TRUTH, MODEL, ENHANCED, FIGURE, RESULTS) if (folder / name).exists()]
    if present and not overwrite and not _is_unfinished(folder):
        raise OutputError(f"{folder} already holds {', '.join(present)}. Give another folder, or --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_results(folder, {"finished": False})
    return folder


def _is_unfinished(folder: Path) -> bool:
    """Whether a demonstration was started here, and did not end."""
    try:
        return bool(json.loads((folder / RESULTS).read_text(encoding="utf-8")) == {"finished": False})
    except (OSError, ValueError):
        return False


def _values(result: DemoResult) -> dict[str, Any]:
    """Turn the result into plain values, without where it happens to be."""
    return {key: value for key, value in asdict(result).items() if key != "folder"} | {"gain": result.gain}


def _write_results(folder: Path, values: dict[str, Any]) -> None:
    """Write ``results.json``, whole or not at all."""
    partial = folder / f"{RESULTS}.partial"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / RESULTS)


def _write_tiff(path: Path, voxels: Voxels, grid: Grid) -> None:
    from tifffile import imwrite

    sizes = {f"PhysicalSize{axis.upper()}": step for axis, step in zip(grid.axes, grid.spacing, strict=True)}
    units = {f"PhysicalSize{axis.upper()}Unit": "µm" for axis in grid.axes}
    imwrite(path, voxels, ome=True, metadata={"axes": grid.axes.upper(), **sizes, **units})


def _train(folder: Path, seed: int, steps: int | None, report: Report) -> float:
    """Train on the measurement and keep the model; return the seconds it took."""
    from svision_dask.training.train import train

    def on_step(progress: Progress) -> None:
        report("train", progress.step, progress.steps, f"loss {progress.loss:.3g}")

    started = time.monotonic()
    model = train(open_volume(folder / MEASURED), factor=FACTOR, seed=seed, steps=steps, on_step=on_step)
    model.save(folder / MODEL)
    return time.monotonic() - started


def _enhance(folder: Path, report: Report) -> float:
    """Enhance the measurement, from file to file; return the seconds it took."""
    from svision_dask.running.pipeline import enhance_to_zarr

    def on_region(progress: RunProgress) -> None:
        if progress.level == 0:
            report("enhance", progress.done, progress.regions, "regions")

    started = time.monotonic()
    enhance_to_zarr(folder / MEASURED, folder / ENHANCED, model=folder / MODEL, overwrite=True, on_progress=on_region)
    return time.monotonic() - started


def _compare(folder: Path, phantom: Phantom, measured: Voxels, truth: Voxels) -> tuple[Score, ...]:
    """Score what is on disk, and what needs no network, against the truth; draw the picture."""
    fine = {name: (voxels, _score(name, voxels, truth, phantom)) for name, voxels in _rivals(measured, truth, phantom)}
    volume = open_volume(folder / ENHANCED)
    enhanced = volume.read(tuple(slice(0, n) for n in volume.grid.shape))
    fine["enhanced"] = enhanced, _score("enhanced", enhanced, truth, phantom)
    _draw(folder / FIGURE, phantom, measured, truth, {name: fine[name] for name in ("cubic", "enhanced")})
    return tuple(score for _, score in fine.values())


def _rivals(measured: Voxels, truth: Voxels, phantom: Phantom) -> list[tuple[str, Voxels]]:
    """Make what is to be had without a network, each in its best form."""
    projected = max(
        (cubic_back_projected(measured, FACTOR, clamp=clamp) for clamp in (False, True)),
        key=lambda voxels: psnr(voxels, truth, data_range=phantom.photons),
    )
    return [
        ("cubic", cubic(measured, FACTOR)),
        ("cubic + back projection", projected),
        ("cubic + back projection, best blur", best_smoothed(projected, truth)),
    ]


def _score(name: str, voxels: Voxels, truth: Voxels, phantom: Phantom) -> Score:
    return Score(
        name=name,
        psnr=psnr(voxels, truth, data_range=phantom.photons),
        ssim=ssim(voxels, truth, data_range=phantom.photons),
    )


def _draw(
    path: Path, phantom: Phantom, measured: Voxels, truth: Voxels, scored: dict[str, tuple[Voxels, Score]]
) -> None:
    coarse, fine = phantom.grid.coarser((FACTOR,) * 3), phantom.grid
    panels = [Panel(title=f"measured\n{_voxel_size(coarse)}", voxels=measured, factor=(FACTOR,) * 3)]
    for name, (voxels, score) in scored.items():
        title = f"{name}\n{score.psnr:.1f} dB, SSIM {score.ssim:.3f}"
        panels.append(Panel(title=title, voxels=voxels, factor=(1, 1, 1)))
    panels.append(Panel(title=f"truth\n{_voxel_size(fine)}", voxels=truth, factor=(1, 1, 1)))
    # A quarter of a dendrite's brightness is that of spines and thin axons.
    place = informative_place(truth, PLACE, factor=(FACTOR,) * 3, ceiling=phantom.photons / 4)
    draw_comparison(
        path,
        panels,
        place=place,
        spacing=fine.spacing,
        white=phantom.photons,
        caption=_caption(phantom),
    )


def _caption(phantom: Phantom) -> str:
    photons = f"{phantom.photons:g} photons"
    return (
        f"Simulated two-photon volume, seed {phantom.seed}. All panels: black is 0, white {photons}, linear, nothing "
        f"interpolated for display. PSNR and SSIM: of the whole volume, data range {photons}.\n"
        "The truth alone chose the framed place: it is where coarse voxels hold most detail of their own."
    )


def _voxel_size(grid: Grid) -> str:
    return " × ".join(f"{step:g}" for step in grid.spacing) + " µm (z, y, x)"
