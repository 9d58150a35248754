"""What is set right in a model while it is read: names, sizes below zero, maps.

Other tools take such files, and runtimes do not: two nodes of one graph may not share a name,
names are UTF-8, and exporters write -1 for an axis whose size they do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

import onnx
from google.protobuf.message import Message

from graphopt.errors import ModelError
from graphopt.io.mxnet import mend_mxnet

__all__ = ["mend", "take_maps"]

#: Domains that ONNX Runtime imports by itself, in these versions.
_KNOWN = {"com.microsoft": 1, "ai.onnx.ml": 5}


def mend(proto: onnx.ModelProto) -> list[str]:
    """Set right what can be, in place; a sentence on each kind of change."""
    _decode(proto)
    renamed: list[str] = []
    unknown: list[str] = []
    for graph in _graphs(proto):
        declared = {v.name: v.type for v in graph.input}
        for value in graph.output:  # one value: what it is as an input, callers must give
            if value.name in declared:
                value.type.CopyFrom(declared[value.name])
            declared[value.name] = value.type  # listed again, it is what it was at first
    unnamed = [graph for graph in _graphs(proto) if not graph.name]
    for graph in unnamed:
        graph.name = "graph"
    for holder in (*_graphs(proto), *proto.functions):
        renamed += _tell_apart(holder.node)
        for value in _declared(holder):
            if _forget_negative(value.type):
                unknown.append(value.name)
    notes = _import_once(proto)
    notes += mend_mxnet(proto)
    if imported := _import_known(proto):
        notes.append(
            f"Operators of domains that the model does not import are read as runtimes do: "
            f"{_listed(imported)}."
        )
    listed = _list_initializers(proto)
    if listed:
        notes.append(
            f"{_count(listed, 'initializer')} had no input beside it, which IR version "
            f"{proto.ir_version} asks for and runtimes do not: {_listed(listed)}."
        )
    if unnamed:
        notes.append(f"{_count(unnamed, 'graph')} had no name and got one, which ONNX asks for.")
    if renamed:
        notes.append(
            f"{_count(renamed, 'node')} had the name of another and got names of their own: "
            f"{_listed(renamed)}."
        )
    if unknown:
        notes.append(
            f"{_count(unknown, 'value')} declared sizes below zero, which were read as unknown: "
            f"{_listed(unknown)}."
        )
    return notes


def _import_once(proto: onnx.ModelProto) -> list[str]:
    """Of a domain that is imported again in another version the last import, as runtimes do."""
    notes = []
    for holder in (proto, *proto.functions):
        last: dict[str, int] = {}
        again = []
        for entry in holder.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if last.get(domain, entry.version) != entry.version:
                again.append(domain or "ai.onnx")
            last[domain] = entry.version
        if again:
            notes.append(
                f"Of domains that are imported in several versions the last is read, as runtimes "
                f"do: {_listed(again)}."
            )
        if len(last) < len(holder.opset_import):
            del holder.opset_import[:]
            for domain, version in last.items():
                holder.opset_import.add(domain=domain, version=version)
    return notes


def _import_known(proto: onnx.ModelProto) -> list[str]:
    """Import the domains of operators that ONNX Runtime knows without being told."""
    graphs = (proto.graph, *_below(proto.graph.node))
    used = {n.domain for graph in graphs for n in graph.node}
    missing = sorted(used.intersection(_KNOWN) - {e.domain for e in proto.opset_import})
    for domain in missing:
        proto.opset_import.add(domain=domain, version=_KNOWN[domain])
    return missing


def _list_initializers(proto: onnx.ModelProto) -> list[str]:
    """Before IR version 4 every initializer is listed as an input: those that were not."""
    if proto.ir_version >= 4:
        return []
    given = {v.name for v in proto.graph.input}
    missing = [t for t in proto.graph.initializer if t.name not in given]
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in missing
    )
    return [t.name for t in missing]


def _decode(message: Message) -> None:
    """Text that is no UTF-8, which protobuf hands out as bytes -> escaped text, everywhere alike.

    Raises ModelError for an operator or a domain: there is none of such a name.
    """
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if isinstance(value, str):
                continue
            if field.name in ("op_type", "domain"):
                raise ModelError(f"a name in it is not UTF-8: {value[:60]!r}")
            if isinstance(value, bytes):
                setattr(message, field.name, value.decode(errors="backslashreplace"))
                continue
            for k, text in enumerate(value):
                if isinstance(text, bytes):
                    value[k] = text.decode(errors="backslashreplace")
        elif field.type == field.TYPE_MESSAGE:
            for one in (value,) if isinstance(value, Message) else value:
                _decode(one)


def take_maps(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Take out declared types with maps in them, which `onnx_ir` lacks; those of the main graph."""
    taken: dict[str, onnx.TypeProto] = {}
    for holder in (*_graphs(proto), *proto.functions):
        for value in _declared(holder):
            if _holds_map(value.type):
                kind = taken.setdefault(value.name, onnx.TypeProto())
                kind.CopyFrom(value.type)
                value.ClearField("type")
    return {v.name: taken[v.name] for v in _ends(proto.graph) if v.name in taken}


def _ends(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.input, *graph.output]


def _declared(holder: onnx.GraphProto | onnx.FunctionProto) -> list[onnx.ValueInfoProto]:
    ends = _ends(holder) if isinstance(holder, onnx.GraphProto) else []
    return [*ends, *holder.value_info]


def _holds_map(kind: onnx.TypeProto) -> bool:
    held = kind.WhichOneof("value")
    if held in ("sequence_type", "optional_type"):
        inner: onnx.TypeProto = getattr(kind, held).elem_type
        return _holds_map(inner)
    return bool(held == "map_type")


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph, those in functions too."""
    yield proto.graph
    yield from _below(proto.graph.node)
    for function in proto.functions:
        yield from _below(function.node)


def _below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs that nodes hold, and what those hold."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*[attribute.g] * attribute.HasField("g"), *attribute.graphs):
                yield graph
                yield from _below(graph.node)


def _forget_negative(kind: onnx.TypeProto) -> bool:
    """Make sizes below zero unknown, in sequences and optionals too; whether there were any."""
    held = kind.WhichOneof("value")
    if held in ("sequence_type", "optional_type"):
        inner: onnx.TypeProto = getattr(kind, held).elem_type
        return _forget_negative(inner)
    if held not in ("tensor_type", "sparse_tensor_type"):
        return False
    found = [d for d in getattr(kind, held).shape.dim if d.dim_value < 0]
    for dim in found:
        dim.ClearField("dim_value")
    return bool(found)


def _tell_apart(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Give nodes of one graph that share a name, but the first, new ones; those they had."""
    listed = list(nodes)
    taken = {n.name for n in listed}
    seen: set[str] = set()
    renamed = []
    for node in listed:
        if node.name in seen and node.name:
            renamed.append(node.name)
            k = 1
            while f"{node.name}_{k}" in taken:
                k += 1
            node.name = f"{node.name}_{k}"
            taken.add(node.name)
        seen.add(node.name)
    return renamed


def _count(names: Sized, what: str) -> str:
    return f"1 {what}" if len(names) == 1 else f"{len(names)} {what}s"


def _listed(names: list[str]) -> str:
    first = list(dict.fromkeys(names))
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return ", ".join(f"'{n}'" for n in first[:3]) + more
