"""A model as protobuf without its large tensors: what checker, runtime, size and writer share.

Serializing is what costs time on a large graph, so a state of a model is serialized once, and every
use is made of that: the tensors that were left out are declared as external data in a place that
does not exist, and each use puts there what it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import onnx
import onnx_ir as ir

from graphopt.graph.collector import resting_collector
from graphopt.graph.traverse import subgraphs
from graphopt.io.reading import THRESHOLD, graphs_of, set_aside
from graphopt.io.tensors import SparseTensor, chunks

__all__ = ["TOKEN", "Held", "Placed", "Skeleton", "locate", "skeleton_of", "tensors_of"]

#: Marks places for tensors in a serialized graph; NUL keeps it apart from any name.
TOKEN = "\0graphopt-tensor:"
#: Weights in a file of their own start on boundaries that vectors of any width fit.
_VECTOR = 64


class Held(NamedTuple):
    """A tensor that a skeleton leaves out, and who owns it: main graph, another, an attribute."""

    name: str
    tensor: ir.TensorProtocol
    owner: Literal["main", "inner", "attribute"]


class Placed(NamedTuple):
    """A tensor that a session is handed, and where its bytes are said to lie."""

    name: str
    tensor: ir.TensorProtocol
    offset: int


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A model serialized once.

    Attributes:
        proto: the model; tensor k of `held` is external data at the location `TOKEN` + k. It is
            shared by all uses: copy it before changing it.
        held: the tensors of at least `THRESHOLD` bytes, in order.
        model: what it was made of, while that is unchanged.
    """

    proto: onnx.ModelProto
    held: tuple[Held, ...]
    model: ir.Model

    @cached_property
    def runnable(self) -> tuple[onnx.ModelProto, tuple[Placed, ...]]:
        """With every tensor but the main graph's large ones, and these, as a runtime takes them.

        They are declared as external data at "weights", one after another; nothing of them is
        read. Tensors with elements below 8 bits, in subgraphs and in attributes are inside.
        """
        placed: dict[int, Placed] = {}
        end = 0
        for k, one in enumerate(self.held):
            if one.owner == "main" and one.tensor.dtype.bitwidth >= 8:
                offset = -(-end // _VECTOR) * _VECTOR
                placed[k] = Placed(one.name, one.tensor, offset)
                end = offset + one.tensor.nbytes
        if not self.held:
            return self.proto, ()
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for k, (tensor, one) in enumerate(self.places(proto)):
            if k in placed:
                locate(tensor, "weights", placed[k].offset, one.tensor.nbytes)
            else:
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                tensor.raw_data = b"".join(chunks(one.tensor))
        return proto, tuple(placed.values())

    def with_metadata(self, model: ir.Model) -> Skeleton:
        """The skeleton of `model`, which is the same but for metadata of its own and its nodes'."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        _renew(proto.metadata_props, model.metadata_props)
        _renew_nodes(proto.graph, model.graph)
        return dataclasses.replace(self, proto=proto, model=model)

    def places(self, proto: onnx.ModelProto) -> list[tuple[onnx.TensorProto, Held]]:
        """Where in a copy of `proto` each of `held` belongs, in their order."""
        main = all(one.owner == "main" for one in self.held)
        found: list[onnx.TensorProto | None] = [None] * len(self.held)
        for tensor in proto.graph.initializer if main else tensors_of(proto):
            if tensor.external_data and tensor.external_data[0].value.startswith(TOKEN):
                found[int(tensor.external_data[0].value.removeprefix(TOKEN))] = tensor
        return [(t, one) for t, one in zip(found, self.held, strict=True) if t is not None]


def _renew_nodes(graph: onnx.GraphProto, of: ir.Graph) -> None:
    for proto, node in zip(graph.node, of, strict=True):
        _renew(proto.metadata_props, node.metadata_props)
        held = [g for a in proto.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
        for graphs in zip(held, subgraphs(node), strict=False):
            _renew_nodes(*graphs)


def _renew(entries: Any, metadata: Mapping[str, str]) -> None:
    """Write metadata in the place of what stands there, in the order of a serialized model."""
    if len(entries) != len(metadata) or any(metadata.get(e.key) != e.value for e in entries):
        del entries[:]
        for key in sorted(metadata):
            entries.add(key=key, value=metadata[key])


def locate(
    tensor: onnx.TensorProto, location: str, offset: int | None = None, length: int | None = None
) -> None:
    """Say that a tensor's bytes lie at `offset` of the file `location`."""
    del tensor.external_data[:]
    given = (("location", location), ("offset", offset), ("length", length))
    for key, value in given:
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def skeleton_of(model: ir.Model | Skeleton) -> Skeleton:
    """The model serialized without its large tensors; a skeleton is returned as it is.

    No tensor that is left out is read, and the model is not copied: placeholders stand in it for
    as long as it takes.
    """
    if isinstance(model, Skeleton):
        return model
    held: list[Held] = []
    sparse: dict[str, onnx.SparseTensorProto] = {}
    with resting_collector(), contextlib.ExitStack() as stack:
        for graph in graphs_of(model):
            _hollow(graph, graph is model.graph, held, sparse, stack)
        proto = ir.to_proto(model)
    types = set_aside(model)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in types:
            value.type.CopyFrom(types[value.name])
    _finish(proto.graph, sparse)
    for function in proto.functions:
        _finish_inner(function.node, sparse)
    return Skeleton(proto, tuple(held), model)


def _hollow(
    graph: ir.Graph,
    main: bool,
    held: list[Held],
    sparse: dict[str, onnx.SparseTensorProto],
    stack: contextlib.ExitStack,
) -> None:
    """Put placeholders where large tensors are, and have `stack` put the tensors back."""

    def placeholder(tensor: ir.TensorProtocol, location: str, name: str) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            location,
            None,
            None,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    def hold(
        tensor: ir.TensorProtocol, name: str, owner: Literal["main", "inner", "attribute"]
    ) -> str:
        held.append(Held(name, tensor, owner))
        return f"{TOKEN}{len(held) - 1}"

    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, SparseTensor):
            location = f"{TOKEN}sparse{len(sparse)}"
            sparse[location] = tensor.proto
        elif tensor is None or not _large(tensor):
            continue
        else:
            location = hold(tensor, value.name or "", "main" if main else "inner")
        stack.callback(setattr, value, "const_value", tensor)
        value.const_value = placeholder(tensor, location, value.name or "")
    for node in graph:
        for name, attribute in node.attributes.items():
            if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
                continue
            tensor = attribute.value
            if not _large(tensor):
                continue
            location = hold(tensor, name, "attribute")
            stack.callback(node.attributes.__setitem__, name, attribute)
            stand_in = placeholder(tensor, location, tensor.name or "")
            node.attributes[name] = ir.AttrTensor(name, stand_in, doc_string=attribute.doc_string)


