"""The machine at hand, and a Dask cluster on it that nobody else can reach."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from svision_dask.plan import Machine

if TYPE_CHECKING:
    from distributed import Client

SHARE_OF_FREE_MEMORY = 0.8
"""What workers may plan with, of the memory that is free now; the client and the page cache need the rest."""


def this_machine(output: str | Path | None = None) -> Machine:
    """Cores and free memory that this process may use (cgroup limits count), and free disk space at ``output``."""
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    free = min(MEMORY_LIMIT, psutil.virtual_memory().available)
    disk = None
    if output is not None:
        folder = Path(output).absolute()
        while not folder.exists():
            folder = folder.parent
        disk = shutil.disk_usage(folder).free
    return Machine(cores=CPU_COUNT, memory_bytes=int(SHARE_OF_FREE_MEMORY * free), disk_free_bytes=disk)


HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Tensors come and go by the hundred megabytes; with huge pages the kernel hands them out in half the time or less."""


@contextmanager
def local_client(*, workers: int, memory_bytes: int) -> Iterator[Client]:
    """Start worker processes on 127.0.0.1, one task each at a time, and stop them afterwards.

    Parameters
    ----------
    workers
        Number of processes.
    memory_bytes
        What each may use; one that exceeds it is stopped and started anew.
    """
    import dask
    from distributed import Client, LocalCluster

    settings = {
        # Nearly all memory of a region is tensors and arrays that dask does not manage: it can neither spill them nor
        # wait until they go away, so pausing a worker could last for ever. The plan keeps the worker within its limit.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.99,
        # Before the process starts: the C library reads its tunables only then.
        "distributed.nanny.pre-spawn-environ": {**dask.config.get("distributed.nanny.pre-spawn-environ"), **HUGE_PAGES},
    }
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="svision-dask-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set(settings))
        with _deaf_to_signals():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=memory_bytes,
                host="127.0.0.1",  # whoever reaches a scheduler's port can run code
                dashboard_address=None,
                # Any free port for what is served even without a dashboard: 8787 would warn when it is taken.
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                local_directory=folder,
                silence_logs=logging.CRITICAL,  # a region's failure is reported once, by us
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        yield client


@contextmanager
def own_or(client: Client | None, *, workers: int, memory_bytes: int) -> Iterator[Client]:
    """Use the client given, or start a cluster as `local_client` does."""
    if client is not None:
        yield client
    else:
        with local_client(workers=workers, memory_bytes=memory_bytes) as own:
            yield own


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from threads and processes that are started inside; this thread hears of them afterwards.

    A terminal sends Ctrl-C to every process, a batch system SIGTERM. Workers, also those started anew later, would end
    before the client can stop them in order, and a cluster that is interrupted while it starts cannot be closed.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # it unblocks signals in the thread that starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
