"""Mutations of ONNX files: of their bytes, and of what they say (structure-aware)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

__all__ = ["mutated"]

NUMBERS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 5, 64, 1000, 2**31, 2**40, 2**62, 2**63 - 1)
TYPES = (*range(17), 22, 23, 99)
NAMES = ("", "x", "y", "w", "nowhere", "[/red]", "a b\n", "\x1b[31m", "../x", "n" * 3000)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four mutations of a file: of its bytes in a third of the cases, else of its parts."""
    if rng.random() < 0.33:
        return _bytes(bytearray(data), rng)
    model = ModelProto()
    model.ParseFromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        try:
            rng.choice(STRUCTURE)(model, rng)
        except (IndexError, ValueError, TypeError):  # there is no such thing here, or no such value
            continue
    return bytes(model.SerializeToString())


def _bytes(b: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        p, n = rng.randrange(len(b)), rng.randrange(1, 60)
        match rng.choice(["flip", "int", "run", "repeat", "delete", "swap", "end"]):
            case "flip":
                b[p] ^= 1 << rng.randrange(8)
            case "int":
                b[p] = rng.choice((0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF))
            case "run":
                b[p : p + n] = rng.randbytes(n)
            case "repeat":
                b[p:p] = b[p : p + n]
            case "delete" if len(b) > 2 * n:
                del b[p : p + n]
            case "swap":
                q = rng.randrange(len(b))
                b[p : p + n], b[q : q + n] = b[q : q + n], b[p : p + n]
            case "end" if p:
                del b[p:]
    return bytes(b)


# --- structure ----------------------------------------------------------------------------------


def _graph(model: ModelProto, rng: random.Random) -> GraphProto:
    """The main graph, or one inside it."""
    graph = model.graph
    while rng.random() < 0.5:
        inner = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
        if not inner:
            break
        graph = rng.choice(inner)
    return graph


def _node(model: ModelProto, rng: random.Random) -> onnx.NodeProto:
    listed: Any = _graph(model, rng).node
    if model.functions and rng.random() < 0.3:
        listed = rng.choice(model.functions).node
    return rng.choice(listed)


def _values(graph: GraphProto) -> list[str]:
    made = [o for n in graph.node for o in n.output]
    return [*made, *(v.name for v in (*graph.input, *graph.initializer, *graph.output))]


def permute_inputs(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = list(node.input)
    rng.shuffle(names)
    node.input[:] = names


def drop_or_add_input(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = list(node.input)
    if rng.random() < 0.6:
        names.pop(rng.randrange(len(names)))
    else:
        names.insert(rng.randrange(len(names) + 1), rng.choice([*_values(model.graph), ""]))
    node.input[:] = names


def rewire(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    found = rng.choice((*_values(_graph(model, rng)), *NAMES))
    node.input[rng.randrange(len(node.input))] = found


def change_output(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    match rng.choice(["drop", "add", "rename"]):
        case "drop":
            del node.output[rng.randrange(len(node.output))]
        case "add":
            node.output.append(rng.choice(("more", *_values(model.graph))))
        case "rename":
            node.output[rng.randrange(len(node.output))] = rng.choice(NAMES)


def change_node(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    at = rng.randrange(len(graph.node))
    match rng.choice(["drop", "repeat", "move", "operator", "domain", "name"]):
        case "drop":
            del graph.node[at]
        case "repeat":
            graph.node.add().CopyFrom(graph.node[at])
        case "move":
            nodes = list(graph.node)
            nodes.insert(rng.randrange(len(nodes)), nodes.pop(at))
            copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
            del graph.node[:]
            graph.node.extend(copies)
        case "operator":
            schemas = onnx.defs.get_all_schemas()
            used = [n.op_type for n in graph.node]
            graph.node[at].op_type = rng.choice([*used, rng.choice(schemas).name, "Nothing"])
        case "domain":
            graph.node[at].domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "q"))
        case "name":
            graph.node[at].name = rng.choice(NAMES)


def change_attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    attribute: AttributeProto = rng.choice(node.attribute)
    kinds = AttributeProto
    match rng.choice(
        ["drop", "repeat", "name", "number", "number", "list", "list", "type", "empty", "reference"]
    ):
        case "drop":
            node.attribute.remove(attribute)
        case "repeat":
            node.attribute.add().CopyFrom(attribute)
        case "name":
            attribute.name = rng.choice(("axis", "axes", "perm", "to", "value", *NAMES))
        case "number" if attribute.type == kinds.INT:
            attribute.i = rng.choice(NUMBERS)
        case "number" if attribute.type == kinds.FLOAT:
            attribute.f = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        case "number" if attribute.type == kinds.STRING:
            attribute.s = rng.choice((b"", b"\xff\xfe", b"NOTSET", b"linear", b"constant"))
        case "list" if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        case "list" if attribute.type == kinds.INTS:
            attribute.ints.append(rng.choice(NUMBERS))
        case "empty":
            for field in ("ints", "floats", "strings", "g", "t"):
                attribute.ClearField(field)
        case "type":
            attribute.type = rng.randrange(15)
        case "reference":
            attribute.ref_attr_name = rng.choice(NAMES)


def change_tensor(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    constants = [a.t for n in graph.node for a in n.attribute if a.HasField("t")]
    tensor: TensorProto = rng.choice([*graph.initializer, *constants])
    match rng.choice(
        ["dim", "dim", "dims", "rank", "type", "zero", "cut", "data", "text", "outside", "name"]
    ):
        case "dim":
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
        case "dims":
            sizes = list(tensor.dims)
            rng.shuffle(sizes)
            tensor.dims[:] = sizes
        case "rank":
            tensor.dims.insert(rng.randrange(len(tensor.dims) + 1), rng.choice((1, 1, 2, 0)))
        case "type":
            tensor.data_type = rng.choice(TYPES)
        case "zero" if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = 0
            for field in ("raw_data", "float_data", "int64_data", "int32_data", "double_data"):
                tensor.ClearField(field)
        case "cut":
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data))]
        case "data":
            tensor.raw_data = rng.randbytes(len(tensor.raw_data))
        case "text":
            tensor.string_data.append(b"\xff")
        case "outside":
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": rng.choice(("w.bin", "../w", "/etc/passwd", "")), "offset": "-4"}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=value)
        case "name":
            tensor.name = rng.choice(NAMES)


def change_declaration(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    listed: Any = rng.choice((graph.input, graph.output, graph.value_info))
    at = rng.randrange(len(listed))
    value = listed[at]
    tensor = value.type.tensor_type
    match rng.choice(
        ["drop", "repeat", "name", "type", "size", "size", "axis", "rank", "none", "swap"]
    ):
        case "drop":
            del listed[at]
        case "repeat":
            listed.add().CopyFrom(value)
        case "name":
            value.name = rng.choice((*_values(graph), *NAMES))
        case "type":
            tensor.elem_type = rng.choice(TYPES)
        case "size":
            tensor.shape.dim[rng.randrange(len(tensor.shape.dim))].dim_value = rng.choice(NUMBERS)
        case "axis":
            tensor.shape.dim[rng.randrange(len(tensor.shape.dim))].dim_param = rng.choice(NAMES)
        case "rank":
            tensor.shape.dim.add().dim_value = rng.choice((1, 2, 3))
        case "none":
            rng.choice((value, tensor)).ClearField(rng.choice(("type", "shape")))
        case "swap":
            inner = onnx.TypeProto.FromString(value.type.SerializeToString())
            kind = rng.choice(("sequence_type", "optional_type"))
            getattr(value.type, kind).elem_type.CopyFrom(inner)


def change_initializers(model: ModelProto, rng: random.Random) -> None:
    graph = _graph(model, rng)
    at = rng.randrange(len(graph.initializer))
    match rng.choice(["drop", "repeat", "listed", "output", "half", "sparse"]):
        case "drop":
            del graph.initializer[at]
        case "repeat":
            graph.initializer.add().CopyFrom(graph.initializer[at])
        case "listed":
            tensor = graph.initializer[at]
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
        case "output":
            tensor = graph.initializer[at]
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.output.append(info)
        case "half":  # bfloat16 or float16 behind a Cast, as exporters of half models write it
            tensor = graph.initializer[at]
            kind = rng.choice((TensorProto.FLOAT16, TensorProto.BFLOAT16))
            array = onnx.numpy_helper.to_array(tensor)
            made = onnx.helper.make_tensor(f"{tensor.name}_half", kind, tensor.dims, array.ravel())
            cast = onnx.helper.make_node("Cast", [made.name], [tensor.name], to=tensor.data_type)
            graph.initializer[at].CopyFrom(made)
            nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
            del graph.node[:]
            graph.node.extend([cast, *nodes])
        case "sparse":
            tensor = graph.initializer[at]
            sparse = graph.sparse_initializer.add()
            sparse.values.CopyFrom(tensor)
            sparse.indices.CopyFrom(onnx.helper.make_tensor("", 7, [1], [rng.choice(NUMBERS)]))
            sparse.dims.extend(tensor.dims)
            del graph.initializer[at]


def change_model(model: ModelProto, rng: random.Random) -> None:
    match rng.choice(
        ["opset", "opset", "drop", "domain", "version", "graph", "function", "quantization"]
    ):
        case "opset":
            rng.choice(model.opset_import).version = rng.choice((*range(-1, 27), 2**40))
        case "drop":
            del model.opset_import[rng.randrange(len(model.opset_import))]
        case "domain":
            model.opset_import.add(domain=rng.choice(("com.microsoft", "ai.onnx", "q")), version=1)
        case "version":
            model.ir_version = rng.choice((0, 1, 3, 4, 7, 8, 10, 13, 99, 2**40))
        case "graph":
            model.graph.name = rng.choice(NAMES)
        case "function":
            function: Any = rng.choice(model.functions)
            listed = rng.choice((function.input, function.output, function.opset_import))
            del listed[rng.randrange(len(listed))]
        case "quantization":
            model.graph.quantization_annotation.add(tensor_name=rng.choice(NAMES))


STRUCTURE: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    permute_inputs,
    drop_or_add_input,
    rewire,
    change_output,
    change_node,
    change_node,
    change_attribute,
    change_attribute,
    change_tensor,
    change_tensor,
    change_declaration,
    change_declaration,
    change_initializers,
    change_model,
)
