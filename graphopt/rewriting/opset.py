"""Raising a model's opset, in place and node by node.

Only nodes whose operator really changed between the two versions are touched: each goes alone
through `onnx.version_converter`, with what is known of its inputs, and what comes back takes its
place. So names, metadata, functions, subgraphs, foreign domains and weights stay as they are, and
the cost does not depend on the weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import infer
from graphopt.analyses.shapes.facts import Shapes
from graphopt.context import Context
from graphopt.errors import ModelError
from graphopt.graph.building import Names
from graphopt.io.signatures import EXPERIMENTS, EXPERIMENTS_END

__all__ = ["limit_opset", "raise_for", "raise_opset"]

#: Where the highest opset that a model may be raised to lies in `model.graph.meta`.
_LIMIT = "graphopt.max_opset"

#: Operators with subgraphs that changed only in the types they take, since these versions.
_CONTROL = {"If": 1, "Loop": 1, "Scan": 9, "SequenceMap": 17}
#: Operators that came to mean something else at a version, and that the converter lets pass.
_REDEFINED = {"GroupNormalization": 21, "Hardmax": 13}
#: Resize before opset 11, in the words of later ones; the converter leaves the new defaults.
_RESIZE_10 = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
#: Constant inputs up to this many elements are shown to the converter (axes, sizes, scales).
_SMALL = 64
#: What `onnx.version_converter` raises.
_FAILURES = (RuntimeError, ValueError, IndexError)


def limit_opset(model: ir.Model, version: int) -> None:
    """Let `raise_opset` refuse to convert the model, or a clone of it, beyond `version`."""
    model.graph.meta[_LIMIT] = version


def raise_for(name: str, model: ir.Model, ctx: Context, version: int) -> bool:
    """Raise the opset as an edit of the pass `name`; False, with a note, if it cannot be done."""
    if not ctx.edit("RaiseOpset", f"opset {version}"):
        return False
    try:
        raise_opset(model, version)
    except ModelError as error:
        ctx.edits.pop()
        ctx.note(f"{name} needs opset {version} or newer: {error}")
        return False
    ctx.invalidate()
    return True


def raise_opset(model: ir.Model, version: int) -> bool:
    """Convert `model` to opset `version` of the default domain; False if it is there already.

    Raises:
        ModelError: the version is unknown, or a node cannot be converted (it is named); the
            model is then as it was.
    """
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ModelError(f"opset {version} is unknown: the installed onnx knows up to {newest}")
    limit = model.graph.meta.get(_LIMIT, newest)
    if limit < version and model.graph.opset_imports.get("", version) < version:
        raise ModelError(f"it may be raised to {limit} at most")
    roots = [model.graph, *(f.graph for f in model.functions.values())]
    older = [r for r in roots if r.opset_imports.get("", version) < version]
    plan: list[tuple[ir.Node, onnx.GraphProto]] = []
    known: Shapes | None = None
    for old in sorted({r.opset_imports[""] for r in older}):
        graphs = [g for r in older if r.opset_imports[""] == old for g in (r, *r.subgraphs())]
        nodes = [n for g in graphs for n in g if _changed(n, old, version)]
        for node in (n for g in graphs for n in g if n.op_type in EXPERIMENTS):
            if version > EXPERIMENTS_END:
                raise ModelError(
                    f"{node.op_type} '{node.name}' cannot be raised to opset {version}: no "
                    f"runtime has it beyond {EXPERIMENTS_END}"
                )
        for node in nodes:
            if old < _REDEFINED.get(node.op_type, 0) <= version:
                raise ModelError(
                    f"{node.op_type} '{node.name}' cannot be raised from opset {old} to "
                    f"{version}: its meaning changed in {_REDEFINED[node.op_type]}"
                )
        if nodes:
            known = known or infer(model)
            plan += zip(nodes, _convert_all(nodes, known, old, version), strict=True)
    names = Names(model)
    for node, proto in plan:
        if not _same(proto, ir.serde.serialize_node(node)):
            _replace(node, proto, names)
    for root in older:
        root.opset_imports[""] = version
    if older:
        needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
        model.ir_version = max(model.ir_version, needed)
    return bool(older)


def _convert_all(nodes: list[ir.Node], known: Shapes, old: int, new: int) -> list[onnx.GraphProto]:
    """Each node's replacement. One call converts all, as a call costs much and a node little."""
    alone = [_alone(n, known) for n in nodes]
    try:
        return _convert(alone, old, new)
    except _FAILURES as all_failed:
        for node, graph in zip(nodes, alone, strict=True):
            try:
                _convert([graph], old, new)
            except _FAILURES as error:
                lines = [s for s in str(error).splitlines() if s.strip()]
                raise ModelError(
                    f"{node.op_type} '{node.name}' cannot be raised from opset {old} to {new}: "
                    f"{lines[0] if lines else type(error).__name__}"
                ) from error
        raise ModelError(f"opset {old} cannot be raised to {new}: {all_failed}") from all_failed


