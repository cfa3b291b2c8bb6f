"""Look at every worker of a cluster before the first region: versions, memory, what it can read and write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from svision_dask.backend import PROCESS_BYTES, Device, Precision, check_emulated, share_of_gpu
from svision_dask.errors import ClusterError, one_line
from svision_dask.running.trial import Trial, attempt, prepared
from svision_dask.stores.locations import Location
from svision_dask.volume import Volume
from svision_dask.wishes import Wishes

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")

PACKAGES = ("svision-dask", "dask", "distributed", "numcodecs", "numpy", "tifffile", "torch", "zarr")
"""What must be the same everywhere."""
SHARE_OF_LIMIT = 0.7
"""What a region may use of a worker's memory limit: dask pauses a worker at 0.8 of it."""
ANSWER_SECONDS = 180
"""How long a worker may take to answer; the first time it has to import torch, for a minute on a busy machine."""
JOIN_SECONDS = 60.0
"""How long to wait for the first worker of a cluster that runs already."""
LOOKS = 3
"""How often to look at workers of which none stays long enough to answer."""
CLOCK_SECONDS = 60.0
"""By how much clocks may differ before it is worth a word."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What is known about one worker process."""

    address: str
    host: str
    threads: int
    torch_threads: int = 0
    """Those that torch really uses of them; 0 where it was not tried."""
    memory_bytes: int
    """What it may use: its limit, or its share of what is free on its host."""
    process_bytes: int = PROCESS_BYTES
    """Resident memory before its first region."""
    gpu_bytes: int
    """Free memory of its GPU; 0 if it has none."""
    halves: tuple[Device, ...]
    """What has instructions for bfloat16 there."""
    versions: Mapping[str, str]
    """Of Python and of ``PACKAGES``; empty where a package is not installed."""
    clock: float
    """Seconds by which its clock is ahead."""
    problems: tuple[str, ...] = ()
    """Why it cannot do the work, each in a few words."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The workers of a cluster."""

    workers: tuple[Worker, ...]

    def wishes(self, wishes: Wishes) -> Wishes:
        """Have a plan made for the least of these workers.

        Raises
        ------
        UsageError
            If bfloat16 is asked for, and would be emulated.
        """
        limit = min(worker.memory_bytes for worker in self.workers)
        threads = min(worker.threads for worker in self.workers)
        on_gpu = self.gpus == len(self.workers) and wishes.device != "cpu"
        device: Device = "cuda" if on_gpu else "cpu"
        best: Precision = "bfloat16" if all(device in worker.halves for worker in self.workers) else "float32"
        if not on_gpu:
            check_emulated(wishes.precision, best, "some workers' processors have")
        return replace(
            wishes,
            device=device,
            precision=wishes.precision or best,
            gpu_bytes=share_of_gpu(worker.gpu_bytes for worker in self.workers) if on_gpu else None,
            workers=len(self.workers),
            threads=wishes.threads or threads,
            seats=min(threads, wishes.seats or threads),  # dask gives a process as many regions as it has threads
            process_bytes=max(worker.process_bytes for worker in self.workers),
            worker_memory_bytes=min(limit, wishes.worker_memory_bytes or limit),
        )

    @property
    def gpus(self) -> int:
        """How many of them have a GPU."""
        return sum(worker.gpu_bytes > 0 for worker in self.workers)

    @property
    def warnings(self) -> Iterator[str]:
        """Put into words what does no harm to the result, but to logs or to speed."""
        for worker in self.workers:
            if abs(worker.clock) > CLOCK_SECONDS:
                yield f"{worker.host}: its clock is {worker.clock:+.0f} s off"
        if 0 < self.gpus < len(self.workers):
            yield f"{self.gpus} of {len(self.workers)} workers have a GPU, which is not used: all must compute alike"

    @property
    def problems(self) -> Iterator[str]:
        """Name what keeps workers from the work, and where."""
        for worker in self.workers:
            yield from (f"{worker.host} ({worker.address}): {problem}" for problem in worker.problems)


def inspect_workers(
    client: Client,
    *,
    volume: Volume | None = None,
    output: str | Location | None = None,
    model: Path | None = None,
    device: Device | None = None,
) -> Crew:
    """Ask every worker for its versions, memory and GPU, and have it read the input, the model, and write the output.

    Parameters
    ----------
    client
        Of the cluster.
    volume
        What workers must be able to read, if anything.
    output
        What workers must be able to write, in the folder that this process sees.
    model
        What workers must be able to load: a file, or where one is to be kept.
    device
        ``"cuda"`` if each of them must have a GPU.

    Raises
    ------
    ClusterError
        If there are no workers, and none comes.
    """
    for _ in range(LOOKS):  # all may be gone before they answer, and others on their way
        waited_for(client, JOIN_SECONDS)
        workers = _look(client, volume, output, model, device)
        if workers:
            return Crew(workers=tuple(sorted(workers, key=lambda worker: (worker.host, worker.address))))
    raise ClusterError("workers of the cluster end before they answer. Look at their logs.")


def waited_for(client: Client, seconds: float) -> Client:
    """Wait for the first worker.

    Raises
    ------
    ClusterError
        If none comes.
    """
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise ClusterError(f"no worker within {seconds:.0f} s. Start workers, or look why none comes.") from error
    return client


