"""Seams: nothing is found where there is none, planted ones are found and named, and the cut into blocks is none."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from svision_dask.judging import seams
from svision_dask.judging.seams import AFTER, BEFORE, SeamSums, regular_cuts

SHAPE = (64, 96, 128)
CUTS = regular_cuts(SHAPE, (32, 32, 32), (64, 64, 64))


def structure(seed, sigma=2.0, noise=0.1, shape=SHAPE):
    """Smooth random structure and noise, with a standard deviation near 1."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(shape), sigma)
    return smooth / smooth.std() + noise * rng.standard_normal(shape)


def beads(seed, shape=(96, 96, 96)):
    """A few blurred points: most planes hold next to nothing, and those that do are next to each other."""
    rng = np.random.default_rng(seed)
    points = np.zeros(shape)
    for _ in range(30):
        points[tuple(rng.integers(0, n) for n in shape)] = rng.lognormal()
    blurred = gaussian_filter(points, 1.2)
    return 1000 * blurred / blurred.max()


def rods(seed, shape=(96, 96, 96)):
    """Thin straight lines through the volume, seen against their own blur."""
    rng = np.random.default_rng(seed)
    lines = np.zeros(shape)
    for _ in range(12):
        ends = rng.uniform(0, np.array(shape) - 1, (2, 3))
        along = np.linspace(*ends, 400).astype(int)
        lines[tuple(along.T)] = 1
    thin = gaussian_filter(lines, 1)
    edges = thin - gaussian_filter(thin, 2)
    return 1000 * edges / edges.max()


def scored(voxels, cuts=CUTS, phase=(1, 1, 1), block=(64, 96, 128), least=0.0):
    sums = SeamSums(voxels.shape, cuts, phase)
    padded = np.pad(voxels, [(BEFORE, AFTER)] * 3, mode="symmetric")
    for start in itertools.product(*(range(0, n, b) for n, b in zip(voxels.shape, block, strict=True))):
        box = tuple(
            slice(a, min(a + b, n) + BEFORE + AFTER) for a, b, n in zip(start, block, voxels.shape, strict=True)
        )
        sums.add(padded[box], start)
    return sums.score(least)


def test_without_a_seam_small_p_values_are_as_rare_as_they_say():
    found = [scored(structure(seed)).p for seed in range(20)]
    assert sum(p < 0.05 for p in found) <= 4  # of 20, one is expected
    assert min(found) > 1e-3
    assert max(found) > 0.3


@pytest.mark.parametrize("made", [beads, rods])
def test_in_few_bright_structures_small_p_values_are_as_rare_as_they_say(made):
    # A plane that crosses a structure has neighbours that cross it too; scored by them, it would stand out too little.
    cuts = regular_cuts((96, 96, 96), (32, 32, 32), (32, 32, 32))
    found = [scored(made(seed), cuts, (2, 2, 2), (96, 96, 96), least=0.1).p for seed in range(20)]
    assert sum(p < 0.1 for p in found) <= 4  # of 20, two are expected
    assert min(found) > 1e-3


@pytest.mark.parametrize(("axis", "face", "kind"), [(0, 32, "tile"), (1, 64, "shard"), (2, 96, "tile")])
def test_a_step_of_two_percent_in_one_tile_face_is_found_and_named(axis, face, kind):
    voxels = structure(1)
    start, stop = [32, 32, 64], [64, 64, 96]
    start[axis], stop[axis] = face, face + 8
    reach = np.moveaxis(voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))], axis, -1)
    reach += 0.02 * np.ptp(voxels) * np.linspace(1, 0, 8)  # fades out: there is one face with a step, not two
    score = scored(voxels)
    assert score.p < 0.01
    assert (score.worst.axis, score.worst.index, score.worst.kind) == (axis, face, kind)
    others = [a for a in range(3) if a != axis]
    assert [score.worst.start[a] for a in others] == [start[a] for a in others]
    assert [score.worst.stop[a] for a in others] == [stop[a] for a in others]
    # The slope to either side is taken off, so that the step counts in full less half of the first step of its decay.
    assert score.worst.step == pytest.approx(0.02 * np.ptp(voxels), rel=0.15)


def test_jumps_of_either_sign_are_found_where_they_have_no_mean():
    voxels = structure(2)
    noise = np.random.default_rng(0).choice([-1, 1], (32, 32))
    voxels[32:, 32:64, 64] += 0.02 * np.ptp(voxels) * noise * 2
    score = scored(voxels)
    assert score.p < 0.01
    assert (score.worst.axis, score.worst.index) == (2, 64)


