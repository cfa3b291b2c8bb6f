from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from svision_dask.network.architecture import PRESETS, Architecture, architecture
from svision_dask.network.resample import degrade, upsample
from svision_dask.network.stage import Stage, trim
from tests.models import untrained

CASES = [
    (preset, axes, factor)
    for preset in PRESETS
    for axes, factor in [
        ("zyx", (2, 2, 2)),
        ("zyx", (1, 2, 2)),
        ("zyx", (2, 1, 1)),
        ("zyx", (1, 1, 2)),
        ("yx", (1, 2, 2)),
        ("yx", (1, 2, 1)),
    ]
]


@cache
def stage_of(preset: str, axes: str, factor: tuple[int, int, int], ensemble: bool = True) -> Stage:
    """Random weights in double precision, so that rounding hides nothing."""
    design = architecture(preset, factor, axes, kernel_radius=1)
    if not ensemble:
        design = replace(design, stages=tuple(replace(spec, ensemble=False) for spec in design.stages))
    (stage,) = untrained(design).stages
    return stage.double()


TURNS = [
    lambda v, flips=flips, swap=swap: (v.transpose(3, 4) if swap else v).flip(flips)
    for flips in ([], [3], [4], [3, 4])
    for swap in (False, True)
]
"""All lateral orientations."""


def random_coarse(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, *shape)))


def haloed(stage: Stage, size: int) -> tuple[int, ...]:
    """``size`` voxels and the halo; of a plane, one slice."""
    planar = stage.network.planar
    return tuple(2 * r + (1 if planar and axis == 0 else size) for axis, r in enumerate(stage.reach))


@pytest.mark.parametrize(("preset", "axes", "factor"), CASES)
def test_a_voxel_changes_what_lies_within_the_reach_and_nothing_beyond(preset, axes, factor):
    stage = stage_of(preset, axes, factor, ensemble=axes == "yx")  # in a volume it would take eight times as long
    coarse, other = random_coarse(haloed(stage, 3)), random_coarse(haloed(stage, 3), seed=1)
    fine = stage(coarse)
    for axis in (i for i, name in enumerate("zyx") if name in axes):
        # The middle of three coarse voxels has exactly one more voxel on each side than it reaches.
        middle = fine.narrow(axis + 2, factor[axis], factor[axis])
        last = coarse.shape[axis + 2] - 1
        for place, counts in ((0, False), (1, True), (last - 1, True), (last, False)):
            changed = coarse.clone()
            changed.select(axis + 2, place).add_(other.select(axis + 2, 0), alpha=1000)
            same = torch.equal(stage(changed).narrow(axis + 2, factor[axis], factor[axis]), middle)
            assert same is not counts, (axis, place)


@pytest.mark.parametrize(("preset", "axes", "factor"), CASES)
def test_a_part_of_the_volume_gives_the_part_of_the_result_finer_by_the_factor(preset, axes, factor):
    stage = stage_of(preset, axes, factor, ensemble=axes == "yx")
    coarse = random_coarse(haloed(stage, 3))
    fine = stage(coarse)
    assert fine.shape[2:] == tuple((1 if axes == "yx" and axis == 0 else 3) * f for axis, f in enumerate(factor))
    shift = (0 if axes == "yx" else 1, 2, 1)
    part = coarse[:, :, shift[0] :, shift[1] :, shift[2] :]
    z, y, x = (s * f for s, f in zip(shift, factor, strict=True))
    torch.testing.assert_close(stage(part), fine[:, :, z:, y:, x:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("axes", "factor", "act"),
    [
        # A flip and a quarter turn generate all eight orientations; without turns, the two flips generate all four.
        ("zyx", (2, 2, 2), lambda v: v.flip([3])),
        ("zyx", (2, 2, 2), lambda v: v.transpose(3, 4).flip([3])),
        ("zyx", (1, 1, 2), lambda v: v.flip([3])),
        ("zyx", (1, 1, 2), lambda v: v.flip([4])),
        ("yx", (1, 2, 2), lambda v: v.flip([4])),
        ("yx", (1, 2, 2), lambda v: v.transpose(3, 4).flip([3])),
    ],
)
def test_an_ensemble_commutes_with_lateral_flips_and_turns(axes, factor, act):
    stage = stage_of("paper", axes, factor)
    coarse = random_coarse(haloed(stage, 2))
    torch.testing.assert_close(stage(act(coarse)), act(stage(coarse)), rtol=0, atol=1e-10)
    # One pass does not, or the test would show nothing.
    assert (stage.one_pass(act(coarse)) - act(stage.one_pass(coarse))).abs().max() > 1e-3


def test_an_ensemble_is_the_mean_of_eight_or_where_y_and_x_differ_of_four():
    for factor, count in (((2, 2, 2), 8), ((1, 2, 1), 4)):
        stage = stage_of("paper", "zyx", factor)
        seen = []
        handle = stage.network.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].clone()))
        stage.residual(random_coarse((17, 18, 18)))
        handle.remove()
        assert len(seen) == count
        # No two members saw the same voxels.
        assert len({tuple(member.flatten().tolist()) for member in seen}) == count
        flat = torch.ones(1, 1, 17, 17, 17, dtype=torch.float64)  # looks alike from everywhere
        acts = TURNS if count == 8 else TURNS[::2]  # every other one only flips
        mean = sum(act(stage.one_pass(flat)) for act in acts) / count
        torch.testing.assert_close(stage.residual(flat), mean, rtol=0, atol=1e-12)


