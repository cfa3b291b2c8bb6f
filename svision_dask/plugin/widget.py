"""The widget: what is asked, in a panel beside the picture; the work is done in a thread, and can be stopped."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, Label, LineEdit, ProgressBar, PushButton
from napari.layers import Image
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QTimer

from svision_dask.errors import SvisionError, UsageError, one_line
from svision_dask.network.architecture import PRESETS
from svision_dask.opening.formats import open_volume
from svision_dask.plugin.layers import check_straight, fine_layer, volume_of
from svision_dask.plugin.work import Enhanced, Task, run
from svision_dask.volume import Volume

if TYPE_CHECKING:
    from napari.viewer import Viewer

REFRESH_MILLISECONDS = 200
EXPECTED = (SvisionError, OSError, MemoryError, RuntimeError)
"""Errors of which the message says enough."""


class Stopped(Exception):
    """Whoever started the work has stopped it."""


class EnhanceWidget(Container):  # type: ignore[misc]  # magicgui is not there where types are checked
    """Enhance an image layer, or an image file, and add the result as a layer."""

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self.layer = ComboBox(label="layer", choices=self._images)
        self.path = FileEdit(label="or OME-Zarr", mode="d", nullable=True, tooltip="A folder; read bit by bit.")
        self.axes = LineEdit(label="axes", tooltip="Such as zyx or tzyx; empty for what the image says.")
        self.factor = LineEdit(label="factor", value="2", tooltip="How many times finer: 2, 4, or z=1,y=2,x=2.")
        self.preset = ComboBox(label="preset", choices=PRESETS, value="fast", tooltip="best takes minutes to train.")
        self.output = FileEdit(
            label="write to", mode="w", nullable=True, tooltip="OME-Zarr to make, for any size; empty for memory."
        )
        self.overwrite = CheckBox(text="overwrite", tooltip="Replace an OME-Zarr image that is there.")
        self.start = PushButton(text="Enhance")
        self.stop = PushButton(text="Stop", enabled=False)
        self.bar = ProgressBar(value=0, max=1)
        self.said = Label(value="")
        asked = [self.layer, self.path, self.axes, self.factor, self.preset, self.output, self.overwrite]
        super().__init__(widgets=[*asked, self.start, self.stop, self.bar, self.said])
        self.said.native.setWordWrap(True)
        self._told = ("", 0, 0)
        self._stopped = threading.Event()
        self._timer = QTimer(self.native)
        self._timer.setInterval(REFRESH_MILLISECONDS)
        self._timer.timeout.connect(self._show)
        self.start.clicked.connect(self._start)
        self.stop.clicked.connect(self._stopped.set)
        self.native.destroyed.connect(self._stopped.set)  # nobody is left who could stop it

    def _images(self, _: Any) -> list[Image]:
        return [layer for layer in self._viewer.layers if isinstance(layer, Image)]

    def _start(self) -> None:
        try:
            volume, layer = self._chosen()
            if layer is not None and self.output.value is not None:
                check_straight(layer)
        except EXPECTED as error:
            self._end(one_line(error), failed=True)
            return
        task = Task(
            volume=volume,
            factor=self.factor.value,
            preset=self.preset.value,
            output=self.output.value,
            overwrite=self.overwrite.value,
        )
        self._stopped.clear()
        self.start.enabled, self.stop.enabled = False, True
        self._timer.start()

        def add(made: Enhanced) -> None:
            self._viewer.add_image(**fine_layer(made, volume, layer))
            self._end("\n".join(made.words))

        create_worker(run, task, self._report, _connect={"returned": add, "errored": self._failed})

    def _chosen(self) -> tuple[Volume, Image | None]:
        axes = self.axes.value.strip() or None
        if self.path.value is not None:
            return open_volume(self.path.value, axes=axes), None
        if self.layer.value is None:
            raise UsageError("nothing to enhance: choose a layer, or an OME-Zarr.")
        return volume_of(self.layer.value, axes), self.layer.value

    def _report(self, what: str, done: int, total: int) -> None:
        """Keep a report, in the thread of the work, until it is shown; end the work if it was stopped."""
        self._told = (what, done, total)
        if self._stopped.is_set():
            raise Stopped

    def _show(self) -> None:
        what, done, total = self._told
        self.bar.max, self.bar.value = total, done  # without a total it says that something goes on
        self.said.value = f"stopping: {what}" if self._stopped.is_set() else what

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Stopped):
            self._end("stopped")
        elif isinstance(error, EXPECTED):
            self._end(one_line(error), failed=True)
        else:
            self._end(f"{type(error).__name__}: {one_line(error)}", failed=True)
            raise error

    def _end(self, words: str, *, failed: bool = False) -> None:
        self._timer.stop()
        self.start.enabled, self.stop.enabled = True, False
        self.bar.max, self.bar.value = 1, 0
        self.said.value = words
        if failed:
            show_error(words)
