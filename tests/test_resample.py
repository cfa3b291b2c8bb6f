from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from svision_dask.degradation import CUBIC, UP_REACH, Degradation, _keys
from svision_dask.network.architecture import StageSpec, architecture
from svision_dask.network.baselines import cubic, cubic_back_projected
from svision_dask.network.resample import correction_kernel, degrade, kernel_radius, upsample
from svision_dask.network.stage import Stage
from svision_dask.simulation.simulate import reduce_cubic
from tests.models import WAYS

FACTORS = [(2, 2, 2), (1, 2, 2), (2, 1, 2), (2, 1, 1), (1, 1, 2)]


def random_tensor(shape: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((1, 1, *shape))).to(dtype)


def torch_resized(voxels: torch.Tensor, factor: tuple[int, ...], *, finer: bool) -> torch.Tensor:
    """Torch's own antialiased bicubic resizing (a = −1/2, as in Pillow), axis by axis; right but for the borders."""
    for axis, f in enumerate(factor, start=2):
        if f == 2:
            rows = voxels.movedim(axis, -1)
            size = (rows[..., 0].numel(), rows.shape[-1] * 2 if finer else rows.shape[-1] // 2)
            resized = F.interpolate(rows.reshape(1, 1, -1, rows.shape[-1]), size=size, mode="bicubic", antialias=True)
            voxels = resized.reshape(*rows.shape[:-1], size[1]).movedim(-1, axis)
    return voxels


def without_border(voxels: torch.Tensor, border: int, factor: tuple[int, ...]) -> torch.Tensor:
    core = (slice(border, n - border) if f == 2 else slice(None) for n, f in zip(voxels.shape[2:], factor, strict=True))
    return voxels[(..., *core)]


def test_the_taps_of_both_operators_are_keys_kernel_and_add_up_to_one():
    # Keys 1981, eq. 15, by hand: 1 at 0, 9/16 at 1/2, 0 at 1, −1/16 at 3/2, 0 at 2.
    assert [_keys(d) for d in (0, 0.5, -1, 1.5, -2, 3)] == [1, 9 / 16, 0, -1 / 16, 0, 0]
    for how in WAYS:
        assert [sum(taps) for taps in (*how.down, *how.up)] == [1] * 5
    assert CUBIC.down[0] == CUBIC.down[0][::-1]


@pytest.mark.parametrize("factor", FACTORS)
def test_degrading_equals_the_plain_reduction_of_the_simulator(factor):
    fine = random_tensor((18, 22, 26), dtype=torch.float64)
    # The simulator starts with the coarse voxel whose first tap is the first voxel; here that is the second one.
    started = fine[0, 0].numpy()[tuple(slice(1, -1) if f == 2 else slice(None) for f in factor)]
    np.testing.assert_allclose(degrade(fine, factor)[0, 0].numpy(), reduce_cubic(started, factor), rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", FACTORS)
def test_both_operators_equal_torchs_antialiased_bicubic_away_from_the_border(factor):
    coarse = random_tensor((12, 14, 16), dtype=torch.float64)
    expected = without_border(torch_resized(coarse, factor, finer=True), 2 * UP_REACH, factor)
    torch.testing.assert_close(upsample(coarse, factor), expected, rtol=0, atol=1e-14)
    expected = without_border(torch_resized(coarse, factor, finer=False), UP_REACH, factor)
    torch.testing.assert_close(degrade(coarse, factor), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("place", range(24))
def test_a_voxel_reaches_exactly_as_far_as_the_taps(axis, place):
    factor = tuple(2 if a == axis else 1 for a in range(3))
    impulse = torch.zeros(1, 1, *(24 if a == axis else 1 for a in range(3)))
    impulse.view(-1)[place] = 1
    reduced = {UP_REACH + i for i in torch.nonzero(degrade(impulse, factor).view(-1)).view(-1).tolist()}
    assert reduced == {i for i in range(2, 10) if 2 * i - 3 <= place <= 2 * i + 4}
    enlarged = {2 * UP_REACH + i for i in torch.nonzero(upsample(impulse, factor).view(-1)).view(-1).tolist()}
    # Fine voxel j has its centre at coarse (j − 1/2)/2; four coarse voxels lie within two of it.
    assert enlarged == {j for j in range(4, 44) if abs((j - 0.5) / 2 - place) < 2}


@given(data=st.data(), factor=st.sampled_from(FACTORS), contiguous=st.booleans())
@settings(deadline=None, max_examples=60)
def test_values_do_not_depend_on_where_in_which_array_they_are_computed(data, factor, contiguous):
    whole = random_tensor((20, 24, 37)) * 1000
    start = [2 * data.draw(st.integers(0, (n - 10) // 2)) for n in whole.shape[2:]]
    stop = [2 * data.draw(st.integers(a // 2 + 5, n // 2)) for a, n in zip(start, whole.shape[2:], strict=True)]
    part = whole[(..., *map(slice, start, stop))]
    part = part.contiguous() if contiguous else part
    for operator, ratio in ((degrade, (1, 2)), (upsample, (2, 1))):
        done = operator(part, factor)
        first = [a * ratio[0] // ratio[1] if f == 2 else a for a, f in zip(start, factor, strict=True)]
        box = (slice(a, a + n) for a, n in zip(first, done.shape[2:], strict=True))
        assert torch.equal(done, operator(whole, factor)[(..., *box)])


def stage_of(factor: tuple[int, ...], back_projections: int, radius: int, how: Degradation = CUBIC) -> Stage:
    spec = StageSpec(
        factor=factor,
        layers=architecture("fast", factor, "zyx").stages[0].layers,
        back_projections=back_projections,
        kernel_radius=radius,
        ensemble=False,
        degradation=how,
    )
    return Stage(spec, "zyx").double()


def formal(back_projections: int) -> int:
    return CUBIC.step * (back_projections - 1)


@pytest.mark.parametrize(
    ("factor", "back_projections", "shape"),
    [
        ((2, 2, 2), 3, (32, 34, 36)),
        ((1, 2, 2), 10, (2, 88, 90)),
        ((2, 1, 2), 5, (48, 3, 50)),
        ((1, 1, 2), 10, (2, 2, 96)),
        ((2, 2, 2), 1, (16, 16, 16)),
    ],
)
def test_back_projections_on_the_coarse_grid_equal_the_iteration_on_the_fine_grid(factor, back_projections, shape):
    coarse = random_tensor(shape, seed=1, dtype=torch.float64)
    first = random_tensor(tuple(n * f for n, f in zip(shape, factor, strict=True)), seed=2, dtype=torch.float64)
    iterated = first
    for _ in range(back_projections):
        error = coarse - torch_resized(iterated, factor, finer=False)
        iterated = iterated + torch_resized(error, factor, finer=True)
    at_once = stage_of(factor, back_projections, formal(back_projections)).correct(coarse, first)
    # Every iteration carries the border's error four coarse voxels further in.
    border = 2 * 4 * back_projections
    lost = 2 * (2 * UP_REACH + formal(back_projections))
    expected = without_border(iterated, border, factor)
    torch.testing.assert_close(without_border(at_once, border - lost, factor), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("factor", "shape"), [((2, 2, 2), (24, 26, 28)), ((1, 2, 2), (3, 40, 42))])
def test_so_they_do_for_every_degradation(how, factor, shape):
    coarse = random_tensor(shape, seed=1)
    stage = stage_of(factor, 3, how.step * 2, how).float()
    first = torch.from_numpy(cubic(coarse[0, 0].numpy(), factor, how))[None, None]
    iterated = torch.from_numpy(cubic_back_projected(coarse[0, 0].numpy(), factor, how, iterations=3))[None, None]
    at_once = stage.correct(coarse, first)
    lost = tuple((n - m) // 2 for n, m in zip(iterated.shape[2:], at_once.shape[2:], strict=True))
    assert min(at_once.shape[2:]) >= 3
    core = iterated[(..., *(slice(m, n - m) for n, m in zip(iterated.shape[2:], lost, strict=True)))]
    torch.testing.assert_close(at_once, core, rtol=0, atol=2e-6)


def test_every_other_point_is_kept_and_returned():
    point = Degradation(kind="point")
    fine = random_tensor((16, 16, 16))
    coarse = degrade(fine, (2, 1, 2), point)
    assert torch.equal(coarse, fine[:, :, ::2, :, ::2])
    again = upsample(coarse, (2, 1, 2), point)
    assert torch.equal(again[:, :, ::2, :, ::2], coarse[:, :, 2:-2, :, 2:-2])


def test_a_straight_line_is_interpolated_where_the_samples_are():
    line = torch.arange(20.0).view(1, 1, 1, 1, 20)
    area, point = (upsample(line, (1, 1, 2), Degradation(kind=k)).view(-1).tolist() for k in ("box", "point"))
    assert area == [2 + (i - 0.5) / 2 for i in range(32)]
    assert point == [2 + i / 2 for i in range(32)]
    assert degrade(line, (1, 1, 2), Degradation(kind="box")).view(-1).tolist() == [2 * i + 0.5 for i in range(10)]


def test_back_projecting_an_ensemble_and_then_its_mean_equals_as_many_back_projections_of_the_mean():
    factor, members = (1, 1, 2), [random_tensor((1, 4, 320), seed=s, dtype=torch.float64) for s in range(8)]
    coarse = random_tensor((1, 4, 160), seed=9, dtype=torch.float64)
    ten, twenty = (stage_of(factor, n, formal(n)) for n in (10, 20))
    mean = torch.stack([ten.correct(coarse, member) for member in members]).mean(dim=0)
    twice = ten.correct(coarse, mean)
    once = twenty.correct(coarse, torch.stack(members).mean(dim=0))
    border = (once.shape[-1] - twice.shape[-1]) // 2
    assert min(once.shape[-1], twice.shape[-1]) > 20
    torch.testing.assert_close(without_border(once, border, factor), twice, rtol=0, atol=2e-7)


@pytest.mark.parametrize("back_projections", [1, 2, 4])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_kernel_reaches_three_voxels_further_with_every_back_projection(factor, back_projections):
    reach = formal(back_projections)
    kernel = correction_kernel(factor, back_projections, 10**6)
    assert kernel.shape == tuple(2 * reach + 1 if f == 2 else 1 for f in factor)
    # At its outermost place along an axis only the last term of the series is left.
    middle = tuple(n // 2 for n in kernel.shape)
    for axis in (a for a, f in enumerate(factor) if f == 2):
        edge = tuple(0 if a == axis else m for a, m in enumerate(middle))
        assert abs(kernel[edge]) > 1e-9
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1, ::-1], atol=1e-15)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("factor", "back_projections"), [((2, 2, 2), 4), ((1, 2, 2), 20), ((2, 1, 1), 20)])
def test_the_kernel_is_cut_at_the_smallest_radius_that_meets_the_tolerance(factor, back_projections, tolerance):
    reach, radius = formal(back_projections), kernel_radius(factor, back_projections, tolerance)
    kernel = np.abs(correction_kernel(factor, back_projections, reach))

    def cut_off(r: int) -> float:
        inside = itertools.product(*(range(n // 2 - min(r, n // 2), n // 2 + min(r, n // 2) + 1) for n in kernel.shape))
        return float(kernel.sum() - sum(kernel[place] for place in inside))

    assert cut_off(radius) <= tolerance
    assert radius == 0 or cut_off(radius - 1) > tolerance


def test_a_tolerance_of_zero_is_the_formal_reach():
    assert kernel_radius((2, 2, 2), 20, 0) == 57
    assert kernel_radius((1, 2, 2), 1, 0) == kernel_radius((1, 2, 2), 0, 0) == kernel_radius((1, 2, 2), 0, 1e-4) == 0


def test_cutting_the_kernel_changes_the_volume_by_less_than_the_tolerance_of_the_largest_residual():
    factor, n, tolerance = (1, 2, 2), 10, 1e-3
    radius = kernel_radius(factor, n, tolerance)
    assert radius < formal(n)
    coarse, first = random_tensor((1, 90, 90), dtype=torch.float64), torch.zeros(1, 1, 1, 180, 180).double()
    whole = stage_of(factor, n, formal(n)).correct(coarse, first)
    cut = stage_of(factor, n, radius).correct(coarse, first)
    border = (cut.shape[-1] - whole.shape[-1]) // 2
    # The residual is the coarse volume here; cubic interpolation overshoots by what its taps' magnitudes add up to.
    overshoot = np.abs(CUBIC.up[0]).sum() ** 2
    assert (without_border(cut, border, factor) - whole).abs().max() <= tolerance * overshoot * coarse.abs().max()


def test_the_weights_fall_off_as_fast_as_the_method_says():
    # Ten back projections: below 1e-3 of the middle at 6, below 1e-6 at 12 coarse voxels.
    kernel = np.abs(correction_kernel((1, 1, 2), 10, 27)).ravel()
    assert kernel[27 + 6 :].max() < 1e-3 * kernel[27]
    assert kernel[27 + 12 :].max() < 1e-6 * kernel[27]
