"""Comparing: block by block as in one piece, planted faults are caught, and what cannot be told is said to be so."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from svision_dask.degradation import Degradation
from svision_dask.errors import ImageError, UsageError
from svision_dask.geometry import Grid
from svision_dask.judging import scan
from svision_dask.judging.comparison import compare
from svision_dask.judging.report import write_report
from svision_dask.metrics import psnr, ssim
from svision_dask.network.baselines import cubic, cubic_back_projected, reduced
from svision_dask.omezarr.write import create_store, open_level, publish
from svision_dask.volume import Volume
from tests.commands import run

SHAPE = (32, 96, 96)
FACTOR = (2, 2, 2)
TILE = {"z": 32, "y": 32, "x": 32}
"""One of them is the whole of z."""


def grid(shape, spacing=(0.8, 0.4, 0.4), origin=(3.0, -7.0, 11.0), axes="zyx", unit="micrometer"):
    return Grid(axes=axes, shape=shape, spacing=spacing, origin=origin, units=(unit,) * len(axes))


def volume(voxels, where, name="volume"):
    return Volume.from_source(voxels, where, chunks=voxels.shape, name=name)


def scene(seed=0, shape=SHAPE, factor=FACTOR):
    """A truth with detail finer than coarse voxels, its reduction with noise, and an estimate better than cubic."""
    rng = np.random.default_rng(seed)
    truth = gaussian_filter(rng.standard_normal(shape), [1.2 if n > 1 else 0 for n in shape])
    truth = (1000 + 100 * truth / truth.std()).astype(np.float32)
    coarse = reduced(truth, factor) + 2 * rng.standard_normal([n // f for n, f in zip(shape, factor, strict=True)])
    coarse = coarse.astype(np.float32)
    interpolated = cubic(coarse, factor)
    enhanced = interpolated + 0.7 * (truth - interpolated)
    return coarse, enhanced, truth


def compared(coarse, fine, truth=None, *, factor=FACTOR, **options):
    where = grid(coarse.shape)
    options = {"tile": TILE, "degrade": "cubic", **options}
    reference = None if truth is None else volume(truth, where.finer(factor))
    return compare(volume(coarse, where), volume(fine, where.finer(factor)), reference=reference, **options)


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut even small volumes into blocks."""
    monkeypatch.setattr(scan, "SIDE", 48)


