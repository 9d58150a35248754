"""Faults that a wrong rewrite may have: each changes one place of an ONNX model, and says what.

A fault returns "" where the model has no place for it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["MUTATIONS"]

ELEMENTWISE = """Abs Add Ceil Clip Div Erf Exp Floor Gelu HardSwish LeakyRelu Log Max Min Mul Neg
Pow Reciprocal Relu Sigmoid Softplus Sqrt Sub Tanh""".split()  # noqa: SIM905


def _graphs(model):
    """The graphs of a model, the innermost last."""
    found = [model.graph]
    for graph in found:
        found += [a.g for n in graph.node for a in n.attribute if a.type == a.GRAPH]
    return found


def _nodes(model, operators=None):
    every = [n for g in _graphs(model) for n in g.node]
    return [n for n in every if operators is None or n.op_type in operators]


def _pick(rng, found):
    return rng.choice(found) if found else None


def _attributes(model, names):
    return [(n, a) for n in _nodes(model) for a in n.attribute if a.name in names]


def _constant(model, rng, kind, where=lambda a: True):
    tensors = [t for g in _graphs(model) for t in g.initializer]
    tensors += [a.t for n, a in _attributes(model, ("value",)) if n.op_type == "Constant"]
    plain = [t for t in tensors if t.data_type in (1, 6, 7, 11)]
    found = [(t, numpy_helper.to_array(t)) for t in plain]
    found = [t for t, a in found if a.dtype.kind in kind and where(a)]
    return _pick(rng, found)


def _store(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(np.array(array, order="C"), tensor.name))


def _readers(model, tensor):
    """The operators that read a constant."""
    names = {tensor.name}
    names |= {
        n.output[0] for n in _nodes(model, ("Constant",)) if any(a.t == tensor for a in n.attribute)
    }
    return "/".join(sorted({n.op_type for n in _nodes(model) if names & set(n.input)}))


def axis(model, rng):
    found = _pick(rng, _attributes(model, ("axis",)))
    if found is None:
        return ""
    node, a = found
    old = a.i
    a.i = rng.choice([k for k in (-3, -2, -1, 0, 1, 2) if k != old])
    return f"{node.op_type} axis {old} becomes {a.i}"


def permutation(model, rng):
    found = _pick(rng, [(n, a) for n, a in _attributes(model, ("perm",)) if len(a.ints) > 1])
    if found is None:
        return ""
    _, a = found
    i, j = rng.sample(range(len(a.ints)), 2)
    a.ints[i], a.ints[j] = a.ints[j], a.ints[i]
    return f"Transpose to {list(a.ints)}"


def epsilon(model, rng):
    found = _pick(rng, _attributes(model, ("epsilon",)))
    if found is None:
        return ""
    node, a = found
    by = rng.choice([0.1, 10.0, 2.0])
    a.f = a.f * by
    return f"{node.op_type} epsilon times {by}"


def number(model, rng):
    """A number among the attributes: alpha, beta, a scale."""
    floats = [
        (n, a)
        for n in _nodes(model)
        for a in n.attribute
        if a.type == a.FLOAT and a.f and a.name != "epsilon"
    ]
    found = _pick(rng, floats)
    if found is None:
        return ""
    node, a = found
    by = rng.choice([1.001, 2.0, -1.0])
    a.f = a.f * by
    return f"{node.op_type} {a.name} times {by}"


def integer(model, rng):
    """Groups, heads, pads, strides, transposed operands, what is kept."""
    whole = [
        (n, a)
        for n in _nodes(model)
        for a in n.attribute
        if a.name not in ("axis", "perm", "to") and (a.type == a.INT or len(a.ints))
    ]
    found = _pick(rng, whole)
    if found is None:
        return ""
    node, a = found
    old = a.i if a.type == a.INT else list(a.ints)
    if max(map(abs, a.ints), default=0) > 1 << 40:
        return ""
    if a.type == a.INT:
        a.i = 1 - a.i if a.i in (0, 1) else rng.choice([a.i * 2, a.i // 2, a.i + 1])
    else:
        a.ints[rng.randrange(len(a.ints))] += rng.choice([-1, 1])
    return f"{node.op_type} {a.name} {old} becomes {a.i if a.type == a.INT else list(a.ints)}"


def off_by_one(model, rng):
    """An integer constant: a slice's bound, a position, a size."""
    t = _constant(model, rng, "i", lambda a: 0 < a.size <= 64)
    if t is None:
        return ""
    array = np.array(numpy_helper.to_array(t))
    old = array.ravel()[:8].tolist()
    said = _readers(model, t)
    array.reshape(-1)[rng.randrange(array.size)] += rng.choice([-1, 1])
    _store(t, array)
    return f"{said} of {old} becomes {array.ravel()[:8].tolist()}"


