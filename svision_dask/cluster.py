"""The machine at hand, and a Dask cluster on it that nobody else can reach."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    }
    with TemporaryDirectory(prefix="svision-dask-", ignore_cleanup_errors=True) as folder, dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory_bytes,
            host="127.0.0.1",  # whoever reaches a scheduler's port can run code
            dashboard_address=None,
            local_directory=folder,
            silence_logs=40,  # logging.ERROR: a region's failure is reported once, by us
        )
        with cluster, Client(cluster) as client:
            yield client