def test_planes_of_another_phase_do_not_count():
    # Every other plane of a volume of doubled voxels is like the one before it; faces are not, and yet no seam.
    doubled = structure(3, shape=(32, 48, 64)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert scored(doubled, phase=(2, 2, 2)).p > 0.05
    assert scored(doubled, phase=(1, 1, 1)).p < scored(doubled, phase=(2, 2, 2)).p


def test_interpolation_that_is_seamless_has_no_seam():
    fine = zoom(structure(4, sigma=1.0, shape=(32, 48, 64)), 2, order=3, mode="grid-mirror", grid_mode=True)
    assert scored(fine, phase=(2, 2, 2)).p > 0.05


@pytest.mark.parametrize("block", [(64, 32, 32), (20, 50, 70), (7, 96, 31)])
@pytest.mark.parametrize("phase", [(1, 1, 1), (2, 2, 2)])
def test_the_score_does_not_depend_on_how_the_volume_is_read(block, phase):
    voxels = structure(5)
    whole, parts = scored(voxels, phase=phase), scored(voxels, phase=phase, block=block)
    assert parts.p == pytest.approx(whole.p, rel=1e-6)
    assert (parts.worst.axis, parts.worst.start) == (whole.worst.axis, whole.worst.start)


def test_patches_span_several_tiles_where_there_are_many_and_seams_are_still_found(monkeypatch):
    monkeypatch.setattr(seams, "MOST_PATCHES", 2)
    voxels = structure(6)
    voxels[:, :, 64:72] += 0.02 * np.ptp(voxels) * np.linspace(1, 0, 8)
    score = scored(voxels)
    assert score.p < 0.01
    assert (score.worst.axis, score.worst.index) == (2, 64)
    assert score.worst.stop[1] - score.worst.start[1] in (64, 32)  # two tiles of three, and the last one


def test_memory_for_a_volume_of_a_trillion_voxels_is_less_than_a_gigabyte():
    shape = (10_000, 10_000, 10_000)
    sums = SeamSums(shape, regular_cuts(shape, (64, 64, 64), (256, 256, 256)), (2, 2, 2)).sums
    assert sum(part.nbytes for part in sums.values()) < 2**30


def test_what_differs_by_rounding_only_has_no_seam():
    flat = np.zeros(SHAPE)
    flat[:, :32, :32] = 1e-6 * np.random.default_rng(0).standard_normal((64, 32, 32))
    flat[:, :32, 32:] += 1e-5
    assert scored(flat, least=1e-4).p == 1
    assert scored(flat).p < 0.01


def test_a_seam_in_a_quiet_corner_is_found_beside_busy_ones():
    voxels = structure(8)
    voxels[:, 32:, 32:] *= 0.02
    voxels[:, 64:, 96:104] += 0.02 * np.ptp(voxels) * np.linspace(1, 0, 8)
    score = scored(voxels)
    assert score.p < 0.01
    assert (score.worst.axis, score.worst.index, score.worst.start[1]) == (2, 96, 64)


def test_shards_are_cut_into_tiles_that_begin_with_them():
    cuts = regular_cuts((7, 100, 50), (7, 32, 64), (7, 48, 64))
    assert cuts.tiles == ((0,), (0, 32, 48, 80, 96), (0,))
    assert cuts.shards == ((0,), (0, 48, 96), (0,))
    assert cuts.faces(1) == (32, 48, 80, 96)


def test_a_volume_that_was_not_cut_has_no_score():
    assert scored(structure(0), regular_cuts(SHAPE, SHAPE, SHAPE)) is None


def test_memory_for_very_many_faces_is_bounded_and_what_is_drawn_by_chance_says_the_same(monkeypatch):
    shape = (96, 640, 640)
    sums, draw = SeamSums(shape, regular_cuts(shape, (96, 16, 16), (96, 64, 64)), (1, 1, 1)), np.random.default_rng(0)
    for axis, part in sums.sums.items():
        part[0] = draw.standard_normal(part.shape[1:])
        part[1] = np.abs(part[0]) + np.abs(draw.standard_normal(part.shape[1:]))
        part *= sums._area(axis)
    found = {}
    for most in (10**7, 5_000):
        monkeypatch.setattr(seams, "MOST_SCORES", most)
        tracemalloc.start()
        found[most] = sums.score()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    whole, drawn = found.values()
    assert whole.planes == whole.of == drawn.of > 50_000  # patches of the planes between two faces, in all
    assert 4_500 < drawn.planes < 5_500
    assert drawn.patches == whole.patches == 2 * 39 * 40
    assert drawn.worst == whole.worst
    assert drawn.p == pytest.approx(whole.p, abs=0.25)
    assert peak < 2**21
