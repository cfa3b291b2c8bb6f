"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from svision_dask.backend import DEVICES
from svision_dask.commands.compare import compare
from svision_dask.commands.console import (
    Commands,
    assumed_lines,
    crew_lines,
    dropped_lines,
    image_facts,
    image_lines,
    made_lines,
    plan_lines,
)
from svision_dask.commands.events import json_logged, log_event
from svision_dask.commands.export import export
from svision_dask.commands.given import (
    Given,
    check_given,
    connected_given,
    fields_model,
    first_field,
    given_model,
    model_begun_with,
    model_for,
    open_first,
    open_given,
    opening_given,
    plan_given,
    tell_drift,
    train_given,
    wishes_given,
)
from svision_dask.commands.options import (
    as_json,
    clustering,
    learning,
    opening,
    reading,
    replacing,
    resuming,
    running,
    storing,
    trained,
)
from svision_dask.commands.progress import progress
from svision_dask.commands.view import view
from svision_dask.errors import ClusterError, ImageError, OutputError, UsageError

MOST_PLANES = 8
"""More single planes than these are no channels: a shell has put the names of a stack in place of its pattern."""


@click.group(name="svision", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="svision-dask")
@click.option("-v", "--verbose", count=True, help="-vv shows where an error came from.")
def main(verbose: int) -> None:
    """Enhance the resolution of microscope volumes of any size, by self-supervision."""


main.add_command(compare)
main.add_command(export)
main.add_command(view)


@main.command()
@reading
@opening
@as_json
def info(source: str, as_json: bool, **given: Any) -> None:
    """Say what INPUT is: axes, spacing, chunks, shards, levels."""
    from svision_dask.omezarr.read import describe_omezarr, is_omezarr
    from svision_dask.opening.formats import find_image
    from svision_dask.stores.locations import located

    volume = open_given(source, given)
    described = describe_omezarr(find_image(located(source), given["series"])) if is_omezarr(source) else None
    _print_json(image_facts(volume, described)) if as_json else _print(image_lines(volume, described))


@main.command()
@reading
@click.option("-o", "--output", required=True, metavar="MODEL", help="File to write, such as model.safetensors.")
@opening
@learning
@json_logged
def train(source: str, output: str, **given: Any) -> None:
    """Train a model on a sample of INPUT; of a plate or well, on its first field."""
    from svision_dask.running.output import check_new_file

    volume = open_first(source, given)
    check_new_file(output)
    click.echo(str(train_given(volume, given).save(output)))


