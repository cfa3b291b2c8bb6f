"""Run regions on a cluster: few tasks known to it at any time, tried again where an error passes, or a worker died."""

from __future__ import annotations

import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

from svision_dask.errors import ImageError, RegionError, one_line
from svision_dask.geometry import Region
from svision_dask.running.cluster import forget_names
from svision_dask.running.ledger import Receipt
from svision_dask.running.patience import patiently
from svision_dask.running.preflight import versions_here

if TYPE_CHECKING:
    from distributed import Client, Future

TASKS_PER_SEAT = 3
"""Tasks known to the cluster per seat: one runs and two wait, so that none idles for the client."""
ASK_SECONDS = 5
"""How often to ask a cluster how many workers it has."""
HEAVY_BYTES = 2**17
"""A task that pickles to more carries voxels; others carry paths."""
GOES_ON = "Nothing was published; the same command goes on with what is missing."
GOES_NOT_ON = "Nothing was published, and a volume in memory cannot be gone on with: begin anew, with overwrite."
SEND_SECONDS = 300
"""How long to wait for a worker that takes a volume: one that died is started anew."""
MEND = "Nothing was published. Mend the input, then run the same command again."
"""What is left to do if the input cannot be read."""
LISTED = 10
"""Regions that an error names."""
KEY = "region-"
"""How the names of our tasks begin on a cluster; the number of the region follows."""


class BadWorkerWarning(UserWarning):
    """A worker cannot do the work, and others can: it came after all were tried."""


class Failure(str):
    """Why a region failed."""

    worker: str = ""
    """Address of the worker that it failed at, if that is known."""


class BadInput(Failure):
    """Why a region failed, where the same command would fail again: its input cannot be read."""


class RegionTask(Protocol):
    """Makes one region; pickles to a few kilobytes."""

    def __call__(self, region: Region, /) -> Receipt:
        """Make it, and say what was written."""
        ...


def run_regions(
    client: Client,
    task: RegionTask,
    regions: Iterable[Region],
    *,
    on_receipt: Callable[[Receipt], None],
    on_failure: Callable[[str], None] | None = None,
    seats: int = 1,
    after: str = GOES_ON,
) -> None:
    """Run ``task`` on every region, with a bounded number of tasks known to the cluster at any time.

    Each worker process works on ``seats`` of them at once. A region whose worker died is made again at the end, with no
    other region around that could be the reason, and one that fails at a worker which has not made any yet is made by
    another; receipts say so.

    Parameters
    ----------
    client
        Of the cluster.
    task, regions
        What to do, and where.
    on_receipt
        Called with what each region left.
    on_failure
        Called with why a region failed, as soon as it is known.
    seats
        Of a worker process.
    after
        What the error says at its end: what a failure leaves, and what to do.

    Raises
    ------
    ImageError
        If a region fails because of what the input holds; otherwise as below.
    RegionError
        If a region fails: no more are started then, and those known to the cluster are waited for, because a task that
        writes after this call has returned could meet whatever the caller does next. If a region kills every worker
        that tries it, all others are made first.

    Warns
    -----
    BadWorkerWarning
        If a worker, which may have come later, fails where another does not; it is avoided from then on.
    """
    sent, crew = _Sent(client, task), _Crew(client, seats)
    run = partial(client.submit, _run_one, seats=seats, versions=versions_here())

    def submit(region: Region) -> Future[Any]:
        # The key names what a worker is at, also to dask.
        return run(sent.there(), region, key=f"{KEY}{region.index}-{uuid.uuid4().hex}", **crew.allowed())

    def on_later_receipt(receipt: Receipt) -> None:
        on_receipt(replace(receipt, retries=receipt.retries + 1))

    on_failure = on_failure or _nobody
    drain = partial(_drain, client, submit, crew=crew, on_failure=on_failure)
    suspects: list[Region] = []
    failures = drain(iter(regions), suspects=suspects, on_receipt=on_receipt)
    for region in [] if failures else suspects:
        again: list[Region] = []
        failures += drain(iter([region]), suspects=again, on_receipt=on_later_receipt)
        for each in again:
            failures.append(f"region {each.index} at {each.start}: every worker that tried it died; was it the memory?")
            on_failure(failures[-1])
    if failures:
        raise _error(list(dict.fromkeys(failures)), after)


