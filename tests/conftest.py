"""Fixtures shared by all tests."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed.utils import get_mp_context
from hypothesis import settings

# Before torch starts OpenMP, as the command does: where tests share the cores with anything else, threads that spin
# while they wait for each other make training take four times as long. Results are the same.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Nothing here is timed: machines are shared. Hypothesis itself draws the same examples each time where CI is set.
settings.register_profile("untimed", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real volumes, kept beside the project and never in it."""
    folder = Path(os.environ.get("SVISION_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}; set SVISION_DATA")
    return folder


PRELOADED = ("distributed.nanny", "distributed.worker", "pytest", "svision_dask.running.verification", "torch")
"""What workers import sooner or later; the fourth imports all of ours that they run."""
METHOD = "distributed.worker.multiprocessing-method"


@pytest.fixture(scope="session", autouse=True)
def workers_start_at_once() -> Iterator[None]:
    """Fork the workers of clusters that tests start in this process from one that has imported all they need.

    A worker takes seconds to import torch and dask, and there are some hundred clusters here. Workers of commands in
    processes of their own, and of the fixture ``fresh_workers``, start as those of users do.
    """
    if sys.platform == "win32":
        yield
        return
    with dask.config.set({METHOD: "forkserver"}):
        get_mp_context()  # the first time, it names modules of its own
        multiprocessing.set_forkserver_preload(list(PRELOADED))
        yield


@pytest.fixture(scope="module")
def fresh_workers() -> Iterator[None]:
    """Start workers as new processes: they have this process's environment, and memory of their own only."""
    with dask.config.set({METHOD: "spawn"}):
        yield
