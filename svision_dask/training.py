"""Train a model on a sample of the volume that it will enhance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from svision_dask.architecture import Architecture, Preset, architecture
from svision_dask.axial import lateral_pairs, lateral_zoom
from svision_dask.degradation import CUBIC, UP_REACH, Degradation, Degrade
from svision_dask.drift import typical_roughness
from svision_dask.errors import SampleError, UsageError
from svision_dask.exam import Exam, Verdict
from svision_dask.geometry import SPATIAL, Factor, Shape, parse_factor, spatial_shape
from svision_dask.model import Model, Normalisation
from svision_dask.noise_estimate import SILENT, estimate_noise
from svision_dask.pairs import Pairs, make_pairs
from svision_dask.psf import Psf, degradation_of, find_psf
from svision_dask.resample import kernel_radius, upsample
from svision_dask.sample import Sample, read_sample
from svision_dask.self_check import self_check
from svision_dask.stage import Stage, trim
from svision_dask.volume import Volume, middle, mirror_pad
from svision_dask.zoom import around, matched_zoom, psf_zoom

TOLERANCE = 1e-4
"""Where the kernel of repeated back projection is cut, as a share of the range."""
SECOND_STAGE_VOXELS = 64 * 128 * 128
"""Coarse voxels that are enhanced by the first stage to train the second."""
REPORTS = 100
"""Points of the loss curve that are kept in the model."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one stage is trained."""

    steps: int
    batch: int
    patch: Shape
    """Coarse voxels (z, y, x) that the network predicts from; it sees its halo on top."""
    learning_rate: float
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    as_published: bool = False
    """Without what goes beyond the paper: matched zoom and noise of the pairs, and fitted damping."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands."""

    stage: int
    stages: int
    step: int
    steps: int
    loss: float
    """Running mean, in units of the squared residual."""


