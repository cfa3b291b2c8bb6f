"""What was interrupted goes on where it stopped, and gives the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import zarr

from svision_dask.errors import ImageError, OutputError, RegionError, UsageError
from svision_dask.network.model import load_model
from svision_dask.omezarr.read import list_levels, read_provenance
from svision_dask.opening.formats import open_volume
from svision_dask.running import image, verification
from svision_dask.running.cluster import local_client
from svision_dask.running.enhancement import enhance
from svision_dask.running.pipeline import copy_to_zarr, enhance_to_zarr, plan_volume
from svision_dask.running.progress import RunProgress
from svision_dask.running.regions import EnhanceTask
from svision_dask.running.verification import reopen, verify
from svision_dask.wishes import Wishes
from tests.commands import finish, run, start, textured, write_tiff
from tests.models import tiny
from tests.test_connection import wait_for
from tests.test_enhancement import volume_of

pytestmark = pytest.mark.faults

SHAPE = (8, 24, 160)
CUT = Wishes(chunk={"z": 8, "y": 16, "x": 16}, shard={"z": 8, "y": 16, "x": 64}, tile={"z": 4, "y": 8, "x": 32})
GIVEN = ("--tile", "z=4,y=8,x=32", "--chunks", "z=8,y=16,x=16", "--shards", "z=8,y=16,x=64")
"""``CUT`` for the command line."""
ALONG = replace(CUT, shard={"z": 8, "y": 32, "x": 64})
"""Its regions have all voxels of whole chunks of level 1, which are made along with them."""
REPOSITORY = Path(__file__).parents[1]
REGIONS, COARSER = 2 * 3 * 5, 2 * 2 * 3
"""Of the two levels of the pyramid; z, which is four times as coarse, is not halved."""


@pytest.fixture(scope="module")
def client():
    with local_client(workers=2, memory_bytes=4 * 2**30) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def source(folder) -> Path:
    return write_tiff(folder / "coarse.ome.tif", textured(SHAPE))


@pytest.fixture(scope="module")
def model(folder) -> Path:
    return tiny((2, 2, 2)).save(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def undisturbed(folder, source, model, client) -> Path:
    output = folder / "undisturbed.zarr"
    enhance_to_zarr(source, output, model=model, wishes=CUT, client=client)
    return output


def levels_of(path: Path) -> list[np.ndarray]:
    return [np.asarray(zarr.open_array(path / level.path, mode="r")[:]) for level in list_levels(path)]


def assert_same(path: Path, other: Path) -> None:
    for ours, theirs in zip(levels_of(path), levels_of(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert zarr.open_group(path).attrs["ome"]["omero"] == zarr.open_group(other).attrs["ome"]["omero"]
    assert not path.with_name(f".{path.name}.svision").exists()


def interrupt_after(count: int):
    seen: list[RunProgress] = []

    def look(progress: RunProgress) -> None:
        seen.append(progress)
        if len(seen) == count:
            raise KeyboardInterrupt

    return look


@pytest.mark.parametrize("count", [1, 7, REGIONS - 1, REGIONS, REGIONS + 2])
def test_only_what_is_missing_is_made_wherever_it_stopped(count, source, model, undisturbed, client, tmp_path):
    output, seen = tmp_path / "fine.zarr", []
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(source, output, model=model, wishes=CUT, client=client, on_progress=interrupt_after(count))
    with pytest.raises(ImageError, match="unfinished"):
        open_volume(output)
    # Without the wishes: an output goes on with the tiles and shards that it was begun with.
    enhance_to_zarr(source, output, model=model, client=client, resume=True, on_progress=seen.append)
    assert_same(output, undisturbed)
    assert [p.done for p in seen if p.level == 0] == list(range(count + 1, REGIONS + 1))
    assert [p.done for p in seen if p.level == 1] == list(range(max(1, count - REGIONS + 1), COARSER + 1))
    assert {p.before for p in seen if p.level == 0} <= {count}
    times = read_provenance(output)["times"]
    assert times["begun"] <= times["finished"]
    assert times["regions_of_runs_before"] == count
    assert min(times["seconds"], times["worker_seconds"]["regions"], times["worker_seconds"]["pyramid"]) > 0


@pytest.mark.parametrize("count", [1, 7, 19])
def test_level_1_is_made_along_with_level_0_wherever_it_stopped(count, source, model, undisturbed, client, tmp_path):
    output, seen = tmp_path / "fine.zarr", []
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(source, output, model=model, wishes=ALONG, client=client, on_progress=interrupt_after(count))
    enhance_to_zarr(source, output, model=model, client=client, resume=True, on_progress=seen.append)
    assert_same(output, undisturbed)
    assert [(p.level, p.done) for p in seen] == [(0, done) for done in range(count + 1, 2 * 2 * 5 + 1)]
    assert read_provenance(output)["times"]["regions_of_runs_before"] == 2 * count
    assert verify(output, client=client).regions == 2 * 20


@pytest.mark.parametrize(
    ("region", "shards"), [(None, (8, 16, 32)), ({"z": 8, "y": 64, "x": 128}, (8, 32, 64)), ({"x": 320}, (8, 16, 160))]
)
def test_shards_of_level_1_are_as_large_as_others_or_as_what_a_region_makes(
    region, shards, source, model, undisturbed, client, tmp_path
):
    output, seen = tmp_path / "fine.zarr", []
    wishes = replace(ALONG, region=region)
    enhance_to_zarr(source, output, model=model, wishes=wishes, client=client, on_progress=seen.append)
    assert_same(output, undisturbed)
    assert {p.level for p in seen} == {0}
    assert zarr.open_array(output / "1", mode="r").shards == shards


@pytest.mark.parametrize("lost", ["receipts", "shard"])
def test_a_part_of_level_1_that_was_lost_is_made_of_what_is_stored(lost, source, model, undisturbed, client, tmp_path):
    output, seen = tmp_path / "fine.zarr", []
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(source, output, model=model, wishes=ALONG, client=client, on_progress=interrupt_after(7))
    if lost == "shard":
        next(path for path in (output / "1" / "c").rglob("*") if path.is_file()).unlink()
    else:  # it was killed between the two lines
        kept = tmp_path / ".fine.zarr.svision" / "receipts.jsonl"
        kept.write_text("".join(line for line in kept.read_text().splitlines(True) if '"level": 1' not in line))
    enhance_to_zarr(source, output, model=model, client=client, resume=True, on_progress=seen.append)
    assert_same(output, undisturbed)
    assert len([p for p in seen if p.level == 1]) == (1 if lost == "shard" else 7)


def begun(source: Path, model: Path, output: Path, client) -> None:
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(source, output, model=model, wishes=CUT, client=client, on_progress=interrupt_after(3))
    # A cancelled task runs on in its thread; whoever deletes the folder under it finds half of it there again.
    while any(client.run(lambda dask_worker: len(dask_worker.state.all_running_tasks)).values()):
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wishes": replace(CUT, tile={"z": 4, "y": 8, "x": 16})}, r"its tile was .* and is"),
        ({"wishes": replace(CUT, version="0.4", shard=None)}, "its (tile|region|shard) was"),
        ({"dtype": "float32"}, "its dtype was"),
        ({"model": replace(tiny((2, 2, 2)), provenance={"seed": 1})}, "its model was"),
    ],
)
def test_another_plan_is_refused_and_nothing_is_touched(change, reason, source, model, undisturbed, client, tmp_path):
    output = tmp_path / "fine.zarr"
    begun(source, model, output, client)
    with pytest.raises(OutputError, match=reason):
        enhance_to_zarr(source, output, **{"model": model, "client": client, **change})
    enhance_to_zarr(source, output, model=model, client=client)
    assert_same(output, undisturbed)


@pytest.mark.parametrize("package", ["svision-dask", "torch"])
def test_other_versions_are_refused(package, source, model, client, tmp_path, monkeypatch):
    begun(source, model, tmp_path / "fine.zarr", client)
    installed = image.version
    monkeypatch.setattr(image, "version", lambda name: "0.0.1" if name == package else installed(name))
    with pytest.raises(OutputError, match=rf"its {package} was .* and is \"0\.0\.1\""):
        enhance_to_zarr(source, tmp_path / "fine.zarr", model=model, client=client)


def test_another_input_under_the_same_name_is_refused(model, client, tmp_path):
    source = write_tiff(tmp_path / "coarse.ome.tif", textured(SHAPE))
    begun(source, model, tmp_path / "fine.zarr", client)
    write_tiff(source, textured(SHAPE, seed=1))
    with pytest.raises(OutputError, match=r"its input was .* Use --overwrite to begin anew"):
        enhance_to_zarr(source, tmp_path / "fine.zarr", model=model, client=client)
    enhance_to_zarr(source, tmp_path / "fine.zarr", model=model, wishes=CUT, client=client, overwrite=True)
    assert not (tmp_path / ".fine.zarr.svision").exists()


def test_an_input_in_memory_cannot_be_told_from_another(source, model, client, tmp_path):
    volume = replace(open_volume(source), identity="")
    begun(volume, model, tmp_path / "fine.zarr", client)
    with pytest.raises(OutputError, match=r"cannot be told\. Use --overwrite"):
        enhance_to_zarr(volume, tmp_path / "fine.zarr", model=model, client=client)


def test_a_ledger_that_outlived_its_output_says_nothing(source, model, undisturbed, client, tmp_path):
    output = tmp_path / "fine.zarr"
    begun(source, model, output, client)
    shutil.rmtree(output)
    other = write_tiff(tmp_path / "other.ome.tif", textured((6, 20, 30)))
    outcome = run("enhance", other, output, "--steps", 2, "--workers", 1)
    assert outcome.exit_code == 0, outcome.stderr
    assert "train 2/2" in outcome.stderr
    enhance_to_zarr(source, output, model=model, wishes=CUT, client=client, overwrite=True)
    assert_same(output, undisturbed)


@pytest.mark.parametrize("damage", [Path.unlink, lambda shard: shard.write_bytes(b"")])
def test_a_shard_that_went_missing_is_made_again_whatever_its_receipt_says(
    damage, source, model, undisturbed, client, tmp_path
):
    output = tmp_path / "fine.zarr"
    begun(source, model, output, client)
    damage(shards_of(output)[0])
    enhance_to_zarr(source, output, model=model, client=client)
    assert_same(output, undisturbed)


def test_another_series_of_the_same_file_is_another_input(model, client, tmp_path):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for seed in (0, 1):
            file.write(textured(SHAPE, seed=seed), metadata={"axes": "ZYX"})
    begun(open_volume(path), model, tmp_path / "fine.zarr", client)
    with pytest.raises(OutputError, match="its input was"):
        enhance_to_zarr(open_volume(path, series=1), tmp_path / "fine.zarr", model=model, client=client)


def test_resume_insists_on_something_to_resume(source, model, undisturbed, client, tmp_path):
    for output in (tmp_path / "new.zarr", undisturbed):
        with pytest.raises(OutputError, match="there is nothing to resume"):
            enhance_to_zarr(source, output, model=model, client=client, resume=True)


def test_a_copy_goes_on_too(source, client, tmp_path):
    volume, output = open_volume(source), tmp_path / "copy.zarr"
    wishes = Wishes(chunk={"z": 4, "y": 8, "x": 8}, shard={"z": 4, "y": 8, "x": 8})
    with pytest.raises(KeyboardInterrupt):
        copy_to_zarr(volume, output, wishes=wishes, client=client, on_progress=interrupt_after(5))
    seen: list[RunProgress] = []
    copy_to_zarr(volume, output, client=client, on_progress=seen.append)
    assert [p.done for p in seen if p.level == 0] == list(range(6, 2 * 3 * 20 + 1))
    np.testing.assert_array_equal(levels_of(output)[0], textured(SHAPE))


def has_ended(process: psutil.Process) -> bool:
    """Also of one that nobody asks for its exit status: who should was killed, and not every first process does."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_client_leaves_an_output_that_the_same_command_finishes(source, model, undisturbed, tmp_path):
    command = ("enhance", source, tmp_path / "fine.zarr", "-m", model, *GIVEN, "--workers", 1)
    process = start(*command)
    family = psutil.Process(process.pid)
    receipts = tmp_path / ".fine.zarr.svision" / "receipts.jsonl"
    while not receipts.exists() or len(receipts.read_bytes().splitlines()) < 5:
        assert process.poll() is None, finish(process).stderr
        time.sleep(0.02)
    workers = family.children(recursive=True)
    process.kill()
    finish(process)
    wait_for(lambda: all(has_ended(worker) for worker in workers))  # when they miss the scheduler
    again = run(*command)
    assert again.exit_code == 0, again.stderr
    assert_same(tmp_path / "fine.zarr", undisturbed)


