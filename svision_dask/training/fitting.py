"""Fit the network of one stage to pairs, and judge it by those that are held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from svision_dask.backend import Device, best_precision, compute_exactly, release_memory
from svision_dask.degradation import UP_REACH
from svision_dask.errors import SampleError
from svision_dask.geometry import Shape
from svision_dask.network.architecture import Architecture, Preset
from svision_dask.network.resample import upsample
from svision_dask.network.stage import Stage, trim
from svision_dask.training.exam import Exam, Verdict, decibels
from svision_dask.training.pairs import Pairs
from svision_dask.training.zoom import SPREAD


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one stage is trained."""

    steps: int
    batch: int
    patch: Shape
    """Coarse voxels (z, y, x) that the network predicts from; it sees its halo on top."""
    learning_rate: float
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    match_noise: bool = True
    """Whether the pairs get the noise that reduction takes away."""
    match_zoom: bool = True
    """Whether the pairs are made at the scale at which they are as rough as the volume."""
    match_brightness: bool = True
    """Whether the pairs are made as bright as the volume."""
    shorten: bool = False
    """Whether to learn for fewer steps where that makes them brighter."""
    spread: float = SPREAD
    """How far around that scale three others lie, which take its place; 0 for none."""
    fit_damping: bool = True
    """Whether back projection is damped by how far the coarse voxels are to be believed."""
    device: Device = "cpu"
    """Where to compute."""


SETTINGS: Mapping[Preset, TrainSettings] = {
    # Smaller patches than the paper's see more places per second; a robust loss keeps the brightest voxels from ruling.
    "fast": TrainSettings(steps=1000, batch=8, patch=(12, 12, 12), learning_rate=2e-3, loss=F.smooth_l1_loss),
    "best": TrainSettings(
        steps=1500, batch=8, patch=(12, 12, 12), learning_rate=2e-3, loss=F.smooth_l1_loss, shorten=True
    ),
    # Section 2.1 of the paper: 64×64×8 patches in batches of 8, L2, 1 500 steps; deeper here than the network's reach.
    "paper": TrainSettings(
        steps=1500,
        batch=8,
        patch=(8, 32, 32),
        learning_rate=1e-4,
        loss=F.mse_loss,
        match_noise=False,
        match_zoom=False,
        match_brightness=False,
        fit_damping=False,
    ),
}
PLANE_PATCH: Mapping[Preset, Shape] = {"fast": (1, 48, 48), "best": (1, 48, 48), "paper": (1, 32, 32)}
"""Patches of planes, which have no z to learn from."""
AXIAL_PATCH: Shape = (16, 4, 24)
"""Of four lines of sight: the network sees the first and the last axis only."""
REPORTS = 100
"""Points of the loss curve that are kept in the model."""
SNAPSHOTS = 10
"""How often the network is judged while it learns; the best one is kept."""
ATTEMPTS = 3
"""How often to begin anew, from other weights, with a network that has learned nothing."""
FAIR_TRIAL = 50
"""Steps below which nobody can say whether a network would have learned."""


def settings_for(preset: Preset, design: Architecture, steps: int | None) -> TrainSettings:
    """Adapt what the preset says to planes and to axial training."""
    settings = SETTINGS[preset]
    if design.axes == "yx":
        settings = replace(settings, patch=PLANE_PATCH[preset])
    if design.stages[0].axial:
        settings = replace(settings, patch=AXIAL_PATCH)
    return settings if steps is None else replace(settings, steps=steps, shorten=False)


def shortened(settings: TrainSettings, pairs: Pairs) -> TrainSettings:
    """Divide the steps by how much brighter the pairs were made: what is unlike at every scale is best learned roughly.

    Beads of less than a voxel came to 45.4 dB after 300 steps, and to 38.9 after 1 500, whatever the exam said.
    """
    gain = sum(scale.gain for scale in pairs.scales) / len(pairs.scales)
    return replace(settings, steps=round(settings.steps / gain)) if settings.shorten else settings


Report = Callable[[int, float, float | None], None]
"""Called with the step, the loss, and decibels over cubic interpolation in the exam, as far as they are known."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came of training a stage."""

    verdict: Verdict
    loss: list[float]
    """Running mean, every so many steps: ``REPORTS`` of them."""
    exam: list[float | None]
    """Decibels over cubic interpolation in each of the ``SNAPSHOTS`` exams, without back projection; None where the
    network diverged."""