def _convert(alone: list[onnx.GraphProto], old: int, new: int) -> list[onnx.GraphProto]:
    """The graphs after conversion, equal ones converted once."""
    distinct = {g.SerializeToString(deterministic=True): g for g in alone}
    joint = onnx.GraphProto(name="joint")
    for k, graph in enumerate(distinct.values()):
        joint.MergeFrom(onnx.compose.add_prefix_graph(graph, f"{k}/"))
    joint.name = "joint"
    made = onnx.helper.make_model(
        joint, opset_imports=[onnx.helper.make_opsetid("", old)], ir_version=8
    )
    converted = onnx.version_converter.convert_version(made, new).graph
    for node in converted.node:
        if node.op_type == "Resize" and old < 11:
            have = {a.name for a in node.attribute}
            wanted = {k: v for k, v in _RESIZE_10.items() if k not in have}
            node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in wanted.items())
    parts = dict(zip(distinct, _part(converted, len(distinct)), strict=True))
    return [parts[g.SerializeToString(deterministic=True)] for g in alone]


def _part(joint: onnx.GraphProto, count: int) -> list[onnx.GraphProto]:
    """The pieces of a graph that do not touch each other, by the prefix of their outputs."""
    parts = [onnx.GraphProto() for _ in range(count)]
    owner = {v.name: int(v.name.split("/")[0]) for v in joint.output}
    for node in reversed(joint.node):
        k = next(owner[o] for o in node.output if o in owner)
        owner.update(dict.fromkeys((*node.input, *node.output), k))
        parts[k].node.insert(0, node)
    for tensor in joint.initializer:
        if tensor.name in owner:
            parts[owner[tensor.name]].initializer.append(tensor)
    for k, part in enumerate(parts):
        for node in part.node:
            node.input[:] = [i.removeprefix(f"{k}/") for i in node.input]
            node.output[:] = [o.removeprefix(f"{k}/") for o in node.output]
        for tensor in part.initializer:
            tensor.name = tensor.name.removeprefix(f"{k}/")
    return parts