KILLED = """
import os, signal, sys
from distributed import Client
from svision_dask.running import image
from svision_dask.running.pipeline import enhance_to_zarr
from tests.test_resume import ALONG, CUT

def killing(function, when=lambda *arguments: True):
    def call(*arguments, **named):
        function(*arguments, **named)
        if when(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
    return call

source, output, model, stage = sys.argv[1:]
if stage == "created":
    image.create_store = killing(image.create_store)
elif stage == "pyramid":
    image._Making.add = killing(image._Making.add, when=lambda making, receipt: receipt.level == 1)
elif stage == "along":
    image._Making._kept = killing(image._Making._kept, when=lambda making, receipt: receipt.coarser is not None)
else:
    image.publish = killing(image.publish)
with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
    enhance_to_zarr(source, output, model=model, wishes=ALONG if stage == "along" else CUT, client=client)
"""


@pytest.mark.parametrize("stage", ["created", "along", "pyramid", "published"])
def test_a_client_that_is_killed_at_any_stage_leaves_nothing_behind(
    stage, source, model, undisturbed, client, tmp_path
):
    output = tmp_path / "fine.zarr"
    ended = subprocess.run([sys.executable, "-c", KILLED, source, output, model, stage], check=False, cwd=REPOSITORY)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / ".fine.zarr.svision" / "record.json").exists()
    if stage == "published":
        with pytest.raises(OutputError, match="a finished output"):
            enhance_to_zarr(source, output, model=model, client=client)
    else:
        enhance_to_zarr(source, output, model=model, client=client, resume=True)
    assert_same(output, undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["fine.zarr"]


def test_the_command_without_a_model_does_not_train_again(source, tmp_path):
    output, options = tmp_path / "fine.zarr", ("--steps", 3, *GIVEN, "--workers", 1)
    process = start("enhance", source, output, *options)
    receipts = tmp_path / ".fine.zarr.svision" / "receipts.jsonl"
    while not receipts.exists() or len(receipts.read_bytes().splitlines()) < 5:
        assert process.poll() is None, finish(process).stderr
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    assert finish(process).exit_code == 143
    (kept,) = tmp_path.glob("*.safetensors")
    other = run("enhance", source, output, *options, "--seed", 1)
    assert other.exit_code == 1
    assert "its seed was 0 and is 1" in other.error
    again = run("enhance", source, output, *options, "--resume")
    assert again.exit_code == 0, again.stderr
    assert f"resume   with {kept}" in again.stderr
    assert "train" not in again.stderr
    assert list(tmp_path.glob("*.safetensors")) == [kept]
    assert read_provenance(output)["state"] == "complete"


def shards_of(output: Path) -> list[Path]:
    return sorted(path for path in (output / "0" / "c").rglob("*") if path.is_file())


def flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


def cut_in_half(shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(("number", "damage"), [(3, Path.unlink), (5, flip_a_bit), (0, empty), (4, cut_in_half)])
def test_damage_is_found_also_in_a_copy_and_only_that_is_made_anew(
    number, damage, source, model, undisturbed, client, tmp_path
):
    output, seen = tmp_path / "copied.zarr", []
    shutil.copytree(undisturbed, output)
    assert run("verify", output).stdout == f"{REGIONS + COARSER} regions, all as they were written\n"
    damage(shards_of(output)[number])
    found = run("verify", output, "--reopen")
    assert found.exit_code == 1
    assert len(found.stdout.splitlines()) == 1
    assert found.stdout.startswith("level 0, region at (")
    assert f"1 of {REGIONS + COARSER} regions are damaged; run the command that made it again" in found.error
    with pytest.raises(ImageError, match="unfinished"):
        open_volume(output)
    enhance_to_zarr(source, output, model=model, client=client, on_progress=seen.append)
    assert [(p.level, p.done) for p in seen] == [(0, REGIONS)]
    assert_same(output, undisturbed)
    assert run("verify", output).exit_code == 0


def test_a_shard_of_another_place_is_not_taken_for_intact(undisturbed, client, tmp_path):
    output = tmp_path / "copied.zarr"
    shutil.copytree(undisturbed, output)
    one, other = shards_of(output)[1:3]
    shutil.copy(one, other)
    found = verify(output, client=client)
    assert [line.partition(": ")[2] for line in found.damaged] == ["holds other voxels than were written"]


def test_what_could_not_be_made_again_is_not_taken_back(source, model, client, tmp_path, monkeypatch):
    output = tmp_path / "fine.zarr"
    enhance_to_zarr(replace(open_volume(source), identity=""), output, model=model, wishes=CUT, client=client)
    with pytest.raises(OutputError, match="made of a volume in memory"):
        reopen(output, verify(output, client=client))
    enhance_to_zarr(source, output, model=model, wishes=CUT, client=client, overwrite=True)
    monkeypatch.setattr(verification, "version", lambda package: "99")
    with pytest.raises(OutputError, match=r"made with svision-dask .*, and this is 99"):
        reopen(output, verify(output, client=client))
    assert read_provenance(output)["state"] == "complete"


def test_a_task_of_a_run_that_is_over_leaves_the_next_ones_store_alone(source, model, undisturbed, client, tmp_path):
    output = tmp_path / "fine.zarr"
    begun(source, model, output, client)
    old = str(read_provenance(output)["run"])
    volume, trained = open_volume(source), load_model(model)
    plan = plan_volume(volume, trained.architecture, wishes=CUT)
    late = EnhanceTask(
        volume=volume, model_path=str(model), model_digest=trained.digest, output=str(output), plan=plan, run=old
    )
    late(plan.regions.at(3))  # still allowed: an interrupted run is gone on with under the same name
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(
            source, output, model=model, wishes=CUT, client=client, overwrite=True, on_progress=interrupt_after(2)
        )
    assert read_provenance(output)["run"] != old
    for finished in (False, True):
        if finished:
            enhance_to_zarr(source, output, model=model, client=client)
            assert_same(output, undisturbed)
        with pytest.raises(RegionError, match="the run that began this region is over"):
            late(plan.regions.at(3))


@pytest.mark.parametrize("limit", [float("nan"), float("inf")])
def test_a_limit_that_is_no_number_is_refused_before_any_work(limit, source, model, client, tmp_path):
    with pytest.raises(UsageError, match="empty_below"):
        enhance_to_zarr(source, tmp_path / "fine.zarr", model=model, empty_below=limit, client=client)
    assert list(tmp_path.iterdir()) == []


def test_only_finished_outputs_of_ours_can_be_verified(undisturbed, client, tmp_path):
    foreign = tmp_path / "foreign.zarr"
    shutil.copytree(undisturbed, foreign)
    group = zarr.open_group(foreign, mode="r+")
    del group.attrs["svision_dask"]
    with pytest.raises(OutputError, match="not made by svision-dask"):
        verify(foreign, client=client)
    shutil.copytree(undisturbed, tmp_path / "bare.zarr")
    shutil.rmtree(tmp_path / "bare.zarr" / "svision_dask")
    with pytest.raises(OutputError, match="no checksums of level 0"):
        verify(tmp_path / "bare.zarr", client=client)


def test_empty_regions_are_recorded_and_what_counts_as_empty_is_part_of_the_record(model, client, tmp_path):
    values = textured(SHAPE)  # around 500
    values[:, :, 40:] = 7
    source, plain = write_tiff(tmp_path / "coarse.ome.tif", values), tmp_path / "plain.zarr"
    enhance_to_zarr(source, plain, model=model, wishes=CUT, client=client)
    assert 0 < read_provenance(plain)["empty_regions"] < REGIONS
    output = tmp_path / "fine.zarr"
    with pytest.raises(KeyboardInterrupt):
        enhance_to_zarr(
            source, output, model=model, wishes=CUT, empty_below=50, client=client, on_progress=interrupt_after(3)
        )
    with pytest.raises(OutputError, match="its empty_below was 50 and is null"):
        enhance_to_zarr(source, output, model=model, client=client)
    enhance_to_zarr(source, output, model=model, empty_below=50, client=client)
    assert read_provenance(output)["empty_regions"] == read_provenance(plain)["empty_regions"]
    fine, whole = levels_of(output)[0], levels_of(plain)[0]
    last = slice(4 * 64, None)  # regions whose halo sees nothing but sevens
    zeros = np.zeros(SHAPE, "uint16")
    wanted = enhance(volume_of(zeros, "zyx"), load_model(model)).voxels.compute(scheduler="synchronous")
    np.testing.assert_array_equal(fine[..., last], wanted[..., last])
    np.testing.assert_array_equal(fine[..., :64], whole[..., :64])


def test_a_missing_chunk_is_an_error_that_names_it_or_empty_and_counted(model, client, tmp_path):
    values = textured(SHAPE)
    coarse, output = tmp_path / "coarse.zarr", tmp_path / "fine.zarr"
    copy_to_zarr(
        open_volume(write_tiff(tmp_path / "coarse.ome.tif", values)),
        coarse,
        wishes=Wishes(chunk={"z": 4, "y": 8, "x": 8}, shard={"z": 4, "y": 8, "x": 8}),
        client=client,
    )
    (coarse / "0" / "c" / "1" / "2" / "3").unlink()
    with pytest.raises(ImageError, match=r"chunk c/1/2/3 is missing\. .* use --missing empty"):
        copy_to_zarr(open_volume(coarse), output, client=client)
    with pytest.raises(OutputError, match="its input was"):
        copy_to_zarr(open_volume(coarse, missing="empty"), output, client=client)
    copy_to_zarr(open_volume(coarse, missing="empty"), output, client=client, overwrite=True)
    values[4:, 16:, 24:32] = 0
    np.testing.assert_array_equal(levels_of(output)[0], values)
    assert read_provenance(output)["missing_chunks"] == 1
    enhanced = tmp_path / "enhanced.zarr"
    enhance_to_zarr(open_volume(coarse, missing="empty"), enhanced, model=model, client=client)
    assert read_provenance(enhanced)["missing_chunks"] >= 1
