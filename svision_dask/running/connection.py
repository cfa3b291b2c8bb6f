"""Reach the cluster that was asked for: one that runs already, one that SLURM starts, or the GPUs of this machine."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from svision_dask.errors import ClusterError, UsageError, one_line
from svision_dask.running.cluster import DASHBOARD, EXPORTED, SHORT_LOGS, local_client, this_machine
from svision_dask.running.preflight import JOIN_SECONDS, waited_for, within
from svision_dask.workload import SEATS

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

CONNECT_SECONDS = 30
QUEUE_SECONDS = 24 * 3600
"""How long to wait for the first worker: a batch system takes its time."""
SLURM_OPTIONS = {"partition": "queue", "time": "walltime", "account": "account", "memory": "memory"}
"""Ours, and what dask-jobqueue calls them."""
SLURM_DEFAULTS = {"jobs": "1", "cores": "4", "memory": "16GB", "time": "4:00:00"}


class OpenClusterWarning(UserWarning):
    """Anyone who reaches the scheduler can run code on the cluster."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files with which both ends of a connection prove who they are."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Which cluster to use; with nothing given, processes on this machine, as many as the plan says."""

    scheduler: str | None = None
    """Address, such as ``tls://host:8786``."""
    scheduler_file: str | None = None
    tls: Tls | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)
    """Options of a SLURM job, by name; ``jobs`` is how many, or ``least:most``."""
    gpus: tuple[str, ...] = ()
    """Of this machine, as CUDA counts them."""
    dashboard: bool = False

    def __post_init__(self) -> None:
        joined = {"--scheduler": self.scheduler, "--scheduler-file": self.scheduler_file}
        for option, given in joined.items():
            if given == "":
                raise UsageError(f"{option}: it is empty. Say where the scheduler is, or leave it out.")
        if sum(bool(choice) for choice in (*joined.values(), self.slurm, self.gpus)) > 1:
            raise UsageError("--scheduler, --scheduler-file, --slurm and --gpus: each is a cluster. Use one of them.")
        if self.tls and not any(joined.values()):
            raise UsageError("--tls-ca, --tls-cert, --tls-key: for a cluster that runs already. Give --scheduler.")
        if self.dashboard and (self.slurm or any(joined.values())):
            raise UsageError("--dashboard: for workers on this machine. Ask the cluster's own scheduler for its own.")


@contextmanager
def connected(connection: Connection) -> Iterator[Client | None]:
    """Connect to a cluster, and leave it as it was afterwards; None stands for processes on this machine.

    Raises
    ------
    ClusterError
        If it cannot be reached, or has no workers.
    UsageError
        If an option is not allowed.

    Warns
    -----
    OpenClusterWarning
        If the scheduler is on the network, and anyone may talk to it.
    """
    import dask

    address = connection.scheduler or dask.config.get("scheduler-address", None)
    if connection.scheduler_file:
        address = _address_in(connection.scheduler_file)
    with ExitStack() as stack:
        stack.enter_context(_silenced("distributed.client"))
        stack.enter_context(dask.config.set(SHORT_LOGS))
        if connection.dashboard:
            _check_dashboard()
            stack.enter_context(dask.config.set({DASHBOARD: True}))
        if connection.gpus:
            yield stack.enter_context(_on_gpus(connection))
        elif connection.slurm:
            yield waited_for(stack.enter_context(_on_slurm(connection.slurm)), QUEUE_SECONDS)
        elif address:
            yield waited_for(stack.enter_context(_joined(connection, address)), JOIN_SECONDS)
        else:
            yield None


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep a library from logging what we report ourselves, in one line and not as a traceback."""
    import distributed  # noqa: F401  # sets the levels of its loggers as it is imported

    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_dashboard() -> None:
    if find_spec("bokeh") is None:
        raise ClusterError("--dashboard: dask draws it with bokeh. pip install bokeh, or leave it out.")


@contextmanager
def _joined(connection: Connection, address: str) -> Iterator[Client]:
    from distributed import Client

    security = _security(connection.tls)
    try:
        client = within(2 * CONNECT_SECONDS, partial(Client, address, security=security, timeout=CONNECT_SECONDS))
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(f"{address}: no Dask scheduler answers ({one_line(error)}). Is it running?") from error
    with client:
        _warn_if_open(client)
        yield client


def _address_in(file: str) -> str:
    """Read what a scheduler wrote about itself."""
    try:
        address = json.loads(Path(file).read_text(encoding="utf-8"))["address"]
    except OSError as error:
        raise ClusterError(f"{file}: there is no such file. Is the scheduler running?") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(f"{file}: not what dask scheduler --scheduler-file writes. Give its file.") from error
    return str(address)


def _security(tls: Tls | None) -> Security | None:
    """Encrypt with the files given, or as dask's own configuration says."""
    from distributed.security import Security

    if tls is None:
        return None
    for option, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        if not Path(file).is_file():
            raise UsageError(f"--tls-{option} {file}: there is no such file.")
    return Security(tls_ca_file=tls.ca, tls_client_cert=tls.cert, tls_client_key=tls.key, require_encryption=True)


