"""Volumes in the browser, before and after side by side and linked, by neuroglancer (extra ``view``)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from svision_dask.errors import OutputError, UsageError
from svision_dask.geometry import FACTORS, SPATIAL, Grid, Regions, Shape
from svision_dask.judging.compared import Stack
from svision_dask.judging.scan import OUTLIERS, SAMPLED_BLOCKS, sample_voxels, spread
from svision_dask.omezarr.metadata import read_attributes, read_provenance
from svision_dask.omezarr.read import is_omezarr
from svision_dask.omezarr.write import open_level
from svision_dask.opening.formats import open_volume
from svision_dask.running.output import begun_record
from svision_dask.running.trust_images import map_place
from svision_dask.running.trust_maps import MAPS
from svision_dask.stores.locations import Location, Remote, located
from svision_dask.stores.serving import HOST, ImageServer

if TYPE_CHECKING:
    from svision_dask.volume import Volume

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEADLESS = (
    "--headless",
    "--no-sandbox",
    "--hide-scrollbars",
    "--use-angle=swiftshader",  # draws without a GPU
    "--enable-unsafe-swiftshader",
)
SIZE = (1400, 800)
"""Pixels of a screenshot, across and down."""
PANEL = 640
"""Pixels of a panel that the volume is to fit."""
LOOKED_AT = 64
"""Voxels along each side of a block that the contrast of an output in the making is taken from."""
SECONDS = 300
"""How long a screenshot may take."""
UNITS = {"meter": "m", "millimeter": "mm", "micrometer": "um", "nanometer": "nm", "second": "s"}
"""As OME-Zarr and as neuroglancer spells them."""
SHADER = """#uicontrol invlerp normalized(range=[{low:.9g}, {high:.9g}])
void main() {{ emitGrayscale(normalized()); }}
"""
MAP_SHADER = """#uicontrol invlerp normalized(range=[0, {high:.9g}])
void main() {{ emitRGB(colormapCubehelix(normalized())); }}
"""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One image in the viewer."""

    source: Any
    contrast: tuple[float, float] | None
    grid: Grid


@dataclass(frozen=True)
class _Readable:
    """What neuroglancer asks of an array: parts of it, read when they are wanted."""

    volume: Volume

    @property
    def shape(self) -> Shape:
        return self.volume.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.volume.dtype

    def __getitem__(self, box: Any) -> npt.NDArray[Any]:
        return self.volume.read(box)


