"""The panel for napari, without a screen; `test_plugin` runs this in a process of its own, for Qt's sake."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import pytest

from svision_dask.training import fitting
from tests.commands import textured

if "DISPLAY" not in os.environ:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # before Qt is imported
SHAPE = (6, 40, 44)


def test_the_manifest_is_valid_and_what_it_names_is_there():
    npe2 = pytest.importorskip("npe2", reason="npe2 is not installed (extra napari)")
    pytest.importorskip("qtpy.QtWidgets", reason="Qt is not installed", exc_type=ImportError)
    manifest = npe2.PluginManifest.from_distribution("svision-dask")
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["Enhance with svision-dask"]


def finished(widget):
    """Let Qt work until the widget is ready again."""
    from qtpy.QtWidgets import QApplication

    limit = time.monotonic() + 120
    while not widget.start.enabled and time.monotonic() < limit:
        QApplication.processEvents()
        time.sleep(0.01)
    assert widget.start.enabled
    return widget.said.value


@pytest.fixture
def widget():
    pytest.importorskip("napari.components", reason="napari is not installed (extra napari)")
    pytest.importorskip("qtpy.QtWidgets", reason="Qt is not installed", exc_type=ImportError)
    from napari.components import ViewerModel

    from svision_dask.plugin.widget import EnhanceWidget

    made = EnhanceWidget(ViewerModel())
    yield made
    made.close()


def test_the_widget_adds_what_it_made(widget, monkeypatch):
    monkeypatch.setitem(fitting.SETTINGS, "fast", replace(fitting.SETTINGS["fast"], steps=3))
    widget._viewer.add_image(textured(SHAPE), name="cells", scale=(2, 0.5, 0.5))
    widget.reset_choices()
    widget.factor.value = "1,2,2"
    widget.start.clicked.emit(True)
    assert not widget.start.enabled
    assert "warning: stage 1 is no better than cubic" in finished(widget)  # after three steps
    cells, fine = widget._viewer.layers
    assert fine.data.shape == (6, 80, 88)
    assert np.allclose(fine.extent.world[1] - fine.extent.world[0], (10, 19.75, 21.75))
    assert fine.contrast_limits == cells.contrast_limits


def test_the_widget_stops_when_told_and_says_what_is_wrong(widget, tmp_path):
    widget._viewer.add_image(textured(SHAPE), name="cells")
    widget.reset_choices()
    widget.start.clicked.emit(True)
    widget.stop.clicked.emit(True)
    assert finished(widget) == "stopped"
    widget.factor.value = "3"
    widget.start.clicked.emit(True)
    assert "allowed are 1, 2 and 4" in finished(widget)
    widget.path.value = tmp_path / "none.zarr"
    widget.start.clicked.emit(True)
    assert str(tmp_path / "none.zarr") in finished(widget)
    assert len(widget._viewer.layers) == 1


def test_napari_opens_the_widget_beside_its_picture(request):
    pytest.importorskip("pytestqt", reason="pytest-qt is not installed")
    plugin = "napari.utils._testsupport"
    if "DISPLAY" not in os.environ or not request.config.pluginmanager.has_plugin(plugin):
        pytest.skip(f"napari draws with OpenGL, on a display: xvfb-run pytest -p {plugin}")
    viewer = request.getfixturevalue("make_napari_viewer")()
    _, widget = viewer.window.add_plugin_dock_widget("svision-dask")
    viewer.add_image(textured(SHAPE), name="cells")
    assert widget.layer.value.name == "cells"  # as soon as it is there
