"""Model state: a model between two steps, and what was found of it, each thing once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from graphopt.analyses.cost import Cost, cost
from graphopt.context import Context
from graphopt.formats import load
from graphopt.graph.traverse import all_nodes
from graphopt.io.reading import source_of
from graphopt.io.skeleton import Skeleton, skeleton_of
from graphopt.io.writing import size_of
from graphopt.proving.numbering import Numbered, numbered
from graphopt.reporting.records import Figures

__all__ = ["State", "file_bytes"]


class State:
    """A model that nobody changes, serialized and counted when that is first asked for.

    Args:
        model: the model.
        shapes: concrete shapes of its inputs, at which costs are counted.
        path: the file it was read from, if it was.
        context: knows analyses of this very model object.
    """

    def __init__(
        self,
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]],
        path: Path | None = None,
        context: Context | None = None,
    ) -> None:
        self.model = model
        self.path = path
        self.context = context or Context(model, shapes=shapes)
        self._metric: float | None = None

    @cached_property
    def skeleton(self) -> Skeleton:
        """The model serialized once, for checker, runtime, size and writer."""
        return skeleton_of(self.model)

    @cached_property
    def bytes(self) -> int:
        """Of the file it was read from, or as it would be written, external data included."""
        return size_of(self.skeleton) if self.path is None else file_bytes(self.path, self.model)

    @cached_property
    def cost(self) -> Cost:
        """Parameters, MACs and activations."""
        return self.context.get(cost)

    @cached_property
    def _operators(self) -> Counter[str]:
        return Counter(
            f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            for node in all_nodes(self.model.graph)
        )

    @cached_property
    def numbered(self) -> Numbered:
        """Its values as terms, for comparing it with what an exact pass makes of it."""
        return numbered(self.model)

    def figures(self) -> Figures:
        """Bytes, nodes, params, MACs, peak of activations; and the metric, if it is known."""
        return Figures(
            bytes=self.bytes,
            nodes=self._operators.total(),
            params=self.cost.params,
            macs=self.cost.macs,
            peak_activation_bytes=self.cost.peak_activation_bytes,
            metric=self._metric,
            operators=dict(self._operators),
        )

    def metric(self, evaluate: Callable[[State], float]) -> float:
        """What `evaluate` returns for this state, asked once."""
        if self._metric is None:
            self._metric = evaluate(self)
        return self._metric

    def with_metadata(self, model: ir.Model) -> State:
        """The state of `model`, which is this one's but for metadata: serialized only once."""
        made = State(model, self.context.shapes, context=self.context)
        if "skeleton" in self.__dict__:
            made.__dict__["skeleton"] = self.skeleton.with_metadata(model)
        return made


def file_bytes(path: Path, model: ir.Model | None = None) -> int:
    """Bytes of a model file and of its external data; `model` is what it holds, if known.

    Of a model that was not read from ONNX (a .pt2 file, a function, the format of a plugin) it is
    what it would weigh as .onnx.
    """
    if model is None and path.suffix == ".pt2":
        return path.stat().st_size
    source = source_of(model) if model is not None else None
    if model is not None and (path.suffix == ".pt2" or not path.is_file()):
        return size_of(model)
    if source is None or not source.path.samefile(path):
        source = source_of(load(path))
    if source is not None:
        return source.bytes
    return path.stat().st_size if model is None else size_of(model)
