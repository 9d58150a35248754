"""Operator signatures: inputs, outputs and attributes as the ONNX standard has them; calls.

A node that lacks what its operator needs is refused before anything looks at it, and so are
functions that call themselves or stand for more nodes than a runtime could ever inline.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import onnx

from graphopt.errors import ModelError

__all__ = [
    "EXPERIMENTS",
    "EXPERIMENTS_END",
    "STANDARD",
    "check_calls",
    "check_signatures",
    "title_of",
]

#: Names of the domain of standard operators.
STANDARD = ("", "ai.onnx")
#: Experiments of early ONNX that ONNX Runtime has in that domain, up to an opset.
EXPERIMENTS = frozenset(
    {
        *("Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler"),
        *("ParametricSoftplus", "Scale", "ScaledTanh"),
    }
)
EXPERIMENTS_END = 9
#: Nodes that functions may become where they are called.
_MOST = 1_000_000
#: Beyond this no axis is looked for: shape inference dies of it.
_AXES = 1 << 10
#: Types that count, as sizes and steps do.
_COUNTS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
#: Numbers of element types.
_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {0}
_Key = tuple[str, str, str]


def title_of(node: onnx.NodeProto) -> str:
    """Operator and name of a node, as messages show it; its first output's if it has none."""
    label = node.name or next((o for o in node.output if o), "")
    return f"{node.op_type} '{label}'"


def check_signatures(proto: onnx.ModelProto) -> None:
    """Operators have the inputs, outputs and attributes they need. Raises ModelError."""
    local = {(f.domain, f.name): (len(f.input), len(f.output)) for f in proto.functions}
    sliced = any(n.op_type == "Slice" for n in proto.graph.node)
    zeros = frozenset(_zeros(proto.graph) if sliced else ())
    _check_signatures(proto.graph.node, _standard(proto.opset_import), local, zeros=zeros)
    for function in proto.functions:
        given = frozenset((*function.attribute, *(a.name for a in function.attribute_proto)))
        _check_signatures(function.node, _standard(function.opset_import), local, given)


