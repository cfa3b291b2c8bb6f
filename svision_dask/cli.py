"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from svision_dask.architecture import Architecture
from svision_dask.arguments import parse_box, parse_lengths, parse_numbers, parse_size, parse_tolerance
from svision_dask.console import Commands, Update, image_facts, image_lines, plan_lines, progress, training_lines
from svision_dask.errors import OutputError, UsageError
from svision_dask.options import as_json, learning, opening, reading, replacing, resuming, running, storing, trained
from svision_dask.plan import Plan, Wishes

if TYPE_CHECKING:
    from svision_dask.image import RunProgress
    from svision_dask.model import Model
    from svision_dask.training import Progress
    from svision_dask.volume import Volume

Given = dict[str, Any]
"""What was given for the options of a command, by name."""
LEARNING = ("factor", "axial", "preset", "sample", "degrade", "psf", "noise", "seed", "steps", "halo")
"""Options that a trained model has settled already."""
KERNELS = (".tif", ".tiff", ".npy", ".mat")
"""Files that a measured PSF may come in."""


@click.group(name="svision", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="svision-dask")
@click.option("-v", "--verbose", count=True, help="-vv shows where an error came from.")
def main(verbose: int) -> None:
    """Enhance the resolution of microscope volumes of any size, by self-supervision."""


@main.command()
@reading
@opening
@as_json
def info(source: str, as_json: bool, **given: Any) -> None:
    """Say what INPUT is: axes, spacing, chunks, shards, levels."""
    from svision_dask.omezarr import describe_omezarr

    volume = _open(source, given)
    described = describe_omezarr(source) if Path(source).is_dir() else None
    _print_json(image_facts(volume, described)) if as_json else _print(image_lines(volume, described))


@main.command()
@reading
@click.option("-o", "--output", required=True, metavar="MODEL", help="File to write, such as model.safetensors.")
@opening
@learning
def train(source: str, output: str, **given: Any) -> None:
    """Train a model on a sample of INPUT."""
    from svision_dask.output import check_new_file

    volume = _open(source, given)
    check_new_file(output)
    click.echo(str(_train(volume, given).save(output)))


@main.command()
@reading
@click.argument("output")
@trained
@click.option("--renormalise", is_flag=True, help="Measure the intensity constants of MODEL anew, on INPUT.")
@opening
@learning
@running
@storing
@replacing
@resuming
@click.option("--empty-below", type=float, help="Take regions for zeros in which every voxel is below this intensity.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
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
    from svision_dask.drift import DriftWarning
    from svision_dask.model import load_model
    from svision_dask.output import check_output
    from svision_dask.pipeline import enhance_to_zarr

    if renormalise and not model_path:
        raise UsageError("--renormalise: a model trained on INPUT has its constants. Leave it out, or give -m.")
    volume = _open(source, given)
    check_output(output, source, overwrite=overwrite, resume=resume)
    begun = None if overwrite or model_path else _model_begun_with(output, given)
    planned = _plan(volume, model_path, output, given, begun=begun, overwrite=overwrite)
    _print(plan_lines(planned), err=not dry_run)
    if dry_run:
        return
    if begun:
        click.echo(f"resume   with {begun}", err=True)
        model_path, model = begun, load_model(begun)
        _tell_drift(model, volume, "is it the input that this was begun with?")
    elif model_path:
        model = _given_model(model_path, volume, renormalise=renormalise)
        _tell_drift(model, volume, "train on this volume, or try --renormalise")
    else:
        model = _train(volume, given)
        _tell_drift(model, volume, "another --sample may be more typical")
    kept = model if renormalise or not model_path else model_path
    with progress() as update, warnings.catch_warnings():
        warnings.simplefilter("ignore", DriftWarning)  # said already
        report = enhance_to_zarr(
            volume,
            output,
            model=kept,
            plan=planned,
            empty_below=given["empty_below"],
            overwrite=overwrite,
            resume=resume,
            on_progress=_run_shower(update),
        )
    click.echo(f"model    {report.model_path}", err=True)
    click.echo(report.output)


@main.command()
@reading
@click.argument("output", required=False)
@trained
@opening
@learning
@running
@storing
@as_json
def plan(source: str, output: str | None, model_path: str | None, as_json: bool, **given: Any) -> None:
    """Say how INPUT would be enhanced, what that takes, and whether it fits; nothing is made."""
    planned = _plan(_open(source, given), model_path, output, given)
    _print_json(planned.to_json()) if as_json else _print(plan_lines(planned))


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="TIFF...")
@click.argument("output")
@opening
@storing
@replacing
@resuming
def convert(sources: tuple[str, ...], output: str, overwrite: bool, resume: bool, **given: Any) -> None:
    """Convert images to the OME-Zarr OUTPUT; several become the channels of one."""
    from svision_dask.formats import stack_channels
    from svision_dask.output import check_output
    from svision_dask.pipeline import copy_to_zarr

    volumes = [_open(source, given) for source in sources]
    for source in sources:
        check_output(output, source, overwrite=overwrite, resume=resume)
    volume = volumes[0] if len(volumes) == 1 else stack_channels(volumes)
    with progress() as update:
        copy_to_zarr(
            volume,
            output,
            wishes=_wishes(volume, given),
            overwrite=overwrite,
            resume=resume,
            on_progress=_run_shower(update),
        )
    click.echo(output)


