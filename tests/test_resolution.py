"""Resolution: correlations and cut-offs that theory gives, directions, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from svision_dask.errors import UsageError
from svision_dask.judging.resolution import Shells, fsc, fsc_resolution, period, spectrum, split_spectra


def low_pass(voxels: np.ndarray, cutoff: float) -> np.ndarray:
    """Without any detail finer than ``cutoff`` cycles per voxel."""
    distance = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, voxels.shape), indexing="ij")))
    return np.fft.ifftn(np.fft.fftn(voxels) * (distance < cutoff)).real


@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("shape", [(40, 48, 56), (1, 256, 192), (192, 256)])
def test_the_resolution_is_where_the_shared_detail_ends(shape, cutoff):
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(shape)
    image = low_pass(shared, cutoff) + 0.3 * (unshared := rng.standard_normal(shape)) - low_pass(0.3 * unshared, cutoff)
    assert 1 / fsc_resolution(image, shared) == pytest.approx(
        cutoff, abs=3 / max(shape)
    )  # three shells: the window mixes neighbours


def test_independent_noise_lowers_the_correlation_as_theory_says():
    rng = np.random.default_rng(1)
    signal = rng.standard_normal((32, 64, 64))
    noisy = [signal + sigma * rng.standard_normal(signal.shape) for sigma in (0.5, 1.5)]
    frequencies, correlations = fsc(*noisy)
    expected = 1 / np.sqrt((1 + 0.25) * (1 + 2.25))
    assert frequencies[0] > 0
    assert frequencies[-1] < 0.5
    assert correlations[frequencies > 0.1].mean() == pytest.approx(expected, abs=0.02)


def test_gain_and_offset_do_not_matter_to_the_correlation_and_its_sign_does():
    voxels = np.random.default_rng(2).random((16, 24, 24))
    np.testing.assert_allclose(fsc(3 * voxels + 100, voxels)[1], 1, atol=1e-9)
    np.testing.assert_allclose(fsc(-voxels, voxels)[1], -1, atol=1e-9)
    assert fsc_resolution(voxels, voxels) == 2
    assert fsc_resolution(-voxels, voxels) == np.inf
    assert fsc_resolution(np.zeros_like(voxels), voxels) == np.inf


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 5, 5), (10, 10, 10)])
def test_too_few_voxels_have_no_resolution(shape):
    with pytest.raises(UsageError, match="needs an axis of 8"):
        fsc_resolution(np.zeros(shape), np.zeros(shape))


def blurred_field(shape, cutoff, seed=0):
    """Random structure with all frequencies inside an ellipsoid of radii ``cutoff`` cycles per voxel, and no others."""
    field = np.fft.fftn(np.random.default_rng(seed).standard_normal(shape))
    axes = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    voxels = np.fft.ifftn(field * (sum((f / r) ** 2 for f, r in zip(axes, cutoff, strict=True)) < 1)).real
    return voxels / voxels.std()


def shared_and_not(shape, cutoff, noise):
    shared = blurred_field(shape, cutoff)
    return [shared + noise * np.random.default_rng(seed).standard_normal(shape) for seed in (1, 2)]


def test_each_direction_has_a_resolution_of_its_own_in_units_of_the_spacing():
    pair = [spectrum(v) for v in shared_and_not((48, 96, 96), (0.2, 0.35, 0.35), 0.7)]
    spacing = (2.0, 0.5, 0.5)
    for direction, expected in (("lateral", 0.35 / 0.5), ("axial", 0.2 / 2.0)):
        shells = Shells((48, 96, 96), spacing, direction)
        shells.add(*pair)
        width = shells.edges[1]  # the window mixes neighbours
        assert 1 / period(shells.correlation(), shells.finest) == pytest.approx(expected, abs=2 * width), direction


def test_blocks_that_are_added_up_count_as_one_measurement():
    blocks = [shared_and_not((16, 32, 32), (0.3, 0.3, 0.3), 1.0), shared_and_not((16, 32, 32), (0.3,) * 3, 2.0)]
    together, apart = Shells((16, 32, 32)), [Shells((16, 32, 32)) for _ in blocks]
    for shells, block in zip(apart, blocks, strict=True):
        for sums in (together, shells):
            sums.add(*(spectrum(v) for v in block))
    np.testing.assert_allclose(together.products, sum(s.products for s in apart))
    assert not np.allclose(together.correlation()[1], apart[0].correlation()[1])


@pytest.mark.parametrize("axes", [(1, 2), (0,)])
def test_one_image_correlates_with_itself_as_its_signal_to_noise_ratio_says(axes):
    # Of equal halves with independent noise, the correlation at a frequency is S / (S + N); each axis that is split
    # folds the noise of two frequencies into one, and the structure here has none above a quarter.
    shape, noise = (64, 96, 96), 0.7
    rng = np.random.default_rng(0)
    # Planes are split one by one; along z there is no limit to their structure.
    limited = axes if axes == (1, 2) else (0, 1, 2)
    frequencies = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    distance = np.sqrt(sum(frequencies[axis] ** 2 for axis in limited))
    field = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape)) * (distance < 0.22)).real
    image = field / field.std() + noise * rng.standard_normal(shape)
    signal = distance.size / (distance < 0.22).sum()  # power at each frequency that has any, where the noise has σ²
    ratio = signal / (signal + 2 ** len(axes) * noise**2)
    direction = "axial" if axes == (0,) else "lateral"
    spacing = tuple(2.0 if a in axes else 1.0 for a in range(3))
    halves = split_spectra(image, axes)
    shells = Shells(halves[0][0].shape, spacing, direction)
    for pair in halves:
        shells.add(*pair)
    found, correlations = shells.correlation()
    assert len(halves) == len(axes)
    counted = (found > 0.04) & (found < 0.18)
    assert correlations[counted].mean() == pytest.approx(ratio, abs=0.04)
    assert np.abs(correlations[found > 0.235]).max(initial=0) < 0.15


def test_a_shift_of_one_voxel_between_halves_is_no_loss_of_correlation():
    smooth = low_pass(np.random.default_rng(0).standard_normal((4, 128, 128)), 0.2)
    shells = Shells((4, 64, 64), (1.0, 2.0, 2.0), "lateral")
    for pair in split_spectra(smooth, (1, 2)):
        shells.add(*pair)
    frequencies, correlations = shells.correlation()
    assert correlations[(frequencies > 0.02) & (frequencies < 0.18)].min() > 0.98


@pytest.mark.parametrize("cutoff", [0.15, 0.25, 0.4])
@pytest.mark.parametrize("noise", [0.1, 0.6])
def test_decorrelation_finds_where_structure_ends_and_noise_is_left(cutoff, noise):
    shape = (4, 192, 192)
    field = low_pass(np.random.default_rng(0).standard_normal(shape[1:]), cutoff)
    image = field / field.std() + noise * np.random.default_rng(1).standard_normal(shape[1:])
    shells = Shells(shape[1:])
    shells.add(spectrum(image), spectrum(image))
    assert shells.cut_off() == pytest.approx(cutoff, abs=2 / 192)


@pytest.mark.parametrize(("ratio", "found"), [(2.3, True), (1.7, False)])
def test_decorrelation_needs_twice_the_amplitude_of_the_noise(ratio, found):
    # With amplitude a on n modes and b beyond, Σ|I| / √n falls beyond them if d/dn (a·n₀ + b·(n − n₀)) / √n < 0 at n₀,
    # which is b < a / 2.
    shells = Shells((64, 64))
    distance = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, (64, 64)), indexing="ij")))
    flat = np.where(distance < 0.25, ratio, 1.0).astype(complex)
    shells.add(flat, flat)
    assert (shells.cut_off() is not None) == found


def test_noise_alone_has_no_cut_off():
    noise = spectrum(np.random.default_rng(3).standard_normal((192, 192)))
    shells = Shells((192, 192))
    shells.add(noise, noise)
    assert shells.cut_off() is None


def test_a_direction_without_enough_voxels_is_refused():
    with pytest.raises(UsageError, match=r"resolution \(axial\) needs an axis of 8"):
        Shells((7, 64, 64), direction="axial")


def test_an_outside_implementation_gives_the_same_correlations():
    # two_frc of the package frc 0.1.1 (Rieger et al.), on these two images, faded by the same window beforehand.
    theirs = (1.0, 0.965, 0.985, 0.985, 0.994, 0.993, 0.997, 0.994, 0.985, 0.991, 0.985, 0.985, 0.982, 0.973, 0.963)
    theirs += (0.946, 0.959, 0.96, 0.953, 0.881, 0.832, 0.79, 0.768, 0.774, 0.678, 0.605, 0.437, 0.154, 0.098, 0.021)
    rng, n = np.random.default_rng(0), 128
    distance = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n), indexing="ij"))
    shared = np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, n))) * np.exp(-((distance / 0.12) ** 2))).real
    pair = [shared / shared.std() + 0.5 * rng.standard_normal((n, n)) for _ in range(2)]
    np.testing.assert_allclose(fsc(*pair, border=0)[1][: len(theirs)], theirs, atol=6e-4)


PUBLISHED = [
    ("field", 0.12, 0.1, 0.1224),
    ("field", 0.12, 0.5, 0.1251),
    ("field", 0.2, 0.1, 0.2041),
    ("field", 0.2, 0.5, 0.2143),
    ("field", 0.25, 0.3, 0.2578),
    ("field", 0.3, 0.1, 0.3061),
    ("field", 0.3, 0.5, 0.3061),
    ("field", 0.35, 0.3, 0.3594),
    ("field", 0.4, 0.5, 0.4146),
    ("points", 1.0, 0.0, 0.3938),
    ("points", 1.2, 0.0, 0.3378),
    ("points", 1.5, 0.0, 0.2825),
    ("points", 2.0, 0.0, 0.2143),
    ("points", 2.5, 0.0, 0.1659),
    ("points", 3.0, 0.0, 0.1353),
]
"""Cut-offs, in cycles per voxel, that the authors' own program finds by decorrelation analysis: getDcorr.m of
Ades91/ImDecorr db536a3, run in GNU Octave with its defaults, planes faded out over 20 voxels by its apodImRect.m. It
looks at 50 steps up to half a cycle, and at 50 finer ones in the second search."""


def plane_of(kind, size, noise):
    """A plane of 255 by 255 voxels: noise up to a frequency, or blurred points with photon noise."""
    if kind == "field":
        field = blurred_field((1, 255, 255), (9, size, size), 3)[0]
        field += noise * np.random.default_rng(7).standard_normal(field.shape)
        return field - field.min()
    rng, points = np.random.default_rng(round(10 * size)), np.zeros((255, 255))
    points[tuple(rng.integers(20, 235, (2, 150)))] = rng.uniform(50, 200, 150) * size**2 * 6
    return rng.poisson(gaussian_filter(points, size) + 5).astype(float)


@pytest.mark.parametrize(("kind", "size", "noise", "expected"), PUBLISHED)
def test_decorrelation_agrees_with_the_program_of_its_authors(kind, size, noise, expected):
    transformed = spectrum(plane_of(kind, size, noise)[None])
    shells = Shells((1, 255, 255), (1.0, 1.0, 1.0), "lateral")
    shells.add(transformed, transformed)
    assert shells.cut_off() == pytest.approx(expected, rel=0.075 if kind == "points" else 0.05)


def test_decorrelation_of_blocks_is_that_of_each_where_they_are_alike():
    # A maximum must rise by a share of the norm, which is that of all blocks.
    shells = Shells((64, 64))
    distance = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, (64, 64)), indexing="ij")))
    falls = np.where(distance < 0.25, 2.07, 1.0).astype(complex)  # by a little less than what counts as a maximum
    found = []
    for _ in range(64):
        shells.add(falls, falls)
        found.append(shells.cut_off())
    assert set(found) == {found[0]}
