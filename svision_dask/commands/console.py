"""What the terminal shows: plans, results and one-line errors; progress is in ``progress``."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from svision_dask.backend import CPU
from svision_dask.commands.signals import SIGNALS, Interrupted, interruptible
from svision_dask.errors import SvisionError
from svision_dask.workload import OFTEN

if TYPE_CHECKING:
    from svision_dask.geometry import Grid
    from svision_dask.omezarr.read import ImageInfo, Level
    from svision_dask.plan import Plan
    from svision_dask.running.outcome import Made
    from svision_dask.running.preflight import Crew
    from svision_dask.volume import Volume

SHOW_TRACEBACK = 2
"""How many -v it takes."""


class Commands(click.Group):
    """A group of commands whose errors are one line, and whose exit codes are those of the documentation."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exit with 1 failed, 2 usage, 3 partial, 130 and 143 interrupted."""
        try:
            with interruptible():
                return super().invoke(ctx)
        except click.exceptions.Exit:  # a RuntimeError, with which --help ends
            raise
        except (SvisionError, OSError, MemoryError, RuntimeError) as error:
            if ctx.params.get("verbose", 0) >= SHOW_TRACEBACK:
                traceback.print_exc()
            _end(str(error) or type(error).__name__, getattr(error, "exit_code", 1))
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else ctx.command_path
            _end(f"{error.format_message()} See {command} --help.", error.exit_code)
        except Interrupted as error:
            number = error.args[0]
            _end(f"{SIGNALS[number]}; the same command goes on with what is unfinished.", 128 + number)