def exchanged(model, rng):
    """Two integers of a constant: sizes of a Reshape, positions of a Gather."""
    t = _constant(model, rng, "i", lambda a: 1 < a.size <= 4096 and len(np.unique(a)) > 1)
    if t is None:
        return ""
    array = np.array(numpy_helper.to_array(t))
    flat = array.reshape(-1)
    old, said = flat[:8].tolist(), _readers(model, t)
    i, j = rng.sample(range(array.size), 2)
    if flat[i] == flat[j]:
        return ""
    flat[i], flat[j] = flat[j], flat[i]
    _store(t, array)
    return f"{said} of {old} becomes {flat[:8].tolist()}"


def frozen_size(model, rng):
    """A size that is read becomes the probe's; so does the one that is left open."""
    nodes = [n for n in _nodes(model, ("Shape",)) if "end" in {a.name for a in n.attribute}]
    shapes = {n.input[1] for n in _nodes(model, ("Reshape", "Expand")) if len(n.input) > 1}
    tensors = [
        t
        for t in model.graph.initializer
        if t.name in shapes and t.data_type == 7 and (numpy_helper.to_array(t) <= 0).any()
    ]
    found = _pick(rng, [*nodes, *tensors])
    if found is None:
        return ""
    if isinstance(found, onnx.TensorProto):
        array = np.array(numpy_helper.to_array(found))
        array[rng.choice(list(np.flatnonzero(array <= 0)))] = rng.choice([1, 2])
        _store(found, array)
        return f"{_readers(model, found)} to {array.tolist()}"
    size = helper.make_tensor("", 7, [1], [2])
    found.CopyFrom(helper.make_node("Constant", [], list(found.output), value=size))
    return "Shape is 2"


def dropped(model, rng):
    """A node gives its first operand, or its second."""
    ops = [*ELEMENTWISE, "Softmax", "Transpose", "Where", "Cast"]
    node = _pick(rng, _nodes(model, ops))
    if node is None:
        return ""
    kept = node.input[rng.randrange(2 if len(node.input) > 1 else 1)]
    said = node.op_type
    node.CopyFrom(helper.make_node("Identity", [kept], list(node.output), name=node.name))
    return f"{said} gives its operand"


def absent(model, rng):
    """An operand that may be left out is: a bias, a mask, a bound."""
    least = {"Attention": 4, "MultiHeadAttention": 4, "RotaryEmbedding": 4}
    ops = "Conv Gemm LayerNormalization Clip Pad FastGelu SkipLayerNormalization".split()  # noqa: SIM905
    found = [n for n in _nodes(model, [*ops, *least]) if len(n.input) >= least.get(n.op_type, 3)]
    node = _pick(rng, found)
    if node is None:
        return ""
    del node.input[-1]
    while node.input and not node.input[-1]:
        del node.input[-1]
    return f"{node.op_type} without its input {len(node.input)}"


def operands(model, rng):
    ops = """Sub Div Pow MatMul Gemm Greater Less Conv Attention MultiHeadAttention
    Concat BatchNormalization LayerNormalization SkipLayerNormalization""".split()  # noqa: SIM905
    node = _pick(rng, [n for n in _nodes(model, ops) if len(n.input) > 1])
    if node is None:
        return ""
    i, j = sorted(rng.sample(range(len(node.input)), 2))
    if node.input[i] == node.input[j]:
        return ""
    node.input[i], node.input[j] = node.input[j], node.input[i]
    return f"{node.op_type} inputs {i} and {j}"


def branch(model, rng):
    """The branches of an If, or what a Where chooses from."""
    node = _pick(rng, _nodes(model, ("If", "Where")))
    if node is None:
        return ""
    if node.op_type == "Where":
        node.input[1], node.input[2] = node.input[2], node.input[1]
        return "Where" if node.input[1] != node.input[2] else ""
    one, two = (a for a in node.attribute if a.name in ("then_branch", "else_branch"))
    one.name, two.name = two.name, one.name
    return "If"


def moved(model, rng):
    """Two neighbours in the other order: an epsilon outside of the root, a bias behind Relu."""
    graph = _pick(rng, _graphs(model))
    made = {o: n for n in graph.node for o in n.output}
    uses = [i for g in _graphs(model) for n in g.node for i in n.input]
    uses += [v.name for g in _graphs(model) for v in g.output]
    found = []
    for late in graph.node:
        for k, name in enumerate(late.input):
            early = made.get(name)
            if early is None or late.op_type not in ELEMENTWISE or uses.count(name) > 1:
                continue
            rest = [i for j, i in enumerate(late.input) if j != k]
            data = [j for j, i in enumerate(early.input) if i in made or i in _inputs(graph)]
            if early.op_type in ELEMENTWISE and len(data) == 1 and not set(rest) & set(made):
                found.append((early, data[0], late, k))
    place = _pick(rng, found)
    if place is None:
        return ""
    early, j, late, k = place
    one, two = onnx.NodeProto(), onnx.NodeProto()
    one.CopyFrom(late)
    two.CopyFrom(early)
    one.input[k], one.output[0] = early.input[j], early.output[0]
    two.input[j], two.output[0] = early.output[0], late.output[0]
    said = f"{early.op_type} behind {late.op_type}"
    early.CopyFrom(one)
    late.CopyFrom(two)
    return said