SETTINGS: Mapping[Preset, TrainSettings] = {
    # Smaller patches than the paper's see more places per second; a robust loss keeps the brightest voxels from ruling.
    "fast": TrainSettings(steps=600, batch=8, patch=(12, 12, 12), learning_rate=3e-3, loss=F.smooth_l1_loss),
    "best": TrainSettings(steps=1500, batch=8, patch=(12, 12, 12), learning_rate=2e-3, loss=F.smooth_l1_loss),
    # Section 2.1 of the paper: 64×64×8 patches in batches of 8, L2, 1 500 steps; deeper here than the network's reach.
    "paper": TrainSettings(
        steps=1500,
        batch=8,
        patch=(8, 32, 32),
        learning_rate=1e-4,
        loss=F.mse_loss,
        as_published=True,
    ),
}
PLANE_PATCH: Mapping[Preset, Shape] = {"fast": (1, 48, 48), "best": (1, 48, 48), "paper": (1, 32, 32)}
"""Patches of planes, which have no z to learn from."""
LATERAL: Shape = (1, 2, 2)
"""What is reduced where lateral axes stand for z."""
AXIAL_PATCH: Shape = (16, 4, 24)
"""Of four lines of sight: the network sees the first and the last axis only."""
SNAPSHOTS = 10
"""How often the network is judged while it learns; the best one is kept."""
ATTEMPTS = 3
"""How often to begin anew, from other weights, with a network that has learned nothing."""
FAIR_TRIAL = 50
"""Steps below which nobody can say whether a network would have learned."""


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
    axial: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> Model:
    """Train a model on a sample of ``volume``; no other data is used.

    Parameters
    ----------
    volume
        The coarse volume.
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
    axial
        Refine z only, by what the lateral planes teach: for stacks of few planes. A ``factor`` of one number is z's.
    on_step
        Called after each step.

    Raises
    ------
    UsageError
        If the factor, the preset, the sample, the seed, the number of steps, or the PSF is not allowed.
    SampleError
        If there is nothing to learn from in the sample.
    """
    if steps is not None and steps < 1:
        raise UsageError(f"{steps} steps: training needs at least 1. Use --steps {SETTINGS['fast'].steps}.")
    if seed < 0:
        raise UsageError(f"seed {seed}: allowed are 0 and above. Use --seed 0.")
    per_axis = parse_factor(axial_factor(factor) if axial else factor, volume.grid.axes)
    known = find_psf(psf, volume.grid)
    how = degradation_of(degrade, known)
    if known and not how.psf and (axial or preset == "paper"):
        where = "axial" if axial else "preset paper"
        raise UsageError(f"psf: {where} has its scale from elsewhere. Leave out --psf, or undo it with --degrade psf.")
    design = design_for(volume.grid.axes, per_axis, preset=preset, tolerance=tolerance, degradation=how, axial=axial)
    chosen = read_sample(volume, box=sample, seed=seed)
    settings = _settings(preset, design, steps)
    about = {"preset": preset, "input": volume.name, "psf_fwhm": known.fwhm if known else None}
    model = train_on_sample(chosen, design, settings, seed=seed, psf=known, on_step=on_step, about=about)
    checked = self_check(model, chosen)
    found = {"self_check": asdict(checked) if checked else None, "roughness": typical_roughness(chosen)}
    return replace(model, provenance={**model.provenance, **found})


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
        pairs, note = _pairs(stage, voxels, sample.normalisation, known, as_published=settings.as_published)
        report = _reporter(on_step, number, len(design.stages), settings.steps)
        verdict, curve = train_stage(stage, pairs, settings, seed=seed + number, report=report)
        notes.append({**note, "verdict": asdict(verdict), "loss": curve})
        stages.append(stage)
    provenance = {
        **(about or {}),
        "package": f"svision-dask {version('svision-dask')}",
        "torch": torch.__version__,
        "seed": seed,
        "steps": settings.steps,
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
    *,
    as_published: bool,
) -> tuple[Pairs, dict[str, Any]]:
    """Make what a stage is trained on from standardised voxels (c, z, y, x), and say at which scale and noise."""
    spec, how = stage.spec, stage.spec.degradation
    noise, zoom = [SILENT] * len(voxels), (1.0, 1.0, 1.0)
    if not as_published:
        measured = np.stack([v * n.scale + n.offset for v, n in zip(voxels, constants, strict=True)])
        reduced = LATERAL if spec.axial else spec.factor
        noise = [estimate_noise(channel, reduced) for channel in measured]
        if spec.axial:
            zoom = (lateral_zoom(measured, noise, how), 1.0, 1.0)
        elif psf and not how.psf:  # a reduction that has the blur itself leaves nothing to match
            zoom = psf_zoom(psf, spec.factor, how)
        else:
            zoom = matched_zoom(measured, spec.factor, noise, how)
    common: dict[str, Any] = {
        "margin": Exam.margin_of(stage),
        "noise": noise,
        "offsets": [n.offset for n in constants],
        "scales": [n.scale for n in constants],
        "how": how,
    }
    if spec.axial:
        pairs = lateral_pairs(voxels, zoom=zoom[0], **common)
    else:
        pairs = make_pairs(voxels, factor=spec.factor, zooms=around(zoom), **common)
    return pairs, {"noise": [asdict(n) for n in noise], "zoom": zoom}


