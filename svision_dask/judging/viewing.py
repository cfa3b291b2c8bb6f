"""Volumes in the browser, before and after side by side and linked, by neuroglancer (extra ``view``)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from svision_dask.errors import OutputError, UsageError
from svision_dask.geometry import SPATIAL, Grid
from svision_dask.judging.picking import Picked, Wanted, pick
from svision_dask.judging.view_layers import UNITS, Image, apart, contrast_of, find, layer, source_of
from svision_dask.omezarr.read import is_omezarr
from svision_dask.running.output import check_page
from svision_dask.running.trust_images import map_place
from svision_dask.running.trust_maps import MAPS
from svision_dask.stores.locations import Location
from svision_dask.stores.serving import HOST, ImageServer

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

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
"""Pixels of a panel that the volume is to fit: of one of two side by side; of four, there are half as many."""
LETTERS = 15
"""Height of the letters in it, in pixels."""
SECONDS = 300
"""How long a screenshot may take."""
SHADER = """#uicontrol invlerp normalized(range=[{low:.9g}, {high:.9g}])
void main() {{ emitGrayscale(normalized()); }}
"""
MAP_SHADER = """#uicontrol invlerp normalized(range=[0, {high:.9g}])
void main() {{ emitRGB(colormapCubehelix(normalized())); }}
"""


class View:
    """A viewer that is being served; close it, or use it as a context."""

    def __init__(
        self, viewer: Any, server: ImageServer, warnings: tuple[str, ...] = (), labels: Sequence[str] = ()
    ) -> None:
        self._viewer, self._server, self._labels = viewer, server, labels
        self.warnings = warnings
        """What is odd about the images side by side, a sentence each."""

    @property
    def url(self) -> str:
        """What to open in a browser, on this machine."""
        return str(self._viewer)

    def screenshot(self, path: str | Path, *, size: tuple[int, int] = SIZE, overwrite: bool = False) -> Path:
        """Draw the view, once everything that it shows is loaded, in a browser without a window.

        Parameters
        ----------
        path
            PNG file to write.
        size
            Pixels across and down.
        overwrite
            Replace the file, if it is there.

        Raises
        ------
        OutputError
            If it cannot be written, there is no browser, or it does not draw in time.
        """
        program = browser_for(path, overwrite=overwrite)
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
        _labelled(drawn[0], self._labels).save(path, format="png")
        return Path(path)

    def close(self) -> None:
        """Stop serving the images."""
        self._server.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _labelled(drawn: bytes, labels: Sequence[str]) -> Picture:
    """Say at the lower right of each panel what it shows: a picture does not have the page around the panels."""
    from PIL import Image as pictures
    from PIL import ImageDraw, ImageFont

    picture = pictures.open(BytesIO(drawn)).convert("RGB")
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS)
    across = min(len(labels), 2)
    down = -(-len(labels) // 2)
    for number, label in enumerate(labels):
        corner = picture.width * (number % 2 + 1) // across - 20, picture.height * (number // 2 + 1) // down - 14
        left, top, right, bottom = drawing.textbbox(corner, label, font=font, anchor="rs")
        drawing.rectangle((left - 6, top - 6, right + 6, bottom + 6), fill=(89, 89, 89))
        drawing.text(corner, label, font=font, anchor="rs", fill="white")
    return picture


def browser_for(path: str | Path, *, overwrite: bool = False) -> str:
    """Find the browser that draws a picture, before anything is drawn.

    Raises
    ------
    OutputError
        If the picture cannot be written, or there is no browser.
    """
    check_page(Path(path), overwrite=overwrite)
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise OutputError(f"--screenshot: no browser is installed. Install one of {', '.join(BROWSERS)}.")
    return program


def view(
    before: str | Location,
    after: str | Location | None = None,
    *,
    trust: bool = False,
    channel: int | str | None = None,
    time: int | None = None,
    **opening: Any,
) -> View:
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
    channel, time
        Which one of ``before``, counted from 0, or by name; by default, the first that ``after`` was made of.
    opening
        How ``before`` is to be read: level, series, axes, spacing, unit and missing, as ``open_volume`` takes them.

    Returns
    -------
    View
        Its ``url`` is for this machine only, and nobody can guess it.

    Raises
    ------
    ImageError
        If one cannot be read.
    UsageError
        If neuroglancer is not installed, there are no trust maps to show, or there is no such channel.
    """
    neuroglancer = _neuroglancer()
    images = {"before": find(before, **opening)}
    if after is not None:
        images["after"] = find(after, images["before"])
    picked, warnings = _pick(images, {"c": channel, "t": time})
    maps = {name: find(place, images["before"]) for name, place in _maps(images.get("after")).items()} if trust else {}
    shown = {**images, **maps}
    picked |= dict.fromkeys(maps, picked.get("after", {}))
    server = ImageServer({name: image.place for name, image in shown.items() if image.stored})
    try:  # the folder of a TIFF holds what nobody asked for
        viewer, labels = _viewer(neuroglancer, server, shown, picked, set(maps))
    except BaseException:
        server.close()
        raise
    return View(viewer, server, warnings, labels)


