from __future__ import annotations

import errno
import gc
import sys
import warnings
from pathlib import Path

import dask
import numpy as np
import ome_zarr_models
import pytest
import torch
import zarr
from distributed import Worker

from svision_dask.errors import ImageError, OutputError, UsageError
from svision_dask.omezarr.read import list_levels, read_provenance
from svision_dask.omezarr.write import open_level
from svision_dask.opening.formats import open_volume, stack_channels
from svision_dask.running import display, patience
from svision_dask.running.cluster import DASHBOARD, local_client
from svision_dask.running.enhancement import enhance
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr, plan_volume
from svision_dask.running.progress import RunProgress
from svision_dask.running.scheduling import TASKS_PER_SEAT
from svision_dask.wishes import Machine, Wishes
from tests.models import fast, tiny
from tests.test_enhancement import random_voxels, volume_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by these packages' own imports
    import ngff_zarr
    import ome_zarr.io
    import ome_zarr.reader

MACHINE = Machine(cores=2, memory_bytes=8 * 2**30)
TILE = {"z": 10, "y": 16, "x": 16}
LAYOUTS = {
    "one shard per region": Wishes(
        tile=TILE, chunk={"z": 10, "y": 16, "x": 16}, shard={"z": 20, "y": 32, "x": 32}, precision="float32"
    ),
    "large shards": Wishes(
        tile=TILE, chunk={"z": 20, "y": 32, "x": 32}, shard={"z": 40, "y": 96, "x": 64}, precision="float32"
    ),
    "no shards": Wishes(tile=TILE, chunk={"z": 20, "y": 32, "x": 32}, version="0.4", precision="float32"),
}


@pytest.fixture(scope="module")
def client():
    with local_client(workers=2, memory_bytes=4 * 2**30) as started:
        yield started


@pytest.fixture(scope="module")
def volume():
    """Primes along every axis, uint16, with a place in the world."""
    from dataclasses import replace

    plain = volume_of(random_voxels((13, 37, 41), "uint16"), "zyx", 11)
    grid = replace(plain.grid, spacing=(2.0, 0.5, 0.5), origin=(10.0, -3.0, 0.25), units=("micrometer",) * 3)
    return replace(plain, grid=grid, name="primes")