@main.command()
@click.argument("output")
@click.option("--reopen", is_flag=True, help="If it is damaged, let the command that made it make the damaged anew.")
def verify(output: str, reopen: bool) -> None:
    """Prove that OUTPUT, a finished output, is complete and as it was written."""
    from svision_dask import verification

    with progress() as update:
        found = verification.verify(output, on_progress=lambda done, total: update("verify", done, total, ""))
    if not found.damaged:
        click.echo(f"{found.regions} regions, all as they were written")
        return
    _print(found.damaged)
    if reopen:
        verification.reopen(output, found)
    advice = "run the command that made it again" if reopen else "--reopen lets the command that made it repair it"
    raise OutputError(f"{output}: {len(found.damaged)} of {found.regions} regions are damaged; {advice}.")


@main.command()
@click.argument("folder", default="svision-demo")
@click.option("--seed", default=0, show_default=True, help="Of the simulated volume and of training.")
@replacing
def demo(folder: str, seed: int, overwrite: bool) -> None:
    """Simulate a two-photon volume, train, enhance, and compare with the truth, in about a minute."""
    from svision_dask.demo import run_demo

    with progress() as update:
        result = run_demo(Path(folder), seed=seed, overwrite=overwrite, on_progress=update)
    click.echo(result.table())
    click.echo(str(result.figure))


def _print(lines: Iterable[str], *, err: bool = False) -> None:
    click.echo("\n".join(lines), err=err)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _open(source: str, given: Given) -> Volume:
    from svision_dask.formats import open_volume

    spacing = parse_numbers(given["spacing"], option="--spacing") if given["spacing"] is not None else None
    return open_volume(
        source,
        level=given["level"],
        axes=given["axes"],
        spacing=spacing,
        unit=given["unit"],
        missing=given["missing"],
    )


def _plan(
    volume: Volume,
    model_path: str | None,
    output: str | None,
    given: Given,
    *,
    begun: str | None = None,
    overwrite: bool = False,
) -> Plan:
    from svision_dask.image import as_recorded
    from svision_dask.pipeline import plan_volume

    if model_path:
        _check_idle(model_path)
    path = model_path or begun
    design = _design_of(path, volume) if path else _design(volume, given)
    wishes = _wishes(volume, given)
    if output and not overwrite:
        wishes = as_recorded(output, wishes)
    return plan_volume(volume, design, output=output, dtype=given["dtype"], wishes=wishes)


def _check_idle(model_path: str) -> None:
    source_of = click.get_current_context().get_parameter_source
    idle = [f"--{name}" for name in LEARNING if source_of(name) is not ParameterSource.DEFAULT]
    if idle:
        raise UsageError(f"{', '.join(idle)}: settled by the model {model_path}. Leave out -m, or these.")


def _design_of(model_path: str, volume: Volume) -> Architecture:
    from svision_dask.enhancement import check_model
    from svision_dask.model import load_model

    model = load_model(model_path)
    check_model(model, volume)
    return model.architecture


def _model_begun_with(output: str, given: Given) -> str | None:
    """Find the model of an unfinished output that was trained for it with the same options."""
    from svision_dask.ledger import first_difference
    from svision_dask.model import load_model
    from svision_dask.output import begun_record
    from svision_dask.pipeline import model_path_beside

    record = begun_record(output)
    if record is None or not record.get("model"):
        return None
    path = model_path_beside(output, str(record["model"]))
    if not path.exists():
        raise OutputError(f"{output} is unfinished, and its model {path} is gone. Use --overwrite to begin anew.")
    difference = first_difference(_asked(given), load_model(path).provenance.get("asked") or {})
    if difference:
        raise OutputError(f"{output} is unfinished, and its {difference}. Use --overwrite to begin anew.")
    return str(path)


def _asked(given: Given) -> Given:
    """Take what was asked of training, as it was given."""
    return {name: given[name] for name in LEARNING}


def _given_model(path: str, volume: Volume, *, renormalise: bool) -> Model:
    """Use a trained model as it is, or with the constants of ``volume``."""
    from svision_dask.drift import renormalised
    from svision_dask.model import load_model

    model = load_model(path)
    return renormalised(model, volume) if renormalise else model


def _tell_drift(model: Model, volume: Volume, hint: str) -> None:
    from svision_dask.drift import drift

    for difference in drift(model, volume):
        click.echo(f"warning: {difference}; {hint}", err=True)


def _design(volume: Volume, given: Given) -> Architecture:
    from svision_dask.geometry import parse_factor
    from svision_dask.psf import degradation_of, find_psf
    from svision_dask.training import design_for

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


def _wishes(volume: Volume, given: Given) -> Wishes:
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
    )


def _train(volume: Volume, given: Given) -> Model:
    from svision_dask import training

    sample = parse_box(given["sample"], volume.grid.axes, option="--sample") if given["sample"] is not None else None
    with progress() as update:

        def show(state: Progress) -> None:
            what = "train" if state.stages == 1 else f"train stage {state.stage + 1} of {state.stages}"
            update(what, state.step, state.steps, f"loss {state.loss:.4f}")

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
            on_step=show,
        )
    for line in training_lines(model.provenance):
        click.echo(line, err=True)
    return replace(model, provenance={**model.provenance, "asked": _asked(given)})


def _run_shower(update: Update) -> Callable[[RunProgress], None]:
    def show(state: RunProgress) -> None:
        what = "write" if state.level == 0 else f"level {state.level}"
        rate = state.voxels / max(state.seconds, 1e-3) / 1e6
        update(what, state.done, state.regions, f"{rate:.1f} M voxels/s")

    return show