def _standard(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return next((e.version for e in imports if e.domain in STANDARD), 0)


def _check_signatures(
    nodes: Iterable[onnx.NodeProto],
    version: int,
    local: Mapping[tuple[str, str], tuple[int, int]],
    parameters: frozenset[str] = frozenset(),
    zeros: frozenset[str] = frozenset(),
) -> None:
    """`parameters` are the attributes of the function that the nodes are in."""
    for node in nodes:
        for attribute in node.attribute:
            _check_attribute(node, attribute, parameters)
            for graph in (attribute.g, *attribute.graphs):
                _check_signatures(graph.node, version, local, parameters, zeros)
        takes = local.get((node.domain, node.op_type))
        if takes is not None and (len(node.input) > takes[0] or len(node.output) > takes[1]):
            raise ModelError(
                f"{title_of(node)} has {len(node.input)} inputs and {len(node.output)} outputs, "
                f"the function has {takes[0]} and {takes[1]}"
            )
        if node.domain not in STANDARD or takes is not None:
            continue
        misfit = _misfit(
            node.op_type,
            version,
            tuple(map(bool, node.input)),
            len(node.output),
            tuple((a.name, a.type, bool(a.ref_attr_name)) for a in node.attribute),
        )
        if misfit is None:
            continue
        if misfit:
            raise ModelError(f"{title_of(node)}{misfit}")
        _check_values(node, zeros)
        if node.op_type == "Constant" and len(node.attribute) != 1:
            raise ModelError(f"{title_of(node)} holds {len(node.attribute)} values, not one")


@lru_cache(maxsize=4096)
def _misfit(
    op_type: str,
    version: int,
    inputs: tuple[bool, ...],
    outputs: int,
    attributes: tuple[tuple[str, int, bool], ...],
) -> str | None:
    """What of a node does not fit the operator's schema; "" if all does, None if there is none.

    Args:
        op_type, version: the operator, and the opset.
        inputs: whether each has a name.
        outputs: how many there are.
        attributes: name and type of each, and whether it stands for a function's.
    """
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    for have, low, high, what in (
        (len(inputs), schema.min_input, schema.max_input, "inputs"),
        (outputs, schema.min_output, schema.max_output, "outputs"),
    ):
        if not low <= have <= high:
            wanted = low if low == high or have < low else high
            limit = "" if low == high else "at least " if have < low else "at most "
            return f" has {have} {what}, the operator has {limit}{wanted}"
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for k, named in enumerate(inputs):
        parameter = schema.inputs[min(k, len(schema.inputs) - 1)]  # the last may be many
        if not named and parameter.option != optional:
            return f" lacks its input {k} ({parameter.name})"
    given = {name: (kind, stands) for name, kind, stands in attributes}
    for name, wanted in schema.attributes.items():
        if name not in given:
            if wanted.required:
                return f" lacks the attribute '{name}'"
            continue
        kind, stands = given[name]
        if kind and kind != wanted.type.value and not stands:
            return f", attribute '{name}': not {wanted.type.name}"
    unknown = [n for n in given if n not in schema.attributes and not n.startswith("__")]
    return f" has the unknown attribute '{unknown[0]}'" if unknown else ""


def _check_values(node: onnx.NodeProto, zeros: frozenset[str]) -> None:
    """Permutations permute, axes are few, no step is 0, Splits add up: else no runtime opens it."""
    for attribute in node.attribute:
        if attribute.name == "axis" and abs(attribute.i) > _AXES:
            raise ModelError(f"{title_of(node)}: no tensor has an axis {attribute.i}")
        if attribute.name == "num_outputs" and attribute.i not in (0, len(node.output)):
            made = f"{len(node.output)} outputs, num_outputs={attribute.i}"
            raise ModelError(f"{title_of(node)} has {made}")
    for attribute in node.attribute if node.op_type == "Transpose" else ():
        perm = list(attribute.ints)
        if sorted(perm) != list(range(len(perm))) and not attribute.ref_attr_name:
            raise ModelError(f"{title_of(node)}: perm {perm[:20]} is no permutation")
    if node.op_type == "Slice" and len(node.input) > 4 and node.input[4] in zeros:
        raise ModelError(f"{title_of(node)} has a step of 0")


def _zeros(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of small integer constants with a 0 among them, in the graph and those inside it."""
    held = [(t.name, t) for t in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                held += [(o, attribute.t) for o in node.output]
            if node.op_type == "Constant" and 0 in (*attribute.ints, attribute.i or 1):
                yield from node.output
            for inner in (attribute.g, *attribute.graphs):
                yield from _zeros(inner)
    for name, tensor in held:
        here = tensor.data_location != onnx.TensorProto.EXTERNAL and len(tensor.dims) < 2
        if here and tensor.data_type in _COUNTS and not onnx.numpy_helper.to_array(tensor).all():
            yield name


def _check_attribute(
    node: onnx.NodeProto, attribute: onnx.AttributeProto, parameters: frozenset[str]
) -> None:
    """It has a type, one that it names exists, and what it stands for is a function's attribute."""
    if attribute.ref_attr_name and attribute.ref_attr_name not in parameters:
        raise ModelError(
            f"{title_of(node)}, attribute '{attribute.name}': there is no attribute "
            f"'{attribute.ref_attr_name}' of a function that it could stand for"
        )
    if not attribute.type and not attribute.ref_attr_name:
        raise ModelError(f"{title_of(node)}, attribute '{attribute.name}': it has no type")
    names_type = attribute.name in ("to", "dtype") and node.domain in STANDARD
    if names_type and not attribute.ref_attr_name and attribute.i not in _TYPES:
        raise ModelError(f"{title_of(node)}: {attribute.i} is no element type")


def check_calls(proto: onnx.ModelProto) -> None:
    """Functions end, and do not stand for too many nodes. Raises ModelError."""
    if not proto.functions:
        return
    calls = {(f.domain, f.name, f.overload): Counter(_called(f.node)) for f in proto.functions}
    main = ("", "", "")
    calls[main] = Counter(_called(proto.graph.node))
    size: dict[_Key, int] = {}
    try:
        for key in graphlib.TopologicalSorter(calls).static_order():
            body: Counter[_Key] = calls.get(key, Counter())
            size[key] = sum(n * max(size.get(c, 1), 1) for c, n in body.items()) if body else 1
            if size[key] > _MOST:
                raise ModelError(
                    f"its functions stand for more than {_MOST:,} nodes where they are called"
                )
    except graphlib.CycleError as error:
        names = " -> ".join(name for _, name, _ in error.args[1])
        raise ModelError(f"its functions call themselves: {names}") from error


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterator[_Key]:
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _called(graph.node)
