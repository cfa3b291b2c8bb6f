"""Workers that join when a run has begun, and cannot do the work: others do it, and they are named."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from distributed import Client

from svision_dask.commands.given import connected_given
from svision_dask.opening.formats import open_volume
from svision_dask.running.pipeline import enhance_to_zarr
from svision_dask.running.progress import RunProgress
from svision_dask.running.scheduling import BadWorkerWarning
from svision_dask.wishes import Wishes
from tests.commands import textured, write_tiff
from tests.models import tiny
from tests.test_connection import cluster, wait_for, worker_without

pytestmark = pytest.mark.faults

REGIONS = Wishes(tile={"z": 16, "y": 16, "x": 16}, chunk=dict.fromkeys("zyx", 16), shard=dict.fromkeys("zyx", 16))


def test_late_workers_that_cannot_do_the_work_are_named_or_leave_and_others_do_it(tmp_path):
    (inputs := tmp_path / "inputs").mkdir()
    volume = open_volume(write_tiff(inputs / "a.ome.tif", textured((16, 40, 40))))
    model = tiny((2, 2, 2)).save(tmp_path / "tiny.safetensors")
    with ExitStack() as stack:
        where = stack.enter_context(cluster(tmp_path, workers=1))
        client = stack.enter_context(Client(scheduler_file=str(where)))
        client.wait_for_workers(1)
        (good,) = client.nthreads()

        def join(state: RunProgress) -> None:
            if state.done == 1 and state.level == 0:
                for hidden in (inputs, Path(torch.__file__).parent / "lib"):
                    stack.enter_context(worker_without(hidden, where, tmp_path))
                wait_for(lambda: len(client.nthreads()) == 3)

        given = {"model": model, "wishes": REGIONS, "client": client}
        enhance_to_zarr(volume, tmp_path / "alone.zarr", **given)
        with pytest.warns(BadWorkerWarning) as heard:
            enhance_to_zarr(volume, tmp_path / "late.zarr", **given, on_progress=join)
        # dask ends a worker that cannot even unpickle a task, which takes torch.
        wait_for(lambda: len(client.nthreads()) == 2)
        (bad,) = set(client.nthreads()) - {good}
    assert all(f"worker {bad} gets no more regions" in str(each.message) for each in heard)
    assert "a.ome.tif" in str(heard[0].message)
    made = [zarr.open_array(tmp_path / name / "0", mode="r")[...] for name in ("alone.zarr", "late.zarr")]
    assert np.array_equal(*made)


def test_the_command_line_names_a_worker_in_a_line(capsys):
    files = dict.fromkeys(("scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key", "slurm", "gpus"))
    with connected_given({**files, "dashboard": False}):
        warnings.warn("worker tcp://a gets no more regions", BadWorkerWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: worker tcp://a gets no more regions\n"