def train_stage(stage: Stage, pairs: Pairs, settings: TrainSettings, *, seed: int, report: Report) -> Fitted:
    """Fit one stage's network to the residual that cubic interpolation leaves, judged by pairs that are held back.

    A network that has learned nothing, because it died or diverged, begins anew from other weights.

    Returns
    -------
    Fitted
        What the stage is worth, and how it got there.

    Raises
    ------
    SampleError
        If the loss is not a number any more, whatever the weights it began from.
    """
    split = pairs.hold_back()
    learned, held = split or (pairs, pairs)
    exam = Exam.of(held, stage, held_back=split is not None, device=settings.device)
    if settings.device == "cuda":
        compute_exactly()
    stage.to(settings.device)
    stage.residual_scale = _residual_scale(learned)
    attempts = []
    for attempt in range(ATTEMPTS):
        curves = _fit(stage, learned, exam, settings, seed=seed + 1000 * attempt, report=report)
        if stage.spec.back_projections and settings.fit_damping:
            stage.damping = exam.damping(stage)
        verdict = exam.verdict(stage)
        if math.isfinite(verdict.stage):
            attempts.append((verdict, curves, _copied(stage), stage.damping))
            if verdict.trained or settings.steps < FAIR_TRIAL:
                break
    if not attempts:
        raise SampleError("training diverged: the loss is not a number. Try another --sample or --seed.")
    verdict, (loss, gains), weights, stage.damping = min(attempts, key=lambda made: made[0].stage)
    stage.network.load_state_dict(weights)
    stage.eval().requires_grad_(requires_grad=False).to("cpu")
    if settings.device == "cuda":
        release_memory()  # the workers on this machine need it
    return Fitted(verdict=verdict, loss=loss, exam=gains)


def _fit(
    stage: Stage,
    pairs: Pairs,
    exam: Exam,
    settings: TrainSettings,
    *,
    seed: int,
    report: Report,
) -> tuple[list[float], list[float | None]]:
    """Train from new weights, and keep those that did best in the exam; returns the curves of loss and exams."""
    rng = np.random.default_rng(seed)
    stage.network.start(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(stage.network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    running, curve, best = math.nan, [], (math.inf, stage.network.state_dict())
    gains: list[float | None] = []
    cubic = exam.cubic_loss(stage)
    for step in range(settings.steps):
        drawn = pairs.draw(rng, settings.patch, settings.batch, stage.network.reach)
        coarse, fine = (voxels.to(settings.device) for voxels in drawn)
        wanted = (fine - interpolated(coarse, stage)) / stage.residual_scale
        with _quick(settings.device):
            residual = stage.one_pass(coarse)
        loss = settings.loss(residual.float(), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(stage.network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % max(1, settings.steps // REPORTS) == 0:
            curve.append(float(f"{running:.6g}"))
        if (step + 1) % max(1, settings.steps // SNAPSHOTS) == 0 or step + 1 == settings.steps:
            judged = exam.loss(stage)
            gain = decibels(cubic, judged)
            gains.append(float(f"{gain:.4g}") if math.isfinite(gain) else None)
            best = min(best, (judged, _copied(stage)), key=lambda each: each[0])
        report(step, running, gains[-1] if gains else None)
    stage.network.load_state_dict(best[1])
    return curve, gains


def _quick(device: Device) -> torch.autocast:
    """Convolve in bfloat16 where there are instructions for it: the wider network learns 1.7 times as fast on a CPU.

    Weights, losses and exams stay in single precision; the results agreed to 0.01 dB.
    """
    return torch.autocast(device, dtype=torch.bfloat16, enabled=best_precision(device) == "bfloat16")


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
    squares = [s.gain * float((s.fine - i).square().mean()) for s, i in zip(pairs.scales, interpolations, strict=True)]
    return max(math.sqrt(sum(squares) / len(squares)), 1e-6)


def _rate(step: int, steps: int) -> float:
    """Twenty steps of warm-up, then half a cosine down to one percent."""
    return min(1.0, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1))))
