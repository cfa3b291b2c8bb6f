"""Strips and tiles of compressed TIFFs that were decoded already: each box of a strip takes decoding all of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

from svision_dask.workload import DECODED_BYTES

Array = npt.NDArray[Any]


class Decoded:
    """Keeps at most ``most_bytes`` of arrays.

    What makes room is drawn by chance: planes are read in a circle, block by block, and of a circle that does not fit,
    the oldest is the very one that is wanted next.
    """

    def __init__(self, most_bytes: int = DECODED_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._arrays: dict[Hashable, Array] = {}
        self._keys: list[Hashable] = []
        self._lock = threading.Lock()
        self._random = random.Random(0)

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """Give the array of ``key``, decoding it if it is not kept."""
        known = self._arrays.get(key)
        if known is not None:
            return known
        array = decode()  # without the lock: threads decode at once
        with self._lock:
            self._keep(key, array)
        return array

    def _keep(self, key: Hashable, array: Array) -> None:
        if array.nbytes > self.most_bytes or key in self._arrays:
            return
        while self.bytes + array.nbytes > self.most_bytes:
            place = self._random.randrange(len(self._keys))
            self._keys[place], self._keys[-1] = self._keys[-1], self._keys[place]
            self.bytes -= self._arrays.pop(self._keys.pop()).nbytes
        self._arrays[key] = array
        self._keys.append(key)
        self.bytes += array.nbytes


of_this_process = Decoded()
"""Shared by all images, so that the bound is for all of them together; it does not travel with them."""
