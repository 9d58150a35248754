"""Ways to write a model otherwise: the same function of the same inputs, another structure.

Each form changes an ONNX model in place, at places drawn from a generator, and tells whether it
found any. `PLAIN` forms must cost nothing after optimization: the result has no more nodes than
that of the model as it was. `OPEN` ones show more of the model (outputs, inputs, branches), which
an optimizer has to respect.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Form = Callable[[onnx.ModelProto, random.Random], bool]
#: Edges, nodes or weights that a form takes of a model.
PLACES = 6
FLOAT = TensorProto.FLOAT


def opset(model: onnx.ModelProto) -> int:
    return next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))


def typed(model: onnx.ModelProto) -> dict[str, tuple[int, list[int] | None]]:
    """Element type and static shape (None if not static) of the main graph's values."""
    shown = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {}
    for value in (*shown.value_info, *shown.input, *shown.output):
        tensor = value.type.tensor_type
        if not tensor.elem_type:
            continue
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        known = tensor.HasField("shape") and all(d for d in dims)
        found[value.name] = (tensor.elem_type, dims if known else None)
    return found


def constant(model: onnx.ModelProto, array: np.ndarray, name: str) -> str:
    taken = {t.name for t in model.graph.initializer}
    while name in taken:
        name += "_"
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def edges(model: onnx.ModelProto, draw: random.Random) -> list[tuple[int, str, list[int] | None]]:
    """Some float values between nodes, with the place after their producer."""
    types = typed(model)
    nodes = model.graph.node
    read = {name for node in nodes for name in node.input}
    some = [
        (k, name, types[name][1])
        for k, node in enumerate(nodes)
        for name in node.output
        if name in read and types.get(name, (0, None))[0] == FLOAT
    ]
    chosen = draw.sample(some, min(PLACES, len(some)))
    return sorted(chosen, key=lambda e: -e[0])  # the last first: places stay right


def through(make: Callable[..., list[onnx.NodeProto] | None]) -> Form:
    """A form that leads values through operators which change nothing."""

    def form(model: onnx.ModelProto, draw: random.Random) -> bool:
        done = False
        for place, name, shape in edges(model, draw):
            made = make(model, name, f"{name}_led", shape, draw)
            if made is None:
                continue
            for node in model.graph.node[place + 1 :]:
                for k, read in enumerate(node.input):
                    if read == name:
                        node.input[k] = f"{name}_led"
            for node in reversed(made):
                model.graph.node.insert(place + 1, node)
            done = True
        return done

    return form


def _one(op: str, **attributes: object) -> Form:
    return through(lambda m, a, b, *_: [helper.make_node(op, [a], [b], **attributes)])


def _neutral(op: str, value: float) -> Form:
    def make(model, a, b, *_):
        return [helper.make_node(op, [a, constant(model, np.float32(value), f"{b}_by")], [b])]

    return through(make)


def _cast(model, a, b, *_):
    wide = helper.make_node("Cast", [a], [f"{b}_wide"], to=TensorProto.DOUBLE)
    return [wide, helper.make_node("Cast", [f"{b}_wide"], [b], to=FLOAT)]


def _transpose(model, a, b, shape, draw):
    if not shape or len(shape) < 2:
        return None
    perm = draw.sample(range(len(shape)), len(shape))
    turn = helper.make_node("Transpose", [a], [f"{b}_turned"], perm=perm)
    back = [int(k) for k in np.argsort(perm)]
    return [turn, helper.make_node("Transpose", [f"{b}_turned"], [b], perm=back)]


def _unsqueeze(model, a, b, shape, draw):
    axes = [draw.randint(0, len(shape))] if shape is not None else [0]
    if opset(model) < 13:
        up = helper.make_node("Unsqueeze", [a], [f"{b}_up"], axes=axes)
        return [up, helper.make_node("Squeeze", [f"{b}_up"], [b], axes=axes)]
    by = constant(model, np.array(axes), f"{b}_axes")
    up = helper.make_node("Unsqueeze", [a, by], [f"{b}_up"])
    return [up, helper.make_node("Squeeze", [f"{b}_up", by], [b])]