def _changed(node: ir.Node, old: int, new: int) -> bool:
    """Whether the meaning of the node's operator may differ between the two versions."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if not onnx.defs.has(node.op_type, max_inclusive_version=old):
        return False
    if not _redefined(node.op_type, old, new):
        return False
    return old < _CONTROL.get(node.op_type, new)


@cache
def _redefined(op_type: str, old: int, new: int) -> bool:
    """Whether an operator's schema differs by more than the element types it takes.

    From opset 13 on, every change of meaning came with one of the signature.
    """
    before = onnx.defs.get_schema(op_type, old, "")
    after = onnx.defs.get_schema(op_type, new, "")
    if after.deprecated:
        return True
    if before.since_version == after.since_version:
        return False
    return old < 13 or _signature(before) != _signature(after)


def _signature(schema: onnx.defs.OpSchema) -> Any:
    parameters = [(p.name, p.option) for p in (*schema.inputs, *schema.outputs)]
    attributes = sorted(
        (a.name, a.type, a.required, a.default_value.SerializeToString(deterministic=True))
        for a in schema.attributes.values()
    )
    return len(schema.inputs), parameters, attributes


def _alone(node: ir.Node, known: Shapes) -> onnx.GraphProto:
    """A graph of this one node: inputs i0, i1, ... with what is known of them, outputs o0, ..."""
    graph = onnx.GraphProto(name="alone")
    proto = ir.serde.serialize_node(node)
    for field in ("name", "doc_string", "metadata_props"):
        proto.ClearField(field)
    for k, value in enumerate(node.inputs):
        if value is None:
            continue
        first = node.inputs.index(value)
        proto.input[k] = f"i{first}"
        tensor = ir.convenience.get_const_tensor(value) if first == k else None
        if tensor is not None and tensor.size <= _SMALL:
            shown = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=f"i{k}")
            graph.initializer.append(ir.to_proto(shown))
        elif first == k:
            graph.input.append(_info(value, f"i{k}", known))
    for k, value in enumerate(node.outputs[: len(proto.output)]):
        if value.name:
            proto.output[k] = f"o{k}"
            graph.output.append(_info(value, f"o{k}", known))
    graph.node.append(proto)
    return graph


def _info(value: ir.Value, name: str, known: Shapes) -> onnx.ValueInfoProto:
    """Type and shape as they are declared; what is not, as far as it is known."""
    info = onnx.ValueInfoProto(name=name)
    dtype, dims = known.dtype(value), known.shape(value)
    kind = value.type or (ir.TensorType(dtype) if dtype is not None else None)
    shape = value.shape
    if shape is None and dims is not None:
        shape = ir.Shape([d if isinstance(d, int) else None for d in dims])
    if kind is not None:
        info.type.CopyFrom(ir.to_proto(kind))
        if shape is not None:
            ir.serde.serialize_shape_into(info.type, shape)
    return info


def _same(graph: onnx.GraphProto, old: onnx.NodeProto) -> bool:
    """Whether conversion changed nothing: one node, same operator, inputs and attributes."""
    if len(graph.node) != 1:
        return False
    new = graph.node[0]
    return (
        new.op_type == old.op_type
        and list(new.input) == [i and f"i{list(old.input).index(i)}" for i in old.input]
        and [bool(o) for o in new.output] == [bool(o) for o in old.output]
        and {p.name: p.SerializeToString(deterministic=True) for p in new.attribute}
        == {p.name: p.SerializeToString(deterministic=True) for p in old.attribute}
    )


def _replace(node: ir.Node, proto: onnx.GraphProto, names: Names) -> None:
    """Put the converted nodes in the place of `node`; its outputs keep their names and types."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    base = node.name or node.op_type
    values: dict[str, ir.Value | None] = {"": None}
    values.update({f"i{k}": v for k, v in enumerate(node.inputs)})
    for tensor in proto.initializer:
        if tensor.name not in values:
            own = onnx.TensorProto()
            own.CopyFrom(tensor)  # equal nodes are converted once, and each names its constants
            array = ir.from_proto(own)
            value = ir.Value(
                name=names.fresh(f"{base}/constant"),
                shape=ir.Shape(array.shape),
                type=ir.TensorType(array.dtype),
                const_value=array,
            )
            values[tensor.name] = value
            array.name = value.name
            graph.register_initializer(value)
    outputs = {f"o{k}" for k in range(len(node.outputs))}
    added: list[ir.Node] = []
    for made in proto.node:
        first_last = outputs & set(made.output) and all(n.name != base for n in added)
        new = ir.Node(
            "",
            made.op_type,
            [values[i] for i in made.input],
            [ir.from_proto(a) for a in made.attribute],
            num_outputs=len(made.output),
            name=base if first_last else names.fresh(f"{base}/{made.op_type}"),
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        for name, value in zip(made.output, new.outputs, strict=True):
            value.name = names.fresh(f"{base}:{name}") if name else ""
            values[name] = value
        added.append(new)
    pairs = [(old, values.get(f"o{k}")) for k, old in enumerate(node.outputs)]
    kept = [(old, new) for old, new in pairs if new is not None]
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], added, [old for old, _ in kept], [new for _, new in kept]
    )
