"""Out-of-core inference: a model cut into consecutive parts, each with few of the weights.

    y = f_n(... f_2(f_1(x)))

Parts are runs of nodes in the model's own order, cut where the fewest values cross: at a block's
end one does, the residual stream, which dominates all that follows (beside masks and positions,
which cross everywhere). What a later part reads of an earlier one is kept between them, and one
part at a time is open, so that no more than its weights are held.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.helper import np_dtype_to_tensor_dtype

from graphopt.errors import ModelError
from graphopt.io.skeleton import Placed

__all__ = ["Part", "copied_bytes", "parts_of", "proto_of"]

#: Element types that the CPU provider converts to float before it computes, at the start of a run.
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive nodes.

    Attributes:
        nodes: in order.
        reads: values they read and do not make: inputs, values of earlier parts, weights.
        gives: values they make that later parts or the outside read.
        last: of `reads`, what nobody reads after them.
    """

    nodes: tuple[onnx.NodeProto, ...]
    reads: frozenset[str]
    gives: tuple[str, ...]
    last: frozenset[str]


def copied_bytes(large: Sequence[Placed], optimize: bool) -> int:
    """Bytes of weights that a session of the whole model copies: float for half; all, optimized."""
    return sum(_copied(one, optimize) for one in large)


def _copied(one: Placed, optimize: bool) -> int:
    half = int(one.tensor.dtype) in _HALF
    return one.tensor.nbytes * (2 if half else 1) if half or optimize else 0


def parts_of(
    proto: onnx.ModelProto, large: Sequence[Placed], optimize: bool, limit: int
) -> list[Part]:
    """The model's nodes in parts that copy about `limit` bytes of weights each.

    A part ends where the fewest values cross, of the places where it has half of that or more.
    """
    size = {one.name: _copied(one, optimize) for one in large}
    nodes = list(proto.graph.node)
    reads = [frozenset(_read(node)) for node in nodes]
    until = {name: len(nodes) for name in (o.name for o in proto.graph.output)}
    for k, names in enumerate(reads):
        until.update((n, max(k, until.get(n, 0))) for n in names)
    crossing = _crossing(nodes, until)
    parts: list[Part] = []
    start = 0
    while start < len(nodes):
        end = _end(start, reads, size, crossing, limit)
        made = [o for n in nodes[start:end] for o in n.output if o]
        inner = frozenset().union(*reads[start:end]) - set(made)
        parts.append(
            Part(
                nodes=tuple(nodes[start:end]),
                reads=inner,
                gives=tuple(o for o in made if until.get(o, -1) >= end),
                last=frozenset(n for n in inner if until[n] < end),
            )
        )
        start = end
    return parts


def _crossing(nodes: Sequence[onnx.NodeProto], until: Mapping[str, int]) -> list[int]:
    """How many values that nodes up to the k-th made are read after it, for each k."""
    change = [0] * (len(nodes) + 2)
    for k, node in enumerate(nodes):
        for name in node.output:
            if until.get(name, -1) > k:
                change[k] += 1
                change[until[name]] -= 1
    return list(itertools.accumulate(change))


def _end(
    start: int,
    reads: Sequence[frozenset[str]],
    size: Mapping[str, int],
    crossing: Sequence[int],
    limit: int,
) -> int:
    """Where the part ends that begins at node `start`."""
    held, best = 0, None
    seen: set[str] = set()
    for k in range(start, len(reads)):
        held += sum(size.get(n, 0) for n in reads[k] - seen)
        seen |= reads[k]
        if 2 * held >= limit and (best is None or crossing[k] <= crossing[best]):
            best = k
        if held >= limit and best is not None:
            return best + 1
    return len(reads)


def proto_of(proto: onnx.ModelProto, part: Part, known: Mapping[str, Any]) -> onnx.ModelProto:
    """One part as a model; its inputs have the types of the arrays in `known`.

    Raises:
        ModelError: it reads a sequence or an optional of an earlier part.
    """
    made = onnx.ModelProto(ir_version=proto.ir_version)
    made.opset_import.extend(proto.opset_import)
    made.functions.extend(proto.functions)
    made.graph.name = "part"
    made.graph.node.extend(part.nodes)
    weights = part.reads - known.keys()
    made.graph.initializer.extend(t for t in proto.graph.initializer if t.name in weights)
    for name in sorted(part.reads & known.keys()):
        array = known[name]
        if not isinstance(array, np.ndarray):
            raise ModelError(f"'{name}' is no tensor: the model does not run in parts")
        made.graph.input.add(name=name).type.tensor_type.elem_type = np_dtype_to_tensor_dtype(
            array.dtype
        )
    for name in part.gives:
        made.graph.output.add(name=name)
    return made


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Every name a node reads, those its subgraphs read of the outside among them."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (name for inner in graph.node for name in _read(inner))
            yield from (output.name for output in graph.output)
