"""The page: one file that works offline in a real browser, with every label, and pixels that are the voxels."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from svision_dask.judging import report, report_views
from svision_dask.judging.comparison import compare
from svision_dask.judging.report import write_report
from svision_dask.network.model import Normalisation
from tests.browser import Tab, browse
from tests.commands import run
from tests.models import tiny
from tests.test_comparison import FACTOR, TILE, compared, grid, scene, stored, volume


class Elements(HTMLParser):
    """Every element with its attributes, and all words."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def found():
    """Where BEFORE varies most and where AFTER is wrong most are not the same place."""
    coarse, fine, truth = scene()
    fine[20:22, 80:82, 10:12] += 60
    return compared(coarse, fine, truth, beads=True)


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return write_report(found, tmp_path_factory.mktemp("page") / "report.html")


def decoded(element):
    return imread(io.BytesIO(base64.b64decode(element["src"].split(",", 1)[1])))


def test_the_page_is_one_small_file_that_refers_to_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 5e6
    elements = Elements(text)
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)|@import", text)
    assert not elements.of("link")


def test_every_picture_has_words_and_every_identifier_is_the_only_one(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    assert len(elements.of("img")) == 2 * 2 * 3  # before and after, two places, three planes
    assert all(image["alt"].startswith(("before, ", "after, ")) for image in elements.of("img"))
    assert all(image["role"] == "img" and image["aria-label"] for image in elements.of("svg"))
    assert all(slider["aria-label"].startswith("share of after") for slider in elements.of("input"))
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_a_picture_shows_the_voxels_of_its_plane(found, page):
    elements = Elements(page.read_text(encoding="utf-8"))
    before, after = (
        next(i for i in elements.of("img") if i["alt"].startswith(f"{w}, xy")) for w in ("before", "after")
    )
    centre = [found.figures["profiles"][0]["through"][axis] for axis in "zyx"]
    low, high = found.ranges.low, found.ranges.high
    for image, stack, index in (
        (before, found.compared.before, centre[0]),
        (after, found.compared.after, 2 * centre[0]),
    ):
        plane = stack.read((index, 0, 0), (index + 1, *stack.shape[1:]))[0]
        grey = np.clip((plane - low) / (high - low), 0, 1)
        if stack is found.compared.before:
            grey = grey.repeat(2, 0).repeat(2, 1)
        np.testing.assert_allclose(decoded(image)[..., 0], grey, atol=2.01 / 255)
    assert f"z = {found.compared.before.world(centre)[0]:.4g} µm" in before["alt"]


def test_the_difference_from_the_reference_is_shown_where_there_is_one(found, page, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        report_views, "draw_map", lambda values, **how: [drawn.append((values, how)), "<svg ></svg>"][1]
    )
    write_report(found, tmp_path / "r.html")
    shown = [values for values, how in drawn if how["colours"] == "AFTER − reference (intensities)"]
    centres = [found.figures["profiles"][0]["through"]["z"], found.scan.errors.where[0]]
    assert len(shown) == len(centres) == 2
    for values, z in zip(shown, centres, strict=True):
        after, truth = (
            s.read((2 * z, 0, 0), (2 * z + 1, 96, 96))[0] for s in (found.compared.after, found.compared.reference)
        )
        np.testing.assert_array_equal(values, after - truth)
    coarse, fine, _ = scene()
    alone = write_report(compared(coarse, fine), tmp_path / "alone.html").read_text("utf-8")
    assert "AFTER minus the reference" in page.read_text("utf-8")
    assert "AFTER minus the reference" not in alone


def test_where_the_informative_and_the_worst_place_are_one_it_is_shown_once(tmp_path):
    coarse, fine, _ = scene()
    z, y, x = np.unravel_index(coarse.argmax(), coarse.shape)
    fine[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += 500
    text = write_report(compared(coarse, fine), tmp_path / "r.html").read_text("utf-8")
    assert "<h2>An informative place, and the worst</h2>" in text
    assert "The worst place" not in text
    assert len(Elements(text).of("img")) == 2 * 3


def test_scale_bars_are_as_long_as_they_say(page):
    text = page.read_text(encoding="utf-8")
    widths = [float(n) for n in re.findall(r"class='bar' style='width:([\d.]+)%'", text)]
    lengths = [float(n) for n in re.findall(r"class='length'>([\d.]+) µm", text)]
    shapes = [float(n) for n in re.findall(r"aspect-ratio:([\d.]+)/", text)]
    assert len(widths) == len(lengths) == len(shapes) == 6
    # The planes xy and xz of 96 fine voxels of 0.2 µm along x, and yz of 32 of 0.4 µm along z.
    assert shapes == pytest.approx([96 * 0.2, 96 * 0.2, 32 * 0.4] * 2)
    assert [w / 100 * s for w, s in zip(widths, shapes, strict=True)] == pytest.approx(lengths, rel=1e-4)


def test_every_figure_is_there_with_its_unit_and_definition(found, page):
    words = " ".join(Elements(page.read_text(encoding="utf-8")).words)
    figures = found.figures
    for value in (f"{figures['psnr']:.4g} dB", f"{figures['cubic_bp']['ssim']:.4g}", f"{figures['seam']['p']:.4g}"):
        assert value in words
    assert f"{figures['frc']['lateral']['resolution']:.4g} µm" in words
    assert f"{figures['consistency']['rmse']:.4g} (intensity)" in words
    assert all(report.DEFINITIONS[definition] for *_, definition in report.ROWS)
    for label in ("x (µm)", "intensity", "frequency (1/µm)", "share of voxels", "correlation"):
        assert label in words
    assert "beads.before" in words  # the reason, too
    assert "AFTER holds no record of one" in words
    assert "No warnings" in words


def test_names_and_warnings_cannot_become_elements(tmp_path):
    coarse, fine, _ = scene(shape=(16, 64, 64))
    where = grid(coarse.shape)
    attributes = {"drift": ["<script>alert(1)</script>"], "package": "<b>x</b>"}
    path = stored(tmp_path / "a<b>&.ome.zarr", fine, where.finer(FACTOR), attributes)
    elements = Elements(write_report(compare(volume(coarse, where), path), tmp_path / "r.html").read_text("utf-8"))
    assert len(elements.of("script")) == 1
    assert not elements.of("b")
    assert "unlike the volume that the model was trained on: <script>alert(1)</script>" in " ".join(elements.words)


def test_the_window_of_ssim_is_named_where_a_thin_volume_has_a_smaller_one(tmp_path):
    coarse, fine, truth = scene(shape=(8, 64, 64))
    made = compared(coarse, fine, truth)
    assert made.figures["fidelity"]["window"] == 3  # four planes are inside the border
    assert "windows of 3 voxels" in made.figures["fidelity"]["definition"]
    assert "windows of 3 voxels" in write_report(made, tmp_path / "r.html").read_text("utf-8")


def test_a_unit_cannot_become_an_element(tmp_path):
    coarse, fine, _ = scene(shape=(16, 64, 64))
    where = grid(coarse.shape, unit="<b>$_$</b>")
    made = compare(volume(coarse, where), volume(fine, where.finer(FACTOR)), tile=TILE)
    elements = Elements(write_report(made, tmp_path / "r.html").read_text("utf-8"))
    assert not elements.of("b")
    assert "<b>$_$</b>" in " ".join(elements.words)


def test_self_check_and_training_curve_come_from_the_model_beside_the_output(tmp_path):
    coarse, fine, _ = scene(shape=(16, 64, 64))
    model = tiny(FACTOR)
    checked = {"psnr": 31.0, "cubic_psnr": 29.0, "cubic_bp_psnr": 30.0}
    model = type(model)(
        architecture=model.architecture,
        stages=model.stages,
        normalisation=(Normalisation(offset=0.0, scale=1.0),),
        provenance={"loss": [[0.5, 0.25, 0.125]], "exam": [[None, 0.5, 1.25]], "steps": 300},
    )
    model.save(tmp_path / f"a-{model.digest[:8]}.safetensors")
    attributes = {"model": model.digest, "training": {"self_check": checked}, "plan": {"regions": 8}}
    attributes["times"] = {
        "begun": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T04:04:05+00:00",
        "training_seconds": 61.5,
        "seconds": 1200.0,
        "worker_seconds": {"regions": 4000.0, "pyramid": 42.0},
        "regions_of_runs_before": 5,
    }
    where = grid(coarse.shape)
    path = stored(tmp_path / "a.ome.zarr", fine, where.finer(FACTOR), attributes)
    text = write_report(compare(volume(coarse, where), path, tile=TILE), tmp_path / "r.html").read_text("utf-8")
    assert "is better than cubic interpolation (29.00 dB) and back projection (30.00 dB) by +1.00 dB" in text
    assert "training loss of stage 1" in text
    assert "exams of stage 1 during training" in text
    assert "gain over cubic (dB)" in text
    for words in ("2026-01-02T04:04:05", "61.5 s", "1200 s, the run that finished it", "4042 s, of all runs"):
        assert words in text
    assert model.digest in text
    assert "&quot;regions&quot;: 8" in text


def test_the_command_writes_the_page_and_replaces_it_only_if_told_to(tmp_path):
    coarse, fine, _ = scene(shape=(16, 64, 64))
    where = grid(coarse.shape)
    paths = [
        stored(tmp_path / f"{v.shape[0]}.ome.zarr", v, g, {}) for v, g in ((coarse, where), (fine, where.finer(FACTOR)))
    ]
    page = tmp_path / "report.html"
    outcome = run("compare", *paths, "-o", page, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    json.loads(outcome.stdout)
    assert page.is_file()
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert "Give another name, or --overwrite" in run("compare", *paths, "-o", page).error
    assert run("compare", *paths, "-o", page, "--overwrite").stdout.splitlines()[-1] == str(page)
    assert "there is no folder" in run("compare", *paths, "-o", tmp_path / "none" / "r.html").error


def test_in_a_browser_the_page_is_whole_offline_and_works_by_keyboard(page, tmp_path):
    async def visit(tab: Tab) -> None:
        url = page.as_uri()
        await tab.send("Emulation.setDeviceMetricsOverride", width=1240, height=900, deviceScaleFactor=1, mobile=False)
        await tab.theme("light")
        await tab.open(url)
        assert {u for u in tab.requests if not u.startswith("data:")} == {url}
        assert await tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert await tab.value("document.documentElement.scrollWidth") <= 1240
        cut = "getComputedStyle(document.querySelector('.slider')).getPropertyValue('--cut')"
        shown = "getComputedStyle(document.querySelector('.slider .top')).clipPath"
        assert await tab.value(cut) == "50%"
        half = await tab.value(shown)
        for _ in range(20):
            await tab.press("Tab")
            if await tab.value("document.activeElement.type") == "range":
                break
        await tab.press("ArrowRight")
        assert await tab.value(cut) == "51%"
        assert await tab.value(shown) != half
        assert await tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        pictures = []
        for theme in ("light", "dark"):
            await tab.theme(theme)
            pictures.append(imread(io.BytesIO(await tab.screenshot()))[..., :3])
            ink = await tab.value("getComputedStyle(document.querySelector('.chart svg text')).fill")
            assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 384 if theme == "light" else ink != "rgb(0, 0, 0)"
        assert pictures[0].mean() > 0.6
        assert pictures[1].mean() < 0.4
        await tab.send("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        assert await tab.value("document.documentElement.scrollWidth") <= 400
        assert tab.problems == []

    browse(tmp_path / "browser", visit)