def train_stage(
    stage: Stage, pairs: Pairs, settings: TrainSettings, *, seed: int, report: Callable[[int, float], None]
) -> tuple[Verdict, list[float]]:
    """Fit one stage's network to the residual that cubic interpolation leaves, judged by pairs that are held back.

    A network that has learned nothing, because it died or diverged, begins anew from other weights.

    Returns
    -------
    tuple of Verdict and list of float
        What the stage is worth, and the loss curve.

    Raises
    ------
    SampleError
        If the loss is not a number any more, whatever the weights it began from.
    """
    split = pairs.hold_back()
    learned, held = split or (pairs, pairs)
    exam = Exam.of(held, stage, held_back=split is not None)
    stage.residual_scale = _residual_scale(learned)
    attempts = []
    for attempt in range(ATTEMPTS):
        curve = _fit(stage, learned, exam, settings, seed=seed + 1000 * attempt, report=report)
        if stage.spec.back_projections and not settings.as_published:
            stage.damping = exam.damping(stage)
        verdict = exam.verdict(stage)
        if math.isfinite(verdict.stage):
            attempts.append((verdict, curve, _copied(stage), stage.damping))
            if verdict.trained or settings.steps < FAIR_TRIAL:
                break
    if not attempts:
        raise SampleError("training diverged: the loss is not a number. Try another --sample or --seed.")
    verdict, curve, weights, stage.damping = min(attempts, key=lambda made: made[0].stage)
    stage.network.load_state_dict(weights)
    stage.eval().requires_grad_(requires_grad=False)
    return verdict, curve


def _fit(
    stage: Stage,
    pairs: Pairs,
    exam: Exam,
    settings: TrainSettings,
    *,
    seed: int,
    report: Callable[[int, float], None],
) -> list[float]:
    """Train from new weights, and keep those that did best in the exam; returns the loss curve."""
    rng = np.random.default_rng(seed)
    stage.network.start(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(stage.network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    running, curve, best = math.nan, [], (math.inf, stage.network.state_dict())
    for step in range(settings.steps):
        coarse, fine = pairs.draw(rng, settings.patch, settings.batch, stage.network.reach)
        wanted = (fine - interpolated(coarse, stage)) / stage.residual_scale
        loss = settings.loss(stage.one_pass(coarse), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(stage.network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        report(step, running)
        if step % max(1, settings.steps // REPORTS) == 0:
            curve.append(float(f"{running:.6g}"))
        if (step + 1) % max(1, settings.steps // SNAPSHOTS) == 0 or step + 1 == settings.steps:
            best = min(best, (exam.loss(stage), _copied(stage)), key=lambda judged: judged[0])
    stage.network.load_state_dict(best[1])
    return curve


def _copied(stage: Stage) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in stage.network.state_dict().items()}


def interpolated(coarse: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Apply cubic interpolation to the part of ``coarse`` that the network predicts."""
    factor = stage.spec.factor
    margin = tuple(h - UP_REACH * (f == 2) for h, f in zip(stage.network.reach, factor, strict=True))
    return upsample(trim(coarse, margin), factor, stage.spec.degradation)


def _residual_scale(pairs: Pairs) -> float:
    """Root mean square of what cubic interpolation leaves, over all channels, in standardised units."""
    spare = tuple(m - UP_REACH * (f == 2) for m, f in zip(pairs.margin, pairs.factor, strict=True))
    interpolations = (upsample(trim(s.coarse, spare), pairs.factor, pairs.how) for s in pairs.scales)
    squares = [float((s.fine - i).square().mean()) for s, i in zip(pairs.scales, interpolations, strict=True)]
    return max(math.sqrt(sum(squares) / len(squares)), 1e-6)


def _rate(step: int, steps: int) -> float:
    """Twenty steps of warm-up, then half a cosine down to one percent."""
    return min(1.0, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1))))


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


def _settings(preset: Preset, design: Architecture, steps: int | None) -> TrainSettings:
    settings = SETTINGS[preset]
    if design.axes == "yx":
        settings = replace(settings, patch=PLANE_PATCH[preset])
    if design.stages[0].axial:
        settings = replace(settings, patch=AXIAL_PATCH)
    return settings if steps is None else replace(settings, steps=steps)


def _reporter(
    on_step: Callable[[Progress], None] | None, stage: int, stages: int, steps: int
) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if on_step is not None:
            on_step(Progress(stage=stage, stages=stages, step=step + 1, steps=steps, loss=loss))

    return report