def _end(message: str, exit_code: int) -> NoReturn:
    logging.getLogger("asyncio").disabled = True  # it would name what else zarr was at, as the process ends
    click.echo(f"svision-dask: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(exit_code) from None


def plan_lines(plan: Plan) -> Iterator[str]:
    """Put a plan into words."""
    free = "" if plan.disk_free_bytes is None else f", {size_words(plan.disk_free_bytes)} free"
    yield f"input    {_lengths(plan.coarse.axes, plan.coarse.shape)}"
    yield f"output   {_lengths(plan.fine.axes, plan.fine.shape)}, {plan.dtype}, OME-Zarr {plan.version}"
    yield f"spacing  {_spacing(plan.fine)}"
    most = size_words(plan.write_bytes)
    yield f"stored   {_storage(plan.chunk, plan.shard)}, at most {most} before the pyramid{free}"
    if plan.trust:
        yield "trust    spread over flips and turns, and consistency, which the sizes here include"
    yield f"work     {len(plan.regions)} regions of {_times(plan.region)}, {size_words(plan.read_bytes)} to read"
    if plan.stored is not None and plan.times_read > OFTEN:
        larger = "; larger --shards need fewer" if plan.shard else ""
        yield (
            f"reading  the input {plan.times_read:.1f} times: all chunks ({_times(plan.stored)}) that a region or its "
            f"halo touches{larger}"
        )
    yield (
        f"tiles    {_times(plan.tile)} coarse voxels with a halo of {_times(plan.halo)}, which the operators reach; "
        f"{100 * (plan.redundancy - 1):.0f} % computed twice"
    )
    computing = "" if plan.backend == CPU else f"; {plan.backend.device} in {plan.backend.precision}"
    yield (
        f"workers  {plan.workers} with {plan.threads} threads each, {size_words(plan.worker_bytes)} of "
        f"{size_words(plan.memory_bytes)} memory each{computing}"
    )


def made_lines(made: Made) -> Iterator[str]:
    """Say what of an image is not as one might think."""
    if made.missing_chunks:
        yield f"warning: {made.missing_chunks} chunks of the input are missing, and count as empty"
    if made.empty_regions:
        yield f"empty    {made.empty_regions} regions hold a single value, halo included"
    if made.smaller_tiles:
        yield (
            f"warning: memory ran out in {made.smaller_tiles} regions, which were made in smaller tiles; they agree "
            "with the others to rounding"
        )
    if made.trust is not None:
        yield from (f"trust    {line}" for line in made.trust["words"])


def crew_lines(crew: Crew) -> Iterator[str]:
    """Put the workers of a cluster into words."""
    for worker in crew.workers:
        gpu = f", GPU with {size_words(worker.gpu_bytes)} free" if worker.gpu_bytes else ""
        threads = f"{worker.threads} threads ({worker.torch_threads} of torch)"
        yield f"{worker.host} {worker.address}: {threads}, {size_words(worker.memory_bytes)} to use{gpu}"
        yield from (f"  problem: {problem}" for problem in worker.problems)
    yield ", ".join(f"{name} {version}" for name, version in crew.workers[0].versions.items())
    yield from (f"warning: {warning}" for warning in crew.warnings)


def training_lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """Say what a trained model is worth, as far as can be told without a truth; warn where it is worth nothing."""
    checked = provenance.get("self_check")
    if checked is not None:
        over_cubic = checked["psnr"] - checked["cubic_psnr"]
        over_projected = checked["psnr"] - checked["cubic_bp_psnr"]
        yield (
            f"self-check (input reduced and enhanced again): {over_cubic:+.2f} dB over cubic, {over_projected:+.2f} dB "
            "over cubic with back projection"
        )
    for number, verdict in enumerate(provenance.get("verdict", ()), start=1):
        if verdict["stage"] >= min(verdict["cubic"], verdict["back_projected"]):
            yield (
                f"warning: stage {number} is no better than cubic interpolation with back projection where it was not "
                "trained; another --sample or --seed, or a smaller --factor, may help"
            )


def assumed_lines(volume: Volume) -> Iterator[str]:
    """Say what was taken for granted because the file does not say it."""
    grid = volume.grid
    unknown = [grid.axes[i] for i in grid.spatial if grid.units[i] is None and grid.spacing[i] == 1]
    if unknown:
        yield f"warning: spacing of {','.join(unknown)} is not known; 1 is taken. Use --spacing and --unit (TIFF)"


def dropped_lines(volume: Volume) -> Iterator[str]:
    """Name what an output will not have of its input."""
    if volume.dropped:
        yield f"dropped  {', '.join(volume.dropped)}"


def image_lines(volume: Volume, info: ImageInfo | None) -> Iterator[str]:
    """Put a volume into words, and all levels if it is an OME-Zarr."""
    yield f"name     {volume.name}"
    yield f"shape    {_lengths(volume.grid.axes, volume.grid.shape)}, {volume.dtype.name}"
    yield f"spacing  {_spacing(volume.grid)}"
    if volume.labels:
        yield f"labels   {', '.join(label.name for label in volume.labels)}"
    yield from dropped_lines(volume)
    if volume.channels:
        yield f"channels {', '.join(volume.channels)}"
    if info is not None:
        stored = "" if info.axes == volume.grid.axes else f", stored in the order {','.join(info.axes)}"
        yield f"format   OME-Zarr {info.version}{stored}"
        for number, level in enumerate(info.levels):
            stored = ", ".join((_storage(level.chunks, level.shards), *level.compressors))
            yield f"level {number}  {_times(level.grid.shape)}, spacing {_spacing(level.grid)}, {stored}"


def image_facts(volume: Volume, info: ImageInfo | None) -> dict[str, Any]:
    """Put a volume into plain values, and all levels if it is an OME-Zarr."""
    facts: dict[str, Any] = {
        "name": volume.name,
        "axes": volume.grid.axes,
        "dtype": volume.dtype.name,
        "units": list(volume.grid.units),
        "channels": list(volume.channels),
        "labels": [label.name for label in volume.labels],
        "dropped": list(volume.dropped),
        **_grid_facts(volume.grid),
    }
    if info is not None:
        facts |= {
            "version": info.version,
            "stored_axes": info.axes,
            "levels": [_level_facts(level) for level in info.levels],
        }
    return facts


def _level_facts(level: Level) -> dict[str, Any]:
    return {
        "path": level.path,
        "dtype": level.dtype,
        "chunks": list(level.chunks),
        "shards": list(level.shards) if level.shards else None,
        "compressors": list(level.compressors),
        **_grid_facts(level.grid),
    }


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "spacing": list(grid.spacing), "origin": list(grid.origin)}


def size_words(count: float) -> str:
    """Put bytes into words as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _times(numbers: Sequence[int]) -> str:
    return "×".join(str(n) for n in numbers)


def _lengths(axes: str, shape: Sequence[int]) -> str:
    return f"{','.join(axes)} = {_times(shape)}"


def _storage(chunks: Sequence[int], shards: Sequence[int] | None) -> str:
    return f"chunks {_times(chunks)}" + (f" in shards {_times(shards)}" if shards else "")


def _spacing(grid: Grid) -> str:
    axes = [(grid.axes[i], grid.spacing[i], grid.units[i]) for i in grid.spatial]
    if not any(unit for *_, unit in axes):
        return ", ".join(f"{axis} {length:g}" for axis, length, _ in axes) + " without a unit"
    return ", ".join(f"{axis} {length:g} {unit or 'without a unit'}" for axis, length, unit in axes)