def voxels(path: Path, level: int = 0) -> np.ndarray:
    return np.asarray(open_volume(path, level=level).voxels.compute(scheduler="synchronous"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_store_holds_bit_for_bit_what_enhance_gives(client, volume, layout, tmp_path) -> None:
    model = fast((2, 2, 2))
    plan = plan_volume(volume, model.architecture, wishes=LAYOUTS[layout], machine=MACHINE)
    path = tmp_path / "fine.ome.zarr"
    enhance_to_zarr(volume, path, model=model, plan=plan, client=client)
    wanted = enhance(volume, model, tile=TILE).voxels.compute(scheduler="synchronous")
    assert wanted.dtype == np.uint16
    np.testing.assert_array_equal(voxels(path), wanted)


def test_channels_times_and_planes_keep_their_order(client, tmp_path) -> None:
    many = volume_of(random_voxels((2, 3, 21, 33), "uint8"), "tcyx", (1, 2, 9, 10))
    model = tiny((1, 2, 4), "yx", channels=3)
    path = tmp_path / "planes.ome.zarr"
    plan = plan_volume(many, model.architecture, machine=MACHINE)
    enhance_to_zarr(many, path, model=model, plan=plan, client=client)
    tile = dict(zip("tcyx", plan.tile, strict=True))
    lazy = enhance(many, model, tile={"y": tile["y"], "x": tile["x"]}, backend=plan.backend)
    wanted = lazy.voxels.compute(scheduler="synchronous")
    np.testing.assert_array_equal(voxels(path), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside ome_zarr
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_independent_readers_open_the_result(client, volume, version, tmp_path) -> None:
    path = tmp_path / "fine.ome.zarr"
    shard = {"z": 32, "y": 32, "x": 32} if version == "0.5" else None
    wishes = Wishes(chunk={"z": 16, "y": 16, "x": 16}, shard=shard, version=version)
    enhance_to_zarr(volume, path, model=tiny((1, 2, 2)), wishes=wishes, client=client)
    assert ome_zarr_models.open_ome_zarr(path, version=version) is not None
    node = next(iter(ome_zarr.reader.Reader(ome_zarr.io.parse_url(str(path)))()))
    image = ngff_zarr.from_ngff_zarr(str(path)).images[0]
    for seen in (node.data[0], image.data):
        np.testing.assert_array_equal(seen.compute(scheduler="synchronous"), voxels(path))
    assert image.scale == {"z": 2.0, "y": 0.25, "x": 0.25}
    assert image.translation == {"z": 10.0, "y": -3.125, "x": 0.125}


def test_a_landmark_keeps_its_world_coordinates_at_every_level(client, tmp_path) -> None:
    from dataclasses import replace

    voxel_values = np.zeros((12, 150, 420), np.float32)
    voxel_values[5:8, 70:77, 201:206] = 100
    plain = volume_of(voxel_values, "zyx", (12, 50, 140))
    grid = replace(plain.grid, spacing=(3.0, 0.5, 0.4), origin=(7.0, -20.0, 1.5), units=("micrometer",) * 3)
    cubic = fast((1, 2, 4))
    cubic = replace(cubic, stages=tuple(_silenced(stage) for stage in cubic.stages))
    path = tmp_path / "landmark.ome.zarr"
    enhance_to_zarr(replace(plain, grid=grid), path, model=cubic, client=client)
    levels = list_levels(path)
    assert len(levels) >= 3
    wanted = centroid(voxel_values, grid)
    for number, level in enumerate(levels):
        # A mean stands at the middle of its voxels, wherever the light in them was; a lost translation is off by 1/4.
        off = np.abs(centroid(voxels(path, number), level.grid) - wanted) / level.grid.spacing
        assert off.max() < 0.1


def centroid(values: np.ndarray, grid) -> np.ndarray:
    """World coordinates of the centre of mass."""
    values = values.astype(np.float64)
    index = [
        (values.sum(axis=tuple(b for b in range(3) if b != a)) @ np.arange(n)) / values.sum()
        for a, n in enumerate(values.shape)
    ]
    return np.array(grid.world(index))


def _silenced(stage):
    """The stage without its network: cubic interpolation alone, which keeps centres of mass."""
    import copy

    silent = copy.deepcopy(stage)
    for weight in silent.network.parameters():
        weight.zero_()
    return silent


def test_until_the_last_region_is_written_the_store_does_not_look_finished(client, volume, tmp_path) -> None:
    path = tmp_path / "fine.ome.zarr"
    states = []

    def look(progress: RunProgress) -> None:
        states.append(read_provenance(path)["state"])
        assert "ome" not in zarr.open_group(path, mode="r").attrs
        with pytest.raises(ImageError, match="unfinished"):
            open_volume(path)

    enhance_to_zarr(
        volume, path, model=tiny((2, 2, 2)), wishes=LAYOUTS["one shard per region"], client=client, on_progress=look
    )
    assert set(states) == {"incomplete"}
    assert read_provenance(path)["state"] == "complete"


def test_a_region_that_fails_leaves_a_store_that_is_not_published(client, tmp_path) -> None:
    values = random_voxels((13, 37, 41))
    values[12, 36, 40] = np.nan
    path = tmp_path / "fine.ome.zarr"
    wishes = LAYOUTS["one shard per region"]
    with pytest.raises(ImageError, match=r"region \d+ at \(\d+, \d+, \d+\): ImageError: .*NaN or infinite"):
        enhance_to_zarr(volume_of(values, "zyx"), path, model=tiny((2, 2, 2)), wishes=wishes, client=client)
    with pytest.raises(ImageError, match="unfinished"):
        open_volume(path)
    with pytest.raises(OutputError, match="--overwrite"):
        enhance_to_zarr(volume_of(values, "zyx"), path, model=tiny((2, 2, 2)), wishes=wishes, client=client)
    np.nan_to_num(values, copy=False)
    enhance_to_zarr(volume_of(values, "zyx"), path, model=tiny((2, 2, 2)), wishes=wishes, client=client, overwrite=True)
    assert read_provenance(path)["state"] == "complete"


def test_an_output_is_finished_although_its_folder_is_stale_for_a_while(client, volume, tmp_path, monkeypatch) -> None:
    tries = []

    def stale_at_first(*place):
        tries.append(place)
        if len(tries) < 3:
            raise OSError(errno.ESTALE, "Stale file handle", str(tmp_path))
        return open_level(*place)

    monkeypatch.setattr(display, "open_level", stale_at_first)
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01))
    path, wishes = tmp_path / "fine.ome.zarr", LAYOUTS["one shard per region"]
    enhance_to_zarr(volume, path, model=tiny((2, 2, 2)), wishes=wishes, client=client)
    assert len(tries) == 3
    assert read_provenance(path)["state"] == "complete"


def test_the_cluster_never_knows_more_than_a_few_tasks(client, volume, tmp_path) -> None:
    known = []
    enhance_to_zarr(
        volume,
        tmp_path / "fine.ome.zarr",
        model=tiny((2, 2, 2)),
        wishes=Wishes(tile=TILE, chunk={"z": 10, "y": 16, "x": 16}, shard={"z": 10, "y": 16, "x": 16}),
        client=client,
        on_progress=lambda progress: known.append((progress.regions, len(client.futures))),
    )
    regions, at_once = zip(*known, strict=True)
    assert max(regions) == 3 * 5 * 6
    # Two workers of one seat each; dask forgets those that are done a little later, so some more, but never most.
    assert max(at_once) <= 2 * (TASKS_PER_SEAT * 2)


def test_copying_writes_the_same_voxels_with_a_pyramid(client, volume, tmp_path) -> None:
    path = tmp_path / "copy.ome.zarr"
    seen: list[RunProgress] = []
    copy_to_zarr(volume, path, client=client, on_progress=seen.append)
    np.testing.assert_array_equal(voxels(path), volume.voxels.compute(scheduler="synchronous"))
    assert open_volume(path).grid == volume.grid
    finest = [state for state in seen if state.level == 0][-1]
    assert finest.read_bytes == finest.written_bytes == finest.voxels * volume.dtype.itemsize == volume.voxels.nbytes


def test_a_real_volume_of_nuclei_goes_through(client, data_dir, tmp_path) -> None:
    volume = open_volume(data_dir / "lsfm_nuclei_c5" / "c5image.ome.tif")
    path = tmp_path / "nuclei.ome.zarr"
    report = enhance_to_zarr(volume, path, model=fast((2, 2, 2)), client=client)
    fine = open_volume(path)
    assert fine.grid == volume.grid.finer((2, 2, 2))
    assert fine.dtype == np.float32
    model = fast((2, 2, 2))
    tile = dict(zip("zyx", report.plan.tile, strict=True))
    np.testing.assert_array_equal(
        voxels(path),
        enhance(volume, model, tile=tile, backend=report.plan.backend).voxels.compute(scheduler="synchronous"),
    )


def test_an_output_over_any_of_the_inputs_is_refused(client, volume, tmp_path) -> None:
    inputs = [tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr"]
    for path in inputs:
        copy_to_zarr(volume, path, client=client)
    both = stack_channels([open_volume(path) for path in inputs])
    for output in inputs:
        with pytest.raises(OutputError, match="output is the input"):
            copy_to_zarr(both, output, client=client, overwrite=True)
        with pytest.raises(OutputError, match="output is the input"):
            enhance_to_zarr(both, output, model=fast((2, 2, 2)), client=client, overwrite=True)
    np.testing.assert_array_equal(voxels(inputs[0]), volume.voxels.compute(scheduler="synchronous"))


def test_masks_and_floats_with_holes_are_copied_and_shown(client, tmp_path) -> None:
    holes = random_voxels((5, 20, 30)) / 1000
    holes[:, :4] = np.nan
    holes[2, 7, 7] = np.inf
    for name, values in (("holes", holes), ("mask", holes > 0.1)):
        copy_to_zarr(volume_of(values, "zyx"), tmp_path / name, client=client)
        np.testing.assert_array_equal(voxels(tmp_path / name), values)
        window = zarr.open_group(tmp_path / name, mode="r").attrs["ome"]["omero"]["channels"][0]["window"]
        assert window["min"] <= window["start"] < window["end"] <= 1
        assert np.isfinite(list(window.values())).all()


def test_a_plan_for_voxels_of_another_type_is_refused(client, tmp_path) -> None:
    values, model = random_voxels((4, 8, 8)).astype("u2"), fast((2, 2, 2))
    plan = plan_volume(volume_of(values, "zyx"), model.architecture, machine=MACHINE)
    with pytest.raises(UsageError, match="made for another volume or model"):
        enhance_to_zarr(volume_of(values.astype("f4"), "zyx"), tmp_path / "out", model=model, plan=plan, client=client)


def test_a_plan_for_another_volume_is_refused(client, volume, tmp_path) -> None:
    plan = plan_volume(volume_of(random_voxels((13, 37, 41)), "zyx"), fast((2, 2, 2)).architecture, machine=MACHINE)
    with pytest.raises(UsageError, match="made for another volume or model"):
        enhance_to_zarr(volume, tmp_path / "fine.ome.zarr", model=fast((2, 2, 2)), plan=plan, client=client)
    assert not (tmp_path / "fine.ome.zarr").exists()


def test_workers_keep_the_memory_of_tensors_in_huge_pages(client) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("only Linux tells what a process was started with")
    started_with = client.run(lambda: Path("/proc/self/environ").read_bytes())
    wanted = (b"glibc.malloc.hugetlb=1", b"glibc.malloc.arena_max=1")  # the C library may have put zeros between them
    assert all(setting in content for content in started_with.values() for setting in wanted)
    assert not any(b"MALLOC_TRIM_THRESHOLD_" in content for content in started_with.values())


def _watched(dask_worker: Worker) -> tuple[bool, float, bool, int]:
    """Whether dask profiles a worker; milliseconds between ticks; whether regions are imported; objects left alone."""
    callbacks = dask_worker.periodic_callbacks
    there = "svision_dask.running.regions" in sys.modules
    return "profile" in callbacks, callbacks["tick"].callback_time, there, gc.get_freeze_count()


def test_workers_are_watched_seldom_and_begin_with_all_that_they_need() -> None:
    with local_client(workers=1, memory_bytes=2**30) as plain:
        ((profiled, tick, there, frozen),) = plain.run(_watched).values()
    assert (profiled, tick, there) == (False, 500, True)
    assert frozen > 100_000


def test_workers_are_watched_as_usual_where_somebody_looks() -> None:
    usual = {"distributed.worker.profile.enabled": True, "distributed.admin.tick.interval": "20 ms"}
    with dask.config.set({DASHBOARD: True, **usual}), local_client(workers=1, memory_bytes=2**30) as shown:
        ((profiled, tick, *_),) = shown.run(_watched).values()
    assert (profiled, tick) == (True, 20)


def _faults_of_a_tensor(megabytes: int) -> int:
    """Make the same tensor again and again, in the thread of a task; count the pages that the system gives per time."""
    import resource

    def made() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(megabytes * 2**18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return sorted(made() for _ in range(9))[4]


def test_the_memory_of_a_tensor_is_there_for_the_next_one(client) -> None:
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if sys.platform != "linux" or not huge.exists() or "[never]" in huge.read_text(encoding="ascii"):
        pytest.skip("about the C library of Linux, and its huge pages")
    # 524 where dask has all memory given back; a few huge pages where another thread has taken a piece of it.
    assert client.submit(_faults_of_a_tensor, 24).result() < 100
