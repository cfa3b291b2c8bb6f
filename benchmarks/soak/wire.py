"""A network between hosts that is late and loses packets, in user space: few kernels have netem, all have TAP."""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts import HOSTS, address, ip, namespaces

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
FRAME = 65536


@contextmanager
def slow_network(delay: float, loss: float, seed: int = 0) -> Iterator[Counter[str]]:
    """Make three hosts whose frames all arrive ``delay`` seconds late, or not at all; yields counts of frames."""
    with namespaces():
        try:
            ends = [_tap(name) for name in HOSTS]
        except OSError as error:
            pytest.skip(f"no TAP devices here: {error}")
        for number, name in enumerate(HOSTS):
            ip("link", "set", f"{name}e", "netns", name)
            address(number)
        seen, over = Counter[str](), threading.Event()
        wire = threading.Thread(target=_carry, args=(ends, delay, loss, random.Random(seed), seen, over), daemon=True)
        wire.start()
        try:
            yield seen
        finally:
            over.set()
            wire.join()
            for end in ends:
                os.close(end)


def _tap(name: str) -> int:
    """Open a network device of which this process is the other end."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", f"{name}e".encode(), TAP_WITHOUT_HEADER))
    return end


def _carry(
    ends: list[int], delay: float, loss: float, rng: random.Random, seen: Counter[str], over: threading.Event
) -> None:
    """Carry frames from each end to those they are for, as a switch does that has learned who is where."""
    late: list[tuple[float, int, int, bytes]] = []
    places: dict[bytes, int] = {}
    while not over.is_set():
        wait = min(0.1, max(0.0, late[0][0] - time.monotonic())) if late else 0.1
        for end in select.select(ends, [], [], wait)[0]:
            frame = os.read(end, FRAME)
            places[frame[6:12]] = end
            seen["frames"] += 1
            if rng.random() < loss:
                seen["frames lost"] += 1
                continue
            known = places.get(frame[:6])
            for other in [known] if known is not None else [each for each in ends if each != end]:
                heapq.heappush(late, (time.monotonic() + delay, seen["frames"], other, frame))
        while late and late[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(late)
            try:
                os.write(end, frame)
            except OSError:  # it is not up yet
                seen["frames lost"] += 1