def _look(
    client: Client,
    volume: Volume | None,
    output: str | Location | None,
    model: Path | None,
    device: Device | None,
) -> list[Worker]:
    """Describe the workers there are."""
    known = known_workers(client)
    seen = _asked(client, _version_probe(PACKAGES))
    now, ours = time.time(), versions_here()
    hosts = [facts["host"] for facts in seen.values()]
    workers = []
    for address in known.keys() & seen.keys():  # some may have come or gone in between
        facts, limit = seen[address], known[address]["memory_limit"] or 0
        share = facts["free"] // hosts.count(facts["host"])
        workers.append(
            Worker(
                address=address,
                host=facts["host"],
                threads=known[address]["nthreads"],
                memory_bytes=int(SHARE_OF_LIMIT * min(limit or share, share)),
                gpu_bytes=0,
                halves=(),
                versions=facts["versions"],
                clock=facts["clock"] - now,
                problems=tuple(_differences(ours, facts["versions"])),
            )
        )
    if not workers or any(worker.problems for worker in workers):  # such could not even take our question
        return workers
    with prepared(volume, output, model) as trial:
        return _tried(client, workers, trial, device)


def known_workers(client: Client) -> Mapping[str, Any]:
    """Ask the scheduler for what it knows of each of its workers, by address.

    ``client.scheduler_info`` returns what the client keeps, which it asks for again and again, without the workers: at
    such a moment a cluster seems to have none.
    """
    identity = client.sync(client.scheduler.identity, n_workers=-1)  # type: ignore[union-attr]
    workers: Mapping[str, Any] = identity["workers"]
    return workers


def _asked(client: Client, question: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Have every worker run a function, and wait no longer than it may take."""
    from distributed.comm.core import CommClosedError

    try:
        answers = within(ANSWER_SECONDS, partial(client.run, question, *arguments, on_error="return"))
    except TimeoutError as error:
        there = ", ".join(sorted(known_workers(client)))
        raise ClusterError(f"not every worker answers within {ANSWER_SECONDS} s. Look at {there}.") from error
    gone = {address: answer for address, answer in answers.items() if isinstance(answer, CommClosedError)}
    return {address: answer for address, answer in answers.items() if address not in gone}


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call what may never return, in a thread that is left alone if it takes longer.

    Raises
    ------
    TimeoutError
        If it does.
    """
    outcome: Future[Result] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # whatever it is, it is the caller's
            outcome.set_exception(error)

    Thread(target=call, daemon=True).start()
    return outcome.result(seconds)


def check_workers(client: Client, **wanted: Any) -> Crew:
    """Inspect workers as `inspect_workers` does, and refuse a cluster in which one of them cannot do the work.

    Raises
    ------
    ClusterError
        If so; with its host, and what is wrong there.
    """
    crew = inspect_workers(client, **wanted)
    problems = list(crew.problems)
    if problems:
        more = f" ({len(problems) - 1} more; see svision-dask workers.)" if len(problems) > 1 else ""
        raise ClusterError(f"worker on {problems[0]}{more}")
    return crew


def _tried(client: Client, workers: Sequence[Worker], trial: Trial, device: Device | None) -> list[Worker]:
    """Let workers do what is to be tried, and add what came of it."""
    found = _asked(client, attempt, trial)
    tried = [(worker, found[worker.address]) for worker in workers if worker.address in found]
    users = Counter((worker.host, answer.gpu[0]) for worker, answer in tried if _has_gpu(answer))
    return [_with(worker, answer, device, users) for worker, answer in tried]


def _has_gpu(answer: Any) -> bool:
    return not isinstance(answer, BaseException) and answer.gpu is not None


def _with(worker: Worker, answer: Any, device: Device | None, users: Mapping[tuple[str, str], int]) -> Worker:
    """Add what a worker answered; workers that share a GPU share its memory."""
    if isinstance(answer, BaseException):
        return replace(worker, problems=(one_line(answer),))
    problems, gpu = answer.problems, answer.gpu
    if device == "cuda" and gpu is None:
        problems = (*problems, "torch finds no GPU. Leave out --device, or use workers that have one")
    share = gpu[1] // users[worker.host, gpu[0]] if gpu is not None else 0
    return replace(
        worker,
        problems=problems,
        gpu_bytes=share,
        halves=answer.halves,
        process_bytes=answer.process_bytes,
        torch_threads=answer.torch_threads,
    )


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    for name, wanted in ours.items():
        has = theirs[name]
        if has.split("+")[0] != wanted:
            yield f"{name} {has or 'is not installed'}, and here {wanted}. Install the same version"


def versions_here() -> dict[str, str]:
    """Versions that must be the same everywhere, but for how a package was built: with or without support of GPUs."""
    found = _version_probe(PACKAGES)()["versions"]
    return {name: version.split("+")[0] for name, version in found.items()}


def _version_probe(packages: Sequence[str]) -> Any:
    """Make a function that runs where this package is not even installed: cloudpickle carries local ones by value."""

    def probe() -> dict[str, Any]:
        import platform
        import time
        from importlib.metadata import PackageNotFoundError, version

        import psutil
        from distributed.system import MEMORY_LIMIT

        versions = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in packages:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = ""
        return {
            "host": platform.node(),
            "versions": versions,
            "free": min(psutil.virtual_memory().available, MEMORY_LIMIT),
            "clock": time.time(),
        }

    return probe