def _large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= THRESHOLD


def tensors_of(message: Any) -> Iterator[Any]:
    """Every tensor within a model's graphs and functions."""
    if isinstance(message, onnx.ModelProto):
        parts: list[Any] = [message.graph, *message.functions]
    elif isinstance(message, onnx.GraphProto):
        yield from message.initializer
        for sparse in message.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        parts = list(message.node)
    elif isinstance(message, (onnx.FunctionProto, onnx.NodeProto)):
        parts = [*(message.node if isinstance(message, onnx.FunctionProto) else message.attribute)]
    else:
        yield from (message.t, *message.tensors)
        parts = [*([message.g] if message.HasField("g") else ()), *message.graphs]
    for part in parts:
        yield from tensors_of(part)


def _finish(graph: onnx.GraphProto, sparse: dict[str, onnx.SparseTensorProto]) -> None:
    """Make sparse what was sparse, and drop value_info that repeats an initializer's own type."""
    made = {t.name for t in graph.initializer}
    kept = [v for v in graph.value_info if v.name not in made or v.metadata_props or v.doc_string]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
    if sparse:
        dense = []
        for tensor in graph.initializer:
            location = tensor.external_data[0].value if tensor.external_data else ""
            if location in sparse:
                copy = graph.sparse_initializer.add()
                copy.CopyFrom(sparse[location])
                copy.values.name = tensor.name
            else:
                dense.append(tensor)
        del graph.initializer[:]
        graph.initializer.extend(dense)
    _finish_inner(graph.node, sparse)


def _finish_inner(
    nodes: Iterable[onnx.NodeProto], sparse: dict[str, onnx.SparseTensorProto]
) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _finish(attribute.g, sparse)
            for inner in attribute.graphs:
                _finish(inner, sparse)
