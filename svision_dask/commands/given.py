"""From the options of a command to volumes, plans and models; nothing heavy is imported before they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from svision_dask.codec import parse_codec
from svision_dask.commands.console import training_lines
from svision_dask.commands.progress import progress
from svision_dask.errors import OutputError, UsageError
from svision_dask.network.architecture import Architecture
from svision_dask.plan import Plan
from svision_dask.running.arguments import (
    parse_box,
    parse_lengths,
    parse_numbers,
    parse_options,
    parse_size,
    parse_tolerance,
)
from svision_dask.wishes import Wishes

if TYPE_CHECKING:
    from distributed import Client

    from svision_dask.network.model import Model
    from svision_dask.volume import Volume

Given = dict[str, Any]
"""What was given for the options of a command, by name."""
LEARNING = ("factor", "axial", "preset", "sample", "degrade", "psf", "noise", "seed", "steps", "halo")
"""Options that a trained model has settled already."""
KERNELS = (".tif", ".tiff", ".npy", ".mat")
"""Files that a measured PSF may come in."""


def open_given(source: str, given: Given) -> Volume:
    """Open the input."""
    from svision_dask.opening.formats import open_volume

    return open_volume(source, **opening_given(given))


def opening_given(given: Given) -> dict[str, Any]:
    """Collect how inputs are to be opened."""
    return {**describing_given(given), "channel": given["channel"], "time": given["time"]}


def describing_given(given: Given) -> dict[str, Any]:
    """Collect what says how an image is to be read, but for what of it."""
    spacing = parse_numbers(given["spacing"], option="--spacing") if given["spacing"] is not None else None
    return {"spacing": spacing, **{name: given[name] for name in ("level", "series", "axes", "unit", "missing")}}


def first_field(source: str, given: Given) -> str | None:
    """Find the first field of a plate or well, all of which are meant where none is named."""
    from svision_dask.running.plates import fields_of
    from svision_dask.stores.locations import located

    fields = fields_of(source) if given["series"] is None else None
    return None if fields is None or fields.count == 1 else str(located(source) / fields.images[0])


def open_first(source: str, given: Given) -> Volume:
    """Open the input, or the first field of a plate or well, which stands for all of them."""
    first = first_field(source, given)
    if first is not None:
        click.echo(f"field    {first}, which stands for all", err=True)
    return open_given(first or source, given)


@contextmanager
def connected_given(given: Given) -> Iterator[Client | None]:
    """Connect to the cluster that was asked for; None stands for processes on this machine."""
    from svision_dask.running.connection import Connection, OpenClusterWarning, Tls, connected

    files = {name: given[f"tls_{name}"] for name in ("ca", "cert", "key")}
    if any(files.values()) and not all(files.values()):
        raise UsageError("--tls-ca, --tls-cert and --tls-key: all three are needed. Give them, or none.")
    connection = Connection(
        scheduler=given["scheduler"],
        scheduler_file=given["scheduler_file"],
        tls=Tls(**files) if all(files.values()) else None,
        slurm=parse_options(given["slurm"], option="--slurm") if given["slurm"] is not None else {},
        gpus=tuple(given["gpus"].split(",")) if given["gpus"] is not None else (),
        dashboard=given["dashboard"],
    )
    if connection.slurm:
        click.echo("cluster  waiting for SLURM to start the first worker", err=True)
    with ExitStack() as stack:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            client = stack.enter_context(connected(connection))
        for warning in heard:
            if issubclass(warning.category, OpenClusterWarning):
                click.echo(f"warning: {warning.message}", err=True)
        if client is not None:
            if given.get("workers") is not None:
                raise UsageError("--workers: the cluster has its own. Leave it out.")
            click.echo(f"cluster  {client.scheduler.address}", err=True)  # type: ignore[union-attr]
        stack.enter_context(_bad_workers_told())
        yield client


@contextmanager
def _bad_workers_told() -> Iterator[None]:
    """Name workers that cannot do the work in a line each, as soon as that is known."""
    from svision_dask.running.scheduling import BadWorkerWarning

    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, BadWorkerWarning):
            click.echo(f"warning: {message}", err=True)
        else:
            others(message, category, *place)

    with warnings.catch_warnings():  # which puts back what shows them, too
        warnings.simplefilter("always", BadWorkerWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # it passes on what it was given
        yield


def check_given(client: Client | None, volume: Volume, output: str, given: Given, *, model: str | None) -> None:
    """Have every worker of a cluster try to do its part, before anything expensive begins."""
    from svision_dask.running.preflight import check_workers

    if client is not None:
        wanted = {"volume": volume, "output": output, "model": model_for(output, model)}
        for warning in check_workers(client, **wanted, device=given.get("device")).warnings:
            click.echo(f"warning: {warning}", err=True)


def model_for(output: str | None, model: str | None) -> Path | None:
    """Say where workers will look for a model: the file that was given, or one that is kept beside the output."""
    from svision_dask.network.model import model_file
    from svision_dask.running.pipeline import model_path_beside

    beside = None if output is None else model_path_beside(output, "")
    return (model_file(model) if model is not None else None) or beside


def plan_given(
    volume: Volume,
    model_path: str | None,
    output: str | None,
    given: Given,
    *,
    begun: str | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> Plan:
    """Plan for a model that is there, that an unfinished output was begun with, or that is to be trained."""
    from svision_dask.running.output import as_recorded
    from svision_dask.running.pipeline import plan_volume

    if model_path:
        _check_idle(model_path)
    path = model_path or begun
    design = _design_of(path, volume) if path else _design(volume, given)
    wishes = wishes_given(volume, given)
    if output and not overwrite:
        wishes = as_recorded(output, wishes)
    return plan_volume(volume, design, output=output, dtype=given["dtype"], wishes=wishes, client=client)


def _check_idle(model_path: str) -> None:
    source_of = click.get_current_context().get_parameter_source
    idle = [f"--{name}" for name in LEARNING if source_of(name) is not ParameterSource.DEFAULT]
    if idle:
        raise UsageError(f"{', '.join(idle)}: settled by the model {model_path}. Leave out -m, or these.")


def _design_of(model_path: str, volume: Volume) -> Architecture:
    from svision_dask.network.model import load_model
    from svision_dask.running.enhancement import check_model

    model = load_model(model_path)
    check_model(model, volume)
    return model.architecture


def model_begun_with(output: str, given: Given) -> str | None:
    """Find the model of an unfinished output that was trained for it with the same options."""
    from svision_dask.running.output import begun_record

    record = begun_record(output)
    digest = record.get("model") if record is not None else None
    return _model_of(output, str(digest), given) if digest else None


def fields_model(output: str, given: Given) -> str | None:
    """Find the model with which the fields of a plate were begun, likewise."""
    from svision_dask.running.plates import begun_with

    digest = begun_with(output)
    return _model_of(output, digest, given) if digest else None


def _model_of(output: str, digest: str, given: Given) -> str:
    """Find the model beside an output, and that it was trained with the same options."""
    from svision_dask.network.model import load_model
    from svision_dask.running.ledger import first_difference
    from svision_dask.running.pipeline import model_path_beside

    path = model_path_beside(output, digest)
    if not path.exists():
        raise OutputError(f"{output} is unfinished, and its model {path} is gone. Use --overwrite to begin anew.")
    difference = first_difference(_asked(given), load_model(path).provenance.get("asked") or {})
    if difference:
        raise OutputError(f"{output} is unfinished, and its {difference}. Use --overwrite to begin anew.")
    return str(path)


def _asked(given: Given) -> Given:
    """Take what was asked of training, as it was given."""
    return {name: given[name] for name in LEARNING}


def given_model(path: str, volume: Volume, *, renormalise: bool) -> Model:
    """Use a trained model as it is, or with the constants of ``volume``."""
    from svision_dask.network.model import load_model
    from svision_dask.training.drift import renormalised

    model = load_model(path)
    return renormalised(model, volume) if renormalise else model


def tell_drift(model: Model, volume: Volume, hint: str) -> None:
    """Warn where a volume is unlike the one that a model was trained on."""
    from svision_dask.training.drift import drift

    for difference in drift(model, volume):
        click.echo(f"warning: {difference}; {hint}", err=True)


def _design(volume: Volume, given: Given) -> Architecture:
    from svision_dask.geometry import parse_factor
    from svision_dask.training.psf import degradation_of, find_psf
    from svision_dask.training.train import design_for

    tolerance = parse_tolerance(given["halo"], option="--halo")
    factor = parse_factor(_factor(given), volume.grid.axes)
    how = degradation_of(given["degrade"], find_psf(_psf(given), volume.grid))
    return design_for(
        volume.grid.axes,
        factor,
        preset=given["preset"],
        tolerance=tolerance,
        degradation=how,
        axial=given["axial"],
    )


def _factor(given: Given) -> Any:
    factor = parse_numbers(given["factor"], option="--factor")
    return {"z": factor} if given["axial"] and isinstance(factor, int | float) else factor


def _psf(given: Given) -> Any:
    """Tell a width from the path of a kernel."""
    text = given["psf"]
    named = text == "auto" or Path(text).suffix.lower() in KERNELS
    return text if named else parse_numbers(text, option="--psf")


def wishes_given(volume: Volume, given: Given) -> Wishes:
    """Collect what was fixed about the plan."""

    def lengths(name: str) -> dict[str, int] | None:
        text = given.get(name)
        return parse_lengths(text, volume.grid.axes, option=f"--{name}") if text is not None else None

    memory = given.get("memory")
    return Wishes(
        tile=lengths("tile"),
        chunk=lengths("chunks"),
        shard=lengths("shards"),
        workers=given.get("workers"),
        worker_memory_bytes=parse_size(memory, option="--memory") if memory is not None else None,
        version=given["version"],
        codec=parse_codec(given["codec"]) if given.get("codec") is not None else None,
        pyramid=given["pyramid"],
        trust=given.get("trust", False),
        device=given.get("device"),
        precision=given.get("precision"),
    )


def train_given(volume: Volume, given: Given) -> Model:
    """Train, with progress, and say what the model is worth."""
    from svision_dask.training import train as training

    sample = parse_box(given["sample"], volume.grid.axes, option="--sample") if given["sample"] is not None else None
    with progress() as report:
        model = training.train(
            volume,
            factor=_factor(given),
            preset=given["preset"],
            sample=sample,
            seed=given["seed"],
            steps=given["steps"],
            tolerance=parse_tolerance(given["halo"], option="--halo"),
            degrade=given["degrade"],
            psf=_psf(given),
            noise=given["noise"],
            axial=given["axial"],
            device=given.get("device"),
            on_step=report.training,
        )
    for line in training_lines(model.provenance):
        click.echo(line, err=True)
    return replace(model, provenance={**model.provenance, "asked": _asked(given)})
