"""Train a model on a sample of the volume that it will enhance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svision_dask.backend import Backend, Device, best_device
from svision_dask.degradation import CUBIC, NOISE_MODELS, Degradation, Degrade, NoiseModel
from svision_dask.errors import UsageError
from svision_dask.geometry import SPATIAL, Factor, Shape, parse_factor, spatial_shape
from svision_dask.network.architecture import Architecture, Preset, StageSpec, architecture
from svision_dask.network.model import Model, Normalisation
from svision_dask.network.resample import kernel_radius
from svision_dask.network.stage import Stage
from svision_dask.training.axial import lateral_pairs, lateral_zoom
from svision_dask.training.drift import typical_roughness
from svision_dask.training.exam import Exam
from svision_dask.training.fitting import SETTINGS, TrainSettings, settings_for, shortened, train_stage
from svision_dask.training.noise_estimate import SILENT, Noise, estimate_noise
from svision_dask.training.pairs import Pairs, Zoom, make_pairs
from svision_dask.training.psf import Psf, degradation_of, find_psf
from svision_dask.training.sample import Sample, read_sample
from svision_dask.training.self_check import self_check
from svision_dask.training.zoom import around, matched_zoom, psf_zoom
from svision_dask.volume import Volume, check_volume, middle, mirror_pad

TOLERANCE = 1e-4
"""Where the kernel of repeated back projection is cut, as a share of the range."""
SECOND_STAGE_VOXELS = 64 * 128 * 128
"""Coarse voxels that are enhanced by the first stage to train the second."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands."""

    stage: int
    """Which ×2 step is trained, counted from 0."""
    stages: int
    """How many there are."""
    step: int
    """Steps of this stage that are done."""
    steps: int
    """Of this stage, in all."""
    loss: float
    """Running mean, in units of the squared residual."""
    gain: float | None
    """Decibels by which the network is closer than cubic interpolation to the pairs of its exam, when it was last
    judged; None before that. Without back projection, which is fitted at the end."""


LATERAL: Shape = (1, 2, 2)
"""What is reduced where lateral axes stand for z."""


