"""Prove later, and wherever it was copied, that an output is complete and unharmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from svision_dask.errors import OutputError
from svision_dask.geometry import Regions
from svision_dask.omezarr.checksums import read_checksums
from svision_dask.omezarr.collections import read_collection
from svision_dask.omezarr.labels import read_labels
from svision_dask.omezarr.read import is_omezarr, list_levels, open_omezarr, read_provenance
from svision_dask.omezarr.write import unpublish
from svision_dask.running.cluster import here_or
from svision_dask.running.ledger import UNDONE, Receipt, claim
from svision_dask.running.regions import VerifyTask
from svision_dask.running.scheduling import run_regions
from svision_dask.running.trust_images import FOLDER, map_place
from svision_dask.running.trust_maps import MAPS
from svision_dask.stores.locations import Location, located

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What became of an output."""

    regions: int
    """Of all levels."""
    intact: tuple[Receipt, ...]
    """Of each region that is as it was written."""
    damaged: tuple[str, ...]
    """Level and first voxel of each region that is not what was written, in words."""


def verify(
    output: str | Location, *, client: Client | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read every region of an output, and compare it with the checksum that was taken when it was written.

    Parameters
    ----------
    output
        A finished output of svision-dask.
    client
        Of a cluster whose workers see ``output``; by default, worker processes are started on this machine.
    on_progress
        Called after each region with how many were read, and how many there are.

    Returns
    -------
    Verification
        How many regions there are, and which are damaged.

    Raises
    ------
    ImageError
        If it is no image, or unfinished.
    OutputError
        If it was not made by svision-dask, or has no checksums.
    RegionError
        If a disk or a server does not give what is there: nobody knows then whether it is damaged.
    """
    path = located(output).absolute()
    levels = list_levels(path)
    if not read_provenance(path):
        raise OutputError(f"{output} was not made by svision-dask, so nobody knows what it should hold.")
    checksums, cuts = [], []
    for number, level in enumerate(levels):
        known, unit = read_checksums(path, number)
        cuts.append(Regions(shape=level.grid.shape, unit=unit))
        if known.shape != cuts[-1].counts:
            raise OutputError(f"{output}: checksums of level {number} are for {known.shape} regions of another image.")
        checksums.append(known.ravel())
    total, seen = sum(len(regions) for regions in cuts), 0
    intact, damaged = [], []

    def on_receipt(receipt: Receipt) -> None:
        nonlocal seen
        seen += 1
        if receipt.crc32 == checksums[receipt.level][receipt.index]:
            intact.append(receipt)
        else:
            why = "cannot be read" if receipt.crc32 == UNDONE else "holds other voxels than were written"
            damaged.append(f"level {receipt.level}, region at {receipt.start}: {why}")
        if on_progress is not None:
            on_progress(seen, total)

    with here_or(client) as cluster:
        for number, regions in enumerate(cuts):
            task = VerifyTask(volume=open_omezarr(path, level=number), level=number)
            run_regions(cluster, task, regions, on_receipt=on_receipt, after=_UNKNOWN)
    assert seen == total, (seen, total)
    return Verification(regions=total, intact=tuple(intact), damaged=tuple(damaged))


_UNKNOWN = "Whether it is damaged is not known. Verify it where it can be read."


def images_of(output: str | Location) -> list[str]:
    """List all images of an output: itself, or the fields of a plate or well, each with its labels and trust maps.

    Raises
    ------
    ImageError
        If it is no OME-Zarr, or unfinished.
    """
    place = located(output)
    collection = read_collection(place)
    images = [place / image for image in collection.images] if collection is not None else [place]
    return [str(each) for image in images for each in (image, *_labels_of(image), *_maps_of(image))]


def _maps_of(image: Location) -> list[Location]:
    """List the trust maps that an image was made with."""
    plan = read_provenance(image).get("plan")
    maps = [map_place(image, kind) for kind in MAPS if isinstance(plan, dict) and plan.get("trust") is True]
    for place in maps:
        if not is_omezarr(place):
            raise OutputError(f"{image}: its trust map {place.name!r} is lost. Make the output anew.")
    return maps


def _labels_of(image: Location) -> list[Location]:
    labels, dropped = read_labels(image, open_omezarr(image), "error")
    if dropped:
        raise OutputError(f"{image}: {dropped[0]}. Make the output anew.")
    made, found = read_provenance(image).get("labels"), {label.name for label in labels}
    for name in made if isinstance(made, list) else ():
        if name not in found:
            raise OutputError(f"{image}: its labels {name!r} are lost. Make the output anew.")
    return [image / "labels" / label.name for label in labels]


def reopen_damaged(output: str | Location, found: Mapping[str, Verification]) -> None:
    """Make an output unfinished again as far as it is damaged: labels and maps with their image, fields with a plate.

    Parameters
    ----------
    output
        What was verified.
    found
        What became of each of `images_of`.

    Raises
    ------
    OutputError
        As `reopen`.
    """
    damaged = [image for image, each in found.items() if each.damaged]
    for image, each in found.items():
        if image in damaged or any(other.startswith((f"{image}/labels/", f"{image}/{FOLDER}/")) for other in damaged):
            reopen(image, each)
    if damaged and str(output) not in found:
        unpublish(output, run="")


def reopen(output: str | Location, found: Verification) -> None:
    """Make a damaged output unfinished again: the command that made it goes on with what is damaged, and that only.

    Raises
    ------
    OutputError
        If another run has it, or it cannot be written.
    """
    record = read_provenance(output).get("record") or {}
    if not record.get("input"):
        raise OutputError(f"{output} was made of a volume in memory, which cannot be gone on with. Make it anew.")
    for package in ("svision-dask", "torch"):
        if record.get(package) != version(package):
            raise OutputError(
                f"{output} was made with {package} {record.get(package)}, and this is {version(package)}: voxels would "
                "differ. Use that version, or make it anew."
            )
    levels = list_levels(output)
    counts = [len(Regions(shape=level.grid.shape, unit=read_checksums(output, i)[1])) for i, level in enumerate(levels)]
    with claim(output, keep=True) as ledger:
        ledger.begin(record, counts)
        for receipt in found.intact:
            ledger.add(receipt)
        unpublish(output, run=ledger.run)
