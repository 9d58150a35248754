"""Intermediate values computed in stages while the model is being edited.

A pass that refits layer after layer asks for the inputs of each layer in topological order. Each
request runs only the nodes between what was asked for before and what is asked for now, so that a
whole sweep costs about one run of the model. What was asked for is kept on disk, one file per value
and sample, so memory depends on neither the number of samples nor the depth of the model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.execution.runtime import Arrays, open_session, seeded

__all__ = ["Staged"]

Array = np.ndarray[Any, Any]


class Staged:
    """Values of `model`'s main graph for each of `samples`, by request, in topological order.

    A value that was requested is remembered: edit only nodes that come after it. Use as a context
    manager; leaving it deletes the files.

    Attributes:
        model: the model, which may be edited after the values requested so far.
        runs: number of samples.
    """

    def __init__(self, model: ir.Model, samples: Iterable[Arrays]) -> None:
        self.model = model
        self._folder = Path(tempfile.mkdtemp(prefix="graphopt-"))
        self._known: dict[ir.Value, int] = {}
        self.runs = 0
        inputs = {v.name: v for v in model.graph.inputs}
        for number, value in enumerate(inputs.values()):
            self._known[value] = number
        for feeds in samples:
            for name, array in feeds.items():
                if name in inputs:
                    self._write(inputs[name], self.runs, array)
            self.runs += 1
        self._next = len(inputs)

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def values(self, wanted: Sequence[ir.Value]) -> Iterator[list[Array]]:
        """For each sample the arrays of `wanted`, in order (constants too)."""
        new = [v for v in dict.fromkeys(wanted) if v not in self._known and not _fixed(v)]
        if new:
            self._compute(new)
        fixed = {v: v.const_value.numpy() for v in wanted if v not in self._known and v.const_value}
        for run in range(self.runs):
            yield [fixed[v] if v in fixed else self._read(v, run) for v in wanted]

    def forget(self, still_wanted: Iterable[ir.Value]) -> None:
        """Delete the remembered values, but inputs, that `still_wanted` does not start from."""
        needed = self._sources(still_wanted)
        self.recompute([v for v in self._known if v not in needed])

    def recompute(self, values: Iterable[ir.Value]) -> None:
        """Forget these values, which an edit has changed since they were asked for."""
        for value in [v for v in values if v in self._known and not v.is_graph_input()]:
            for run in range(self.runs):
                self._path(value, run).unlink()
            del self._known[value]

    def _sources(self, wanted: Iterable[ir.Value]) -> set[ir.Value]:
        """The remembered values from which `wanted` can be computed."""
        found: set[ir.Value] = set()
        made: set[ir.Value] = set()  # by nodes that run again for another of their outputs
        seen: set[ir.Value] = set()
        stack = list(wanted)
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self._known:
                found.add(value)
                continue
            node = value.producer()
            if node is not None:
                stack.extend(_reads(node))
                made.update(node.outputs)
        return found - made

    def _compute(self, wanted: list[ir.Value]) -> None:
        sources = sorted(self._sources(wanted), key=lambda v: self._known[v])
        graph = ir.convenience.extract(self.model.graph, sources, wanted)
        for value, source in zip(graph.inputs, sources, strict=True):
            if not source.is_graph_input():
                array = self._read(source, 0)
                value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
                value.shape = ir.Shape([None] * array.ndim)
        part = ir.Model(
            graph, ir_version=self.model.ir_version, functions=list(self.model.functions.values())
        )
        path = self._folder / "stage.onnx"
        path.write_bytes(seeded(ir.to_proto(part)).SerializeToString())
        session = open_session(path, optimize=True)
        names = [o.name for o in graph.outputs]
        for value in wanted:
            self._known[value] = self._next
            self._next += 1
        for run in range(self.runs):
            feeds = {v.name: self._read(s, run) for v, s in zip(graph.inputs, sources, strict=True)}
            for value, array in zip(wanted, session.run(names, feeds), strict=True):
                self._write(value, run, array)

    def _path(self, value: ir.Value, run: int) -> Path:
        return self._folder / f"{self._known[value]}-{run}.npy"

    def _write(self, value: ir.Value, run: int, array: Array) -> None:
        np.save(self._path(value, run), array)

    def _read(self, value: ir.Value, run: int) -> Array:
        array: Array = np.load(self._path(value, run))
        return array


def _fixed(value: ir.Value) -> bool:
    return value.const_value is not None


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Every value of the main graph a node reads, in its subgraphs too."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            inner = list(attribute.as_graphs())
        else:
            continue
        for graph in inner:
            for each in graph:
                yield from (v for v in _reads(each))
