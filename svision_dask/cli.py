"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from svision_dask.arguments import parse_box, parse_bytes, parse_lengths, parse_numbers, parse_tolerance
from svision_dask.console import Commands, Update, image_facts, plan_lines, progress, volume_facts

if TYPE_CHECKING:
    from svision_dask.architecture import Architecture
    from svision_dask.model import Model
    from svision_dask.pipeline import RunProgress
    from svision_dask.plan import Plan, Wishes
    from svision_dask.training import Progress
    from svision_dask.volume import Volume

Command = TypeVar("Command", bound=Callable[..., Any])
INPUT = click.argument("source", metavar="INPUT")


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
    click.option("--factor", default="2", show_default=True, help="How many times finer: 1, 2 or 4; 2, 1,2,2 or z=1,y=2,x=2."),
    click.option("--preset", default="fast", show_default=True, help="fast, or paper for the published form."),
    click.option("--sample", help="Sub-volume to learn from, start:stop per axis; chosen by default."),
    click.option("--seed", default=0, show_default=True, help="Of everything random."),
    click.option("--steps", type=click.IntRange(1), help="Training steps per stage, instead of the preset's."),
    click.option("--halo", default="1e-4", show_default=True, help="Share of the range at which back projection is cut, or exact."),
)
storing = _options(
    click.option("--chunks", help="Output voxels per chunk."),
    click.option("--shards", help="Output voxels per shard; whole chunks."),
    click.option("--ome-zarr-version", "version", type=click.Choice(["0.4", "0.5"]), default="0.5", show_default=True),
)
running = _options(
    click.option("--tile", help="Coarse voxels per forward pass; by default, what memory allows."),
    click.option("--dtype", type=click.Choice(["same", "float32"]), default="same", show_default=True),
    click.option("--workers", type=click.IntRange(1), help="Worker processes; by default, what fits the machine."),
    click.option("--memory", help="What each worker may use, such as 4GB; by default, its share of what is free."),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
replacing = click.option("--overwrite", is_flag=True, help="Replace an OME-Zarr that is in the way.")


@click.group(name="svision", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="svision-dask")
@click.option("-v", "--verbose", count=True, help="-vv shows where an error came from.")
def main(verbose: int) -> None:
    """Enhance the resolution of microscope volumes of any size, by self-supervision."""


@main.command()
@INPUT
@opening
@as_json
def info(source: str, as_json: bool, **how: Any) -> None:
    """Say what INPUT is: axes, spacing, chunks, shards, levels."""
    volume = _open(source, **how)
    facts = volume_facts(volume)
    if Path(source).is_dir():
        from svision_dask.omezarr import describe_omezarr

        described = describe_omezarr(source)
        facts |= {"version": described.version, "levels": image_facts(described)}
    click.echo(json.dumps(facts, indent=2) if as_json else _facts_text(facts))


@main.command()
@INPUT
@click.option("-o", "--output", required=True, help="Model file to write, such as model.safetensors.")
@opening
@learning
def train(source: str, output: str, **how: Any) -> None:
    """Train a model on a sample of INPUT."""
    from svision_dask.errors import OutputError

    if Path(output).exists():
        raise OutputError(f"{output}: exists; a model file is never replaced. Choose another name.")
    if not Path(output).absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no folder {Path(output).parent}. Make it first.")
    volume = _open(source, **_pick(how, "level", "axes", "spacing", "unit"))
    _design(volume, how)
    click.echo(str(_train(volume, how).save(output)))


@main.command()
@INPUT
@click.argument("output")
@click.option("-m", "--model", "model_path", help="Trained model; without it, one is trained first and kept beside OUTPUT.")
@opening
@learning
@running
@storing
@replacing
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def enhance(source: str, output: str, model_path: str | None, overwrite: bool, dry_run: bool, **how: Any) -> None:
    """Enhance INPUT into the OME-Zarr OUTPUT."""
    from svision_dask.output import check_output
    from svision_dask.pipeline import enhance_to_zarr

    volume = _open(source, **_pick(how, "level", "axes", "spacing", "unit"))
    check_output(output, source, overwrite=overwrite)
    planned = _plan(volume, model_path, output, how)
    for line in plan_lines(planned):
        click.echo(line, err=not dry_run)
    if dry_run:
        return
    model = model_path or _train(volume, how)
    with progress() as update:
        report = enhance_to_zarr(
            volume, output, model=model, plan=planned, overwrite=overwrite, on_progress=_run_shower(update)
        )
    click.echo(f"model    {report.model_path}", err=True)
    click.echo(report.output)


@main.command()
@INPUT
@click.argument("output", required=False)
@click.option("-m", "--model", "model_path", help="Trained model; without it, that of the preset.")
@opening
@learning
@running
@storing
@as_json
def plan(source: str, output: str | None, model_path: str | None, as_json: bool, **how: Any) -> None:
    """Say how INPUT would be enhanced, what that takes, and whether it fits; nothing is made."""
    volume = _open(source, **_pick(how, "level", "axes", "spacing", "unit"))
    planned = _plan(volume, model_path, output, how)
    if as_json:
        click.echo(json.dumps(planned.to_json(), indent=2))
    else:
        click.echo("\n".join(plan_lines(planned)))


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="TIFF...")
@click.argument("output")
@opening
@storing
@replacing
def convert(sources: tuple[str, ...], output: str, overwrite: bool, **how: Any) -> None:
    """Convert images to the OME-Zarr OUTPUT; several become the channels of one."""
    from svision_dask.formats import stack_channels
    from svision_dask.output import check_output
    from svision_dask.pipeline import copy_to_zarr

    volumes = [_open(source, **_pick(how, "level", "axes", "spacing", "unit")) for source in sources]
    for source in sources:
        check_output(output, source, overwrite=overwrite)
    volume = volumes[0] if len(volumes) == 1 else stack_channels(volumes)
    with progress() as update:
        copy_to_zarr(
            volume, output, wishes=_wishes(volume, how), overwrite=overwrite, on_progress=_run_shower(update)
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


def _open(source: str, *, level: int, axes: str | None, spacing: str | None, unit: str | None) -> Volume:
    from svision_dask.formats import open_volume

    given = parse_numbers(spacing, option="--spacing") if spacing else None
    return open_volume(source, level=level, axes=axes, spacing=given, unit=unit)


def _design(volume: Volume, how: dict[str, Any]) -> Architecture:
    from svision_dask.geometry import parse_factor
    from svision_dask.training import design_for

    factor = parse_factor(_factor(how), volume.grid.axes)
    return design_for(volume.grid.axes, factor, preset=how["preset"], tolerance=parse_tolerance(how["halo"]))


def _factor(how: dict[str, Any]) -> Any:
    return parse_numbers(how["factor"], option="--factor")


def _plan(volume: Volume, model_path: str | None, output: str | None, how: dict[str, Any]) -> Plan:
    from svision_dask.enhancement import check_model
    from svision_dask.model import load_model
    from svision_dask.pipeline import plan_volume

    if model_path:
        model = load_model(model_path)
        check_model(model, volume)
        design = model.architecture
    else:
        design = _design(volume, how)
    return plan_volume(volume, design, output=output, dtype=how["dtype"], wishes=_wishes(volume, how))


def _wishes(volume: Volume, how: dict[str, Any]) -> Wishes:
    from svision_dask.plan import Wishes

    def lengths(name: str) -> dict[str, int] | None:
        text = how.get(name)
        return parse_lengths(text, volume.grid.axes, option=f"--{name}") if text else None

    memory = how.get("memory")
    return Wishes(
        tile=lengths("tile"),
        chunk=lengths("chunks"),
        shard=lengths("shards"),
        workers=how.get("workers"),
        worker_memory_bytes=parse_bytes(memory, option="--memory") if memory else None,
        version=how["version"],
    )


def _train(volume: Volume, how: dict[str, Any]) -> Model:
    from svision_dask import training

    with progress() as update:

        def show(state: Progress) -> None:
            what = "train" if state.stages == 1 else f"train stage {state.stage + 1} of {state.stages}"
            update(what, state.step, state.steps, f"loss {state.loss:.4f}")

        return training.train(
            volume,
            factor=_factor(how),
            preset=how["preset"],
            sample=parse_box(how["sample"], volume.grid.axes) if how["sample"] else None,
            seed=how["seed"],
            steps=how["steps"],
            tolerance=parse_tolerance(how["halo"]),
            on_step=show,
        )


def _run_shower(update: Update) -> Callable[[RunProgress], None]:
    def show(state: RunProgress) -> None:
        what = "write" if state.level == 0 else f"level {state.level}"
        rate = state.voxels / max(state.seconds, 1e-3) / 1e6
        update(what, state.done, state.regions, f"{rate:.1f} M voxels/s")

    return show


def _facts_text(facts: dict[str, Any]) -> str:
    lines = [f"{key:9}{value}" for key, value in facts.items() if key != "levels"]
    lines += [f"level {level.pop('path'):3}{level}" for level in (dict(item) for item in facts.get("levels", []))]
    return "\n".join(lines)


def _pick(how: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: how[name] for name in names}
