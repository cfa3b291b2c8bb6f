"""The demonstration from beginning to end: its files, its scores, and that the network earns its keep."""

from __future__ import annotations

import json
import runpy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from svision_dask.errors import OutputError, UsageError
from svision_dask.metrics import psnr
from svision_dask.opening.formats import open_volume
from svision_dask.simulation.demo import MEASURED, RESULTS, TRUTH, run_demo
from svision_dask.simulation.simulate import Phantom

SMALL = {"shape": (64, 128, 128), "steps": 200}
TINY = {"shape": (32, 64, 64), "steps": 3}


def voxels_of(path):
    volume = open_volume(path)
    return volume.read(tuple(slice(0, n) for n in volume.grid.shape))


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def demo(tmp_path_factory, reports):
    """The whole demonstration, as `svision-dask demo` runs it."""
    return run_demo(tmp_path_factory.mktemp("demo"), seed=0, on_progress=lambda *report: reports.append(report))


@pytest.fixture
def folder_of(demo):
    return demo.enhanced.parent


def test_enhancing_comes_closer_to_the_truth_than_anything_without_a_network(demo):
    *others, enhanced = demo.scores
    assert [score.name.split(",")[0] for score in others] == ["cubic"] + ["cubic + back projection"] * 2
    assert enhanced.name == "enhanced"
    assert all(enhanced.psnr > score.psnr + 1 for score in others)
    assert all(enhanced.ssim > score.ssim for score in others)
    assert demo.gain == min(enhanced.psnr - score.psnr for score in others)


def test_enhancing_gains_a_decibel_and_more_also_for_another_seed_when_small_and_trained_briefly(tmp_path):
    assert run_demo(tmp_path, seed=1, **SMALL).gain > 1


def test_the_score_is_that_of_the_files_in_the_folder(demo, folder_of):
    recomputed = psnr(voxels_of(demo.enhanced), voxels_of(folder_of / TRUTH), data_range=demo.data_range)
    assert recomputed == demo.scores[-1].psnr


def test_the_enhanced_volume_is_where_the_truth_is_to_the_voxel_size_and_unit(demo, folder_of):
    enhanced, truth, measured = (open_volume(p).grid for p in (demo.enhanced, folder_of / TRUTH, folder_of / MEASURED))
    assert (enhanced.shape, enhanced.units) == (truth.shape, truth.units) == (demo.shape, ("micrometer",) * 3)
    np.testing.assert_allclose(enhanced.spacing, truth.spacing)
    np.testing.assert_allclose(enhanced.spacing, Phantom(shape=demo.shape).spacing)
    np.testing.assert_allclose(np.array(measured.spacing) / enhanced.spacing, 2)


def test_the_measurement_is_the_phantom_s_with_noise(demo, folder_of):
    box = tuple(slice(0, n // 2) for n in demo.shape)
    np.testing.assert_array_equal(voxels_of(folder_of / MEASURED), Phantom(shape=demo.shape, seed=0).measured(box, 2))


def test_the_results_file_holds_what_was_returned(demo, folder_of):
    results = json.loads((folder_of / RESULTS).read_text())
    assert [(s["name"], s["psnr"], s["ssim"]) for s in results["scores"]] == [
        (s.name, s.psnr, s.ssim) for s in demo.scores
    ]
    assert results["finished"] is True
    assert (results["seed"], results["shape"], results["data_range"]) == (0, [96, 256, 256], 200.0)
    assert {"python", "torch", "svision-dask"} <= set(results["versions"])
    assert str(folder_of) not in json.dumps(results)


def test_the_table_has_a_line_for_each_score(demo):
    lines = demo.table().splitlines()
    for score, line in zip(demo.scores, lines[1:-1], strict=True):
        assert line.startswith(score.name)
        assert f"{score.psnr:.2f}" in line


def test_progress_names_every_activity_in_order_and_reaches_its_end(demo, reports):
    activities = list(dict.fromkeys(activity for activity, *_ in reports))
    assert activities == ["simulate", "train", "enhance", "compare"]
    last = {activity: (done, total) for activity, done, total, _ in reports}
    assert all(done == total for done, total in last.values())


def test_the_picture_shows_four_columns_that_all_differ(demo):
    from matplotlib.image import imread

    picture = imread(demo.figure)[..., :3].mean(axis=2)
    columns = np.array_split(picture[:, : picture.shape[1] // 4 * 4], 4, axis=1)
    assert all(column.std() > 0.1 for column in columns)
    assert all(not np.array_equal(a, b) for i, a in enumerate(columns) for b in columns[:i])


def test_a_finished_demonstration_is_not_replaced_unasked(demo, folder_of):
    before = (folder_of / RESULTS).read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        run_demo(folder_of, **TINY)
    assert (folder_of / RESULTS).read_bytes() == before


def test_a_user_s_file_of_the_same_name_is_not_replaced_unasked_and_others_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / TRUTH).write_text("mine")
    with pytest.raises(OutputError, match=TRUTH):
        run_demo(tmp_path, **TINY)
    assert (tmp_path / TRUTH).read_text() == "mine"


def test_an_interrupted_demonstration_starts_again_and_overwrite_replaces_a_finished_one(tmp_path):
    def interrupt(activity, done, total, remark):
        if activity == "compare":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, **TINY, on_progress=interrupt)
    assert json.loads((tmp_path / RESULTS).read_text()) == {"finished": False}
    first = run_demo(tmp_path, **TINY)
    second = run_demo(tmp_path, **TINY, seed=1, overwrite=True)
    assert (first.seed, second.seed) == (0, 1)
    assert json.loads((tmp_path / RESULTS).read_text())["seed"] == 1


def test_the_benchmark_runs_and_finds_the_same_scores_for_the_same_seed(tmp_path, monkeypatch):
    script, output = Path(__file__).parents[1] / "benchmarks" / "demo.py", tmp_path / "demo.json"
    size = ["--shape", *map(str, TINY["shape"]), "--steps", str(TINY["steps"])]
    monkeypatch.syspath_prepend(str(script.parent))  # as for a script
    monkeypatch.setattr("sys.argv", [str(script), "--seeds", "0", "1", *size, "--output", str(output)])
    runpy.run_path(str(script), run_name="__main__")
    found = json.loads(output.read_text())
    first, second = found["runs"]
    assert first["scores"] == [asdict(score) for score in run_demo(tmp_path / "again", **TINY).scores]
    assert found["summary"]["gain_db"]["mean"] == pytest.approx((first["gain_db"] + second["gain_db"]) / 2)
    assert found["summary"]["enhanced"]["psnr"]["lowest"] == min(run["scores"][-1]["psnr"] for run in (first, second))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        run_demo(tmp_path / "file", **TINY)


def test_a_shape_that_the_factor_does_not_divide_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="must divide"):
        run_demo(tmp_path / "new", shape=(33, 64, 64))
    assert not (tmp_path / "new").exists()
