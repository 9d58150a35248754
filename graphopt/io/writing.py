"""Writing a model: the graph through `onnx_ir`, the weights streamed from where they are.

No more than one tensor that is not mapped is ever made whole, and mapped ones never are, so saving
costs memory for the graph alone. The same model gives the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.graph.collector import resting_collector
from graphopt.io import wire
from graphopt.io.reading import THRESHOLD, graphs_of, read_model, source_of
from graphopt.io.replacing import check_replaceable, replace_files
from graphopt.io.tensors import MappedTensor, SparseTensor, chunks, share_key

__all__ = ["Placed", "check_data", "check_writable", "size_of", "skeleton_of", "write_model"]

#: Above this many bytes weights get a file of their own (protobuf ends at 2 GiB).
_EMBED_LIMIT = 1_900_000_000
_PROTOBUF_LIMIT = 2**31 - 1
#: Marks places for tensors in a serialized graph; NUL keeps it apart from any name.
_TOKEN = "\0graphopt-tensor:"
#: Weights in their own file start on these boundaries: pages where large, vectors where small.
_PAGE, _VECTOR, _LARGE = 4096, 64, 1 << 20

#: Who owns a tensor: the main graph, another graph, or a node's attribute.
_Owner = Literal["main", "inner", "attribute"]
#: The external location and offset written for a tensor.
_Location = tuple[str, int | None]
#: Says where a large tensor goes; None writes it in place.
_Place = Callable[[ir.TensorProtocol, str, _Owner], _Location | None]


def write_model(model: ir.Model, target: Path, *, external: bool | None = None) -> None:
    """Write an ONNX file at `target`, which no link names; see `graphopt.formats.save`."""
    with resting_collector():
        plan = _plan(model, target.name, external)
    files: list[tuple[Path, Iterable[bytes | memoryview]]] = [(target, plan.model_bytes())]
    data = target.with_name(plan.data_name)
    check_writable(model, target, [data] if plan.data else ())
    if plan.data:
        check_data(target, data)
        files.insert(0, (data, plan.data_bytes()))
    replace_files(files)


def check_data(target: Path, data: Path) -> None:
    """Raise UsageError if a file at `data` is not the external data of a model at `target`."""
    if not data.exists():
        return
    with contextlib.suppress(ModelError):
        source = source_of(read_model(target))
        if source is not None and any(data.samefile(used) for used in source.data):
            return
    raise UsageError(
        f"{data} holds no weights of {target.name} and would be overwritten: remove it, or choose "
        "another output path"
    )


def size_of(model: ir.Model, name: str = "model.onnx", *, external: bool | None = None) -> int:
    """Bytes that `save(model, name, external=external)` would write, external data included."""
    plan = _plan(model, name, external)
    return plan.model_size + plan.data_size


class Placed(NamedTuple):
    """A tensor that was left out of a skeleton, and where its bytes are said to lie."""

    name: str
    tensor: ir.TensorProtocol
    offset: int


def skeleton_of(model: ir.Model, location: str) -> tuple[onnx.ModelProto, list[Placed]]:
    """A model without the bytes of its main graph's large initializers, and these, in order.

    They are declared as external data at `location`, one after another; nothing is read. Tensors
    with elements below 8 bits, in subgraphs and in attributes keep their bytes.
    """
    large: list[Placed] = []

    def place(tensor: ir.TensorProtocol, name: str, owner: _Owner) -> _Location | None:
        if owner != "main" or tensor.dtype.bitwidth < 8:
            return None
        end = large[-1].offset + large[-1].tensor.nbytes if large else 0
        large.append(Placed(name, tensor, -(-end // _VECTOR) * _VECTOR))
        return location, large[-1].offset

    return _proto(model, place), large


@dataclasses.dataclass
class _Plan:
    """What goes where. `data`: tensors with their offset in the data file, in order."""

    pieces: list[wire.Piece]
    embedded: list[ir.TensorProtocol]
    data_name: str
    data: list[tuple[int, ir.TensorProtocol]]

    @property
    def model_size(self) -> int:
        return sum(p.length if isinstance(p, wire.Hole) else len(p) for p in self.pieces)

    @property
    def data_size(self) -> int:
        return self.data[-1][0] + self.data[-1][1].nbytes if self.data else 0

    def model_bytes(self) -> Iterator[bytes | memoryview]:
        for piece in self.pieces:
            if isinstance(piece, wire.Hole):
                yield from chunks(self.embedded[piece.index])
            else:
                yield piece

    def data_bytes(self) -> Iterator[bytes | memoryview]:
        at = 0
        for offset, tensor in self.data:
            yield bytes(offset - at)
            yield from chunks(tensor)
            at = offset + tensor.nbytes


def _plan(model: ir.Model, name: str, external: bool | None) -> _Plan:
    if external is None:
        external = (
            _was_external(model)
            or sum(t.nbytes for t in _tensors(model) if t.dtype != ir.DataType.STRING)
            > _EMBED_LIMIT
        )
    embedded: list[ir.TensorProtocol] = []
    data: list[tuple[int, ir.TensorProtocol]] = []
    offsets: dict[object, int] = {}
    data_name = f"{name}.data"

    def place(tensor: ir.TensorProtocol, name: str, owner: _Owner) -> _Location | None:
        if not external or owner == "attribute":
            embedded.append(tensor)
            return f"{_TOKEN}{len(embedded) - 1}", None
        key = share_key(tensor)
        if key not in offsets:
            end = data[-1][0] + data[-1][1].nbytes if data else 0
            step = _PAGE if tensor.nbytes >= _LARGE else _VECTOR
            offsets[key] = -(-end // step) * step
            data.append((offsets[key], tensor))
        return data_name, offsets[key]

    proto = _proto(model, place)
    skeleton = proto.SerializeToString(deterministic=True)
    pieces = wire.fill(skeleton, _TOKEN.encode(), [t.nbytes for t in embedded])
    plan = _Plan(pieces, embedded, data_name, data)
    if plan.model_size > _PROTOBUF_LIMIT:
        raise ModelError(
            f"{name} would have {plan.model_size / 1e9:.1f} GB, and one ONNX file cannot exceed "
            "2.1 GB: save it with external data"
        )
    return plan


def _proto(model: ir.Model, place: _Place) -> onnx.ModelProto:
    """The model as protobuf, where tensors for which `place` gives a location have no bytes.

    Works on a clone, which shares tensors and costs the graph alone.
    """
    clone = model.clone()
    sparse: dict[str, onnx.SparseTensorProto] = {}
    for graph in graphs_of(clone):
        for value in graph.initializers.values():
            tensor = value.const_value
            owner: _Owner = "main" if graph is clone.graph else "inner"
            if isinstance(tensor, SparseTensor):
                where: _Location = (f"{_TOKEN}sparse{len(sparse)}", None)
                sparse[where[0]] = tensor.proto
            elif tensor is None or (found := _place(place, tensor, value.name, owner)) is None:
                continue
            else:
                where = found
            value.const_value = _placeholder(tensor, value.name, where)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
                    continue
                tensor = attribute.value
                found = _place(place, tensor, name, "attribute")
                if found is not None:
                    stand_in = _placeholder(tensor, tensor.name, found)
                    node.attributes[name] = ir.AttrTensor(
                        name, stand_in, doc_string=attribute.doc_string
                    )
    proto = ir.to_proto(clone)
    _finish(proto.graph, sparse)
    for function in proto.functions:
        _finish_inner(function.node, sparse)
    return proto


def _place(
    place: _Place, tensor: ir.TensorProtocol, name: str | None, owner: _Owner
) -> _Location | None:
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes < THRESHOLD:
        return None
    return place(tensor, name or "", owner)


def _placeholder(
    tensor: ir.TensorProtocol, name: str | None, where: _Location
) -> ir.ExternalTensor:
    location, offset = where
    return ir.ExternalTensor(
        location,
        offset,
        None if offset is None else tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


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


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.value


def _was_external(model: ir.Model) -> bool:
    source = source_of(model)
    if source is not None:
        return bool(source.data)
    return any(isinstance(t, ir.ExternalTensor) for t in _tensors(model))


def check_writable(model: ir.Model, target: Path, beside: Iterable[Path] = ()) -> None:
    """Raise unless `target`, and what is written beside it, is a file that may be replaced."""
    used = _files_of(model)
    for path in (target, *beside):
        check_replaceable(path)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in used:
                raise UsageError(
                    f"{path} is a file the model was read from, and the input is never "
                    "overwritten: choose another output path"
                )


def _files_of(model: ir.Model) -> set[tuple[int, int]]:
    """Device and inode of every file that the model's weights lie in."""
    source = source_of(model)
    used = set(source.files) if source is not None else set()
    paths = set()
    for tensor in _tensors(model):
        if isinstance(tensor, MappedTensor):
            used.add(tensor.file.identity)
        elif isinstance(tensor, ir.ExternalTensor):
            paths.add(tensor.path)
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            used.add((status.st_dev, status.st_ino))
    return used
