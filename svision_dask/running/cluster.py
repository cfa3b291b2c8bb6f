"""The machine at hand, and a Dask cluster on it that cannot be reached from the network."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from svision_dask.backend import Device, best_precision, check_emulated, gpu_memory, process_bytes, share_of_gpu
from svision_dask.errors import ClusterError, one_line
from svision_dask.stores.locations import Location, located
from svision_dask.wishes import Machine, Wishes

if TYPE_CHECKING:
    from distributed import Client

DASHBOARD = "svision-dask.dashboard"
"""Setting of dask's configuration: whether our own clusters serve Dask's dashboard, on this machine only."""
SHARE_OF_FREE_MEMORY = 0.8
"""What workers may plan with, of the memory that is free now; the client and the page cache need the rest."""


def this_machine(output: str | Location | None = None, *, gpus: bool = False) -> Machine:
    """Cores, free memory (cgroup limits count) and, if asked for, GPUs of this process, and free disk at ``output``."""
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    free = min(MEMORY_LIMIT, psutil.virtual_memory().available)
    disk = None
    folder = located(output).absolute() if output is not None else None
    if isinstance(folder, Path):
        while not folder.exists():
            folder = folder.parent
        disk = shutil.disk_usage(folder).free
    return Machine(
        cores=CPU_COUNT,
        memory_bytes=int(SHARE_OF_FREE_MEMORY * free),
        disk_free_bytes=disk,
        gpus=gpu_memory() if gpus else (),
    )


def wishes_here(wishes: Wishes, machine: Machine) -> Wishes:
    """Wish for a process on each GPU of this machine, if there are any and the processor is not asked for.

    Raises
    ------
    ClusterError
        If a GPU is asked for, and there is none.
    UsageError
        If bfloat16 is asked for, and would be emulated.
    """
    if wishes.device == "cuda" and not machine.gpus:
        raise ClusterError(
            "device cuda: torch finds no GPU here. Use --device cpu, with --overwrite if the output was begun on a GPU."
        )
    device: Device = "cpu" if wishes.device == "cpu" or not machine.gpus else "cuda"
    best = best_precision(device)
    wishes = replace(wishes, precision=wishes.precision or best, process_bytes=process_bytes())
    if device == "cpu":
        check_emulated(wishes.precision, best, "this processor has")
        return wishes
    processes = min(wishes.workers or len(machine.gpus), len(machine.gpus))
    return replace(wishes, device=device, workers=processes, gpu_bytes=share_of_gpu(machine.gpus))


MEMORY_KEPT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"}
"""Tensors come and go by tens of megabytes. The C library gets their memory in huge pages, which takes half the time or
less, and keeps it for the next one in one place, whichever of the threads wants it."""

DASKS_OWN = "MALLOC_TRIM_THRESHOLD_"
"""By this dask has its workers give all memory back at once: a fifth of the time of a region was the system's."""

SELDOM_WATCHED = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500 ms"}
"""For its dashboard, dask looks a hundred times a second at what each worker does, and fifty times whether every
process still answers: together a twelfth of the time of a run."""

EXPORTED = {
    **MEMORY_KEPT,
    "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": f"{{{DASKS_OWN!r}: None}}",
    **{f"DASK_{name.upper().replace('.', '__')}": str(value) for name, value in SELDOM_WATCHED.items()},
}
"""The same for the shell that starts ``dask worker``."""

SHORT_LOGS = {"distributed.admin.low-level-log-length": 10, "distributed.admin.system-monitor.log-length": 10}
"""Dask keeps the last 1000 messages, with the tasks in them, transitions and events, and an hour of figures, for its
developers: some 10 MB of the process that has the scheduler, which fill as regions are made."""

_GUARD = 'A script must do its work below `if __name__ == "__main__":`, because every worker process imports it first.'


def forget_names() -> None:
    """Empty dask's cache of the last 10⁵ names of tasks: 0.2 kB for each region, and every name comes once."""
    from dask.utils import key_split

    key_split.cache_clear()