def _pick(images: Mapping[str, Image], wanted: Wanted) -> tuple[dict[str, Picked], tuple[str, ...]]:
    """Choose the channel and time point of each, and say what is odd."""
    before, after = images["before"], images.get("after")
    first, second, warnings = pick(wanted, before.held, (after or before).held)
    elsewhere = apart(before.grid, after.grid) if after else None
    odd = () if elsewhere is None else (f"{elsewhere}: they are not of one place",)
    return {"before": first, "after": second}, (*odd, *(text for text in warnings if "does not say" in text))


def _viewer(
    neuroglancer: Any,
    server: ImageServer,
    shown: Mapping[str, Image],
    picked: Mapping[str, Picked],
    maps: Collection[str],
) -> tuple[Any, list[str]]:
    """Lay out the images, each in a panel of its own; also what to say of each."""
    contrast = {name: _contrast(name, image, picked, shown) for name, image in shown.items()}
    low, high = contrast.get("after") or contrast["before"] or (0.0, 1.0)
    neuroglancer.set_server_bind_address(HOST, 0)
    viewer, labels = neuroglancer.Viewer(), []
    with viewer.txn() as state:
        for name, image in shown.items():
            first, last = (0.0, (contrast[name] or (low, high))[1]) if name in maps else (low, high)
            shader = MAP_SHADER.format(high=last) if name in maps else SHADER.format(low=first, high=last)
            labels.append(f"{name}: black {first:.4g}, white {last:.4g}")
            url = server.url(name) if image.stored else ""
            state.layers[name] = layer(neuroglancer, source_of(neuroglancer, image, url), shader, picked[name])
        panel = PANEL if len(shown) == 2 else PANEL // 2
        _look_at(neuroglancer, state, shown["before"].grid, picked["before"], panel, flat=len(shown) > 1)
        groups = [neuroglancer.LayerGroupViewer(layers=[name], layout="xy") for name in shown]
        rows = [neuroglancer.row_layout(pair) for pair in (groups[:2], groups[2:]) if pair]
        state.layout = "4panel" if len(groups) == 1 else neuroglancer.column_layout(rows) if maps else rows[0]
    return viewer, labels


def _contrast(
    name: str, image: Image, picked: Mapping[str, Picked], shown: Mapping[str, Image]
) -> tuple[float, float] | None:
    """Look at an output in the making only where there is nothing better: what it is made of."""
    return contrast_of(image, picked[name]) if image.is_made or len(shown) == 1 else None


def _maps(after: Image | None) -> dict[str, Location]:
    """Find the trust maps of an image."""
    if after is None:
        raise UsageError("--trust: maps belong to AFTER. Give it, or leave out --trust.")
    maps = {kind: map_place(after.place, kind) for kind in MAPS}
    if not all(is_omezarr(place) for place in maps.values()):
        raise UsageError(f"--trust: {after.place} has no trust maps. Make them with svision-dask enhance --trust.")
    return maps


def _look_at(neuroglancer: Any, state: Any, grid: Grid, picked: Picked, panel: int, *, flat: bool) -> None:
    """Look along z at the middle of a volume, all of which fits ``panel`` pixels, x to the right and y down.

    Where it is not looked at ``flat``, it fits along z as well.
    """
    order = [axis for axis in "xyzt" if axis in grid.axes]
    index = [grid.axes.index(axis) for axis in order]
    units = [UNITS.get(grid.units[i] or "", "") for i in index]
    scales = [grid.spacing[i] for i in index]
    state.dimensions = neuroglancer.CoordinateSpace(names=order, units=units, scales=scales)
    state.display_dimensions = [axis for axis in order if axis in SPATIAL]
    at = [(n - 1) // 2 if a in SPATIAL else picked[a] for a, n in zip(grid.axes, grid.shape, strict=True)]
    middle = grid.world(at)
    state.position = [middle[i] / grid.spacing[i] for i in index]
    finest = min(grid.spacing[i] for i in grid.spatial)
    seen = [axis for axis in order if axis in ("yx" if flat else SPATIAL)]
    longest = max(grid.shape[i] * grid.spacing[i] for i in (grid.axes.index(axis) for axis in seen))
    state.cross_section_scale = longest / finest / panel
    state.show_axis_lines = False
    state.show_default_annotations = False


def _neuroglancer() -> Any:
    try:
        import neuroglancer
    except ImportError as error:
        raise UsageError("view: neuroglancer is not installed. Run: pip install 'svision-dask[view]'.") from error
    return neuroglancer
