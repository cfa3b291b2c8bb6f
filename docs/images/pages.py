"""Redraw the pictures of the report and of the viewer: ``PYTHONPATH=. python docs/images/pages.py BEFORE AFTER``.

They lie beside this file, and show the two-photon dendrite (rr30a_tp0_ch2.ome.tif of PyMapManager's data), enhanced by
``svision-dask enhance rr30a_tp0_ch2.ome.tif dendrite.ome.zarr --factor z=1,y=2,x=2 --trust``; without ``--trust``,
pictures of trust maps stay as they are. It needs Chromium or Chrome.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

import svision_dask as sv
from svision_dask.judging.report import write_report
from svision_dask.judging.viewing import view
from tests.browser import Tab, browse

HERE = Path(__file__).parent
WIDTH = 1180
BITS = 6
END = "What was done"
PARTS = {
    "report": (None, "The worst place"),
    "report-worst": ("The worst place", "Trust maps"),
    "report-trust": ("Trust maps", "Profiles"),
    "report-charts": ("Profiles", END),
}
"""Between which headings each picture is; None is the top."""
HEADINGS = "Object.fromEntries([...document.querySelectorAll('h2')].map(h => [h.textContent, h.offsetTop - 8]))"


def draw(page: Path) -> None:
    """Take the parts of a page."""

    async def visit(tab: Tab) -> None:
        await tab.send("Emulation.setDeviceMetricsOverride", width=WIDTH, height=900, deviceScaleFactor=1, mobile=False)
        await tab.theme("light")
        await tab.open(page.as_uri())
        top = {None: 0, **await tab.value(HEADINGS)}
        top.setdefault("Trust maps", top["Profiles"])
        for name, (first, last) in PARTS.items():
            if first in top and top[last] > top[first]:
                clip = {"x": 0, "y": top[first], "width": WIDTH, "height": top[last] - top[first], "scale": 1}
                shot = await tab.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
                keep(base64.b64decode(shot["data"]), HERE / f"{name}.png")

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browse(Path(folder), visit)


def keep(png: bytes, path: Path) -> None:
    """Write a picture small: with 64 shades of each colour, of which no legend shows a band, and no palette."""
    ImageOps.posterize(Image.open(io.BytesIO(png)).convert("RGB"), BITS).save(path, optimize=True)


def main(before: str, after: str) -> None:
    """Compare, write the page, and take all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        draw(write_report(sv.compare(before, after), Path(folder) / "report.html"))
        names = {"view": False, **({"view-trust": True} if (Path(after) / "trust").is_dir() else {})}
        for name, trust in names.items():
            with view(before, after, trust=trust) as shown:
                keep(shown.screenshot(Path(folder) / f"{name}.png").read_bytes(), HERE / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