def test_figures_of_blocks_are_those_of_the_whole(small_blocks):
    coarse, fine, truth = scene()
    found = compared(coarse, fine, truth)
    figures, width = found.figures, found.figures["data_range"]["value"]
    assert len(found.scan.blocks) == 4
    assert width == pytest.approx(np.subtract(*np.percentile(truth, (99.9, 0.1))), rel=1e-6)
    assert figures["psnr"] == pytest.approx(psnr(fine, truth, data_range=width), abs=1e-9)
    assert figures["ssim"] == pytest.approx(ssim(fine, truth, data_range=width), abs=1e-9)
    interpolated, projected = cubic(coarse, FACTOR), cubic_back_projected(coarse, FACTOR)
    assert figures["cubic"]["psnr"] == pytest.approx(psnr(interpolated, truth, data_range=width), abs=1e-4)
    assert figures["cubic"]["ssim"] == pytest.approx(ssim(interpolated, truth, data_range=width), abs=1e-6)
    assert figures["cubic_bp"]["psnr"] == pytest.approx(psnr(projected, truth, data_range=width), abs=1e-2)
    assert figures["cubic_bp"]["ssim"] == pytest.approx(ssim(projected, truth, data_range=width), abs=1e-4)
    error = reduced(fine, FACTOR) - coarse
    assert figures["consistency"]["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-4)
    assert figures["consistency"]["mean"] == pytest.approx(error.mean(), abs=1e-4)
    assert figures["consistency"]["worst"]["error"] == pytest.approx(np.abs(error).max(), rel=1e-4)
    np.testing.assert_allclose(found.scan.errors.map, np.abs(error).max(axis=0), rtol=1e-3, atol=1e-3)
    assert sum(figures["histogram"]["counts"]["after"]) == fine.size
    assert sum(figures["histogram"]["counts"]["before"]) == coarse.size


@pytest.mark.parametrize(
    ("shape", "factor"), [((1, 96, 96), (1, 2, 2)), ((32, 64, 64), (4, 4, 4)), ((16, 64, 64), (1, 4, 2))]
)
def test_planes_and_other_factors_are_measured_alike(small_blocks, shape, factor):
    coarse, fine, truth = scene(shape=shape, factor=factor)
    found = compared(coarse, fine, truth, factor=factor)
    width = found.figures["data_range"]["value"]
    assert found.figures["psnr"] == pytest.approx(psnr(fine, truth, data_range=width), abs=1e-9)
    assert found.figures["ssim"] == pytest.approx(ssim(fine, truth, data_range=width), abs=1e-9)
    cubic_psnr = psnr(cubic(coarse, factor), truth, data_range=width)
    assert found.figures["cubic"]["psnr"] == pytest.approx(cubic_psnr, abs=1e-3)
    error = reduced(fine, factor) - coarse
    assert found.figures["consistency"]["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-4)


def test_only_as_many_blocks_as_asked_for_count_for_psnr_and_the_rest_for_everything_else(small_blocks):
    coarse, fine, truth = scene()
    broken = fine.copy()
    broken[:, 50:90, 50:90] += 100  # in the last block
    some = compared(coarse, broken, truth, most_voxels=1).figures
    assert (some["fidelity"]["blocks"], some["fidelity"]["of"]) == (1, 4)
    assert some["psnr"] > compared(coarse, broken, truth).figures["psnr"] + 5
    assert some["consistency"]["worst"]["error"] > 90


def test_without_a_fault_there_is_no_warning():
    coarse, fine, truth = scene()
    found = compared(coarse, fine, truth)
    assert found.warnings == ()
    assert found.figures["seam"]["p"] > 0.05
    assert max(map(abs, found.figures["shift"]["voxels"].values())) <= 0.1


def test_a_reduction_that_nobody_named_is_warned_of():
    coarse, fine, _ = scene(shape=(16, 64, 64))
    assert any("taken to be cubic" in text for text in compared(coarse, fine, degrade=None).warnings)


def test_a_seam_of_two_percent_in_one_tile_face_is_warned_of_with_its_place(small_blocks):
    coarse, fine, _ = scene()
    fine[:, 32:64, 64:72] += 0.02 * np.ptp(fine) * np.linspace(1, 0, 8)
    found = compared(coarse, fine)
    seam = found.figures["seam"]
    assert seam["p"] < 0.01
    worst = seam["worst"]
    assert (worst["axis"], worst["index"], worst["kind"]) == ("x", 64, "tile")
    assert (worst["start"]["y"], worst["stop"]["y"]) == (32, 64)
    assert worst["world"] == pytest.approx(11.0 - 0.1 + 64 * 0.2)
    assert any(
        "a seam shows" in text and "across x at voxel 64, z 0 to 32, y 32 to 64" in text for text in found.warnings
    )


def test_faces_that_nothing_can_judge_are_said_to_be_left_out():
    coarse, fine, _ = scene(shape=(16, 96, 96))
    found = compared(coarse, fine, tile={"y": 33})
    assert found.absent["seam.faces"].startswith("1 cuts are no multiples of the factor")  # 33, and not 66
    assert "seam.faces" not in compared(coarse, fine, tile={"y": 32}).absent


def test_a_bead_that_was_invented_is_where_consistency_is_worst(small_blocks):
    coarse, fine, _ = scene()
    distance = sum(((i - c) / 1.5) ** 2 for i, c in zip(np.indices(SHAPE), (20, 70, 41), strict=True))
    found = compared(coarse, fine + 300 * np.exp(-distance / 2).astype(np.float32))
    worst = found.figures["consistency"]["worst"]
    assert [abs(worst["index"][axis] - c / 2) <= 1 for axis, c in zip("zyx", (20, 70, 41), strict=True)] == [True] * 3
    assert worst["world"]["y"] == pytest.approx(-7.0 + worst["index"]["y"] * 0.4)
    errors = found.scan.errors.map
    assert np.unravel_index(errors.argmax(), errors.shape) == (worst["index"]["y"], worst["index"]["x"])
    assert errors.max() > 5 * np.median(errors)
    assert all(s.start <= worst["index"][a] < s.stop for s, a in zip(found.worst, "zyx", strict=True))


@pytest.mark.parametrize(("axis", "moved"), [(0, 1), (1, -2), (2, 1)])
def test_a_volume_that_was_moved_is_reported_with_its_shift(axis, moved):
    coarse, fine, _ = scene()
    found = compared(coarse, np.roll(fine, moved, axis=axis))
    shift = found.figures["shift"]
    expected = [moved / 2 if a == axis else 0.0 for a in range(3)]
    assert list(shift["voxels"].values()) == pytest.approx(expected, abs=0.15)
    assert shift["world"]["zyx"[axis]] == pytest.approx(shift["voxels"]["zyx"[axis]] * (0.8, 0.4, 0.4)[axis])
    assert any(f"is shifted against BEFORE by {'+' if moved > 0 else '-'}" in text for text in found.warnings)


def test_a_shift_that_was_not_measured_is_absent_and_not_zero():
    coarse, fine, _ = scene(shape=(8, 96, 96))
    found = compared(coarse, fine)
    assert found.figures["shift"]["voxels"].keys() == found.figures["shift"]["world"].keys() == {"y", "x"}
    assert found.absent["shift.z"] == "fewer than 8 coarse voxels along it"


def test_noise_that_planes_share_makes_no_axial_resolution_of_one_image():
    coarse, _, _ = scene(shape=(64, 128, 128))
    noise = gaussian_filter(np.random.default_rng(1).standard_normal(coarse.shape), (1, 0, 0))
    blurred = (gaussian_filter(coarse, 2) + 20 * noise).astype(np.float32)
    found = compared(blurred, cubic(blurred, FACTOR))
    assert "lateral" in found.figures["one_image_frc"]["before"]
    assert "axial" not in found.figures["one_image_frc"]["before"]
    assert "share their noise" in found.absent["one_image_frc.before.axial"]


def stored(path, voxels, where, attributes):
    one = (1,) * (len(where.axes) - 3)
    create_store(path, [where], dtype="float32", chunks=(*one, 32, 32, 32), shards=(*one, 32, 64, 64), attributes={})
    open_level(path, 0, "r+")[...] = voxels
    names = [f"channel {i}" for i in range(where.shape[0])] if one else []
    publish(path, [where], name="fine", channels=names, attributes=attributes)
    return path


def plan(tile):
    return {
        "tile": dict.fromkeys("zyx", tile),
        "factor": dict(zip("zyx", FACTOR, strict=True)),
        "region": {"z": 32, "y": 64, "x": 64},
    }


def test_a_translation_that_is_shifted_is_refused_with_its_size(tmp_path):
    coarse, fine, _ = scene()
    where = grid(coarse.shape)
    wrong = where.finer(FACTOR)
    wrong = replace(wrong, origin=(wrong.origin[0], wrong.origin[1], wrong.origin[2] + 0.2))
    path = stored(tmp_path / "a.ome.zarr", fine, wrong, {})
    with pytest.raises(ImageError, match=r"begins at x = 11.1 micrometer, which is \+1.00 fine voxels from 10.9"):
        compare(volume(coarse, where), path)
    right = stored(tmp_path / "b.ome.zarr", fine, where.finer(FACTOR), {})
    assert compare(volume(coarse, where), right, degrade="cubic").warnings == ()


def test_points_begin_elsewhere_than_areas_and_their_reduction_is_another(tmp_path):
    coarse, fine, _ = scene()
    where, how = grid(coarse.shape), Degradation(kind="point")
    attributes = {"training": {"degradation": "point"}}
    path = stored(tmp_path / "a.ome.zarr", fine, where.finer(FACTOR, "point"), attributes)
    found = compare(volume(coarse, where), path)
    assert found.figures["degradation"] == "point"
    error = reduced(fine, FACTOR, how) - coarse
    assert found.figures["consistency"]["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-4)
    with pytest.raises(ImageError, match="area sampling"):
        compare(volume(coarse, where), path, degrade="box")


def test_cuts_are_those_of_the_plan_and_without_one_those_of_storage(tmp_path):
    coarse, fine, _ = scene()
    where = grid(coarse.shape)
    planned, unplanned = (
        compare(volume(coarse, where), stored(tmp_path / name, fine, where.finer(FACTOR), attributes)).compared.cuts
        for name, attributes in (("a.ome.zarr", {"plan": plan(8)}), ("b.ome.zarr", {"plan": {"tile": 3}}))
    )
    assert planned.faces(2) == (16, 32, 48, 64, 80)
    assert planned.shards[1] == (0, 64)
    assert unplanned.faces(2) == (32, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine": np.s_[:, :, :95]}, "1, 2 or 4 times as many"),
        ({"fine": np.s_[:16, :48, :48]}, "more along one"),
        ({"truth": np.s_[:, :94]}, "they must be equal"),
    ],
)
def test_volumes_that_do_not_go_together_are_refused(change, message):
    coarse, fine, truth = scene()
    fine, truth = fine[change.get("fine", ())], truth[change.get("truth", ())]
    where = grid(coarse.shape)
    placed = [volume(v, replace(where.finer(FACTOR), shape=v.shape)) for v in (fine, truth)]
    with pytest.raises(ImageError, match=message):
        compare(volume(coarse, where), placed[0], reference=placed[1])


def test_a_spacing_that_does_not_go_with_the_voxels_is_refused():
    coarse, fine, _ = scene()
    where = grid(coarse.shape)
    for wrong in ({"spacing": (0.4, 0.2, 0.21)}, {"units": ("nanometer",) * 3}):
        with pytest.raises(ImageError, match=r"spacing along x is 0.21|is in nanometer"):
            compare(volume(coarse, where), volume(fine, replace(where.finer(FACTOR), **wrong)))


def test_what_cannot_be_measured_is_absent_with_a_reason_and_the_json_is_strict():
    coarse, fine, _ = scene()
    found = compared(coarse, fine, tile=None).to_json()
    for key in ("psnr", "ssim", "cubic.psnr", "cubic.ssim", "cubic_bp.psnr", "cubic_bp.ssim", "frc", "seam", "beads"):
        assert found["absent"][key], key
        assert key.split(".")[0] not in found
    json.dumps(found, allow_nan=False)
    assert "NaN" not in json.dumps(found)


def test_a_volume_that_equals_its_reference_has_no_psnr_in_silence():
    coarse, _, truth = scene()
    found = compared(coarse, truth, truth)
    assert "psnr" not in found.figures
    assert "no error" in found.absent["psnr"]
    assert found.figures["ssim"] == pytest.approx(1)
    assert found.figures["frc"]["lateral"]["at_limit"]
    assert found.figures["frc"]["lateral"]["resolution"] == pytest.approx(0.4)  # two fine voxels
    json.dumps(found.to_json(), allow_nan=False)


def test_a_volume_of_four_planes_has_nothing_inside_its_border():
    coarse, fine, truth = scene(shape=(4, 64, 64))
    found = compared(coarse, fine, truth)
    assert "no voxels inside a border of 2" in found.absent["psnr"]
    assert "fewer than 3 voxels" in found.absent["ssim"]
    assert found.absent["frc.axial"] == "too few voxels along it"
    assert "lateral" in found.figures["frc"]


def test_lines_are_compared_as_far_as_they_go_and_a_single_voxel_is_refused(tmp_path):
    coarse, fine, truth = scene(shape=(2, 2, 64))
    found = compared(coarse, fine, truth, beads=True, tile=None)
    assert "lateral" in found.figures["frc"]
    assert found.absent["one_image_frc.before.lateral"] == "too few voxels along it"
    assert "nan" not in write_report(found, tmp_path / "page.html").read_text().lower().split("<h2>profiles</h2>")[0]
    with pytest.raises(ImageError, match="has one voxel: there is nothing to compare"):
        compared(coarse[..., :1], fine[..., :2])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_figures_do_not_depend_on_the_scale_of_intensities(scale):
    volumes = scene(shape=(16, 64, 64))
    there, elsewhere = (compared(*((v * np.float32(s)) for v in volumes), beads=True) for s in (1, scale))
    assert elsewhere.absent == there.absent
    assert elsewhere.warnings == there.warnings
    for key in ("psnr", "ssim"):
        assert elsewhere.figures[key] == pytest.approx(there.figures[key], rel=1e-4)
    assert elsewhere.figures["shift"] == there.figures["shift"]
    assert elsewhere.figures["places"] == there.figures["places"]


def test_intensities_of_another_scale_are_warned_of():
    coarse, fine, _ = scene(shape=(16, 64, 64))
    (text,) = compared(coarse, fine / 65535).warnings
    assert re.match(r"AFTER, made coarse, is 1\d\d% of the range darker than BEFORE on average: are they on one", text)


def test_the_brightest_voxel_alone_is_not_saturated():
    coarse, fine, _ = scene(shape=(1, 8, 8), factor=(1, 2, 2))
    assert compared(coarse, fine, factor=(1, 2, 2), tile=None).warnings == ()


def test_a_constant_volume_and_one_with_holes_are_refused():
    coarse, fine, _ = scene()
    with pytest.raises(UsageError, match="one intensity only, 7"):
        compared(np.full_like(coarse, 7), fine)
    fine[3, 4, 5] = math.nan
    with pytest.raises(UsageError, match="no finite numbers"):
        compared(coarse, fine)


@pytest.mark.parametrize("name", ["before", "after", "reference"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_hole_is_refused_with_its_place_also_where_no_range_was_taken_from(monkeypatch, name, value):
    monkeypatch.setattr(scan, "SAMPLED_BLOCKS", 1)
    monkeypatch.setattr(scan, "SIDE", 32)
    volumes = dict(zip(("before", "after", "reference"), scene(), strict=True))
    volumes[name][-2, -2, -2] = value
    start = r"\(0, 32, 32\)" if name == "before" else r"\(0, 64, 64\)"
    with np.errstate(all="ignore"), pytest.raises(UsageError, match=f"no finite numbers, in the block .* {start}"):
        compared(*volumes.values())


def test_frc_and_decorrelation_find_the_detail_that_a_low_pass_leaves():
    rng = np.random.default_rng(0)
    shape = (32, 128, 128)
    distance = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    truth, kept = rng.standard_normal(shape), distance < 0.15
    fine = np.fft.ifftn(np.fft.fftn(truth) * kept + np.fft.fftn(rng.standard_normal(shape)) * ~kept * 0.1).real
    found = compared(reduced(truth, FACTOR), fine.astype(np.float32), truth.astype(np.float32)).figures
    assert found["frc"]["lateral"]["resolution"] == pytest.approx(0.2 / 0.15, rel=0.1)
    assert found["decorrelation"]["after"]["lateral"] == pytest.approx(0.2 / 0.15, rel=0.1)
    assert found["frc"]["unit"] == "micrometer"


def test_beads_are_measured_in_world_units_and_lines_go_through_the_brightest():
    truth = np.full((32, 64, 64), 10, np.float32)
    sigmas = (2.0, 1.5, 1.5)
    for centre in ((15.5, 20.5, 20.5), (15.5, 20.5, 44.5), (15.5, 44.5, 32.5)):
        distance = sum(((i - c) / s) ** 2 for i, c, s in zip(np.indices(truth.shape), centre, sigmas, strict=True))
        truth += 100 * np.exp(-distance / 2)
    found = compared(reduced(truth, FACTOR), truth, beads=True).figures
    fwhm = 2 * math.sqrt(2 * math.log(2))
    assert found["beads"]["after"]["count"] == 3
    assert found["beads"]["after"]["z"] == pytest.approx(2.0 * fwhm * 0.4, rel=0.03)
    assert found["beads"]["after"]["x"] == pytest.approx(1.5 * fwhm * 0.2, rel=0.03)
    line = next(line for line in found["profiles"] if line["axis"] == "x")
    values, positions = line["values"]["after"], line["fine_positions"]
    assert max(values) > 90
    bead = 11.0 - 0.1 + np.array([20.5, 32.5, 44.5]) * 0.2
    assert np.abs(positions[int(np.argmax(values))] - bead).min() <= 0.2
    coarse_top = line["coarse_positions"][int(np.argmax(line["values"]["before"]))]
    assert np.abs(coarse_top - bead).min() <= 0.4


@pytest.mark.parametrize(("planes", "axes"), [(1, {"y", "x"}), (16, {"z", "y", "x"})])
def test_beads_of_planes_and_of_thin_volumes_are_measured_too(planes, axes):
    truth, factor = np.full((planes, 64, 64), 10, np.float32), (1 if planes == 1 else 2, 2, 2)
    centre = ((planes - 1) / 2, 32.5, 32.5)
    distance = sum(((i - c) / 1.5) ** 2 for i, c in zip(np.indices(truth.shape), centre, strict=True))
    truth += 100 * np.exp(-distance / 2)
    found = compared(reduced(truth, factor), truth, factor=factor, beads=True, tile=None).figures["beads"]["after"]
    assert found.keys() == {"count", *axes}
    assert found["x"] == pytest.approx(1.5 * 2.3548 * 0.2, rel=0.03)


def test_saturation_and_drift_and_little_gain_are_warned_of(tmp_path):
    coarse, fine, _ = scene()
    where = grid(coarse.shape)
    checked = {"psnr": 30.0, "cubic_psnr": 29.0, "cubic_bp_psnr": 30.5}
    attributes = {"drift": ["contrast 3, in training 1"], "training": {"self_check": checked}}
    path = stored(tmp_path / "a.ome.zarr", fine, where.finer(FACTOR), attributes)
    dim = np.minimum(coarse, np.percentile(coarse, 99))
    text = "\n".join(compare(volume(dim, where), path).warnings)
    assert "1.0% of BEFORE are saturated" in text
    assert "contrast 3, in training 1" in text
    assert "-0.50 dB" in text


def test_a_factor_that_finds_no_finer_detail_is_warned_of():
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.standard_normal((32, 128, 128)), 4)
    truth = (truth / truth.std()).astype(np.float32)
    found = compared(reduced(truth, FACTOR), truth + 0.05 * rng.standard_normal(truth.shape).astype(np.float32), truth)
    assert any("factor may be too high: the finest lateral detail" in text for text in found.warnings)


def test_one_channel_and_time_point_is_compared_and_the_others_are_named():
    coarse, fine, _ = scene()
    axes = {"axes": "tczyx", "spacing": (1.0, 1.0, 0.8, 0.4, 0.4), "origin": (0.0, 0.0, 3.0, -7.0, 11.0)}
    where = grid((2, 3, *coarse.shape), **axes)
    many, fines = np.zeros(where.shape, np.float32), np.zeros((2, 3, *fine.shape), np.float32)
    many[1, 2], fines[1, 2] = coarse, fine
    both = volume(many, where), volume(fines, where.finer((1, 1, *FACTOR)))
    found = compare(*both, channel=2, time=1, tile=TILE)
    alone = compared(coarse, fine)
    assert found.figures["consistency"]["rmse"] == alone.figures["consistency"]["rmse"]
    assert "channel 2 of 3 is compared, no other" in found.warnings
    with pytest.raises(UsageError, match=r"--channel 3: allowed are 0 to 2"):
        compare(*both, channel=3)
    with pytest.raises(UsageError, match=r"--time 2: volume has 2"):
        compare(*both, time=2)
    with pytest.raises(UsageError, match=r"--channel 1: allowed are 0 to 0"):
        compared(coarse, fine, channel=1)


def test_the_command_prints_json_and_words(tmp_path):
    coarse, fine, truth = scene(shape=(16, 64, 64))
    where = grid(coarse.shape)
    paths = [
        stored(tmp_path / f"{number}.ome.zarr", voxels, place, {})
        for number, (voxels, place) in enumerate(
            ((coarse, where), (fine, where.finer(FACTOR)), (truth, where.finer(FACTOR)))
        )
    ]
    outcome = run("compare", paths[0], paths[1], "--reference", paths[2], "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["psnr"] > found["cubic"]["psnr"]
    assert "compare 1/1" in outcome.stderr
    words = run("compare", *paths[:2], "--reference", paths[2]).stdout
    assert f"after        {found['psnr']:.2f} dB, SSIM {found['ssim']:.4f}" in words
    assert "no beads: not asked for; --beads" in words
    assert "micrometer" in words
    wrong = run("compare", paths[1], paths[0])
    assert wrong.exit_code == 1
    assert "Give the volume that it was made from." in wrong.error


def test_axes_are_given_to_what_does_not_say_them_and_not_to_ome_zarr(tmp_path):
    coarse, fine, _ = scene(shape=(16, 64, 64))
    where = grid(coarse.shape)
    tifffile.imwrite(tmp_path / "plain.tif", coarse)
    path = stored(tmp_path / "fine.ome.zarr", fine, where.finer(FACTOR), {})
    outcome = run("compare", tmp_path / "plain.tif", path, "--axes", "zyx", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert run("compare", path, path, "--axes", "zyx").exit_code == 2
