from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile
from scipy.io import savemat
from scipy.ndimage import gaussian_filter1d

from svision_dask.degradation import Degradation
from svision_dask.errors import UsageError
from svision_dask.geometry import Grid
from svision_dask.training.psf import FWHM_OF_SIGMA, degradation_of, find_psf, gaussian_psf, measured_psf

GRID = Grid(axes="zyx", shape=(8, 8, 8), spacing=(2.0, 0.5, 0.5), origin=(0.0,) * 3, units=("micrometer",) * 3)
SIGMAS = (1.5, 1.0, 0.8)


def gaussian_kernel(sigmas=SIGMAS, shape=(21, 17, 19), centre=(10, 8, 9)) -> np.ndarray:
    distances = np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    return np.exp(-0.5 * sum((d / s) ** 2 for d, s in zip(distances, sigmas, strict=True)))


def test_a_width_is_in_the_units_of_the_spacing():
    for given, wanted in ((3.0, (1.5, 6, 6)), ((4, 1, 1.5), (2, 2, 3)), ({"z": 4, "y": 1, "x": 1}, (2, 2, 2))):
        assert find_psf(given, GRID).fwhm == pytest.approx(wanted, rel=0.01)
    assert find_psf(None, GRID) is None
    assert find_psf("auto", GRID) is None


def test_planes_have_no_width_along_z():
    grid = Grid(axes="cyx", shape=(2, 8, 8), spacing=(1.0, 0.5, 0.5), origin=(0.0,) * 3, units=(None,) * 3)
    assert find_psf(1.0, grid).fwhm[1:] == pytest.approx((2, 2), rel=0.01)
    kernel = gaussian_kernel((1e-3, 1, 1), (1, 17, 17), (0, 8, 8))
    assert find_psf(kernel[0], grid).fwhm[1:] == pytest.approx((FWHM_OF_SIGMA,) * 2, rel=0.05)


@pytest.mark.parametrize("centre", [(10, 8, 9), (9.3, 8.4, 8.8)])
@pytest.mark.parametrize("background", [0.0, 0.1])
def test_the_widths_of_a_measured_kernel_are_found_wherever_its_middle_is(centre, background):
    psf = measured_psf(1000 * gaussian_kernel(centre=centre) + 1000 * background)
    assert psf.fwhm == pytest.approx([FWHM_OF_SIGMA * s for s in SIGMAS], rel=0.1)
    assert psf.left_out < 0.02


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".mat"])
def test_a_kernel_is_read_from_a_file(tmp_path, suffix):
    path, kernel = tmp_path / f"psf{suffix}", gaussian_kernel()
    if suffix == ".tif":
        tifffile.imwrite(path, kernel.astype(np.float32))
    elif suffix == ".npy":
        np.save(path, kernel)
    else:
        savemat(path, {"psf": np.moveaxis(kernel, 0, 2)})  # rows, columns, planes
    assert find_psf(str(path), GRID).fwhm == pytest.approx(measured_psf(kernel).fwhm, rel=1e-4)


def test_what_a_real_kernel_loses_as_a_product_is_measured(data_dir):
    # Of a widefield microscope: light spreads in cones, which no product of profiles has.
    psf = find_psf(data_dir / "beads_measured/bead_dlab_25pct_kernel.tif", GRID)
    assert psf.left_out > 0.8
    with pytest.raises(UsageError, match=r"9\d% of the kernel is lost"):
        degradation_of("psf", psf)


