"""The options of the command line, in groups that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from svision_dask.backend import DEVICES, PRECISIONS
from svision_dask.degradation import DEGRADES, NOISE_MODELS
from svision_dask.network.architecture import PRESETS
from svision_dask.wishes import PYRAMIDS, VERSIONS

Command = TypeVar("Command", bound=Callable[..., Any])


def _options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Apply several options, in the order in which help shall list them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


describing = _options(
    click.option("--level", default=0, show_default=True, help="Level of an OME-Zarr to read; 0 is the finest."),
    click.option("--series", help="Which of several images (TIFF, bioformats2raw, plate): its number or name."),
    click.option("--axes", help="Axes of a TIFF that does not say, such as zyx or czyx."),
    click.option("--spacing", help="Voxel spacing of a TIFF that does not say: 0.5, 2,0.5,0.5 or z=2,y=0.5,x=0.5."),
    click.option("--unit", help="Unit of the spacing, such as micrometer."),
    click.option(
        "--missing",
        type=click.Choice(["error", "empty"]),
        default="error",
        show_default=True,
        help="What it means that a chunk of an OME-Zarr is not there.",
    ),
)
choosing = _options(
    click.option("--channel", help="Channels to read, by number from 0 or by name: DAPI, or 0,2."),
    click.option("--time", help="Time points to read, a number from 0 or start:stop."),
)
picking = _options(
    click.option("--channel", help="Which one of BEFORE, by number from 0 or by name; by default, the first of AFTER."),
    click.option("--time", type=int, help="Which time point of BEFORE, from 0; by default, the first of AFTER."),
)


def opening(command: Command) -> Command:
    """Let a command open an image, or some channels and time points of it."""
    return describing(choosing(command))


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
    click.option("--codec", help="blosc (default), zstd (default of 0.4) or gzip, each with :LEVEL; or none."),
    click.option(
        "--pyramid",
        type=click.Choice(PYRAMIDS),
        default="isotropic",
        show_default=True,
        help="Which axes coarser levels halve; xy for viewers that want all planes, match for steps as INPUT has.",
    ),
    click.option("--ome-zarr-version", "version", type=click.Choice(VERSIONS), default="0.5", show_default=True),
)
running = _options(
    click.option("--tile", help="Coarse voxels per forward pass; by default, what memory allows."),
    click.option("--dtype", type=click.Choice(["same", "float32"]), default="same", show_default=True),
    click.option(
        "--trust",
        is_flag=True,
        help="Also write maps of how far to trust each place; takes about 9 times as long, 3 times with preset paper.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Worker processes; by default, what fits the machine."),
    click.option("--memory", help="What each worker may use, such as 4GB; by default, its share of what is free."),
    click.option("--device", type=click.Choice(DEVICES), help="What computes; by default GPUs, where there are any."),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Of the network's convolutions; by default bfloat16, where all that compute have instructions for it.",
    ),
)
clustering = _options(
    click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster to use, such as tls://host:8786."),
    click.option("--scheduler-file", metavar="FILE", help="What dask scheduler --scheduler-file wrote."),
    click.option("--tls-ca", metavar="FILE", help="Certificate of who signed the others; all three encrypt."),
    click.option("--tls-cert", metavar="FILE", help="Our certificate."),
    click.option("--tls-key", metavar="FILE", help="Its key."),
    click.option(
        "--slurm",
        metavar="OPTIONS",
        help="Let SLURM start workers: jobs=1:8,cores=16,memory=64GB,time=4:00:00,gpus=1.",
    ),
    click.option("--gpus", metavar="NUMBERS", help="GPUs of this machine to use, a worker for each, such as 0,1."),
    click.option("--dashboard", is_flag=True, help="Serve Dask's dashboard, on this machine only; needs bokeh."),
)
reading = click.argument("source", metavar="INPUT")
trained = click.option(
    "-m",
    "--model",
    "model_path",
    metavar="MODEL",
    help="Trained model; by default, one is made. A path, or URL#sha256=HASH.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
replacing = click.option("--overwrite", is_flag=True, help="Replace an OME-Zarr image that is in the way.")
resuming = click.option("--resume", is_flag=True, help="Insist on an unfinished OUTPUT, which is gone on with anyway.")