class View:
    """A viewer that is being served; close it, or use it as a context."""

    def __init__(self, viewer: Any, server: ImageServer) -> None:
        self._viewer, self._server = viewer, server

    @property
    def url(self) -> str:
        """What to open in a browser, on this machine."""
        return str(self._viewer)

    def screenshot(self, path: str | Path, *, size: tuple[int, int] = SIZE) -> Path:
        """Draw the view, once everything that it shows is loaded, in a browser without a window.

        Parameters
        ----------
        path
            PNG file to write.
        size
            Pixels across and down.

        Raises
        ------
        OutputError
            If there is no browser, or it does not draw in time.
        """
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            raise OutputError(f"--screenshot: no browser is installed. Install one of {', '.join(BROWSERS)}.")
        drawn: list[bytes] = []

        def wait() -> None:
            drawn.append(self._viewer.screenshot(size=size).screenshot.image)

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            options = [*HEADLESS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
            process = subprocess.Popen(
                [program, *options, self.url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                waiting = threading.Thread(target=wait, daemon=True)
                waiting.start()
                waiting.join(SECONDS)
            finally:
                process.kill()
                process.wait()
        if not drawn:
            raise OutputError(f"--screenshot: nothing was drawn within {SECONDS} s. Try again, or open {self.url}.")
        Path(path).write_bytes(drawn[0])
        return Path(path)

    def close(self) -> None:
        """Stop serving the images."""
        self._server.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def view(before: str | Location, after: str | Location | None = None, *, trust: bool = False) -> View:
    """Serve volumes to a browser on this machine: side by side, linked, and on one scale of grey.

    Nothing is fetched from the network. OME-Zarr is read by the browser, level by level, also from URLs and while it is
    being made; what is missing of it is black. Other files are read here.

    Parameters
    ----------
    before
        A volume.
    after
        What was, or is being, made of it.
    trust
        Also show the trust maps of ``after``, below and in false colours, each on a scale of its own from 0.

    Returns
    -------
    View
        Its ``url`` is for this machine only, and nobody can guess it.

    Raises
    ------
    ImageError
        If one cannot be read.
    UsageError
        If neuroglancer is not installed, or there are no trust maps to show.
    """
    maps = _maps(after) if trust else {}
    neuroglancer = _neuroglancer()
    places = {"before": located(before)} | ({} if after is None else {"after": located(after)}) | maps
    stored = {name: p for name, p in places.items() if isinstance(p, Remote) or is_omezarr(p)}
    server = ImageServer(stored)  # the folder of a TIFF holds what nobody asked for
    try:
        layers: dict[str, _Layer] = {}
        for name, place in places.items():
            layers[name] = _layer(neuroglancer, server, name, place, layers.get("before"))
        neuroglancer.set_server_bind_address(HOST, 0)
        viewer = neuroglancer.Viewer()
        images = [layer for name, layer in layers.items() if name not in maps]
        low, high = next((layer.contrast for layer in reversed(images) if layer.contrast), (0.0, 1.0))
        with viewer.txn() as state:
            for name, layer in layers.items():
                own = MAP_SHADER.format(high=layer.contrast[1] if layer.contrast else high)
                shader = own if name in maps else SHADER.format(low=low, high=high)
                state.layers[name] = neuroglancer.ImageLayer(source=layer.source, shader=shader)
            _look_at(neuroglancer, state, layers["before"].grid, PANEL // 2 if maps else PANEL)
            groups = [neuroglancer.LayerGroupViewer(layers=[name], layout="xy") for name in layers]
            rows = [neuroglancer.row_layout(pair) for pair in (groups[:2], groups[2:]) if pair]
            state.layout = "4panel" if len(groups) == 1 else neuroglancer.column_layout(rows) if maps else rows[0]
    except BaseException:
        server.close()
        raise
    return View(viewer, server)


def _maps(after: str | Location | None) -> dict[str, Location]:
    """Find the trust maps of an image."""
    if after is None:
        raise UsageError("--trust: maps belong to AFTER. Give it, or leave out --trust.")
    maps = {kind: map_place(located(after), kind) for kind in MAPS}
    if not all(is_omezarr(place) for place in maps.values()):
        raise UsageError(f"--trust: {after} has no trust maps. Make them with svision-dask enhance --trust.")
    return maps


def _look_at(neuroglancer: Any, state: Any, grid: Grid, panel: int) -> None:
    """Look along z at the middle of a volume, all of which fits ``panel`` pixels, x to the right and y down."""
    order = [axis for axis in "xyztc" if axis in grid.axes]
    index = [grid.axes.index(axis) for axis in order]
    units = [UNITS.get(grid.units[i] or "", "") for i in index]
    scales = [grid.spacing[i] for i in index]
    state.dimensions = neuroglancer.CoordinateSpace(names=order, units=units, scales=scales)
    state.display_dimensions = [axis for axis in order if axis in SPATIAL]
    middle = grid.world([(n - 1) // 2 if a in SPATIAL else 0 for a, n in zip(grid.axes, grid.shape, strict=True)])
    state.position = [middle[i] / grid.spacing[i] for i in index]
    finest = min(grid.spacing[i] for i in grid.spatial)
    state.cross_section_scale = max(grid.shape[i] * grid.spacing[i] for i in index[:2]) / finest / panel
    state.show_axis_lines = False
    state.show_default_annotations = False


def _neuroglancer() -> Any:
    try:
        import neuroglancer
    except ImportError as error:
        raise UsageError("view: neuroglancer is not installed. Run: pip install 'svision-dask[view]'.") from error
    return neuroglancer


def _layer(neuroglancer: Any, server: ImageServer, name: str, place: Location, before: _Layer | None) -> _Layer:
    if not isinstance(place, Remote) and not is_omezarr(place):
        volume = open_volume(place)
        data = neuroglancer.LocalVolume(_Readable(volume), dimensions=_space(neuroglancer, volume.grid))
        source = _placed(neuroglancer, data, volume.grid)
        return _Layer(source=source, contrast=_contrast(volume), grid=volume.grid)
    version, attributes = read_attributes(place)
    if read_provenance(place).get("state") == "incomplete":
        grid = growing(place, before.grid if before else None)
        url = f"{server.url(name)}0/|zarr{version}:"
        contrast = contrast_so_far(place) if before is None else None  # that of what it is made of is better
        return _Layer(source=_placed(neuroglancer, url, grid), contrast=contrast, grid=grid)
    volume = open_volume(place)
    contrast = _window(attributes) or _contrast(volume)
    return _Layer(source=f"{server.url(name)}|zarr{version}:", contrast=contrast, grid=volume.grid)


def growing(place: Location, coarse: Grid | None) -> Grid:
    """Find where an output lies that does not say so yet: by the record of its run, or by what it is made of.

    Raises
    ------
    UsageError
        If there is no record here, as for outputs at URLs, and ``coarse`` is not what it is made of.
    """
    shape, record = open_level(place, 0).shape, begun_record(place)
    if record is not None:
        return Grid(
            axes=record["axes"],
            shape=shape,
            spacing=tuple(record["output_spacing"]),
            origin=tuple(record["output_origin"]),
            units=tuple(record["units"]),
        )
    if coarse is None:
        raise UsageError(f"{place} is being made: give what it is made of first, which says where it lies.")
    factor = tuple(n // m for n, m in zip(shape, coarse.shape, strict=True)) if len(shape) == len(coarse.shape) else ()
    training = read_provenance(place).get("training") or {}
    if any(f not in FACTORS for f in factor) or not factor:
        raise UsageError(f"{place} is being made of another volume. Give that one first.")
    return coarse.finer(factor, training.get("sampling", "area"))


def contrast_so_far(place: Location) -> tuple[float, float] | None:
    """Take percentiles of blocks spread over an output in the making; what is 0 is not done yet, or dark."""
    array = open_level(place, 0)
    blocks = Regions(shape=array.shape, unit=tuple(min(n, LOOKED_AT) for n in array.shape))
    read = [np.asarray(array[blocks.at(i).box]).ravel() for i in spread(len(blocks), SAMPLED_BLOCKS)]
    done = np.concatenate([values[(values != 0) & np.isfinite(values)] for values in read])
    low, high = np.percentile(done, OUTLIERS) if done.size else (0.0, 0.0)
    return (float(low), float(high)) if low < high else None


def _space(neuroglancer: Any, grid: Grid) -> Any:
    units = [UNITS.get(unit or "", "") for unit in grid.units]
    return neuroglancer.CoordinateSpace(names=list(grid.axes), units=units, scales=list(grid.spacing))


def _placed(neuroglancer: Any, source: Any, grid: Grid) -> Any:
    """Put voxels where they are in the world: neuroglancer counts in voxels, and voxel 0 begins half of one earlier."""
    shift = [o / s - 0.5 * (axis in SPATIAL) for axis, o, s in zip(grid.axes, grid.origin, grid.spacing, strict=True)]
    matrix = np.column_stack([np.eye(len(shift)), shift])
    transform = neuroglancer.CoordinateSpaceTransform(
        input_dimensions=_space(neuroglancer, grid), output_dimensions=_space(neuroglancer, grid), matrix=matrix
    )
    return neuroglancer.LayerDataSource(url=source, transform=transform)


def _window(attributes: Any) -> tuple[float, float] | None:
    """Read the display window that an OME-Zarr asks for, if it does."""
    try:
        image = attributes.get("ome", attributes)
        window = image["omero"]["channels"][0]["window"]
        low, high = float(window["start"]), float(window["end"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    return (low, high) if low < high else None


def _contrast(volume: Volume) -> tuple[float, float] | None:
    picked = {axis: 0 for axis in volume.grid.axes if axis not in SPATIAL}
    low, high = np.percentile(sample_voxels(Stack(volume=volume, picked=picked)), OUTLIERS)
    return (float(low), float(high)) if low < high else None