def _reshape(model, a, b, shape, draw):
    if not shape:
        return None
    flat = constant(model, np.array([shape[0], -1]), f"{b}_flat")
    whole = constant(model, np.array([*shape[:-1], -1]), f"{b}_whole")
    first = helper.make_node("Reshape", [a, flat], [f"{b}_rows"])
    return [first, helper.make_node("Reshape", [f"{b}_rows", whole], [b])]


def _slice(model, a, b, shape, draw):
    if shape == [] or opset(model) < 10:
        return None
    ends = [constant(model, np.array([v]), f"{b}_{v}") for v in (0, np.iinfo(np.int64).max)]
    return [helper.make_node("Slice", [a, *ends], [b])]


def _split(model, a, b, shape, draw):
    axes = [k for k, size in enumerate(shape or ()) if size % 2 == 0]
    if not axes:
        return None
    axis = draw.choice(axes)
    sizes = [shape[axis] // 2] * 2
    parts = [f"{b}_part{k}" for k in range(2)]
    if opset(model) < 13:
        split = helper.make_node("Split", [a], parts, axis=axis, split=sizes)
    else:
        by = constant(model, np.array(sizes), f"{b}_sizes")
        split = helper.make_node("Split", [a, by], parts, axis=axis)
    return [split, helper.make_node("Concat", parts, [b], axis=axis)]


def _expand(model, a, b, shape, draw):
    if not shape:  # a scalar would become a vector
        return None
    return [helper.make_node("Expand", [a, constant(model, np.array([1]), f"{b}_one")], [b])]


def _concat(model, a, b, shape, draw):
    return [helper.make_node("Concat", [a], [b], axis=0)] if shape else None


def _negated(model, a, b, *_):
    return [helper.make_node("Neg", [a], [f"{b}_neg"]), helper.make_node("Neg", [f"{b}_neg"], [b])]


def weights_as_constants(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Initializers as Constant nodes."""
    given = {v.name for v in model.graph.input}
    tensors = [t for t in model.graph.initializer if t.name not in given]
    for tensor in tensors:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return bool(tensors)


def weights_computed(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Weights that come out of operators on constants."""
    given = {v.name for v in model.graph.input}
    able = [
        t
        for t in model.graph.initializer
        if t.name not in given and t.data_type == FLOAT and len(t.dims) >= 1 and min(t.dims) > 0
    ]
    for tensor in draw.sample(able, min(PLACES, len(able))):
        name, array = tensor.name, numpy_helper.to_array(tensor)
        model.graph.initializer.remove(tensor)
        how = draw.choice(("turned", "shaped", "joined", "cast"))
        if how == "turned":
            held = constant(model, np.ascontiguousarray(array.T), f"{name}_held")
            made = [helper.make_node("Transpose", [held], [name])]
        elif how == "shaped":
            held = constant(model, array.reshape(-1), f"{name}_held")
            by = constant(model, np.array(array.shape), f"{name}_shape")
            made = [helper.make_node("Reshape", [held, by], [name])]
        elif how == "joined":
            parts = np.array_split(array, 2) if array.shape[0] > 1 else [array]
            held = [constant(model, p, f"{name}_part{k}") for k, p in enumerate(parts)]
            made = [helper.make_node("Concat", held, [name], axis=0)]
        else:
            held = constant(model, array.astype(np.float64), f"{name}_held")
            made = [helper.make_node("Cast", [held], [name], to=FLOAT)]
        for node in reversed(made):
            model.graph.node.insert(0, node)
    return bool(able)


def reordered(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Nodes in another order in which each comes after what it reads."""
    nodes = list(model.graph.node)
    maker = {o: k for k, n in enumerate(nodes) for o in n.output if o}
    waits = [{maker[i] for i in names_read(n) if i in maker} for n in nodes]
    ready, order = [k for k, w in enumerate(waits) if not w], []
    followers: dict[int, list[int]] = {}
    for k, w in enumerate(waits):
        for before in w:
            followers.setdefault(before, []).append(k)
    while ready:
        k = ready.pop(draw.randrange(len(ready)))
        order.append(k)
        for after in followers.get(k, ()):
            waits[after].discard(k)
            if not waits[after]:
                ready.append(after)
    del model.graph.node[:]
    model.graph.node.extend(nodes[k] for k in order)
    return order != sorted(order)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Its inputs, and names that its subgraphs mention."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (v.name for v in graph.output)


def unshown(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Without names of nodes and shapes of values between them."""
    had = bool(model.graph.value_info)
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.name = ""
    return had or bool(model.graph.node)


def repeated(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Nodes twice, each for some of the readers."""
    nodes = model.graph.node
    able = [
        k
        for k, n in enumerate(nodes)
        if len(n.output) == 1 and not n.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
    ]
    chosen = sorted(draw.sample(able, min(PLACES, len(able))), reverse=True)
    for place in chosen:
        twin = onnx.NodeProto()
        twin.CopyFrom(nodes[place])
        twin.output[0] += "_again"
        twin.name = f"{twin.name}_again" if twin.name else ""
        readers = [(n, k) for n in nodes for k, i in enumerate(n.input) if i == twin.output[0][:-6]]
        for node, k in readers[1::2]:
            node.input[k] = twin.output[0]
        nodes.insert(place + 1, twin)
    return bool(chosen)


def _segment(
    model: onnx.ModelProto, draw: random.Random
) -> tuple[int, list[onnx.NodeProto], list[str]] | None:
    """A run of nodes, where it starts, and what it makes for others; all of known types."""
    nodes = list(model.graph.node)
    types = typed(model)
    for _ in range(20):
        start = draw.randrange(len(nodes))
        inside = nodes[start : start + draw.randint(1, 12)]
        made = {o for n in inside for o in n.output if o}
        others = nodes[:start] + nodes[start + len(inside) :]
        read = {i for n in others for i in names_read(n)} | {o.name for o in model.graph.output}
        outputs = [o for n in inside for o in n.output if o in read]
        if outputs and all(o in types for o in outputs) and made:
            return start, inside, outputs
    return None


def _replace(model: onnx.ModelProto, start: int, count: int, made: list[onnx.NodeProto]) -> None:
    del model.graph.node[start : start + count]
    for node in reversed(made):
        model.graph.node.insert(start, node)


def _branch(
    model: onnx.ModelProto, inside: list[onnx.NodeProto], outputs: list[str], suffix: str
) -> onnx.GraphProto:
    """The nodes as a graph of their own, in which what they make has names of its own."""
    types = typed(model)
    mine = {o: f"{o}_{suffix}" for n in inside for o in n.output if o}
    copies = []
    for node in inside:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        rename(copy, mine)
        copies.append(copy)
    values = [helper.make_tensor_value_info(mine[o], types[o][0], None) for o in outputs]
    return helper.make_graph(copies, suffix, [], values)


def rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Give values other names, in subgraphs too."""
    node.input[:] = [names.get(i, i) for i in node.input]
    node.output[:] = [names.get(o, o) for o in node.output]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                rename(inner, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)


def decided_branch(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Nodes in the branch of an If that is always taken."""
    found = _segment(model, draw)
    if found is None:
        return False
    start, inside, outputs = found
    yes, no = (_branch(model, inside, outputs, s) for s in ("taken", "left"))
    value = draw.random() < 0.5
    condition = constant(model, np.array(value), "always")
    branches = {"then_branch": yes, "else_branch": no}
    _replace(model, start, len(inside), [helper.make_node("If", [condition], outputs, **branches)])
    return True


def open_branch(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Nodes in both branches of an If whose condition the caller gives."""
    found = _segment(model, draw)
    if found is None:
        return False
    start, inside, outputs = found
    yes, no = (_branch(model, inside, outputs, s) for s in ("yes", "no"))
    model.graph.input.append(helper.make_tensor_value_info("either", TensorProto.BOOL, []))
    branches = {"then_branch": yes, "else_branch": no}
    _replace(model, start, len(inside), [helper.make_node("If", ["either"], outputs, **branches)])
    return True


def in_function(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Nodes in a function of the model."""
    found = _segment(model, draw)
    if found is None or any(a.HasField("g") for n in found[1] for a in n.attribute):
        return False
    start, inside, outputs = found
    made = {o for n in inside for o in n.output}
    inputs = list(dict.fromkeys(i for n in inside for i in n.input if i and i not in made))
    imports = [helper.make_opsetid(e.domain, e.version) for e in model.opset_import]
    function = helper.make_function("paraphrase", "Part", inputs, outputs, inside, imports)
    model.functions.append(function)
    model.opset_import.add(domain="paraphrase", version=1)
    model.ir_version = max(model.ir_version, 8)
    _replace(
        model,
        start,
        len(inside),
        [helper.make_node("Part", inputs, outputs, domain="paraphrase")],
    )
    return True


def shown(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Values between nodes as outputs too."""
    types = typed(model)
    given = {v.name for v in (*model.graph.output, *model.graph.input)}
    able = [o for n in model.graph.node for o in n.output if o and o in types and o not in given]
    for name in draw.sample(able, min(PLACES, len(able))):
        model.graph.output.append(helper.make_tensor_value_info(name, types[name][0], None))
    return bool(able)


def shown_weights(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Weights as outputs too."""
    able = [t for t in model.graph.initializer if t.data_type == FLOAT]
    given = {v.name for v in model.graph.output}
    for tensor in draw.sample(able, min(PLACES, len(able))):
        if tensor.name not in given:
            value = helper.make_tensor_value_info(tensor.name, FLOAT, list(tensor.dims))
            model.graph.output.append(value)
    return bool(able)


def replaceable_weights(model: onnx.ModelProto, draw: random.Random) -> bool:
    """Weights that callers may replace: initializers that are inputs too."""
    given = {v.name for v in model.graph.input}
    able = [t for t in model.graph.initializer if t.data_type == FLOAT and t.name not in given]
    model.ir_version = max(model.ir_version, 4)
    for tensor in draw.sample(able, min(PLACES, len(able))):
        value = helper.make_tensor_value_info(tensor.name, FLOAT, list(tensor.dims))
        model.graph.input.append(value)
    return bool(able)


PLAIN: dict[str, Form] = {
    "Identity": _one("Identity"),
    "Dropout": _one("Dropout"),
    "x + 0": _neutral("Add", 0.0),
    "x * 1": _neutral("Mul", 1.0),
    "x / 1": _neutral("Div", 1.0),
    "Neg(Neg)": through(_negated),
    "Cast to double and back": through(_cast),
    "Transpose and back": through(_transpose),
    "Unsqueeze and back": through(_unsqueeze),
    "Reshape and back": through(_reshape),
    "Slice of all": through(_slice),
    "Split and Concat": through(_split),
    "Expand by one": through(_expand),
    "Concat of one": through(_concat),
    "weights as Constant": weights_as_constants,
    "weights computed": weights_computed,
    "nodes reordered": reordered,
    "nothing shown": unshown,
    "nodes repeated": repeated,
    "branch of a constant": decided_branch,
    "function": in_function,
}
OPEN: dict[str, Form] = {
    "branch of an input": open_branch,
    "values as outputs": shown,
    "weights as outputs": shown_weights,
    "weights as inputs": replaceable_weights,
}
