from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from svision_dask.network import layers
from svision_dask.network.architecture import PRESETS, Layer, architecture
from svision_dask.network.layers import Network, _activates, _adds_in_place, interleave


def network_of(preset: str, axes: str, slope: float | None = None) -> Network:
    factor = (2, 2, 2) if axes == "zyx" else (1, 2, 2)
    network = Network(architecture(preset, factor, axes).stages[0].layers, axes, slope)
    network.start(torch.Generator().manual_seed(0))
    return network.requires_grad_(requires_grad=False)


def profiled() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 2)])
def test_every_channel_goes_to_its_own_fine_voxel(factor):
    fz, fy, fx = factor
    count = math.prod(factor)
    phases = torch.arange(2 * count * 3 * 5 * 7.0).reshape(2, count, 3, 5, 7)
    fine = interleave(phases, factor)
    assert fine.shape == (2, 1, 3 * fz, 5 * fy, 7 * fx)
    for phase in range(count):
        a, b, c = phase // (fy * fx), phase // fx % fy, phase % fx
        assert torch.equal(fine[:, 0, a::fz, b::fy, c::fx], phases[:, phase])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("axes", ["zyx", "yx"])
def test_a_network_is_its_steps_whatever_computes_them(preset, axes):
    network = network_of(preset, axes)
    size = tuple(2 * r + (3 if r else 1) for r in network.reach)
    coarse = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(2))
    expected = network.steps.double()(coarse.double() if axes == "zyx" else coarse.double().squeeze(2))
    found = network.float()(coarse)
    torch.testing.assert_close(found, expected.float().reshape(found.shape), rtol=1e-4, atol=1e-5)
    with profiled() as profile:
        network(coarse)
    assert not any("slow_conv" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("axes", ["zyx", "yx"])
@pytest.mark.parametrize("batch", [1, 2])
def test_without_gradients_large_features_share_memory_and_are_the_same(preset, axes, batch, monkeypatch):
    monkeypatch.setattr(layers, "KEPT_BYTES", 0)
    network = network_of(preset, axes, slope=0.1)
    size = tuple(2 * r + (9 if r else 1) for r in network.reach)
    coarse = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(2))
    given, wanted = coarse.clone(), network(coarse)
    with torch.inference_mode(), profiled() as profile:
        found = network(coarse)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(coarse, given)
    used = [event for event in profile.key_averages() if "convolution_pointwise_" in event.key]
    assert bool(used) is _adds_in_place(torch.float32, len(axes))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("axes", ["zyx", "yx"])
def test_without_gradients_features_are_activated_as_they_are_computed_to_the_same_bits(preset, axes):
    network = network_of(preset, axes, slope=0.1)
    size = tuple(2 * r + (9 if r else 1) for r in network.reach)
    coarse = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(2))
    wanted, tried = network(coarse), _activates(torch.float32, len(axes))
    with torch.inference_mode(), profiled() as profile:
        found = network(coarse)
    assert torch.equal(found, wanted)
    by_themselves = [event for event in profile.key_averages() if "leaky_relu" in event.key]
    assert bool(by_themselves) is not tried


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("axes", ["zyx", "yx"])
def test_a_network_uses_up_exactly_its_reach(preset, axes):
    network = network_of(preset, axes).double()
    size = tuple(2 * r + 1 for r in network.reach)
    coarse = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    residual = network(coarse)
    assert residual.shape == (1, 8 if axes == "zyx" else 4, 1, 1, 1)
    for corner in (0, -1):  # the voxels furthest off count; there is none beyond them
        changed = coarse.clone()
        changed[0, 0, corner, corner, corner] += 1000
        assert not torch.equal(network(changed), residual)


def test_a_plane_goes_through_the_network_as_a_slice_of_a_volume_would():
    network = network_of("fast", "yx")
    plane = torch.rand(3, 1, 1, 20, 22, generator=torch.Generator().manual_seed(1))
    voxels = plane
    for step in network.steps:  # the same weights, as kernels of one slice
        if isinstance(step, torch.nn.Conv2d):
            voxels = F.conv3d(voxels, step.weight[:, :, None].contiguous(), step.bias, groups=step.groups)
        else:
            voxels = step(voxels)
    torch.testing.assert_close(network(plane), voxels, rtol=0, atol=1e-6)


def test_grouped_channels_do_not_see_each_other():
    network = Network((Layer(kernel=1, channels=2), Layer(kernel=3, channels=2, groups=2)), "zyx")
    with torch.no_grad():
        network.steps[0].weight[1] = 0  # the second channel sees only its bias
    coarse = torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    first, second = network(coarse)[0]
    assert first.std() > 0
    assert second.std() < 1e-6


def test_a_network_starts_near_zero_and_differs_with_the_seed():
    voxels = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    network = network_of("fast", "zyx")
    residual = network(voxels)
    assert 0 < residual.std() < 0.5 * voxels.std()
    network.start(torch.Generator().manual_seed(0))
    assert torch.equal(network(voxels), residual)
    network.start(torch.Generator().manual_seed(1))
    assert not torch.equal(network(voxels), residual)


def test_the_residual_has_both_signs():
    voxels = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(1))
    residual = network_of("fast", "zyx")(voxels)
    assert residual.min() < 0 < residual.max()
