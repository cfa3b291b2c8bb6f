"""What fails from outside: workers, schedulers, disks, networks. The voxels are the undisturbed ones all the same.

Run these alone with ``pytest -m faults``. Those that need root, to mount a disk or to make networks, say so and skip.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from svision_dask.network.model import load_model
from svision_dask.opening.formats import open_volume
from svision_dask.running import image, pipeline
from svision_dask.running.cluster import local_client
from svision_dask.running.ledger import Receipt
from svision_dask.running.pipeline import enhance_to_zarr, plan_volume
from svision_dask.running.regions import EnhanceTask
from svision_dask.running.scheduling import run_regions
from svision_dask.running.verification import verify
from tests.commands import environment, finish, run, start, textured, write_tiff
from tests.hosts import IMPORTED, crew, disk, network
from tests.models import tiny
from tests.test_connection import process, wait_for
from tests.test_resume import CUT, GIVEN, SHAPE, assert_same

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def source(folder) -> Path:
    return write_tiff(folder / "coarse.ome.tif", textured(SHAPE))


@pytest.fixture(scope="module")
def model(folder) -> Path:
    return tiny((2, 2, 2)).save(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def undisturbed(folder, source, model) -> Path:
    output = folder / "undisturbed.zarr"
    with local_client(workers=2, memory_bytes=4 * 2**30) as client:
        enhance_to_zarr(source, output, model=model, wishes=CUT, client=client)
    return output


@dataclass(frozen=True, kw_only=True)
class Dying(EnhanceTask):
    """Kills its worker at two of the regions, once each."""

    moment: str
    marks: Path

    def __call__(self, region) -> Receipt:
        if region.index not in (2, 11) or (self.marks / str(region.index)).exists():
            return super().__call__(region)
        (self.marks / str(region.index)).touch()
        if self.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.moment == "during":
            threading.Timer(random.Random(region.index).uniform(0, 0.1), os.kill, (os.getpid(), signal.SIGKILL)).start()
        super().__call__(region)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_worker_that_is_killed_at_any_moment_changes_nothing(
    moment, source, model, undisturbed, tmp_path, monkeypatch
):
    (marks := tmp_path / "marks").mkdir()
    monkeypatch.setattr(pipeline, "EnhanceTask", partial(Dying, moment=moment, marks=marks))
    with local_client(workers=2, memory_bytes=4 * 2**30) as client:
        enhance_to_zarr(source, tmp_path / "fine.zarr", model=model, wishes=CUT, client=client)
        assert not verify(tmp_path / "fine.zarr", client=client).damaged
    assert len(list(marks.iterdir())) == 2
    assert_same(tmp_path / "fine.zarr", undisturbed)


def shuffled(client, task, regions, **options) -> None:
    """Run regions in another order."""
    mixed = list(regions)
    random.Random(0).shuffle(mixed)
    run_regions(client, task, mixed, **options)


WIDE = replace(CUT, shard={"z": 8, "y": 32, "x": 128})


@pytest.mark.parametrize(("workers", "wishes", "mixed"), [(1, CUT, True), (4, CUT, False), (2, WIDE, False)])
def test_the_number_of_workers_the_order_and_the_regions_change_nothing(
    workers, wishes, mixed, source, model, undisturbed, tmp_path, monkeypatch
):
    if mixed:
        monkeypatch.setattr(image, "run_regions", shuffled)
    with local_client(workers=workers, memory_bytes=4 * 2**30) as client:
        enhance_to_zarr(source, tmp_path / "fine.zarr", model=model, wishes=wishes, client=client)
    assert_same(tmp_path / "fine.zarr", undisturbed)


@dataclass(frozen=True, kw_only=True)
class Noting(EnhanceTask):
    """Notes with how many threads torch has computed."""

    notes: Path

    def __call__(self, region) -> Receipt:
        receipt = super().__call__(region)
        (self.notes / f"{region.index}").write_text(f"{torch.get_num_threads()}")
        return receipt


def test_torch_computes_with_the_threads_that_were_planned(source, model, tmp_path, monkeypatch):
    (notes := tmp_path / "notes").mkdir()
    monkeypatch.setattr(pipeline, "EnhanceTask", partial(Noting, notes=notes))
    volume, design = open_volume(source), load_model(model).architecture
    with local_client(workers=1, memory_bytes=4 * 2**30) as client:
        plan = replace(plan_volume(volume, design, wishes=WIDE, client=client), threads=3)
        enhance_to_zarr(volume, tmp_path / "fine.zarr", model=model, plan=plan, client=client)
    assert {note.read_text() for note in notes.iterdir()} == {"3"}


WRITER = """
import sys
import numpy as np, zarr
array = zarr.open_array(sys.argv[1], mode="r+")
for number in range(10**6):
    array[...] = number % 250 + 1
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_shards_only(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(64, 256, 256), chunks=(32, 64, 64), shards=(64, 256, 256), dtype="u1"
    )
    for moment in np.random.default_rng(0).uniform(0, 0.2, 6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "a.zarr"], stdout=subprocess.PIPE, text=True
        )
        with writer:
            writer.stdout.readline()
            time.sleep(moment)
            writer.kill()
        found = np.unique(array[...])
        assert len(found) == 1
        assert found[0] > 0


