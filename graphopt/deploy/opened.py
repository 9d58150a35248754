"""Opened models: a runtime's session, called with arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.deploy.drift import Outside, Watch

__all__ = ["BoundSession", "OpenVinoSession", "OrtSession", "WatchedSession"]

Arrays = Mapping[str, np.ndarray[Any, Any]]


class OrtSession:
    """A model in ONNX Runtime; `raw` is the runtime's own session."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.inputs: list[str] = [i.name for i in raw.get_inputs()]
        self.outputs: list[str] = [o.name for o in raw.get_outputs()]

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        return dict(zip(self.outputs, self.raw.run(self.outputs, dict(feeds)), strict=True))


class BoundSession(OrtSession):
    """A model whose inputs and outputs stay in a device's memory, at the same place in every run.

    CUDA graphs need that: they replay the kernels of an earlier run, addresses included. Outputs
    get other memory where their sizes may differ from those of the last run.
    """

    def __init__(self, raw: Any, device: str) -> None:
        super().__init__(raw)
        self._binding = raw.io_binding()
        self._held: dict[str, Any] = {}
        self._device = device
        self._static = all(isinstance(d, int) for o in raw.get_outputs() for d in o.shape)
        self._bind_outputs()

    def _bind_outputs(self) -> None:
        for name in self.outputs:
            self._binding.bind_output(name, self._device)

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        from onnxruntime import OrtValue

        fresh = not self._static
        for name, given in feeds.items():
            array = np.asarray(given, order="C")
            held = self._held.get(name)
            if held is not None and tuple(held.shape()) == array.shape:
                held.update_inplace(array)
                continue
            self._held[name] = OrtValue.ortvalue_from_numpy(array, self._device, 0)
            self._binding.bind_ortvalue_input(name, self._held[name])
            fresh = True
        if fresh:
            self._bind_outputs()
        self.raw.run_with_iobinding(self._binding)
        values = self._binding.copy_outputs_to_cpu()
        return dict(zip(self.outputs, values, strict=True))


class OpenVinoSession:
    """A model in OpenVINO itself; `raw` is its compiled model."""

    def __init__(self, raw: Any, outputs: list[str]) -> None:
        self.raw = raw
        self.inputs: list[str] = [i.get_any_name() for i in raw.inputs]
        self.outputs = outputs
        self.request = raw.create_infer_request()

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out (copies, as the runtime
        reuses its own).
        """
        results = self.request.infer(dict(feeds), share_inputs=True)
        return {name: results[k] for k, name in enumerate(self.outputs)}


class WatchedSession:
    """A session that also looks at the values that its model quantizes (a second run, on the CPU).

    Attributes:
        inner: the session that runs the model.
    """

    def __init__(self, inner: OrtSession | OpenVinoSession, path: Path) -> None:
        self.inner = inner
        self.raw, self.inputs, self.outputs = inner.raw, inner.inputs, inner.outputs
        self._watch = Watch(path)

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        self._watch(feeds)
        return self.inner(feeds)

    def drift(self) -> list[Outside]:
        """Values outside of their calibrated ranges in all runs so far, the largest share first."""
        return self._watch.found()