def silenced(design: Architecture) -> Stage:
    """A stage whose network answers nothing."""
    (stage,) = untrained(design).stages
    stage.network.steps[-1].weight.zero_()
    return stage.double()


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_an_axial_stage_is_the_mean_over_planes_along_y_and_along_x(preset):
    (stage,) = untrained(architecture(preset, (2, 1, 1), "zyx", kernel_radius=1, axial=True)).stages
    stage = stage.double()
    assert stage.network.reach[1] == 0 < stage.network.reach[0] == stage.network.reach[2]
    assert stage.reach[1] == stage.reach[2] == stage.network.reach[2]
    coarse = random_coarse(haloed(stage, 3))
    torch.testing.assert_close(stage(coarse.transpose(3, 4)), stage(coarse).transpose(3, 4), rtol=0, atol=1e-10)
    # A voxel is seen along one lateral axis or the other, never across both.
    changed = coarse.clone()
    changed[..., 0, 0] += 1000
    assert torch.equal(stage(changed)[..., 0, 0], stage(coarse)[..., 0, 0])
    for place in ((slice(None), stage.reach[2] + 1), (stage.reach[1] + 1, slice(None))):
        seen = coarse.clone()
        seen[(..., *place)] += 1000
        assert not torch.equal(stage(seen)[..., 1, 1], stage(coarse)[..., 1, 1])


@pytest.mark.parametrize(("axes", "factor"), [("zyx", (2, 2, 2)), ("yx", (1, 2, 2))])
def test_without_a_residual_a_stage_is_cubic_interpolation(axes, factor):
    stage = silenced(architecture("fast", factor, axes))
    stage.damping = 0.0
    coarse = random_coarse(haloed(stage, 3))
    inner = trim(coarse, tuple(r - 2 * (f == 2) for r, f in zip(stage.reach, factor, strict=True)))
    assert torch.equal(stage(coarse), upsample(inner, factor))


def test_the_more_back_projections_the_better_the_reduction_agrees_with_the_coarse_volume():
    coarse = random_coarse((1, 20, 200))
    first = upsample(coarse, (1, 1, 2))

    def disagreement(fine: torch.Tensor) -> float:
        core = trim(fine, (0, 0, (fine.shape[-1] - 100) // 2))
        reduced = degrade(core, (1, 1, 2))
        return float((reduced - trim(coarse, (0, 0, (200 - reduced.shape[-1]) // 2))).square().mean())

    left = [disagreement(first)]
    for count in (1, 5, 20):
        spec = architecture("paper", (1, 1, 2), "yx").stages[0]
        stage = Stage(replace(spec, back_projections=count, kernel_radius=3 * (count - 1)), "yx").double()
        left.append(disagreement(stage.correct(coarse, first)))
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.1 * left[0]


def test_nothing_is_clamped():
    stage = silenced(architecture("paper", (1, 2, 2), "yx", kernel_radius=5))
    bright = torch.zeros(1, 1, *haloed(stage, 7), dtype=torch.float64)
    bright[0, 0, 0, bright.shape[3] // 2, bright.shape[4] // 2] = 1  # one voxel on a black ground
    fine = stage(bright)
    assert fine.min() < -0.1
    assert fine.max() > 1.1  # a fine peak stands above the coarse maximum


@pytest.mark.parametrize("damping", [0.0, 0.25, 1.0])
def test_damping_is_the_share_of_the_back_projection_that_is_applied(damping):
    (spec,) = architecture("best", (2, 2, 2), "zyx", kernel_radius=2).stages
    stage = Stage(spec, "zyx").double().requires_grad_(requires_grad=False)
    coarse = random_coarse(haloed(stage, 3))
    full = stage(coarse)
    stage.damping = 0.0
    none = stage(coarse)
    stage.damping = damping
    assert not torch.equal(full, none)
    torch.testing.assert_close(stage(coarse), none + damping * (full - none), atol=1e-5, rtol=1e-5)