def train(
    volume: Volume,
    *,
    factor: Factor = 2,
    preset: Preset = "fast",
    sample: Mapping[str, slice] | None = None,
    seed: int = 0,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    degrade: Degrade = "cubic",
    psf: Any = None,
    noise: NoiseModel = "auto",
    axial: bool = False,
    device: Device | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Model:
    """Train a model on a sample of ``volume``; no other data is used.

    Parameters
    ----------
    volume
        The coarse volume, as `open_volume` makes it of a file or an array.
    factor
        1, 2 or 4: for every spatial axis, one each in order, or by name.
    preset
        ``"fast"``; ``"best"``, which takes minutes; or ``"paper"`` for the published form (Photonics Research 11(1),
        2023, section 2).
    sample
        Start and stop per spatial axis of the sub-volume to learn from; chosen by default.
    seed
        Of everything random.
    steps
        Instead of the preset's, per stage.
    tolerance
        Where the kernel of repeated back projection is cut, as a share of the range; 0 for never.
    degrade
        How the coarse voxels came about from finer ones: ``"cubic"``, antialiased; ``"box"``, as camera binning does;
        ``"point"``, as skipped scan positions do; ``"psf"``, by the blur of ``psf``, which is then undone.
    psf
        Of the microscope: its full width at half maximum in the units of the spacing, one for all axes, one each, or by
        name; or a measured kernel, or the path of one, in voxels of the volume's size. It sets the scale to train at,
        which is measured on the volume by default (``"auto"``).
    noise
        Of the detector: reduction averages it away, so ``"auto"`` gives the pairs as much as is measured on the sample;
        ``"none"`` takes the volume for clean.
    axial
        Refine z only, by what the lateral planes teach: for stacks of few planes. A ``factor`` of one number is z's.
    device
        Where to compute; by default a GPU, if torch can use one.
    on_step
        Called after each step.

    Returns
    -------
    Model
        With the intensity constants of the sample, and in ``provenance`` how it came about and what it is worth.

    Raises
    ------
    UsageError
        If this is no volume, or the factor, the preset, the sample, the seed, the number of steps, or the PSF is not
        allowed.
    SampleError
        If there is nothing to learn from in the sample.
    """
    started = time.monotonic()
    check_volume(volume)
    if steps is not None and steps < 1:
        raise UsageError(f"{steps} steps: training needs at least 1. Use --steps {SETTINGS['fast'].steps}.")
    if seed < 0:
        raise UsageError(f"seed {seed}: allowed are 0 and above. Use --seed 0.")
    if noise not in NOISE_MODELS:
        raise UsageError(f"noise {noise!r}: allowed are {', '.join(NOISE_MODELS)}. Use --noise auto.")
    per_axis = parse_factor(axial_factor(factor) if axial else factor, volume.grid.axes)
    known = find_psf(psf, volume.grid)
    how = degradation_of(degrade, known)
    if known and not how.psf and (axial or preset == "paper"):
        where = "axial" if axial else "preset paper"
        raise UsageError(f"psf: {where} has its scale from elsewhere. Leave out --psf, or undo it with --degrade psf.")
    design = design_for(volume.grid.axes, per_axis, preset=preset, tolerance=tolerance, degradation=how, axial=axial)
    chosen = read_sample(volume, box=sample, seed=seed)
    settings = settings_for(preset, design, steps)
    backend = Backend(device=device or best_device())
    settings = replace(settings, match_noise=settings.match_noise and noise == "auto", device=backend.device)
    grid, fwhm = volume.grid, known.fwhm if known else None
    placed = {"spacing": [grid.spacing[i] for i in grid.spatial], "units": [grid.units[i] for i in grid.spatial]}
    about = {"preset": preset, "input": volume.name, **placed, "psf_fwhm": fwhm}
    model = train_on_sample(chosen, design, settings, seed=seed, psf=known, on_step=on_step, about=about)
    checked = self_check(model, chosen)
    found = {"self_check": asdict(checked) if checked else None, "roughness": typical_roughness(chosen)}
    seconds = time.monotonic() - started
    return replace(model, provenance={**model.provenance, **found}, training_seconds=seconds)


def design_for(
    axes: str,
    factor: Shape,
    *,
    preset: Preset,
    tolerance: float = TOLERANCE,
    degradation: Degradation = CUBIC,
    axial: bool = False,
) -> Architecture:
    """Make the architecture that ``train`` would train: what a plan needs, before anything is read.

    ``factor`` has one entry per axis of ``axes``.
    """
    spatial = spatial_shape(axes, factor)
    named = "".join(a for a in axes if a in SPATIAL)
    uncut = architecture(preset, spatial, named, degradation=degradation, axial=axial)
    radius = max(kernel_radius(s.factor, s.back_projections, tolerance, s.degradation) for s in uncut.stages)
    return architecture(preset, spatial, named, kernel_radius=radius, degradation=degradation, axial=axial)


def axial_factor(factor: Factor) -> Factor:
    """Give one number to z alone."""
    return factor if isinstance(factor, (Mapping, Sequence)) else {"z": factor}


def train_on_sample(
    sample: Sample,
    design: Architecture,
    settings: TrainSettings,
    *,
    seed: int,
    psf: Psf | None = None,
    on_step: Callable[[Progress], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Model:
    """Train all stages of ``design``, each on the output of the one before."""
    voxels = np.stack([(v - n.offset) / n.scale for v, n in zip(sample.voxels, sample.normalisation, strict=True)])
    stages: list[Stage] = []
    notes: list[dict[str, Any]] = []
    for number, spec in enumerate(design.stages):
        if number:
            voxels = _enhanced(middle(voxels, _at_most(voxels.shape[1:], SECOND_STAGE_VOXELS)), stages[-1], design.axes)
        stage = Stage(spec, design.axes)
        known = psf if number == 0 else None
        pairs, note = _pairs(stage, voxels, sample.normalisation, known, settings)
        fitting = shortened(settings, pairs)
        report = _reporter(on_step, number, len(design.stages), fitting.steps)
        fitted = train_stage(stage, pairs, fitting, seed=seed + number, report=report)
        notes.append(
            {
                **note,
                "steps": fitting.steps,
                "verdict": asdict(fitted.verdict),
                "loss": fitted.loss,
                "exam": fitted.exam,
            }
        )
        stages.append(stage)
    provenance = {
        **(about or {}),
        "package": f"svision-dask {version('svision-dask')}",
        "torch": torch.__version__,
        "device": settings.device,
        "seed": seed,
        "degradation": design.stages[0].degradation.kind,
        "sampling": design.sampling,
        "sample": [[window.start, window.stop] for window in sample.box],
        **{key: [note[key] for note in notes] for key in notes[0]},
    }
    return Model(architecture=design, stages=tuple(stages), normalisation=sample.normalisation, provenance=provenance)


def _pairs(
    stage: Stage,
    voxels: npt.NDArray[np.float32],
    constants: Sequence[Normalisation],
    psf: Psf | None,
    settings: TrainSettings,
) -> tuple[Pairs, dict[str, Any]]:
    """Make what a stage is trained on from standardised voxels (c, z, y, x), and say at which scale and noise."""
    spec, how = stage.spec, stage.spec.degradation
    measured = np.stack([v * n.scale + n.offset for v, n in zip(voxels, constants, strict=True)])
    noise, zoom = [SILENT] * len(voxels), (1.0, 1.0, 1.0)
    if settings.match_noise:
        noise = [estimate_noise(channel, LATERAL if spec.axial else spec.factor) for channel in measured]
    if settings.match_zoom:
        zoom = _zoom(spec, measured, noise, psf)
    common: dict[str, Any] = {
        "margin": Exam.margin_of(stage),
        "noise": noise,
        "offsets": [n.offset for n in constants],
        "scales": [n.scale for n in constants],
        "how": how,
        "match_brightness": settings.match_brightness,
    }
    if spec.axial:
        pairs = lateral_pairs(voxels, zoom=zoom[0], **common)
    else:
        pairs = make_pairs(voxels, factor=spec.factor, zooms=around(zoom, settings.spread), **common)
    return pairs, {"noise": [asdict(n) for n in noise], "zoom": zoom, "gain": [s.gain for s in pairs.scales]}


def _zoom(spec: StageSpec, voxels: npt.NDArray[np.float32], noise: Sequence[Noise], psf: Psf | None) -> Zoom:
    if spec.axial:
        return lateral_zoom(voxels, noise, spec.degradation), 1.0, 1.0
    if psf and not spec.degradation.psf:  # a reduction that has the blur itself leaves nothing to match
        return psf_zoom(psf, spec.factor, spec.degradation)
    return matched_zoom(voxels, spec.factor, noise, spec.degradation)


def _enhanced(voxels: npt.NDArray[np.float32], stage: Stage, axes: str) -> npt.NDArray[np.float32]:
    """Make standardised voxels (c, z, y, x) one stage finer, with mirrored faces."""
    design = Architecture(axes=axes, stages=(stage.spec,))
    step = Model(architecture=design, stages=(stage,), normalisation=(Normalisation(offset=0.0, scale=1.0),))
    return np.stack([step.refine(mirror_pad(channel, design.halo)) for channel in voxels])


def _at_most(shape: Shape, limit: int) -> Shape:
    """Halve the longest axis until there are at most ``limit`` voxels."""
    size = list(shape)
    while math.prod(size) > limit:
        size[size.index(max(size))] = -(-max(size) // 2)
    return tuple(size)


def _reporter(
    on_step: Callable[[Progress], None] | None, stage: int, stages: int, steps: int
) -> Callable[[int, float, float | None], None]:
    def report(step: int, loss: float, gain: float | None) -> None:
        if on_step is not None:
            on_step(Progress(stage=stage, stages=stages, step=step + 1, steps=steps, loss=loss, gain=gain))

    return report