def _inputs(graph):
    return {v.name for v in graph.input}


def other_way(model, rng):
    """A row is broadcast as a column."""
    t = _constant(model, rng, "f", lambda a: a.size > 1 and a.size == max(a.shape))
    if t is None:
        return ""
    array = numpy_helper.to_array(t)
    _store(t, array.reshape(-1, 1) if array.ndim == 1 else np.moveaxis(array, -1, 0))
    return f"{_readers(model, t)} with {list(array.shape)} as {list(t.dims)}"


def transposed(model, rng):
    t = _constant(model, rng, "f", lambda a: a.ndim >= 2 and a.shape[-1] == a.shape[-2] > 1)
    if t is None:
        return ""
    _store(t, np.swapaxes(numpy_helper.to_array(t), -1, -2))
    return f"{_readers(model, t)} with a constant of {list(t.dims)} transposed"


def scaled(model, rng):
    """One element of a constant by a thousandth, or all of them."""
    t = _constant(model, rng, "f", lambda a: bool(np.any(a)))
    if t is None:
        return ""
    array, said = np.array(numpy_helper.to_array(t)), _readers(model, t)
    flat = array.reshape(-1)
    if rng.random() < 0.5:
        flat *= array.dtype.type(1.001)
        _store(t, array)
        return f"{said}: a constant times 1.001"
    k = rng.choice(list(np.flatnonzero(flat)))
    flat[k] *= array.dtype.type(1.001)
    _store(t, array)
    return f"{said}: element {k} of a constant of {list(t.dims)}, {flat[k]:.3g}, times 1.001"


def sign(model, rng):
    t = _constant(model, rng, "f", lambda a: bool(np.any(a)))
    if t is None:
        return ""
    said = _readers(model, t)
    _store(t, -numpy_helper.to_array(t))
    return f"{said}: a constant negated"


def operator(model, rng):
    pairs = """Add Sub,Mul Div,Max Min,Tanh Sigmoid,Relu Abs,ReduceMean ReduceSum,
    ReduceMax ReduceMin,And Or,Greater Less,Softmax LogSoftmax,Floor Ceil,Sqrt Reciprocal,
    Erf Tanh,Exp Neg,GreaterOrEqual Greater,LessOrEqual Less,MaxPool AveragePool"""
    kin = {}
    for pair in pairs.split(","):
        a, b = pair.split()
        kin.setdefault(a, b)
        kin.setdefault(b, a)
    node = _pick(rng, [n for n in _nodes(model) if n.op_type in kin and len(n.output) == 1])
    if node is None:
        return ""
    old, node.op_type = node.op_type, kin[node.op_type]
    return f"{old} becomes {node.op_type}"


def _around(model, rng, pairs):
    """Two nodes of float constants behind an input of a node."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    places = [(n, k) for n in model.graph.node for k, i in enumerate(n.input) if kinds.get(i) == 1]
    place = _pick(rng, places)
    if place is None:
        return ""
    node, k = place
    new, value = [], node.input[k]
    for j, (op, x) in enumerate(pairs):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(x).reshape(()), f"mu{j}"))
        new.append(helper.make_node(op, [value, f"mu{j}"], [f"mv{j}"], name=f"mn{j}"))
        value = f"mv{j}"
    node.input[k] = value
    copies = []
    for n in (*new, *model.graph.node):
        copies.append(onnx.NodeProto())
        copies[-1].CopyFrom(n)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return f"before {node.op_type}: {', '.join(f'{op} {x:g}' for op, x in pairs)}"


def overflow(model, rng):
    high = [("Mul", 1e30), ("Mul", 1e-30)]
    low = [("Mul", 1e-35), ("Mul", 1e35)]
    return _around(model, rng, rng.choice([high, low, [("Div", 1e-30), ("Mul", 1e-30)]]))


def cancelled(model, rng):
    big = rng.choice([1e6, 1e8, 1e30])
    return _around(model, rng, [("Add", big), ("Sub", big)])


MUTATIONS = {
    f.__name__: f
    for f in (
        absent, axis, branch, cancelled, dropped, epsilon, exchanged, frozen_size, integer, moved,
        number, off_by_one, operands, operator, other_way, overflow, permutation, scaled, sign,
        transposed,
    )
}  # fmt: skip
