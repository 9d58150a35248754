"""Data drift: values of a quantized model outside of the ranges that it was calibrated to.

The ranges are in the file: what a QuantizeLinear can hold. Values beyond it are clipped, and how
many were on the samples the model was calibrated with says nothing of those it meets later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.deploy.runtime import open_cpu, session_options
from graphopt.errors import ModelError

__all__ = ["Outside", "Watch", "drift"]

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Outside:
    """What was seen of one value that is quantized.

    Attributes:
        name: the value.
        low, high: what it was calibrated to hold.
        least, greatest: of what was seen (NaN if nothing was).
        count: elements outside of the range, by more than half a step.
        of: elements seen.
    """

    name: str
    low: float
    high: float
    least: float
    greatest: float
    count: int
    of: int

    @property
    def share(self) -> float:
        """The share of the elements that are outside."""
        return self.count / self.of if self.of else 0.0


def drift(path: str | Path, samples: Iterable[Arrays]) -> list[Outside]:
    """Where the values of a quantized model leave their ranges, the largest share first.

    Args:
        path: the .onnx file; [] if nothing in it is quantized with constant scales.
        samples: inputs by name, run by run.

    Raises:
        ModelError: the runtime does not run it.
    """
    watch = Watch(Path(path))
    for feeds in samples:
        watch(feeds)
    return watch.found()


class Watch:
    """The quantized values of a model on what it is given; `found` tells of all runs so far."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path), load_external_data=False)
        self._ranges = _ranges(model, path.parent)
        fed = {v.name for v in model.graph.input}
        #: Values to be computed; the others are inputs.
        self._inner = [n for n in self._ranges if n not in fed]
        told = {v.name for v in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in self._inner if n not in told)
        self._seen = {n: [np.inf, -np.inf, 0.0, 0.0] for n in self._ranges}
        folder = {"session.model_external_initializers_file_folder_path": str(path.parent)}
        options = session_options(optimize=False, config=folder)
        if self._inner:
            self._session = open_cpu(model.SerializeToString(), options)

    def __call__(self, feeds: Arrays) -> None:
        """Look at one run. Raises ModelError if the runtime does not run it."""
        values = dict(feeds)
        try:
            if self._inner:
                found = self._session.run(self._inner, values)
                values.update(zip(self._inner, found, strict=True))
        except Exception as error:  # the runtime's types are many
            first = str(error).splitlines()[0]
            raise ModelError(f"the model does not run on ONNX Runtime: {first}") from error
        for name, limits in self._ranges.items():
            self._add(self._seen[name], values.get(name), *limits)

    @staticmethod
    def _add(seen: list[float], x: Array | None, low: Array, high: Array, step: Array) -> None:
        if x is None or not x.size:
            return
        outside = (x < low - step / 2) | (x > high + step / 2)
        seen[:] = [
            min(seen[0], float(np.nanmin(x))),
            max(seen[1], float(np.nanmax(x))),
            seen[2] + int(outside.sum()),
            seen[3] + x.size,
        ]

    def found(self) -> list[Outside]:
        """Every quantized value, the largest share outside of its range first."""
        made = []
        for name, (low, high, _) in self._ranges.items():
            least, greatest, count, of = self._seen[name]
            seen = (least, greatest) if of else (np.nan, np.nan)
            made.append(
                Outside(name, float(low.min()), float(high.max()), *seen, int(count), int(of))
            )
        return sorted(made, key=lambda one: -one.share)


def _ranges(model: onnx.ModelProto, folder: Path) -> dict[str, tuple[Array, Array, Array]]:
    """(low, high, step) of each value that a QuantizeLinear of the main graph reads."""
    held = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    found: dict[str, tuple[Array, Array, Array]] = {}
    for node in model.graph.node:
        x, scale, *zero = node.input if node.op_type == "QuantizeLinear" else ("", "")
        if not x or x in held or scale not in held or any(z and z not in held for z in zero):
            continue
        step = onnx.numpy_helper.to_array(held[scale], str(folder)).astype(np.float64)
        kind = {a.name: a.i for a in node.attribute}
        point: Array = np.zeros((), np.uint8)
        if zero and zero[0]:
            point = onnx.numpy_helper.to_array(held[zero[0]], str(folder))
        elif kind.get("output_dtype"):
            point = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(kind["output_dtype"]))
        if point.dtype.kind not in "iu":
            continue  # float8 has no range to leave
        span = np.iinfo(point.dtype)
        low, high = (step * (float(k) - point.astype(np.float64)) for k in (span.min, span.max))
        if step.ndim == 1 and step.size > 1:
            axis = kind.get("axis", 1)
            if axis != -1:
                continue  # by channel along an axis whose place the rank tells
        found[x] = (low, high, step)
    return found
