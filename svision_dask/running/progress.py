"""Where a run stands: counted from the receipts of its regions, and what the scheduler knows of the workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from svision_dask.geometry import Regions
from svision_dask.plan import MAP_ITEMSIZE
from svision_dask.running.cluster import DASHBOARD
from svision_dask.running.ledger import Receipt
from svision_dask.running.preflight import known_workers
from svision_dask.running.scheduling import KEY

if TYPE_CHECKING:
    from distributed import Client

WATCH_SECONDS = 3.0
"""How often to ask a scheduler about its workers, and a second less often for every ``WORKERS_PER_SECOND`` of them."""
WORKERS_PER_SECOND = 50


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run stands, after each region."""

    level: int
    """0 while enhancing, then the pyramid level being made."""
    levels: int
    """Of the pyramid, with the finest."""
    done: int
    """Regions of this level, by this run and those before it."""
    regions: int
    """Of this level, in all."""
    before: int
    """Regions of this level that runs before had made."""
    empty: int
    """Regions that held a single value; this and the following are of this run, on all levels."""
    retried: int
    """Regions that were begun again: after errors that pass, a worker that died, or with smaller tiles."""
    failed: int
    """Regions that could not be made; none is begun after the first."""
    voxels: int
    """Written, and read back."""
    read_bytes: int
    """Of voxels, before compression; without reading back."""
    written_bytes: int
    """Of voxels, before compression; with those of level 0 of trust maps."""
    seconds: float
    """Since this run began."""


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What a worker process of the cluster does."""

    name: str
    """Its address, as host and port."""
    regions: Sequence[int]
    """Numbers of those that the scheduler has given to it: it works on the first, or on as many as it has seats."""
    memory_bytes: int
    """Of the process, when it last said so."""
    done: int
    """Regions that this run has of it."""
    voxels_per_second: float | None
    """While it was at them; None before its first."""


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """What the workers do, as far as the scheduler knows."""

    workers: Sequence[WorkerState] = ()
    """Those that have joined."""
    dashboard: str | None = None
    """Where Dask's dashboard is, if there is one."""

    @property
    def at_work(self) -> int:
        """How many workers have something to do."""
        return sum(bool(worker.regions) for worker in self.workers)

    @property
    def memory_bytes(self) -> int:
        """Of all workers."""
        return sum(worker.memory_bytes for worker in self.workers)


@dataclass
class _Share:
    """What one worker has done."""

    done: int = 0
    voxels: int = 0
    seconds: float = 0.0


