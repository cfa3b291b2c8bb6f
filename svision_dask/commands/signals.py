"""What ends a run early: Ctrl-C, and a cluster's scheduler that wants the machine back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
AGAIN_SECONDS = 0.1
"""After these, a signal that came while something was imported comes back."""


class Interrupted(KeyboardInterrupt):
    """One of ``SIGNALS`` arrived; its number is the first argument."""


def leave(number: int, frame: FrameType | None = None) -> None:
    """End a process in which nothing was begun that would have to be ended in order."""
    os.write(2, f"svision-dask: {SIGNALS[signal.Signals(number)]}.\n".encode())
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` at the first signal, so that workers are stopped in order; ignore those that follow."""

    def stop(number: int, frame: FrameType | None) -> None:
        if _imports(frame) > outside:
            # Torch, whose C++ imports too, aborts the process if that is cut short; others make another error of it.
            _put_off(number)
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers: the host program decides
        return
    outside = _imports(sys._getframe())
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # nohup stays nohup
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            if signal.getsignal(number) is stop:
                signal.signal(number, before[number])


def _imports(frame: FrameType | None) -> int:
    """Count the calls of Python's import that ``frame`` is within."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return count


def _put_off(number: int) -> None:
    """Leave at once where there is no cluster yet, which has threads; otherwise, stop once the import is over."""
    if threading.active_count() == 1:
        leave(number)
    again = threading.Timer(AGAIN_SECONDS, _send, [threading.get_ident(), number])
    again.daemon = True
    again.start()


def _send(thread: int, number: int) -> None:
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(thread, number)  # which wakes it if it waits