def _warn_if_open(client: Client) -> None:
    address = str(client.scheduler.address)  # type: ignore[union-attr]
    parts = urlsplit(address)
    if parts.scheme == "tcp" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        warnings.warn(
            f"{address} is not encrypted: anyone who can reach it can run code there. Start the scheduler with TLS.",
            OpenClusterWarning,
            stacklevel=2,
        )


@contextmanager
def _on_gpus(connection: Connection) -> Iterator[Client]:
    """Start one process per GPU on this machine."""
    machine, count = this_machine(gpus=True), len(connection.gpus)
    if not machine.gpus:
        raise ClusterError(f"--gpus {','.join(connection.gpus)}: torch finds no GPU here. Leave out --gpus.")
    unknown = [gpu for gpu in connection.gpus if not gpu.isdecimal() or int(gpu) >= len(machine.gpus)]
    if unknown or len(set(connection.gpus)) < count:
        there = ",".join(map(str, range(len(machine.gpus))))
        raise UsageError(f"--gpus {','.join(connection.gpus)}: there are {there}. Name each at most once.")
    memory = machine.memory_bytes // count
    with local_client(workers=count, memory_bytes=memory, seats=SEATS, gpus=connection.gpus) as client:
        yield client


@contextmanager
def _on_slurm(options: Mapping[str, str]) -> Iterator[Client]:
    """Have SLURM start workers, encrypted; the scheduler runs in this process."""
    wanted, (least, most) = slurm_job(options)
    try:
        import cryptography  # noqa: F401  # makes the certificates
        import dask
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise ClusterError("--slurm needs dask-jobqueue: pip install 'svision-dask[hpc]'.") from error
    from distributed import Client

    if shutil.which("sbatch") is None:
        raise ClusterError("--slurm: there is no sbatch here. Run this where jobs are submitted.")
    with ExitStack() as stack:
        # The home folder is the same on all nodes, and the folder made in it is for its owner only.
        folder = stack.enter_context(TemporaryDirectory(prefix=".svision-dask-", dir=Path.home()))
        # A site may have commands of its own there, such as "module load".
        own = dask.config.get("jobqueue.slurm.job-script-prologue") or []
        prologue = [*own, *(f"export {name}={shlex.quote(value)}" for name, value in EXPORTED.items())]
        security = _new_security(Path(folder))
        cluster = stack.enter_context(SLURMCluster(**wanted, job_script_prologue=prologue, security=security))
        _check_job(cluster.job_script())
        cluster.scale(jobs=most) if least == most else cluster.adapt(minimum_jobs=least, maximum_jobs=most)
        yield stack.enter_context(Client(cluster))


def _check_job(script: str) -> None:
    """Have SLURM look at a job before it is handed in: what dask-jobqueue does with a refusal is to wait."""
    asked = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ClusterError(f"--slurm: SLURM refuses the job: {' '.join(asked.stderr.split())}")


def _new_security(folder: Path) -> Security:
    """Make a certificate of our own, for all ends of all connections, and keep it in ``folder``."""
    from distributed.security import Security

    made, files = Security.temporary(), {}
    for name, text in (("ca_file", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        file = folder / name
        file.write_text(text, encoding="ascii")
        files[name] = str(file)
    ends = {f"tls_{end}_{name}": files[name] for end in ("client", "scheduler", "worker") for name in ("cert", "key")}
    return Security(tls_ca_file=files["ca_file"], require_encryption=True, **ends)


def slurm_job(options: Mapping[str, str]) -> tuple[dict[str, Any], tuple[int, int]]:
    """Put options into the terms of dask-jobqueue, and say how many jobs to run, at least and at most.

    What it has no term for, such as ``gpus=1`` or ``qos=long``, becomes a directive: ``#SBATCH --gpus=1``.

    Raises
    ------
    UsageError
        If ``jobs`` or ``cores`` are not whole numbers.
    """
    given = {**SLURM_DEFAULTS, **options}
    asked = f"jobs={given['jobs']},cores={given['cores']}"
    try:
        least, _, most = given.pop("jobs").partition(":")
        jobs = int(least), int(most or least)
        cores = int(given.pop("cores"))
    except ValueError as error:
        raise UsageError(
            f"--slurm {asked}: whole numbers are allowed, such as jobs=4, jobs=1:8 and cores=16."
        ) from error
    if not 0 <= jobs[0] <= jobs[1] or jobs[1] < 1 or cores < 1:
        raise UsageError(f"--slurm {asked}: at least one job and core are needed. Use jobs=1,cores=1 or more.")
    named = {theirs: given.pop(ours) for ours, theirs in SLURM_OPTIONS.items() if ours in given}
    job = {
        **named,
        "cores": cores,
        "processes": 1,
        "job_extra_directives": [f"--{name}={value}" for name, value in given.items()],
        "python": sys.executable,
        # What shows all and asks for no password is not for the network.
        "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        "worker_extra_args": ["--no-dashboard"],
    }
    return job, jobs