@dataclass
class Tally:
    """Counts what is done, and keeps each channel's lowest and highest voxel."""

    cuts: Sequence[Regions]
    """Regions of each level."""
    axes: str
    itemsize: int
    """Bytes of a voxel that is written."""
    on_progress: Callable[[RunProgress], None] | None = None
    limits: dict[int, tuple[float, float]] = field(default_factory=dict)
    counted: dict[str, int] = field(
        default_factory=lambda: {"missing_chunks": 0, "empty_regions": 0, "smaller_tiles": 0}
    )
    shares: dict[str, _Share] = field(default_factory=dict)
    """By address; other threads may look at it."""

    def __post_init__(self) -> None:
        self.done, self.before = [0] * len(self.cuts), [0] * len(self.cuts)
        self.worker_seconds = [0.0] * len(self.cuts)
        self.empty = self.retried = self.failed = self.voxels = self.map_voxels = self.read_bytes = self.level = 0
        self.started, self.began = time.monotonic(), datetime.now(UTC)

    def add(self, receipt: Receipt) -> None:
        """Take a region of a run before this one into account."""
        self._count(receipt)
        self.before[receipt.level] += 1

    def reopen(self, regions: int) -> None:
        """Take back so many regions of level 0 of runs before: they are made again, for something that is missing."""
        self.done[0] -= regions
        self.before[0] -= regions

    def show(self, receipt: Receipt, *, again: bool = False) -> None:
        """Take a region that was made just now into account, and report on it; one made again was counted before."""
        self._count(receipt, again=again)
        self.level = receipt.level
        self.voxels += receipt.voxels
        self.read_bytes += receipt.read_bytes
        self.map_voxels += sum(each.voxels for each in receipt.maps)
        self.empty += receipt.empty
        self.retried += bool(receipt.retries or receipt.halvings)
        share = self.shares.setdefault(receipt.worker, _Share())
        share.done += 1
        share.voxels += receipt.voxels
        share.seconds += receipt.seconds
        self._report()

    def also(self, receipt: Receipt) -> None:
        """Take a region into account that was made along with another, which is the one to report on."""
        self._count(receipt)
        self.voxels += receipt.voxels

    def fail(self, why: str) -> None:
        """Count a region that could not be made, and report on it."""
        self.failed += 1
        self._report()

    def times(self) -> dict[str, Any]:
        """Say how long it took, as JSON values for the output's attributes."""
        return {
            "finished": timestamp(),
            "seconds": round(time.monotonic() - self.started, 3),
            "worker_seconds": {
                "regions": round(self.worker_seconds[0], 3),
                "pyramid": round(sum(self.worker_seconds[1:]), 3),
            },
            "regions_of_runs_before": sum(self.before),
        }

    def _count(self, receipt: Receipt, *, again: bool = False) -> None:
        self.done[receipt.level] += 1
        self.worker_seconds[receipt.level] += receipt.seconds
        if again:
            return
        self.counted["missing_chunks"] += receipt.missing
        self.counted["empty_regions"] += receipt.empty
        self.counted["smaller_tiles"] += receipt.halvings > 0
        channel = receipt.start[self.axes.index("c")] if "c" in self.axes else 0
        low, high = self.limits.get(channel, (receipt.low, receipt.high))
        self.limits[channel] = (min(low, receipt.low), max(high, receipt.high))

    def _report(self) -> None:
        if self.on_progress is None:
            return
        self.on_progress(
            RunProgress(
                level=self.level,
                levels=len(self.cuts),
                done=self.done[self.level],
                regions=len(self.cuts[self.level]),
                before=self.before[self.level],
                empty=self.empty,
                retried=self.retried,
                failed=self.failed,
                voxels=self.voxels,
                read_bytes=self.read_bytes,
                written_bytes=self.voxels * self.itemsize + self.map_voxels * MAP_ITEMSIZE,
                seconds=time.monotonic() - self.started,
            )
        )


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def watched(client: Client, tally: Tally, on_workers: Callable[[ClusterState], None] | None) -> Iterator[None]:
    """Ask the scheduler every few seconds what its workers do, in a thread of its own, and pass it on from there.

    A run does not wait for the answers, and goes on without them.
    """
    if on_workers is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        pause = 0.0
        while not over.wait(pause):
            try:
                state = cluster_state(client, tally)
            except Exception:  # the scheduler is gone, or busy: every region will say so, if it matters
                state = ClusterState()
            if over.is_set():
                return
            on_workers(state)
            pause = WATCH_SECONDS + len(state.workers) / WORKERS_PER_SECOND

    thread = threading.Thread(target=watch, name="svision-dask-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1)  # it may be waiting for a scheduler that does not answer


def cluster_state(client: Client, tally: Tally) -> ClusterState:
    """Ask the scheduler about all workers: two small requests."""
    import dask

    known = known_workers(client)
    tasks = client.processing()
    workers = [
        WorkerState(
            name=address.rpartition("://")[2],
            regions=sorted(_region(key) for key in tasks.get(address, ()) if str(key).startswith(KEY)),
            memory_bytes=int(worker.get("metrics", {}).get("memory", 0)),
            done=share.done,
            voxels_per_second=share.voxels / share.seconds if share.seconds else None,
        )
        for address, worker in known.items()
        for share in [tally.shares.get(address) or _Share()]
    ]
    # A scheduler names an address for it whether it serves one or not; we know of our own only.
    link = client.dashboard_link if dask.config.get(DASHBOARD, False) else None
    return ClusterState(workers=workers, dashboard=link or None)


def _region(key: object) -> int:
    return int(str(key).removeprefix(KEY).partition("-")[0])