def _error(failures: Sequence[str], after: str) -> ImageError | RegionError:
    """Put into one line what failed, and where; the first says why, and the error has all of them."""
    bad = next((why for why in failures if isinstance(why, BadInput)), None)
    why = bad or failures[0]
    others = [each.partition(": ")[0] for each in failures if each is not why]
    left = len(others) - (LISTED - 1)
    named = ", ".join(others[: LISTED - 1]) + (f", and {left} more" if left > 0 else "")
    line = why + ("" if why.endswith((".", "?")) else ".") + (f" Failed, too: {named}." if others else "")
    return ImageError(f"{line} {MEND}") if bad is not None else RegionError(f"{line} {after}", failures)


def _nobody(why: str) -> None:
    """Take a report, where nobody wants it."""


class _Sent:
    """A task as workers get it: one that holds a volume travels to each of them once, not with every region."""

    def __init__(self, client: Client, task: RegionTask) -> None:
        from cloudpickle import dumps

        self._client, self._task = client, task
        self._heavy = len(dumps(task)) > HEAVY_BYTES
        self._future: Future[Any] | None = None

    def there(self) -> RegionTask | Future[Any]:
        """Send it if no worker has it: not yet, or because all that had it died."""
        if not self._heavy:
            return self._task
        if self._future is None or self._future.status != "finished":
            try:
                self._future = self._client.scatter(self._task, broadcast=True, hash=False, timeout=SEND_SECONDS)
            except OSError as error:
                raise RegionError(f"no worker takes the volume: {one_line(error)}. Nothing was published.") from error
        return self._future


class _Crew:
    """How many tasks a cluster should know, and whose: workers come and go, and one that comes later was not tried."""

    def __init__(self, client: Client, seats: int) -> None:
        self._client, self._seats = client, seats
        # Some, even where the cluster does not say: without any, regions would be left out, and nobody told.
        self._asked, self._known = 0.0, TASKS_PER_SEAT
        self._proven: set[str] = set()
        self._avoided: set[str] = set()
        self._failed: dict[int, Failure] = {}
        """By region: why it failed at a worker that may be the reason."""

    def tasks(self) -> int:
        """Count the seats that there are, now and then."""
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._asked = time.monotonic()
            with suppress(OSError):  # the scheduler is gone, which every task will say
                places = sum(min(threads, self._seats) for threads in self._client.nthreads().values())
                self._known = TASKS_PER_SEAT * max(1, places)
        return self._known

    def allowed(self) -> dict[str, Any]:
        """Say to whom regions go, in the terms of ``Client.submit``; to others only if all of these are gone."""
        return {"workers": self._others(), "allow_other_workers": True} if self._avoided else {}

    def _others(self) -> list[str]:
        with suppress(OSError):
            return [address for address in self._client.nthreads() if address not in self._avoided]
        return []

    def may_be_reason(self, region: Region, failure: Failure) -> bool:
        """Whether the worker may be why a region failed, because it has made none, and there are others to try it."""
        if not failure.worker or failure.worker in self._proven:
            return False
        self._avoided.add(failure.worker)
        self._failed[region.index] = failure
        return bool(self._others())

    def made(self, region: Region, receipt: Receipt) -> Receipt:
        """Take note of who made a region, and name the worker at which it had failed."""
        self._proven.add(receipt.worker)
        self._avoided.discard(receipt.worker)
        failure = self._failed.pop(region.index, None)
        if failure is None:
            return receipt
        if failure.worker in self._avoided:
            said = f"worker {failure.worker} gets no more regions: another made what failed there. {failure}"
            warnings.warn(said, BadWorkerWarning, stacklevel=2)
        return replace(receipt, retries=receipt.retries + 1)


