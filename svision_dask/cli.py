"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from svision_dask.architecture import PRESETS, Architecture
from svision_dask.arguments import parse_box, parse_lengths, parse_numbers, parse_size, parse_tolerance
from svision_dask.console import Commands, Update, image_facts, image_lines, plan_lines, progress, training_lines
from svision_dask.degradation import DEGRADES, NOISE_MODELS
from svision_dask.errors import UsageError
from svision_dask.plan import VERSIONS, Plan, Wishes

if TYPE_CHECKING:
    from svision_dask.model import Model
    from svision_dask.pipeline import RunProgress
    from svision_dask.training import Progress
    from svision_dask.volume import Volume

Command = TypeVar("Command", bound=Callable[..., Any])
Given = dict[str, Any]
"""What was given for the options of a command, by name."""
LEARNING = ("factor", "axial", "preset", "sample", "degrade", "psf", "noise", "seed", "steps", "halo")
"""Options that a trained model has settled already."""
KERNELS = (".tif", ".tiff", ".npy", ".mat")
"""Files that a measured PSF may come in."""


def _options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Apply several options, in the order in which help shall list them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


opening = _options(
    click.option("--level", default=0, show_default=True, help="Level of an OME-Zarr to read; 0 is the finest."),
    click.option("--axes", help="Axes of a TIFF that does not say, such as zyx or czyx."),
    click.option("--spacing", help="Voxel spacing of a TIFF that does not say: 0.5, 2,0.5,0.5 or z=2,y=0.5,x=0.5."),
    click.option("--unit", help="Unit of the spacing, such as micrometer."),
)
learning = _options(
    click.option(
        "--factor", default="2", show_default=True, help="How many times finer, 1, 2 or 4: 2, 1,2,2 or z=1,y=2,x=2."
    ),
    click.option("--axial", is_flag=True, help="Refine z only, by what the sharper lateral planes teach."),
    click.option(
        "--preset",
        type=click.Choice(PRESETS),
        default="fast",
        show_default=True,
        help="best takes minutes to train; paper is the published form.",
    ),
    click.option(
        "--degrade",
        type=click.Choice(DEGRADES),
        default="cubic",
        show_default=True,
        help="How the microscope got coarse voxels: box is camera binning, point skipped positions; psf undoes --psf.",
    ),
    click.option(
        "--psf",
        default="auto",
        show_default=True,
        help="Width (FWHM) of the PSF in units of the spacing: 0.5 or z=2,y=0.5,x=0.5; or a .tif, .npy or .mat of it.",
    ),
    click.option(
        "--noise",
        type=click.Choice(NOISE_MODELS),
        default="auto",
        show_default=True,
        help="Noise of the detector: measured on the sample and matched in training, or taken for none.",
    ),
    click.option("--sample", help="Sub-volume to learn from, start:stop per axis; chosen by default."),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of everything random."
    ),
    click.option("--steps", type=click.IntRange(1), help="Training steps per stage, instead of the preset's."),
    click.option(
        "--halo",
        default="1e-4",
        show_default=True,
        help="Where back projection is cut, as a share of the range, or exact.",
    ),
)
storing = _options(
    click.option("--chunks", help="Output voxels per chunk."),
    click.option("--shards", help="Output voxels per shard; whole chunks."),
    click.option("--ome-zarr-version", "version", type=click.Choice(VERSIONS), default="0.5", show_default=True),
)
running = _options(
    click.option("--tile", help="Coarse voxels per forward pass; by default, what memory allows."),
    click.option("--dtype", type=click.Choice(["same", "float32"]), default="same", show_default=True),
    click.option("--workers", type=click.IntRange(1), help="Worker processes; by default, what fits the machine."),
    click.option("--memory", help="What each worker may use, such as 4GB; by default, its share of what is free."),
)
reading = click.argument("source", metavar="INPUT")
trained = click.option("-m", "--model", "model_path", metavar="MODEL", help="Trained model; by default, one is made.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
replacing = click.option("--overwrite", is_flag=True, help="Replace an OME-Zarr image that is in the way.")


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
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def enhance(
    source: str, output: str, model_path: str | None, renormalise: bool, overwrite: bool, dry_run: bool, **given: Any
) -> None:
    """Enhance INPUT into the OME-Zarr OUTPUT; a model that is trained for it is kept beside it."""
    from svision_dask.drift import DriftWarning
    from svision_dask.output import check_output
    from svision_dask.pipeline import enhance_to_zarr

    if renormalise and not model_path:
        raise UsageError("--renormalise: a model trained on INPUT has its constants. Leave it out, or give -m.")
    volume = _open(source, given)
    check_output(output, source, overwrite=overwrite)
    planned = _plan(volume, model_path, output, given)
    _print(plan_lines(planned), err=not dry_run)
    if dry_run:
        return
    if model_path:
        model = _given_model(model_path, volume, renormalise=renormalise)
        _tell_drift(model, volume, "train on this volume, or try --renormalise")
    else:
        model = _train(volume, given)
        _tell_drift(model, volume, "another --sample may be more typical")
    kept = model if renormalise or not model_path else model_path
    with progress() as update, warnings.catch_warnings():
        warnings.simplefilter("ignore", DriftWarning)  # said already
        report = enhance_to_zarr(
            volume, output, model=kept, plan=planned, overwrite=overwrite, on_progress=_run_shower(update)
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
def convert(sources: tuple[str, ...], output: str, overwrite: bool, **given: Any) -> None:
    """Convert images to the OME-Zarr OUTPUT; several become the channels of one."""
    from svision_dask.formats import stack_channels
    from svision_dask.output import check_output
    from svision_dask.pipeline import copy_to_zarr

    volumes = [_open(source, given) for source in sources]
    for source in sources:
        check_output(output, source, overwrite=overwrite)
    volume = volumes[0] if len(volumes) == 1 else stack_channels(volumes)
    with progress() as update:
        copy_to_zarr(
            volume, output, wishes=_wishes(volume, given), overwrite=overwrite, on_progress=_run_shower(update)
        )
    click.echo(output)


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
    return open_volume(source, level=given["level"], axes=given["axes"], spacing=spacing, unit=given["unit"])


def _plan(volume: Volume, model_path: str | None, output: str | None, given: Given) -> Plan:
    from svision_dask.pipeline import plan_volume

    design = _design_of(model_path, volume) if model_path else _design(volume, given)
    return plan_volume(volume, design, output=output, dtype=given["dtype"], wishes=_wishes(volume, given))


def _design_of(model_path: str, volume: Volume) -> Architecture:
    from svision_dask.enhancement import check_model
    from svision_dask.model import load_model

    source_of = click.get_current_context().get_parameter_source
    idle = [f"--{name}" for name in LEARNING if source_of(name) is not ParameterSource.DEFAULT]
    if idle:
        raise UsageError(f"{', '.join(idle)}: settled by the model {model_path}. Leave out -m, or these.")
    model = load_model(model_path)
    check_model(model, volume)
    return model.architecture


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
    return model


def _run_shower(update: Update) -> Callable[[RunProgress], None]:
    def show(state: RunProgress) -> None:
        what = "write" if state.level == 0 else f"level {state.level}"
        rate = state.voxels / max(state.seconds, 1e-3) / 1e6
        update(what, state.done, state.regions, f"{rate:.1f} M voxels/s")

    return show
