"""Intermediate values computed in stages while the model is being edited.

A pass that refits layer after layer asks for the inputs of each layer in topological order. Each
request runs only the nodes between what was asked for before and what is asked for now, so that a
whole sweep costs about one run of the model. What was asked for is kept on disk, one file per value
and sample, so memory depends on neither the number of samples nor the depth of the model. In a
folder that outlives the process, a sweep that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import IN_PARTS, Arrays, run_each

__all__ = ["Staged"]

Array = np.ndarray[Any, Any]


class Staged:
    """Values of `model`'s main graph for each of `samples`, by request, in topological order.

    A value that was requested is remembered: edit only nodes that come after it. Use as a context
    manager; leaving it deletes the files.

    Args:
        model: the model, which may be edited after the values requested so far.
        samples: feeds, one run each.
        carried: also remember what later nodes read of a stage, such as a residual stream, so that
            no node runs twice, however deep the model. None: if no session holds its weights.
        folder: where values lie, and stay when the process ends: those of a run that was ended, of
            the same model and samples, are known. None: a temporary one.

    Attributes:
        model: as given.
        runs: number of samples.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Iterable[Arrays],
        *,
        carried: bool | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self._lasting = model, folder is not None
        weights = (v.const_value for v in model.graph.initializers.values())
        large = sum(w.nbytes for w in weights if w is not None) > IN_PARTS
        self._carried = large if carried is None else carried
        self._folder = folder or Path(tempfile.mkdtemp(prefix="graphopt-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[ir.Value, int] = {}
        self.runs = 0
        inputs = {v.name: v for v in model.graph.inputs}
        for number, value in enumerate(inputs.values()):
            self._known[value] = number
        try:
            for feeds in samples:
                for name, array in feeds.items():
                    if name in inputs:
                        self._write(inputs[name], self.runs, array)
                self.runs += 1
        except BaseException:
            self.__exit__()
            raise
        self._next = len(inputs)
        for value in (o for node in model.graph for o in node.outputs if self._lasting):
            if self._whole(value).exists():
                self._remember([value])

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._lasting:
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
            self._whole(value).unlink(missing_ok=True)
            for run in range(self.runs):
                self._path(value, run).unlink()
            del self._known[value]

    def leads_to(self, value: ir.Value, wanted: Iterable[ir.Value]) -> bool:
        """Whether `value` is to be computed on the way from what is remembered to `wanted`."""
        return value not in self._known and value in self._way(wanted)[1]

    def _sources(self, wanted: Iterable[ir.Value]) -> set[ir.Value]:
        """The remembered values from which `wanted` can be computed."""
        return self._way(wanted)[0]

    def _way(self, wanted: Iterable[ir.Value]) -> tuple[set[ir.Value], set[ir.Value]]:
        """The remembered values from which `wanted` can be computed, and all from there on."""
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
        return found - made, seen

    def _left_open(self, wanted: Sequence[ir.Value], sources: Iterable[ir.Value]) -> list[ir.Value]:
        """What nodes between `sources` and `wanted` make and nodes beyond them read."""
        inside: dict[ir.Node, None] = {}
        stack, ends = list(wanted), set(sources)
        while stack:
            node = (value := stack.pop()).producer()
            if node is not None and value not in ends and node not in inside:
                inside[node] = None
                stack.extend(_reads(node))
        made = [v for node in inside for v in node.outputs if v not in wanted]
        open_ = (v for v in made if any(use.node not in inside for use in v.uses()))
        return [v for v in open_ if v not in self._known]

    def _compute(self, wanted: list[ir.Value]) -> None:
        sources = sorted(self._sources(wanted), key=lambda v: self._known[v])
        if self._carried:
            wanted = wanted + self._left_open(wanted, sources)
        graph = ir.convenience.extract(self.model.graph, sources, wanted)
        for value, source in zip(graph.inputs, sources, strict=True):
            if not source.is_graph_input():
                array = self._read(source, 0)
                value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
                value.shape = ir.Shape([None] * array.ndim)
        part = ir.Model(
            graph, ir_version=self.model.ir_version, functions=list(self.model.functions.values())
        )
        names = [str(o.name) for o in graph.outputs]
        feeds = (
            {str(v.name): self._read(s, run) for v, s in zip(graph.inputs, sources, strict=True)}
            for run in range(self.runs)
        )
        self._remember(wanted)
        for run, made in enumerate(run_each(part, feeds, optimize=True)):
            for value, name in zip(wanted, names, strict=True):
                found: Any = made[name]
                if isinstance(found, np.ndarray):
                    self._write(value, run, found)
                else:  # a sequence is made again
                    self._known.pop(value, None)
        for value in wanted if self._lasting else ():
            if value in self._known:
                self._whole(value).touch()

    def _remember(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self._known[value] = self._next
            self._next += 1

    def _path(self, value: ir.Value, run: int) -> Path:
        return self._folder / f"{_file_name(value)}-{run}.npy"

    def _whole(self, value: ir.Value) -> Path:
        """Is there when all runs of a value are."""
        return self._folder / f"{_file_name(value)}.whole"

    def _write(self, value: ir.Value, run: int, array: Array) -> None:
        path = self._path(value, run)
        try:
            with open(path, "wb") as file:
                np.save(file, array)
                if self._lasting:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ModelError(
                f"values of the model cannot be kept in {self._folder}: {error.strerror or error}"
            ) from error

    def _read(self, value: ir.Value, run: int) -> Array:
        array: Array = np.load(self._path(value, run))
        return array


def _file_name(value: ir.Value) -> str:
    return hashlib.sha256((value.name or "").encode()).hexdigest()[:24]


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