def test_a_scheduler_that_is_killed_ends_the_run_in_one_line_and_the_next_goes_on(source, model, undisturbed, tmp_path):
    output, where = tmp_path / "fine.zarr", tmp_path / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", where)
    with ExitStack() as stack:
        scheduler = stack.enter_context(process("distributed.cli.dask_scheduler", *options))
        wait_for(where.exists)
        worker = ("--scheduler-file", where, "--host", "127.0.0.1", "--nthreads", 1, "--no-dashboard")
        stack.enter_context(process("distributed.cli.dask_worker", *worker, "--local-directory", tmp_path / "w"))
        command = start("enhance", source, output, "-m", model, *GIVEN, "--scheduler-file", where)
        receipts = output.with_name(f".{output.name}.svision") / "receipts.jsonl"
        wait_for(partial(has_receipts, receipts, command))
        scheduler.kill()
        ended = finish(command)
    assert ended.exit_code == 3, ended.stderr
    assert "the same command goes on" in ended.error
    assert run("enhance", source, output, "-m", model).exit_code == 0
    assert_same(output, undisturbed)


def has_receipts(receipts: Path, command: subprocess.Popen[str]) -> bool:
    """Whether two regions are made and others are not, by a command that is at work."""
    assert command.poll() is None, finish(command).stderr
    return receipts.exists() and receipts.read_text().count("\n") >= 2


def test_a_full_disk_ends_the_run_and_with_more_room_it_goes_on(source, model, undisturbed, tmp_path):
    with disk(tmp_path / "small", "400k") as change:
        output = tmp_path / "small" / "fine.zarr"
        full = finish(start("enhance", source, output, "-m", model, *GIVEN, env=environment(tmp_path / "temporary")))
        assert full.exit_code == 3, full.stderr
        assert "No space left" in full.error
        assert "multiscales" not in (output / "zarr.json").read_text()
        change("size=100m")
        assert run("enhance", source, output, "-m", model).exit_code == 0
        assert_same(output, undisturbed)


def test_a_disk_that_cannot_be_written_is_refused_before_anything_is_read(source, model, tmp_path):
    with disk(tmp_path / "small", "1m") as change:
        change("ro")
        refused = run("enhance", source, tmp_path / "small" / "fine.zarr", "-m", model)
        assert refused.exit_code == 1
        assert "is not writable" in refused.error


@pytest.mark.parametrize("cut", ["for a while", "for good"])
def test_three_hosts_give_the_same_voxels_also_if_one_is_cut_off(
    cut, source, model, undisturbed, tmp_path, monkeypatch
):
    """The worker's task waits between regions, so that the cut comes in the middle."""
    output = tmp_path / "fine.zarr"
    with network() as link, crew(tmp_path, **IMPORTED) as (where, on):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given = ("enhance", source, output, "-m", model, *GIVEN, "--scheduler-file", where)
        command = on("-m", "svision_dask", *given, **pipes)
        receipts = output.with_name(f".{output.name}.svision") / "receipts.jsonl"
        wait_for(partial(has_receipts, receipts, command))
        link("svd2", "down")
        if cut == "for a while":
            time.sleep(8)
            link("svd2", "up")
        ended = finish(command)
    assert ended.exit_code == 0, ended.stderr
    assert "is not encrypted" in ended.stderr
    assert_same(output, undisturbed)