def _drain(
    client: Client,
    submit: Callable[[Region], Future[Any]],
    waiting: Iterator[Region],
    *,
    crew: _Crew,
    on_receipt: Callable[[Receipt], None],
    on_failure: Callable[[str], None],
    suspects: list[Region],
) -> list[str]:
    """Run regions until there are no more, or one fails; those whose worker died are added to ``suspects``."""
    from distributed import CancelledError, KilledWorker, as_completed

    failures: list[str] = []
    at_work = {future: region for region in islice(waiting, crew.tasks()) for future in [submit(region)]}
    # With results: to ask for them one by one would take longer than everything else here.
    running = as_completed(list(at_work), with_results=True, raise_errors=False)
    try:
        for future, outcome in running:
            region, known, again = at_work.pop(future), len(failures), False
            error = outcome[1] if future.status == "error" else outcome
            if isinstance(outcome, Receipt):
                on_receipt(crew.made(region, outcome))
            elif isinstance(error, CancelledError) and _is_gone(client, error):
                failures.append("the scheduler is gone.")
            elif isinstance(error, KilledWorker | CancelledError):  # cancelled: what it works on died with the worker
                suspects.append(region)
            else:
                failure = outcome if isinstance(outcome, Failure) else _of_worker(client, future.key, error)
                again = not failures and crew.may_be_reason(region, failure)
                failures += [] if again else [failure]
            for why in failures[known:]:
                on_failure(why)
            future.release()
            forget_names()
            more = islice(waiting, 0 if failures else max(0, crew.tasks() - len(at_work) - again))
            for following in chain([region] if again else [], more):
                at_work[added := submit(following)] = following
                running.add(added)
    except BaseException:  # an interrupt, too, must not leave tasks behind
        client.cancel(list(at_work))
        raise
    return failures


def _of_worker(client: Client, key: Any, error: BaseException) -> Failure:
    """Put into words an error that arrives as such: it is one of the worker, which could not even begin."""

    def erred_on(dask_scheduler: Any) -> str:  # a local function travels by value
        task = dask_scheduler.tasks.get(key)
        return next(iter(task.erred_on or ()), "") if task is not None else ""

    failure = Failure(f"a worker failed: {one_line(error)}")
    with suppress(OSError, RuntimeError):  # a scheduler may not let itself be asked
        failure.worker = client.run_on_scheduler(erred_on)
    return failure


def _is_gone(client: Client, error: BaseException) -> bool:
    """Whether a region was cancelled because the scheduler does not answer any more."""
    return client.status != "running" or getattr(error, "reason", "") == "scheduler-connection-lost"


def _run_one(
    task: RegionTask, region: Region, *, seats: int = 1, versions: Mapping[str, str] | None = None
) -> Receipt | Failure:
    """Errors raised on purpose come back as text: an exception with a remote traceback is for the unexpected."""
    forget_names()
    if versions is not None and versions != _versions():  # a worker that came after all were inspected
        differ = f"versions {_versions()}, not {dict(versions)}."
        return _here(Failure(f"region {region.index}: a worker on {platform.node()} has {differ}"))
    tries, began = 0, 0.0

    def once() -> Receipt:
        nonlocal tries, began
        with _seats(seats):
            tries += 1
            began = began or time.monotonic()  # what waited for its seat was not at work
            return task(region)

    try:
        receipt = patiently(once)
        return replace(receipt, retries=tries - 1, seconds=_at_work.until_now(began), worker=_own_address())
    except Exception as error:  # zarr and torch raise nearly anything, and the place is what helps
        kind = BadInput if isinstance(error, ImageError) else Failure
        why = f"region {region.index} at {region.start}: {type(error).__name__}: {one_line(error)}"
        return _here(kind(why))


def _here(failure: Failure) -> Failure:
    failure.worker = _own_address()
    return failure


def _own_address() -> str:
    """Address of the worker that this runs on; empty where it is none."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return ""


class _AtWork:
    """What this process spent on regions: time in which it was at several of them counts once."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), 0.0

    def until_now(self, began: float) -> float:
        """Seconds since ``began``, or since the last region ended."""
        with self._lock:
            since, self._ended = max(began, self._ended), time.monotonic()
            return round(self._ended - since, 3)


_at_work = _AtWork()
_versions = lru_cache(versions_here)


@lru_cache
def _seats(count: int) -> threading.Semaphore:
    """Regions of this process that may be in memory at once, whatever its threads: the plan counted no more."""
    return threading.Semaphore(count)
