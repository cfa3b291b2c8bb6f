"""Models with random weights: enough to find a seam, and made in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from svision_dask.degradation import CUBIC, Degradation
from svision_dask.network.architecture import Architecture, Layer, StageSpec, architecture
from svision_dask.network.model import Model, Normalisation
from svision_dask.network.stage import Stage


def untrained(design: Architecture, *, channels: int = 1, seed: int = 0) -> Model:
    """A model of ``design`` whose residual is as strong as the signal, so that every tap counts."""
    stages = []
    for number, spec in enumerate(design.stages):
        stage = Stage(spec, design.axes)
        stage.network.start(torch.Generator().manual_seed(seed + number))
        stage.network.steps[-1].weight.data.mul_(10)
        stages.append(stage.eval().requires_grad_(requires_grad=False))
    constants = tuple(Normalisation(offset=100.0 + 20 * c, scale=50.0 + 5 * c) for c in range(channels))
    return Model(architecture=design, stages=tuple(stages), normalisation=constants)


@cache
def fast(factor: tuple[int, int, int], axes: str = "zyx", channels: int = 1, back_projections: int = 0) -> Model:
    """The fast preset."""
    design = architecture("fast", factor, axes)
    stages = tuple(replace(stage, back_projections=back_projections) for stage in design.stages)
    return untrained(replace(design, stages=stages), channels=channels)


WAYS = (
    CUBIC,
    Degradation(kind="box"),
    Degradation(kind="point"),
    Degradation(
        kind="psf", psf=((0.5, 0.5), (0.125, 0.375, 0.375, 0.125), (0.0625, 0.125, 0.3125, 0.3125, 0.125, 0.0625))
    ),
)
"""Every kind of degradation."""


@cache
def tiny(
    factor: tuple[int, int, int],
    axes: str = "zyx",
    channels: int = 1,
    back_projections: int = 3,
    how: Degradation = CUBIC,
    axial: bool = False,
) -> Model:
    """All operators, with a short reach: two layers, an ensemble, three back projections cut at 2 voxels."""
    stages, remaining = [], factor
    while max(remaining) > 1:
        step = tuple(min(f, 2) for f in remaining)
        phases = step[0] * step[1] * step[2]
        stages.append(
            StageSpec(
                factor=step,
                layers=(Layer(kernel=3, channels=4), Layer(kernel=3, channels=phases)),
                back_projections=back_projections,
                kernel_radius=2 if back_projections > 1 else 0,
                ensemble=True,
                degradation=how.of_step(len(stages)),
                axial=axial,
            )
        )
        remaining = tuple(f // s for f, s in zip(remaining, step, strict=True))
    return untrained(Architecture(axes=axes, stages=tuple(stages)), channels=channels)
