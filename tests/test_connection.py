"""Clusters that run already, in processes of their own: plain, encrypted, started by SLURM; and refusals."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer

import dask
import numpy as np
import pytest
import zarr
from distributed import Client
from distributed.security import Security

from svision_dask.backend import process_bytes
from svision_dask.errors import ClusterError, UsageError
from svision_dask.opening.formats import open_volume
from svision_dask.running import connection, preflight
from svision_dask.running.cluster import EXPORTED, local_client, wishes_here
from svision_dask.running.connection import Connection, slurm_job
from svision_dask.running.pipeline import enhance_to_zarr
from svision_dask.running.preflight import PACKAGES, Crew, Worker, inspect_workers, versions_here
from svision_dask.running.trial import Trial, attempt
from svision_dask.wishes import Machine, Wishes
from svision_dask.workload import SEATS
from tests.commands import run, textured, write_tiff

pytestmark = pytest.mark.faults

ENHANCE = ("--steps", 3, "--tile", 16, "--shards", 32, "--chunks", 32)
"""With a tile of its own, the result does not depend on the memory that each cluster has."""


@contextmanager
def process(*arguments: object, **environment: str):
    """Run one of dask's programs until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", *(str(a) for a in arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False", **environment},
    ) as started:
        try:
            yield started
        finally:
            started.terminate()


@contextmanager
def cluster(folder: Path, *, workers: int = 2, tls: tuple[object, ...] = (), threads: int = 1, **environment: str):
    """Start a scheduler and workers; yields the file that says where."""
    where = folder / "scheduler.json"
    scheme = "tls" if tls else "tcp"
    with ExitStack() as stack:
        common = ("--no-dashboard", *tls)
        port = ("--host", f"{scheme}://127.0.0.1", "--port", 0, "--scheduler-file", where)
        stack.enter_context(process("distributed.cli.dask_scheduler", *port, *common))
        wait_for(where.exists)
        joined = ("--scheduler-file", where, "--host", "127.0.0.1", "--nthreads", threads, "--memory-limit", "3GB")
        for number in range(workers):
            own = ("--name", number, "--local-directory", folder / f"worker{number}")
            stack.enter_context(process("distributed.cli.dask_worker", *joined, *own, *common, **environment))
        yield where


def wait_for(condition) -> None:
    """Wait for four minutes at most: on a busy machine, a process may take one to start."""
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("image") / "a.ome.tif", textured((24, 40, 40)))


@pytest.fixture(scope="module")
def alone(image, tmp_path_factory) -> Path:
    """The model and the result of this machine's own processes."""
    output = tmp_path_factory.mktemp("alone") / "fine.zarr"
    assert run("enhance", image, output, *ENHANCE).exit_code == 0
    return output


def model_of(output: Path) -> Path:
    (model,) = output.parent.glob("*.safetensors")
    return model


def voxels(output: Path) -> np.ndarray:
    return zarr.open_array(output / "0", mode="r")[...]


def joined_like(alone: Path, image: Path, output: Path, *options: object):
    return run("enhance", image, output, "-m", model_of(alone), *ENHANCE[2:], *options)


def test_a_cluster_that_runs_gives_the_same_voxels(image, alone, tmp_path):
    with cluster(tmp_path, threads=4) as where:
        done = joined_like(alone, image, tmp_path / "fine.zarr", "--scheduler-file", where)
        assert done.exit_code == 0, done.stderr
        address = json.loads(where.read_text())["address"]
        assert f"cluster  {address}" in done.stderr
        assert "warning" not in done.stderr  # it listens on this machine only
        assert "workers  2 with 4 threads each" in done.stderr
        listed = run("workers", image, tmp_path / "other.zarr", "--scheduler", address, "--json")
        checked = run("verify", tmp_path / "fine.zarr", "--scheduler", address)
    assert np.array_equal(voxels(tmp_path / "fine.zarr"), voxels(alone))
    assert [(each["threads"], each["torch_threads"]) for each in json.loads(listed.stdout)] == [(4, 4)] * 2
    assert not list(tmp_path.glob(".svision*")), "the workers' trial files are left"
    assert checked.exit_code == 0


def test_the_address_may_come_from_the_environment_of_dask(image, tmp_path, monkeypatch):
    with (
        cluster(tmp_path, workers=1) as where,
        dask.config.set({"scheduler-address": json.loads(where.read_text())["address"]}),
    ):
        assert "cluster  tcp://127.0.0.1" in run("plan", image).stderr


