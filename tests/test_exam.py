from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from svision_dask.network.architecture import architecture
from svision_dask.network.baselines import cubic, cubic_back_projected, reduced
from svision_dask.network.stage import Stage
from svision_dask.simulation.simulate import Phantom
from svision_dask.training.exam import BASELINE, Exam, Verdict, decibels
from svision_dask.training.noise_estimate import SILENT
from svision_dask.training.pairs import make_pairs

BOX = (slice(0, 32), slice(0, 64), slice(0, 64))
FACTOR = (2, 2, 2)


def untrained_stage(residual_scale: float = 0.0) -> Stage:
    (spec,) = architecture("fast", FACTOR, "zyx").stages
    stage = Stage(replace(spec, back_projections=1), "zyx", residual_scale=residual_scale)
    stage.network.start(torch.Generator().manual_seed(0))
    return stage.requires_grad_(requires_grad=False)


def exam_of(stage: Stage, voxels: np.ndarray) -> Exam:
    pairs = make_pairs(
        voxels[None],
        factor=FACTOR,
        margin=Exam.margin_of(stage),
        zooms=[(1.0, 1.0, 1.0)],
        noise=[SILENT],
        offsets=[0.0],
        scales=[1.0],
    )
    return Exam.of(pairs, stage, held_back=False)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return Phantom(shape=(64, 128, 128)).expected(BOX, 2) / 100


def test_the_baselines_are_those_of_the_literal_iteration(voxels):
    stage = untrained_stage()
    exam = exam_of(stage, voxels)
    verdict = exam.verdict(stage)
    whole = reduced(voxels, 2)
    plain, projected = cubic(whole, 2), cubic_back_projected(whole, 2, iterations=BASELINE)
    # The patches are drawn at random from the volume: their means are near those of the whole.
    assert verdict.cubic == pytest.approx(float(np.square(plain - voxels).mean()), rel=0.2)
    assert verdict.back_projected == pytest.approx(float(np.square(projected - voxels).mean()), rel=0.2)
    assert verdict.back_projected < verdict.cubic


def test_cubic_interpolation_is_judged_by_the_same_voxels_as_the_network(voxels):
    stage = untrained_stage(residual_scale=0.0)
    exam = exam_of(stage, voxels)
    assert exam.cubic_loss(stage) == pytest.approx(exam.loss(stage), rel=1e-5)
    assert decibels(4.0, 0.4) == pytest.approx(10)
    assert decibels(0.0, 0.0) == 0


def test_a_stage_without_a_residual_gains_nothing_and_has_not_learned(voxels):
    stage = untrained_stage()
    stage.damping = 0.0
    verdict = exam_of(stage, voxels).verdict(stage)
    assert verdict.stage == pytest.approx(verdict.cubic, rel=1e-5)
    assert verdict.gain < 0


def test_the_damping_found_is_the_best_there_is(voxels):
    stage = untrained_stage()
    exam = exam_of(stage, voxels)
    exam = Exam(  # noise in what is seen alone
        patches=[
            (c + 0.02 * torch.randn(c.shape, generator=torch.Generator().manual_seed(1)), f) for c, f in exam.patches
        ],
        margin=exam.margin,
        factor=exam.factor,
        held_back=False,
    )
    best = exam.damping(stage)
    assert 0 < best < 1

    def error(damping: float) -> float:
        stage.damping = damping
        return exam.verdict(stage).stage

    assert error(best) < min(error(max(0.0, best - 0.1)), error(min(1.0, best + 0.1)))


def test_the_same_pairs_give_the_same_exam(voxels):
    stage = untrained_stage(residual_scale=0.1)
    assert exam_of(stage, voxels).verdict(stage) == exam_of(stage, voxels).verdict(stage)


def test_the_gain_is_in_decibels_over_the_better_baseline():
    verdict = Verdict(stage=0.5, cubic=20.0, back_projected=5.0, held_back=True)
    assert verdict.gain == pytest.approx(10)
    assert Verdict(stage=0.0, cubic=1.0, back_projected=1.0, held_back=True).gain == math.inf
    assert Verdict(stage=0.0, cubic=0.0, back_projected=0.0, held_back=True).gain == 0