@contextmanager
def local_client(*, workers: int, memory_bytes: int, seats: int = 1, gpus: Sequence[str] = ()) -> Iterator[Client]:
    """Start worker processes on 127.0.0.1, and stop them afterwards.

    Parameters
    ----------
    workers
        Number of processes.
    memory_bytes
        What each may use; one that exceeds it is stopped and started anew.
    seats
        Regions that each may work on at once.
    gpus
        One for each process, as CUDA counts them; none where the processor computes.

    Raises
    ------
    ClusterError
        If they cannot be started.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster, scheduler, worker

    settings = {
        # Nearly all memory of a region is tensors and arrays that dask does not manage: it can neither spill them nor
        # wait until they go away, so pausing a worker could last for ever. The plan keeps the worker within its limit.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.99,
        # Workers that die are started anew; if none comes back, tasks would wait for ever.
        "distributed.scheduler.no-workers-timeout": "5 minutes",
        **SHORT_LOGS,
        **({} if dask.config.get(DASHBOARD, False) else SELDOM_WATCHED),
        # Before the process starts: the C library reads its tunables only then.
        "distributed.nanny.pre-spawn-environ": {
            **dask.config.get("distributed.nanny.pre-spawn-environ"),
            **MEMORY_KEPT,
            DASKS_OWN: None,
        },
    }
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="svision-dask-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set(settings))
        of_scheduler = {
            "extensions": _extensions(scheduler.DEFAULT_EXTENSIONS),
            "host": "127.0.0.1",  # whoever reaches a scheduler's port can run code
            "dashboard": dask.config.get(DASHBOARD, False),
            # Any free port for what is served even without a dashboard: 8787 would warn when it is taken.
            "dashboard_address": "127.0.0.1:0",
        }
        of_worker = {
            "extensions": _extensions(worker.DEFAULT_EXTENSIONS),
            "host": "127.0.0.1",
            "nthreads": seats,
            "memory_limit": memory_bytes,
            "dashboard": False,
            "local_directory": folder,
            "silence_logs": logging.CRITICAL,  # a region's failure is reported once, by us
            "preload": [*dask.config.get("distributed.worker.preload"), "svision_dask.running.starting"],
        }
        own = [{"env": {"CUDA_VISIBLE_DEVICES": _visible(gpu)}} for gpu in gpus] or [{}] * workers
        with _deaf_to_signals():
            try:
                cluster = SpecCluster(
                    scheduler={"cls": Scheduler, "options": of_scheduler},
                    workers={i: {"cls": Nanny, "options": {**of_worker, **own[i]}} for i in range(workers)},
                    silence_logs=logging.CRITICAL,
                )
            except RuntimeError as error:
                raise ClusterError(f"no worker process could be started: {one_line(error)} {_GUARD}") from error
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        if dask.config.get(DASHBOARD, False):
            sys.stderr.write(f"dashboard {client.dashboard_link}\n")
        yield client


def _extensions(usual: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what keeps 0.4 kB of every task for as long as the scheduler lives, and only the dashboard shows."""
    import dask

    shown = dask.config.get(DASHBOARD, False)
    return {name: extension for name, extension in usual.items() if shown or name != "spans"}


def _visible(gpu: str) -> str:
    """Name a GPU for a process of its own; where only some are visible here, numbers count among those."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[int(gpu)] if visible else gpu


@contextmanager
def own_or(
    client: Client | None, *, workers: int, memory_bytes: int, seats: int = 1, on_gpus: bool = False
) -> Iterator[Client]:
    """Use the client given, or start a cluster as `local_client` does, with a GPU for each process or none."""
    if client is not None:
        yield client
    else:
        gpus = [str(number) for number in range(workers)] if on_gpus else []
        with local_client(workers=workers, memory_bytes=memory_bytes, seats=seats, gpus=gpus) as own:
            yield own


@contextmanager
def here_or(client: Client | None) -> Iterator[Client]:
    """Use the client given, or start a process per core, where no plan says how many."""
    machine = this_machine()
    with own_or(client, workers=machine.cores, memory_bytes=machine.memory_bytes // machine.cores) as chosen:
        yield chosen


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from threads and processes that are started inside; this thread hears of them afterwards.

    A terminal sends Ctrl-C to every process, a batch system SIGTERM. Workers, also those started anew later, would end
    before the client can stop them in order, and a cluster that is interrupted while it starts cannot be closed.
    """
    if sys.platform == "win32":
        yield
        return
    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start what cleans up behind processes, before signals are blocked: it unblocks them in the thread that starts it.

    It would tell, in lines of its own, of what stopped workers leave to it.
    """
    warned = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (warned, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if warned is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warned