def test_an_encrypted_cluster_is_joined_with_certificates_only(image, alone, tmp_path):
    pytest.importorskip("cryptography", reason="needs cryptography to make certificates")
    made = Security.temporary()
    files = {}
    for name, content in (("ca", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        files[name] = tmp_path / f"{name}.pem"
        files[name].write_text(content)
    tls = ("--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])
    with cluster(tmp_path, workers=1, tls=tls) as where:
        mine = ("--tls-ca", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])
        done = joined_like(alone, image, tmp_path / "fine.zarr", "--scheduler-file", where, *mine)
        assert done.exit_code == 0, done.stderr
        assert "cluster  tls://" in done.stderr
        refused = run("workers", "--scheduler-file", where)
        assert refused.exit_code == 1
        assert "no Dask scheduler answers" in refused.error
    assert np.array_equal(voxels(tmp_path / "fine.zarr"), voxels(alone))


def test_a_worker_with_other_versions_is_named_before_anything_is_made(image, tmp_path):
    skewed = tmp_path / "skewed" / "zarr-3.0.0.dist-info"
    skewed.mkdir(parents=True)
    (skewed / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 3.0.0\n")
    with cluster(tmp_path, workers=1, PYTHONPATH=str(skewed.parent)) as where:
        refused = run("enhance", image, tmp_path / "fine.zarr", "--scheduler-file", where)
    assert refused.exit_code == 1
    assert f"zarr 3.0.0, and here {versions_here()['zarr']}" in refused.error
    assert not (tmp_path / "fine.zarr").exists()
    assert "train" not in refused.stderr


@contextmanager
def worker_without(hidden: Path, where: Path, folder: Path):
    """Start a worker of the cluster ``where`` that has an empty folder where this process has ``hidden``."""
    trial = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", hidden], capture_output=True, check=False)
    if trial.returncode:
        pytest.skip(f"no mount namespaces here: {trial.stderr.decode().strip()}")
    command = f"mount -t tmpfs none {hidden} && exec {sys.executable} -m distributed.cli.dask_worker"
    options = f"--scheduler-file {where} --host 127.0.0.1 --no-dashboard --local-directory {folder / 'w'}"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{command} {options}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as started:
        try:
            yield
        finally:
            started.terminate()


def test_a_worker_that_cannot_see_the_output_or_the_model_is_named_before_anything_is_made(image, alone, tmp_path):
    hidden, seen = tmp_path / "hidden", tmp_path / "fine.zarr"
    hidden.mkdir()
    with cluster(tmp_path, workers=0) as where, worker_without(hidden, where, tmp_path):
        refused = run("enhance", image, hidden / "fine.zarr", "--scheduler-file", where)
        model = shutil.copy(model_of(alone), hidden / "model.safetensors")
        blind = run("enhance", image, seen, "-m", model, "--scheduler-file", where)
        listed = run("workers", "-m", model, "--scheduler-file", where)
        with Client(scheduler_file=str(where)) as client:
            (untrained,) = inspect_workers(client, model=hidden / "model.safetensors.new").problems
            with pytest.raises(ClusterError, match="does not see the model"):
                enhance_to_zarr(image, seen, model=model, client=client)
    assert refused.exit_code == blind.exit_code == listed.exit_code == 1
    assert f"does not see {hidden}" in refused.error
    assert f"worker on {platform.node()}" in blind.error
    assert f"does not see the model {model}" in blind.error
    assert f"does not see the model {model}" in listed.error
    assert f"does not see {hidden}, where the model is kept" in untrained
    assert [path.name for path in hidden.iterdir()] == ["model.safetensors"]
    assert not list(tmp_path.glob("*fine*"))


def test_a_model_that_is_another_one_on_a_worker_is_named(alone):
    (problem,) = attempt(Trial(model=str(model_of(alone)), digest="0" * 64)).problems
    assert "the model file has changed" in problem


def test_the_first_worker_is_waited_for_and_one_that_never_comes_is_not_waited_for_for_ever(monkeypatch):
    with Client(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as client:
        monkeypatch.setattr(preflight, "JOIN_SECONDS", 0.2)
        with pytest.raises(ClusterError, match=r"no worker within 0 s\. Start workers"):
            inspect_workers(client)
        monkeypatch.setattr(preflight, "JOIN_SECONDS", 60)
        Timer(1, client.cluster.scale, args=(1,)).start()
        assert len(inspect_workers(client).workers) == 1


def test_workers_that_cannot_read_the_input_say_so(image, tmp_path):
    gone = shutil.copy(image, tmp_path / "gone.ome.tif")
    volume = open_volume(gone)
    Path(gone).unlink()
    with local_client(workers=1, memory_bytes=2**30) as client:
        (worker,) = inspect_workers(client, volume=volume, device="cuda").workers
    assert "cannot read the input" in worker.problems[0]
    assert "gone.ome.tif" in worker.problems[0]
    assert "no GPU" in worker.problems[1]
    assert set(worker.versions) == {"python", *PACKAGES}


def test_workers_are_known_also_while_the_client_asks_for_other_things():
    often = {"distributed.client.scheduler-info-interval": "1ms"}
    one = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with dask.config.set(often), Client(**one) as client:
        assert {len(preflight.known_workers(client)) for _ in range(200)} == {1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--scheduler", "tcp://127.0.0.1:1", "--slurm", "jobs=2"), "Use one of them"),
        (("--tls-ca", "ca.pem", "--scheduler", "tls://127.0.0.1:1"), "all three are needed"),
        (("--scheduler-file", "nowhere.json"), "there is no such file"),
        (("--gpus", "0"), "torch finds no GPU here"),
        (("--device", "cuda"), "torch finds no GPU here"),
        (("--slurm", "jobs=none"), "--slurm jobs=none,cores=4: whole numbers are allowed, such as jobs=4"),
        (("--slurm", "jobs"), "as name=value"),
        (("--scheduler", ""), "it is empty"),
        (("--tls-ca", "a", "--tls-cert", "b", "--tls-key", "c"), "Give --scheduler"),
        (("--dashboard", "--scheduler", "tcp://127.0.0.1:1"), "for workers on this machine"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_in_one_line(options, reason, image):
    import torch

    if torch.cuda.is_available() and "GPU" in reason:
        pytest.skip("there is a GPU")
    refused = run("plan", image, *options)
    assert refused.exit_code in (1, 2)
    assert reason in refused.error


@pytest.mark.parametrize("text", ["", "{}", "not JSON", "[1]"])
def test_a_scheduler_file_that_is_none_is_refused_in_one_line(text, image, tmp_path):
    (tmp_path / "scheduler.json").write_text(text)
    refused = run("plan", image, "--scheduler-file", tmp_path / "scheduler.json")
    assert refused.exit_code == 1
    assert "not what dask scheduler --scheduler-file writes" in refused.error


def test_whoever_listens_and_never_answers_is_given_up(image, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused = run("plan", image, "--scheduler", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    assert refused.exit_code == 1
    assert "no Dask scheduler answers" in refused.error


def worker(**facts: object) -> Worker:
    known = {"address": "a", "host": "h", "threads": 4, "memory_bytes": 100, "gpu_bytes": 0, "versions": {}, "clock": 0}
    return Worker(**{**known, "halves": (), **facts})


def test_a_plan_is_for_the_least_of_the_workers():
    crew = Crew(workers=(worker(), worker(threads=2, memory_bytes=70)))
    wishes = crew.wishes(Wishes(worker_memory_bytes=80))
    assert (wishes.workers, wishes.threads, wishes.worker_memory_bytes, wishes.device) == (2, 2, 70, "cpu")
    assert crew.wishes(Wishes(worker_memory_bytes=60)).worker_memory_bytes == 60
    large = Crew(workers=(worker(process_bytes=2**30), worker()))  # whose torch is built for GPUs
    assert large.wishes(Wishes()).process_bytes == 2**30


def test_gpus_are_used_if_all_workers_have_one_and_named_if_not():
    both = Crew(workers=(worker(gpu_bytes=1000), worker(gpu_bytes=500)))
    assert (both.wishes(Wishes()).device, both.wishes(Wishes()).gpu_bytes) == ("cuda", 300)
    assert both.wishes(Wishes(device="cpu")).gpu_bytes is None
    one = Crew(workers=(worker(gpu_bytes=1000), worker()))
    assert one.wishes(Wishes()).device == "cpu"
    assert "1 of 2 workers have a GPU" in next(one.warnings)
    assert "clock is +90 s off" in next(Crew(workers=(worker(clock=90.0),)).warnings)


def test_half_precision_is_for_crews_all_of_whom_have_instructions_for_it():
    able = worker(halves=("cpu",))
    assert Crew(workers=(able, able)).wishes(Wishes()).precision == "bfloat16"
    assert Crew(workers=(able, worker())).wishes(Wishes()).precision == "float32"
    assert Crew(workers=(able, able)).wishes(Wishes(precision="float32")).precision == "float32"
    with pytest.raises(UsageError, match="bfloat16: some workers' processors have no instructions for it"):
        Crew(workers=(able, worker())).wishes(Wishes(precision="bfloat16"))
    on_gpus = Crew(workers=(worker(halves=("cpu",), gpu_bytes=1000),))
    assert (on_gpus.wishes(Wishes()).device, on_gpus.wishes(Wishes()).precision) == ("cuda", "float32")


def test_gpus_of_this_machine_get_a_process_each():
    machine = Machine(cores=16, memory_bytes=2**37, gpus=(2**34, 2**35))
    wishes = wishes_here(Wishes(), machine)
    assert (wishes.workers, wishes.device, wishes.gpu_bytes) == (2, "cuda", int(0.6 * 2**34))
    asked = Wishes(device="cpu", precision="float32")
    assert wishes_here(asked, machine) == replace(asked, process_bytes=process_bytes())
    with pytest.raises(ClusterError, match="no GPU here"):
        wishes_here(Wishes(device="cuda"), replace(machine, gpus=()))


def test_processes_get_those_gpus_that_this_one_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    with local_client(workers=2, memory_bytes=2**30, seats=SEATS, gpus=("0", "1")) as client:
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(seen.values()) == ["3", "GPU-5a"]
        assert set(client.nthreads().values()) == {SEATS}


def test_what_is_exported_keeps_dask_from_having_workers_give_all_memory_back() -> None:
    asked = "from distributed import nanny; print(*nanny._get_env_variables('distributed.nanny.pre-spawn-environ'))"
    for exported, there in (({}, True), (EXPORTED, False)):
        command, env = [sys.executable, "-c", asked], {**os.environ, **exported}
        told = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120).stdout
        assert ("MALLOC_TRIM_THRESHOLD_" in told.split()) == there
        assert "OMP_NUM_THREADS" in told.split()


def test_what_is_exported_is_what_the_documentation_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")
    said = [shlex.split(line)[1] for line in page.splitlines() if line.startswith("export ")]
    assert dict(line.split("=", 1) for line in said) == EXPORTED


def test_options_of_a_slurm_job_are_put_into_its_terms():
    job, jobs = slurm_job(
        {"jobs": "2:8", "cores": "16", "memory": "64GB", "time": "1:00:00", "gpus": "1", "qos": "long"}
    )
    assert jobs == (2, 8)
    assert (job["cores"], job["memory"], job["walltime"], job["processes"]) == (16, "64GB", "1:00:00", 1)
    assert job["scheduler_options"]["dashboard_address"] == "127.0.0.1:0"  # it asks for no password
    assert job["job_extra_directives"] == ["--gpus=1", "--qos=long"]
    assert slurm_job({})[1] == (1, 1)
    for wrong in ({"jobs": "8:2"}, {"jobs": "0"}, {"cores": "0"}, {"cores": "many"}):
        with pytest.raises(UsageError, match="--slurm"):
            slurm_job(wrong)


def test_two_clusters_at_once_are_one_too_many():
    with pytest.raises(UsageError, match="Use one of them"):
        Connection(scheduler="tcp://a:1", gpus=("0",))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A real SLURM of one node, on this machine only."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
    missing = [name for name in programs if not shutil.which(name)]
    if missing or os.geteuid():
        pytest.skip(f"needs root and SLURM; missing: {', '.join(missing) or 'root'}")
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue")
    folder = Path("/tmp", f"svision-slurm-{os.getpid()}")  # daemons refuse folders that others cannot enter
    node = os.uname().nodename.split(".")[0]
    for name in ("state", "spool", "munge", "socket"):
        (folder / name).mkdir(parents=True, mode=0o755)
    (folder / "munge").chmod(0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        f"""ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=17917
SlurmdPort=17918
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=6000 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""
    )
    munge = [
        f"--{name}={folder}/munge/{name.split('-')[0]}" for name in ("key-file", "pid-file", "log-file", "seed-file")
    ]
    daemons = (
        ["munged", "--foreground", "--force", f"--socket={folder}/socket/munge", *munge],
        ["slurmctld", "-D", "-f", configuration],
        ["slurmd", "-D", "-f", configuration],
    )
    with ExitStack() as stack:
        for command in daemons:
            daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(daemon.wait, 30)
            stack.callback(daemon.terminate)
            time.sleep(1)
        yield configuration
    shutil.rmtree(folder)


def test_a_job_that_slurm_refuses_is_refused_in_its_words(slurm, image, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    refused = run("plan", image, "--slurm", "jobs=1,cores=1,partition=nowhere")
    assert refused.exit_code == 1
    assert "invalid partition" in refused.error


def test_slurm_starts_workers_that_give_the_same_voxels(slurm, image, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.chdir(tmp_path)  # where SLURM leaves what its jobs print
    done = joined_like(
        alone, image, tmp_path / "fine.zarr", "--slurm", "jobs=1:2,cores=1,memory=2GB,time=10,partition=main"
    )
    assert done.exit_code == 0, done.stderr
    assert "cluster  tls://" in done.stderr
    assert np.array_equal(voxels(tmp_path / "fine.zarr"), voxels(alone))

    wait_for(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout)
