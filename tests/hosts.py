"""Hosts of our own, as network namespaces, and small disks, in memory; tests skip where these are not allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.test_connection import wait_for

HOSTS = ("svd0", "svd1", "svd2")
PATIENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "6s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "15s"}
# A worker that imports torch on a busy machine may be silent for longer: it does so before it joins.
IMPORTED = {"DASK_DISTRIBUTED__WORKER__PRELOAD": '["svision_dask.running.regions", "torch"]'}


@contextmanager
def disk(folder: Path, size: str):
    """Mount a small disk, in memory; yields what changes its options."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        yield partial(_remount, folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def namespaces(*more: str):
    """Make a network namespace per host, each with nothing but itself."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("needs root and ip")

    def remove() -> None:
        for name in (*HOSTS, *more):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    remove()
    try:
        try:
            for name in (*HOSTS, *more):
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield
    finally:
        remove()


def address(number: int) -> None:
    """Give a host its address, 10.97.0.1 to 3, and put it on the network."""
    ip("-n", HOSTS[number], "addr", "add", f"10.97.0.{number + 1}/24", "dev", f"{HOSTS[number]}e")
    ip("-n", HOSTS[number], "link", "set", f"{HOSTS[number]}e", "up")


@contextmanager
def network():
    """Make three hosts on one switch; yields what puts one up or down."""
    with namespaces("svdsw"):
        try:
            ip("-n", "svdsw", "link", "add", "sw", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no bridge here: {error.stderr.decode().strip()}")
        ip("-n", "svdsw", "link", "set", "sw", "up")
        for number, name in enumerate(HOSTS):
            ip("link", "add", f"{name}e", "netns", name, "type", "veth", "peer", "name", f"{name}p", "netns", "svdsw")
            ip("-n", "svdsw", "link", "set", f"{name}p", "master", "sw", "up")
            address(number)
        yield lambda name, state: ip("-n", name, "link", "set", f"{name}e", state)


@contextmanager
def crew(folder: Path, **environment: str) -> Iterator[tuple[Path, Callable[..., subprocess.Popen[str]]]]:
    """Start a scheduler on the first host and a worker on each other; yields its file, and what starts commands."""
    where, env = folder / "scheduler.json", {**os.environ, **PATIENCE, **environment}
    with ExitStack() as stack:

        def on(host: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
            command = ["ip", "netns", "exec", host, sys.executable, *(str(a) for a in arguments)]
            started = subprocess.Popen(command, text=True, env=env, **options)
            stack.callback(_ended, started)
            return started

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        common = ("--no-dashboard", "--scheduler-file", where)
        on(HOSTS[0], "-m", "distributed.cli.dask_scheduler", "--host", "10.97.0.1", *common, **quiet)
        wait_for(where.exists)
        for number in (1, 2):
            own = ("--host", f"10.97.0.{number + 1}", "--nthreads", 1, "--local-directory", folder / str(number))
            on(HOSTS[number], "-m", "distributed.cli.dask_worker", *common, *own, **quiet)
        yield where, partial(on, HOSTS[0])


def _ended(started: subprocess.Popen[str]) -> None:
    started.kill()
    started.communicate()