@main.command()
@reading
@click.argument("output")
@trained
@click.option("--renormalise", is_flag=True, help="Measure the intensity constants of MODEL anew, on INPUT.")
@opening
@learning
@running
@clustering
@storing
@replacing
@resuming
@click.option("--empty-below", type=float, help="Take regions for zeros in which every voxel is below this intensity.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@json_logged
def enhance(
    source: str,
    output: str,
    model_path: str | None,
    renormalise: bool,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Enhance INPUT into the OME-Zarr OUTPUT; a model that is trained for it is kept beside it.

    Run again after it was interrupted, it goes on where it stopped.
    """
    from svision_dask.network.model import load_model, model_file
    from svision_dask.running.output import check_output
    from svision_dask.running.pipeline import enhance_to_zarr
    from svision_dask.training.drift import DriftWarning

    if renormalise and not model_path:
        raise UsageError("--renormalise: a model trained on INPUT has its constants. Leave it out, or give -m.")
    if (first := first_field(source, given)) is not None:
        if given["empty_below"] is not None:
            raise UsageError("--empty-below: not for a plate or well. Leave it out, or give one field by --series.")
        flags = {"renormalise": renormalise, "overwrite": overwrite, "resume": resume, "dry_run": dry_run}
        _enhance_fields(source, first, output, model_path, given, **flags)
        return
    volume = open_given(source, given)
    check_output(output, source, overwrite=overwrite, resume=resume)
    begun = None if overwrite or model_path else model_begun_with(output, given)
    _print((*assumed_lines(volume), *dropped_lines(volume)), err=True)
    with connected_given(given) as client:
        check_given(client, volume, output, given, model=None if renormalise else model_path or begun)
        planned = plan_given(volume, model_path, output, given, begun=begun, overwrite=overwrite, client=client)
        _print(plan_lines(planned), err=not dry_run)
        log_event("plan", **planned.to_json())
        if dry_run:
            return
        if begun:
            click.echo(f"resume   with {begun}", err=True)
            model_path, model = begun, load_model(begun)
            tell_drift(model, volume, "is it the input that this was begun with?")
        elif model_path:
            model = given_model(model_path, volume, renormalise=renormalise)
            tell_drift(model, volume, "train on this volume, or try --renormalise")
        else:
            model = train_given(volume, given)
            tell_drift(model, volume, "another --sample may be more typical")
        kept = model if renormalise or not model_path or model_file(model_path) is None else model_path
        with progress() as report, warnings.catch_warnings():
            warnings.simplefilter("ignore", DriftWarning)  # said already
            made = enhance_to_zarr(
                volume,
                output,
                model=kept,
                plan=planned,
                client=client,
                empty_below=given["empty_below"],
                overwrite=overwrite,
                resume=resume,
                on_progress=report.run,
                on_workers=report.workers,
            )
    for line in made_lines(made.made):
        click.echo(line, err=True)
    click.echo(f"model    {made.model_path}", err=True)
    click.echo(made.output)


def _enhance_fields(
    source: str,
    first: str,
    output: str,
    model_path: str | None,
    given: Given,
    *,
    renormalise: bool,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
) -> None:
    """Enhance every field of a plate or well by one model, trained on the first."""
    from svision_dask.running.plates import begun_with, check_fields, enhance_fields
    from svision_dask.training.drift import DriftWarning

    check_fields(source, opening_given(given))  # before a model is trained
    volume = open_given(first, given)
    if resume and not begun_with(output):
        raise OutputError(f"{output}: there is nothing to resume. Leave out --resume.")
    begun = None if overwrite or model_path else fields_model(output, given)
    with connected_given(given) as client:
        planned = plan_given(volume, model_path, None, given, begun=begun, client=client)
        _print(plan_lines(planned), err=not dry_run)
        log_event("plan", **planned.to_json())
        if dry_run:
            return
        chosen = model_path or begun
        model = given_model(chosen, volume, renormalise=renormalise) if chosen else train_given(volume, given)
        with progress() as report, warnings.catch_warnings():
            warnings.simplefilter("ignore", DriftWarning)  # fields unlike the first say so in their attributes
            made = enhance_fields(
                source,
                output,
                model=model,
                dtype=given["dtype"],
                wishes=wishes_given(volume, given),
                client=client,
                overwrite=overwrite,
                opening=opening_given(given),
                on_field=lambda number, count, field: report("fields", number, count, field),
                on_progress=report.run,
                on_workers=report.workers,
            )
    click.echo(f"fields   {len(made.made)} made, {len(made.finished)} were there", err=True)
    click.echo(f"model    {made.model_path}", err=True)
    click.echo(made.output)


@main.command()
@reading
@click.argument("output", required=False)
@trained
@opening
@learning
@running
@clustering
@storing
@as_json
def plan(source: str, output: str | None, model_path: str | None, as_json: bool, **given: Any) -> None:
    """Say how INPUT would be enhanced, what that takes, and whether it fits; nothing is made.

    Of a plate or well, it is the plan of the first field.
    """
    volume = open_first(source, given)
    output = None if first_field(source, given) else output  # which holds all fields
    with connected_given(given) as client:
        planned = plan_given(volume, model_path, output, given, client=client)
    _print_json(planned.to_json()) if as_json else _print(plan_lines(planned))


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="TIFF...")
@click.argument("output")
@opening
@clustering
@storing
@replacing
@resuming
def convert(sources: tuple[str, ...], output: str, overwrite: bool, resume: bool, **given: Any) -> None:
    """Convert images to the OME-Zarr OUTPUT; several become the channels of one."""
    from svision_dask.opening.formats import stack_channels
    from svision_dask.running.output import check_output
    from svision_dask.running.pipeline import copy_to_zarr

    volumes = [open_given(source, given) for source in sources]
    for source in sources:
        check_output(output, source, overwrite=overwrite, resume=resume)
    if len(volumes) > MOST_PLANES and all(volume.grid.axes == "yx" for volume in volumes):
        raise UsageError(
            f"{len(volumes)} planes as channels of one image: give their folder, or a pattern in quotes, to stack them "
            "along z."
        )
    volume = volumes[0] if len(volumes) == 1 else stack_channels(volumes)
    _print((*assumed_lines(volume), *dropped_lines(volume)), err=True)
    with connected_given(given) as client, progress() as report:
        copy_to_zarr(
            volume,
            output,
            client=client,
            wishes=wishes_given(volume, given),
            overwrite=overwrite,
            resume=resume,
            on_progress=report.run,
            on_workers=report.workers,
        )
    click.echo(output)


@main.command()
@click.argument("path")
@click.option("--data", is_flag=True, help="Read all voxels, and compare the means of the levels.")
@as_json
def check(path: str, data: bool, as_json: bool) -> None:
    """Say whether PATH is a valid OME-Zarr that others will open; exit 1 if it is not."""
    from svision_dask.judging import checking
    from svision_dask.omezarr import conformance

    if not conformance.has_schemas():
        click.echo("note: install svision-dask[check] to judge by the official JSON schemas, too", err=True)
    found = list(checking.check(path, data=data))
    _print_json([asdict(finding) for finding in found]) if as_json else _print(map(str, found))
    errors = sum(finding.severity == "error" for finding in found)
    if errors:
        raise ImageError(f"{path}: {errors} errors. Repair the metadata, or make it anew with svision-dask convert.")
    unread = "" if data else "; only the ends of each level were read, --data reads all and compares their means"
    click.echo(f"{path}: valid, {len(found)} warnings{unread}", err=True)


@main.command()
@click.argument("output")
@click.option("--reopen", is_flag=True, help="If it is damaged, let the command that made it make the damaged anew.")
@clustering
def verify(output: str, reopen: bool, **given: Any) -> None:
    """Prove that OUTPUT, a finished output, is complete and as it was written."""
    from svision_dask.running import verification

    images = verification.images_of(output)
    with connected_given(given) as client, progress() as report:
        found = {
            image: verification.verify(
                image, client=client, on_progress=lambda done, total: report("verify", done, total, "")
            )
            for image in images
        }
    regions = sum(each.regions for each in found.values())
    damaged = {image: each for image, each in found.items() if each.damaged}
    if not damaged:
        click.echo(f"{regions} regions, all as they were written")
        return
    for image, each in damaged.items():
        _print(each.damaged if image == output else (f"{image}: {line}" for line in each.damaged))
    if reopen:
        verification.reopen_damaged(output, found)
    advice = "run the command that made it again" if reopen else "--reopen lets the command that made it repair it"
    count = sum(len(each.damaged) for each in damaged.values())
    raise OutputError(f"{output}: {count} of {regions} regions are damaged; {advice}.")


@main.command()
@click.argument("source", metavar="[INPUT]", required=False)
@click.argument("output", required=False)
@click.option("-m", "--model", "model_path", metavar="MODEL", help="What workers must be able to load.")
@opening
@click.option("--device", type=click.Choice(DEVICES), help="What workers must have.")
@clustering
@as_json
def workers(source: str | None, output: str | None, model_path: str | None, as_json: bool, **given: Any) -> None:
    """Try every worker of a cluster: versions, memory, GPUs, whether it can read INPUT and MODEL and write OUTPUT."""
    from svision_dask.network.model import load_model
    from svision_dask.running.cluster import here_or
    from svision_dask.running.preflight import inspect_workers

    volume = open_given(source, given) if source else None
    if model_path is not None:
        load_model(model_path)  # one that is not even here is an error of another kind
    with connected_given(given) as joined, here_or(joined) as client:
        model = model_for(output, model_path)
        crew = inspect_workers(client, volume=volume, output=output, model=model, device=given["device"])
    _print_json([worker.to_json() for worker in crew.workers]) if as_json else _print(crew_lines(crew))
    problems = list(crew.problems)
    if problems:
        raise ClusterError(f"{len(problems)} problems; the first: {problems[0]}")


@main.command()
@click.argument("folder", default="svision-demo")
@click.option("--seed", default=0, show_default=True, help="Of the simulated volume and of training.")
@replacing
@json_logged
def demo(folder: str, seed: int, overwrite: bool) -> None:
    """Simulate a two-photon volume, train, enhance, and compare with the truth, in about a minute."""
    from svision_dask.simulation.demo import run_demo

    with progress() as report:
        result = run_demo(folder, seed=seed, overwrite=overwrite, on_progress=report)
    click.echo(result.table())
    click.echo(str(result.figure))


def _print(lines: Iterable[str], *, err: bool = False) -> None:
    for line in lines:
        click.echo(line, err=err)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
