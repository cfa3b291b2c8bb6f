"""What a worker tries before the first region: to read the input, to write the output, to load the model."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svision_dask.backend import Device, best_precision, own_gpu, process_bytes
from svision_dask.errors import SvisionError, one_line
from svision_dask.network.model import load_model, load_model_once
from svision_dask.stores.locations import Location, located
from svision_dask.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What each worker is to try."""

    volume: Volume | None = None
    """What it must be able to read, if anything."""
    token: str | None = None
    """A file that the client made where the output will be."""
    model: str | None = None
    """The model's file, or one that the client made where the model will be."""
    digest: str | None = None
    """Of the model, if it is there."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of a worker that was asked to try."""

    problems: tuple[str, ...]
    gpu: tuple[str, int] | None
    """Name and free bytes of its own."""
    halves: tuple[Device, ...]
    """What has instructions for bfloat16 there."""
    process_bytes: int
    """Resident memory of a worker before its first region."""
    torch_threads: int
    """That torch computes with once a region asks for all of the worker's."""


@contextmanager
def prepared(volume: Volume | None, output: str | Location | None, model: Path | None) -> Iterator[Trial]:
    """Make what workers need to try, in folders that this process sees, and remove it afterwards."""
    with ExitStack() as stack:
        token = stack.enter_context(_token(located(output))) if output is not None else None
        shown: Location | None = None if model is None else model.absolute()
        digest = load_model(model).digest if model is not None and model.is_file() else None
        if shown is not None and digest is None:
            shown = stack.enter_context(_token(shown))
        yield Trial(
            # A volume in memory travels with the work; there is nothing to try.
            volume=volume if volume is not None and volume.source is not None else None,
            token=None if token is None else str(token),
            model=None if shown is None else str(shown),
            digest=digest,
        )


@contextmanager
def _token(target: Location) -> Iterator[Location]:
    """Put a file where ``target`` is to be made, or near: nothing is made before it is known that the work can be."""
    folder = target.absolute()
    if isinstance(folder, Path):
        folder = next(parent for parent in folder.parents if parent.is_dir())
    token = folder / f".svision-{uuid.uuid4().hex}.probe"
    token.write_bytes(token.name.encode())
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def attempt(trial: Trial, dask_worker: Any = None) -> Answer:
    """Run by each worker, which dask hands in by that name: say what does not work, and what it computes with."""
    problems = []
    if trial.volume is not None:
        try:
            trial.volume.read(tuple(slice(0, 1) for _ in trial.volume.grid.axes))
        except (SvisionError, OSError, ValueError, RuntimeError) as error:
            problems.append(f"cannot read the input: {one_line(error)}")
    if trial.token is not None:
        problems += _write_problems(located(trial.token))
    if trial.model is not None:
        problems += _model_problems(Path(trial.model), trial.digest)
    gpu = own_gpu()
    devices: Sequence[Device] = ("cpu", "cuda") if gpu else ("cpu",)
    halves = tuple(device for device in devices if best_precision(device) == "bfloat16")
    threads = _torch_threads(dask_worker)
    return Answer(
        problems=tuple(problems), gpu=gpu, halves=halves, process_bytes=process_bytes(), torch_threads=threads
    )


def _torch_threads(worker: Any) -> int:
    """Have torch use the threads of ``worker``, as regions do, and say how many it uses."""
    import torch

    if worker is not None:
        torch.set_num_threads(worker.state.nthreads)
    return torch.get_num_threads()


def _write_problems(token: Location) -> Iterator[str]:
    """See whether the folder of ``token`` is the one in which the client made it, and can be written."""
    if not token.is_file():
        yield f"does not see {token.parent}, where the output is made. Mount it, or choose a shared folder"
        return
    own = token.parent / f"{token.name}.{uuid.uuid4().hex}"
    try:
        own.write_bytes(b"svision-dask")
    except OSError as error:
        yield f"cannot write to {token.parent}: {one_line(error)}"
    finally:
        own.unlink(missing_ok=True)


def _model_problems(model: Path, digest: str | None) -> Iterator[str]:
    """See whether the model is there, and the one that the client has."""
    if not model.is_file():
        what = f"the model {model}" if digest else f"{model.parent}, where the model is kept"
        yield f"does not see {what}. Train one into a folder that all workers see, and give it with -m"
    elif digest is not None:
        try:
            load_model_once(str(model), digest)
        except (SvisionError, OSError) as error:
            yield f"cannot use the model: {one_line(error)}"
