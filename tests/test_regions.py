"""Regions whose worker dies, or whose storage fails for a while or for good."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from dask.utils import key_split
from distributed import Client

from svision_dask.errors import RegionError
from svision_dask.geometry import Region, Regions
from svision_dask.running import patience
from svision_dask.running import scheduling as module
from svision_dask.running.cluster import local_client
from svision_dask.running.ledger import Receipt
from svision_dask.running.preflight import versions_here
from svision_dask.running.scheduling import run_regions

pytestmark = pytest.mark.faults

REGIONS = Regions(shape=(12,), unit=(1,))
BAD = 4


@pytest.fixture(scope="module")
def client():
    with local_client(workers=2, memory_bytes=2 * 2**30) as started:
        yield started


@dataclass(frozen=True)
class Faulty:
    """Fails at one region, the first ``times`` times; a file counts them, whichever process it happens in."""

    counter: Path
    times: int
    error: int | None = None
    """Number of the error to raise; by default, the process kills itself."""
    voxels: bytes = b""
    """Of a volume in memory."""

    def __call__(self, region: Region) -> Receipt:
        if region.index == BAD:
            with self.counter.open("a") as tries:
                tries.write("x")
            if len(self.counter.read_text()) <= self.times:
                if self.error is not None:
                    raise OSError(self.error, os.strerror(self.error))
                os.kill(os.getpid(), signal.SIGKILL)
        return Receipt(level=0, index=region.index, start=region.start, low=0, high=0, voxels=1, crc32=0)


@dataclass(frozen=True)
class Deadly:
    """Kills the process at two regions, always."""

    def __call__(self, region: Region) -> Receipt:
        if region.index in (3, 7):
            os.kill(os.getpid(), signal.SIGKILL)
        return Receipt(level=0, index=region.index, start=region.start, low=0, high=0, voxels=1, crc32=0)


def test_regions_are_made_where_a_scheduler_does_not_say_how_many_workers_it_has(client, tmp_path, monkeypatch):
    def silent(*_: object) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(client, "nthreads", silent)
    receipts: list[Receipt] = []
    run_regions(client, Faulty(tmp_path / "tries", times=0), REGIONS, on_receipt=receipts.append)
    assert sorted(each.index for each in receipts) == list(range(12))


def made(client, task: Faulty) -> list[int]:
    """Which regions were made; of those, ``BAD`` alone was begun again, if not more workers died than dask allows."""
    receipts: list[Receipt] = []
    run_regions(client, task, REGIONS, on_receipt=receipts.append)
    assert all(receipt.worker.startswith("tcp://") for receipt in receipts)
    again = {receipt.index for receipt in receipts if receipt.retries}
    assert again <= {BAD} or task.times > 3, again  # dask then suspects what waited at the same workers
    return sorted(receipt.index for receipt in receipts)


def names_known() -> int:
    """Names of tasks that dask remembers in this process."""
    return key_split.cache_info().currsize


def test_dask_remembers_next_to_nothing_of_regions_that_were_made(client, tmp_path):
    many = Regions(shape=(60,), unit=(1,))
    task = Faulty(tmp_path / "tries", times=0)
    run_regions(client, task, many, on_receipt=lambda receipt: None)
    assert names_known() < 20
    assert max(client.run(names_known).values()) < 20
    scheduler = client.cluster.scheduler
    to_clients = [comm.recent_message_log for comm in scheduler.client_comms.values()]
    to_workers = [comm.recent_message_log for comm in scheduler.stream_comms.values()]
    figures = scheduler.monitor.quantities.values()
    assert max(map(len, (scheduler.transition_log, *to_clients, *to_workers))) <= 10
    assert max(figure.maxlen for figure in figures) <= 10


@pytest.mark.parametrize("times", [1, 5])
def test_a_worker_that_dies_is_replaced_and_its_region_made_again(times, client, tmp_path):
    assert made(client, Faulty(tmp_path / "tries", times)) == list(range(12))


def test_a_volume_in_memory_is_sent_again_if_the_only_worker_that_had_it_dies(tmp_path):
    with local_client(workers=1, memory_bytes=2 * 2**30) as client:
        task = Faulty(tmp_path / "tries", times=1, voxels=bytes(2 * module.HEAVY_BYTES))
        indices: list[int] = []
        run_regions(client, task, REGIONS, on_receipt=lambda receipt: indices.append(receipt.index))
    assert sorted(indices) == list(range(12))
    assert task.counter.read_text() == "xx"


def test_a_region_that_kills_every_worker_is_named_and_all_others_are_made(client, tmp_path):
    indices: list[int] = []
    task = Faulty(tmp_path / "tries", times=1000)
    with pytest.raises(RegionError, match=r"region 4 at \(4,\): every worker that tried it died"):
        run_regions(client, task, REGIONS, on_receipt=lambda receipt: indices.append(receipt.index))
    assert sorted(indices) == [i for i in range(12) if i != BAD]


def test_an_error_names_ten_regions_and_has_all():
    failures = [f"region {i} at ({i},): it died" for i in range(12)]
    error = module._error(failures, module.GOES_ON)
    assert str(error).startswith("region 0 at (0,): it died. Failed, too: region 1 at (1,), region 2 at (2,), ")
    assert "region 9 at (9,), and 2 more. Nothing was published" in str(error)
    assert "region 10" not in str(error)
    assert list(error.failures) == failures
    assert list(pickle.loads(pickle.dumps(error)).failures) == failures


def test_several_regions_that_kill_every_worker_are_all_named(client):
    heard: list[str] = []
    with pytest.raises(RegionError, match=r"died; was it the memory\? Failed, too: region [37] at ") as raised:
        run_regions(client, Deadly(), REGIONS, on_receipt=lambda receipt: None, on_failure=heard.append)
    assert list(raised.value.failures) == heard
    assert sorted(why.partition(" at")[0] for why in heard) == ["region 3", "region 7"]


def test_an_error_that_passes_is_waited_for(client, tmp_path):
    task = Faulty(tmp_path / "tries", times=2, error=errno.EIO)
    assert made(client, task) == list(range(12))
    assert task.counter.read_text() == "xxx"
    task = Faulty(tmp_path / "again", times=1, error=errno.EIO)
    retries: list[int] = []
    run_regions(client, task, [REGIONS.at(BAD)], on_receipt=lambda receipt: retries.append(receipt.retries))
    assert retries == [1]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_error_that_stays_ends_the_run_at_once(error, client, tmp_path):
    task = Faulty(tmp_path / "tries", times=1000, error=error)
    failures: list[str] = []
    everything = Regions(shape=(10**6,), unit=(1,))
    with pytest.raises(RegionError, match=r"region 4 at \(4,\): .*the same command goes on"):
        run_regions(client, task, everything, on_receipt=lambda receipt: None, on_failure=failures.append)
    assert [failure.partition(" at ")[0] for failure in failures] == [f"region {BAD}"]
    assert task.counter.read_text() in ("x", "xx")  # where a worker that had made none met it, the other tries it, too


def test_the_place_of_an_error_and_its_cause_are_told_also_after_all_tries(client, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.01,))
    region = REGIONS.at(BAD)
    task = Faulty(tmp_path / "tries", times=1000, error=errno.ESTALE)
    assert module._run_one(task, region).startswith("region 4 at (4,): OSError: [Errno 116]")
    assert task.counter.read_text() == "xx"


def test_nothing_is_kept_of_regions_that_are_done(client, tmp_path):
    task, kept = Faulty(tmp_path / "tries", times=0), []
    for _ in range(4):
        run_regions(client, task, Regions(shape=(500,), unit=(1,)), on_receipt=lambda receipt: None)
        gc.collect()
        kept.append(sys.getallocatedblocks())
    grown = [after - before for before, after in pairwise(kept)]
    # Less than one block of Python's memory for each: what is kept grows every time, what comes and goes does not.
    assert min(grown) < 500, grown


@dataclass(frozen=True)
class Counted:
    """Notes in a folder how many of its kind are at work."""

    folder: Path

    def __call__(self, region: Region) -> Receipt:
        own = self.folder / f"{region.index}"
        own.touch()
        time.sleep(0.1)
        (self.folder / f"most{region.index}").write_text(str(len(list(self.folder.glob("[0-9]*")))))
        own.unlink()
        return Receipt(level=0, index=region.index, start=region.start, low=0, high=0, voxels=1, crc32=0)


@pytest.mark.parametrize("seats", [1, 3])
def test_a_process_takes_no_more_regions_at_once_than_planned_whatever_its_threads(seats, tmp_path):
    with Client(n_workers=1, threads_per_worker=8, processes=False, dashboard_address="127.0.0.1:0") as client:
        run_regions(client, Counted(tmp_path), REGIONS, on_receipt=lambda receipt: None, seats=seats)
    assert max(int(note.read_text()) for note in tmp_path.glob("most*")) == seats


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from svision_dask.running.cluster import local_client\nlocal_client(workers=1, memory_bytes=2**30).__enter__()"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith(
        'A script must do its work below `if __name__ == "__main__":`, because every worker process imports it first.'
    )


def test_a_worker_that_came_later_with_other_versions_takes_no_region(tmp_path):
    other = {**versions_here(), "zarr": "3.0.0"}
    refusal = module._run_one(Counted(tmp_path), REGIONS.at(0), versions=other)
    assert "has versions" in refusal
    assert not list(tmp_path.iterdir())
