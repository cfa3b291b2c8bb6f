"""Enhance on three hosts whose network is slow and loses packets; every output must be the undisturbed one.

Run ``python benchmarks/soak/network.py --minutes 60`` as root, on Linux; it writes its part of
``benchmarks/results/soak.json``. The hosts are network namespaces, one with the scheduler and the command and two with
a worker each. Every packet between them takes 50 ms, and one in a hundred is lost.
"""

from __future__ import annotations

import time

import soaking
from wire import slow_network

from tests.hosts import IMPORTED, crew

DELAY, LOSS = 0.05, 0.01


def make(soak: soaking.Soak) -> None:
    """Make one output."""
    output = soak.folder / "made" / "fine.zarr"
    (folder := soak.folder / f"crew{soak.seen[soaking.EQUAL]}").mkdir()
    with slow_network(DELAY, LOSS) as frames, crew(folder, **IMPORTED) as (where, on):
        arguments = soak.arguments(output, "--scheduler-file", where)
        began = time.monotonic()
        soak.until_finished(lambda: on(*arguments, stderr=soak.log.open("wb")), lambda process: process.wait())
        soak.seen["seconds"] += round(time.monotonic() - began)
    soak.seen.update(frames)
    soak.check(output)


if __name__ == "__main__":
    fine = 8 * soaking.SHAPE[0] * soaking.SHAPE[1] * soaking.SHAPE[2]
    soaking.run("network", make, __doc__, delay_seconds=DELAY, loss=LOSS, fine_voxels=fine)