@pytest.mark.parametrize("fwhm", [(4, 3, 2), (3.5, 1, 0.3), (0, 2, 2)])
def test_the_reduction_blurs_like_the_psf(fwhm):
    how = gaussian_psf(fwhm).degradation()
    assert how == Degradation.from_json({"kind": how.kind, "psf": [list(taps) for taps in how.psf]})
    for taps, width in zip(how.down, fwhm, strict=True):
        if width < 1:
            assert taps == (0.5, 0.5)
            continue
        # The same Gaussian by scipy on a line 64 times finer, read at the fine voxels, two to a coarse one.
        impulse = np.zeros(2049)
        impulse[1024] = 1
        blurred = gaussian_filter1d(impulse, 64 * 2 * width / FWHM_OF_SIGMA, truncate=6)
        wanted = blurred[[1024 + 64 * k + 32 for k in range(-len(taps) // 2, len(taps) // 2)]]
        np.testing.assert_allclose(taps, wanted / wanted.sum(), atol=2e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "psf z=0: a width must be above 0"),
        (-1.0, "a width must be above 0"),
        ((1, 2), "give one number, or 3"),
        ({"z": 1}, "psf: no value for axis y,x"),
        ({"t": 1}, "no axis t"),
        (np.zeros((3, 3, 3)), "a kernel without a peak"),
        (np.full((3, 3, 3), np.nan), "finite numbers are needed"),
        (np.ones((3, 3)), r"a kernel of \(3, 3\) voxels; 3 axes"),
        (np.ones((3, 3, 3), complex), "finite numbers are needed"),
        (np.array([["a"]]), "finite numbers are needed"),
        (1e308, r"at most 64\. Give it in the units of the spacing"),
        ({"z": 200, "y": 1, "x": 1}, r"psf z=200: 100 voxels of 2; allowed are at most 64"),
        ("missing.tif", "neither a width nor a file"),
        (["2", "2", "2"], "psf: .2. is no number"),
    ],
)
def test_what_is_no_psf_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        find_psf(given, GRID)


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".mat"])
@pytest.mark.parametrize("content", [b"", b"not a kernel" * 50])
def test_files_without_a_kernel_are_refused_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"psf{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(path))) as caught:
        find_psf(path, GRID)
    assert "Give a .tif, .npy or .mat" in str(caught.value)


def test_no_pickle_is_read(tmp_path):
    np.save(tmp_path / "psf.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="allow_pickle=False"):
        find_psf(tmp_path / "psf.npy", GRID)


def test_a_matlab_file_of_several_arrays_is_refused(tmp_path):
    savemat(tmp_path / "psf.mat", {"a": np.ones((3, 3, 3)), "b": np.ones((3, 3, 3))})
    with pytest.raises(UsageError, match="2 arrays; a kernel file has one"):
        find_psf(tmp_path / "psf.mat", GRID)


def test_a_psf_too_wide_to_be_undone_is_refused():
    degradation_of("psf", gaussian_psf((3.5, 3.5, 3.5)))
    with pytest.raises(UsageError, match=r"\d+% of it along y lies beyond 4 coarse voxels"):
        degradation_of("psf", gaussian_psf((1, 6, 1)))


def test_a_kernel_that_was_cut_out_closely_keeps_its_width():
    whole = gaussian_kernel((2.0, 2.0, 2.0), (13, 13, 13), (6, 6, 6))
    psf = measured_psf(whole + 5)
    assert psf.fwhm == pytest.approx([2 * FWHM_OF_SIGMA] * 3, rel=0.05)


@pytest.mark.parametrize("kind", ["cubic", "box", "point"])
def test_kinds_without_a_psf_need_none(kind):
    assert degradation_of(kind, None) == degradation_of(kind, gaussian_psf((2, 2, 2))) == Degradation(kind=kind)


def test_an_unknown_psf_cannot_be_undone():
    with pytest.raises(UsageError, match="which one"):
        degradation_of("psf", None)
    with pytest.raises(UsageError, match="allowed are cubic, box, point, psf"):
        degradation_of("sinc", None)


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "sinc", "psf": []},
        {"kind": "cubic", "psf": [[0.5, 0.5]] * 3},
        {"kind": "psf", "psf": []},
        {"kind": "psf", "psf": [[0.5, 0.5]] * 2},
        {"kind": "psf", "psf": [[0.6, 0.4]] * 3},
        {"kind": "psf", "psf": [[0.5, 0.6]] * 3},
        {"kind": "psf", "psf": [[1.0]] * 3},
        {"kind": "psf", "psf": [[1 / 18] * 18] * 3},
        {"kind": "psf", "psf": [["0.5", "0.5"]] * 3},
        {"kind": "psf", "psf": [[float("nan")] * 2] * 3},
    ],
)
def test_a_model_file_cannot_have_another_degradation(value):
    with pytest.raises(ValueError, match="degradation"):
        Degradation.from_json(value)
