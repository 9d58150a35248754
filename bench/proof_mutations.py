"""Faults that a wrong rewrite may have: each changes one place of an ONNX model, if it has one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Unfit(Exception):
    """A region that cannot be written as a model."""


def _pick(rng, found):
    return rng.choice(found) if found else None


def _attribute(model, rng, names):
    return _pick(rng, [a for n in model.graph.node for a in n.attribute if a.name in names])


def _constant(model, rng, kind, where=lambda a: True):
    found = [
        t
        for t in model.graph.initializer
        if numpy_helper.to_array(t).dtype.kind in kind and where(numpy_helper.to_array(t))
    ]
    return _pick(rng, found)


def _store(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def axis(model, rng):
    a = _attribute(model, rng, ("axis",))
    if a is not None:
        a.i = rng.choice([k for k in (-3, -2, -1, 0, 1, 2) if k != a.i])
    return a is not None


def permutation(model, rng):
    a = _attribute(model, rng, ("perm",))
    if a is None or len(a.ints) < 2:
        return False
    i, j = rng.sample(range(len(a.ints)), 2)
    a.ints[i], a.ints[j] = a.ints[j], a.ints[i]
    return True


def epsilon(model, rng):
    a = _attribute(model, rng, ("epsilon",))
    if a is not None:
        a.f = a.f * rng.choice([0.1, 10.0, 2.0])
    return a is not None


def number(model, rng):
    """A number among the attributes: alpha, beta, a scale."""
    a = _pick(rng, [a for n in model.graph.node for a in n.attribute if a.type == a.FLOAT and a.f])
    if a is not None:
        a.f = a.f * rng.choice([1.001, 2.0, -1.0])
    return a is not None


def integer(model, rng):
    """Groups, heads, pads, strides, transposed operands, what is kept."""
    a = _pick(
        rng,
        [
            a
            for n in model.graph.node
            for a in n.attribute
            if a.name not in ("axis", "perm", "to") and a.type in (a.INT, a.INTS)
        ],
    )
    if a is None or (a.type == a.INTS and not a.ints):
        return False
    if a.type == a.INT:
        a.i = 1 - a.i if a.i in (0, 1) else rng.choice([a.i * 2, a.i // 2, a.i + 1])
    else:
        k = rng.randrange(len(a.ints))
        a.ints[k] += rng.choice([-1, 1])
    return True


def off_by_one(model, rng):
    """An integer constant: a slice's bound, a position, a size."""
    t = _constant(model, rng, "iu", lambda a: 0 < a.size <= 64)
    if t is None:
        return False
    array = np.array(numpy_helper.to_array(t))
    array.reshape(-1)[rng.randrange(array.size)] += rng.choice([-1, 1])
    _store(t, array)
    return True


def exchanged(model, rng):
    """Two integers of a constant: sizes of a Reshape, positions of a Gather."""
    t = _constant(model, rng, "iu", lambda a: 1 < a.size <= 4096)
    if t is None:
        return False
    array = np.array(numpy_helper.to_array(t))
    i, j = rng.sample(range(array.size), 2)
    flat = array.reshape(-1)
    flat[i], flat[j] = flat[j], flat[i]
    _store(t, array)
    return True


def frozen_size(model, rng):
    """A size that is read becomes the probe's; so does the one that is left open."""
    nodes = [n for n in model.graph.node if n.op_type == "Shape"]
    tensors = [
        t
        for t in model.graph.initializer
        if t.data_type == 7 and (numpy_helper.to_array(t) <= 0).any() and len(t.dims) == 1
    ]
    found = _pick(rng, [*nodes, *tensors])
    if found is None:
        return False
    if isinstance(found, onnx.TensorProto):
        array = np.array(numpy_helper.to_array(found))
        array[rng.choice(list(np.flatnonzero(array <= 0)))] = rng.choice([1, 2])
        _store(found, array)
        return True
    count = {a.name: a.i for a in found.attribute}
    if "end" not in count:
        return False
    size = helper.make_tensor("", 7, [1], [2])
    found.CopyFrom(helper.make_node("Constant", [], list(found.output), value=size))
    return True


def dropped(model, rng):
    """A node gives its first operand."""
    ops = """Add Sub Mul Div Relu Sigmoid Tanh Exp Sqrt Erf Softmax Transpose Clip Neg Where Pow
    Cast Gelu LeakyRelu HardSwish""".split()  # noqa: SIM905
    node = _pick(rng, [n for n in model.graph.node if n.op_type in ops])
    if node is None:
        return False
    kept = node.input[rng.randrange(2 if len(node.input) > 1 else 1)]
    node.CopyFrom(helper.make_node("Identity", [kept], list(node.output), name=node.name))
    return True


def absent(model, rng):
    """An operand that may be left out is: a bias, a mask, a bound."""
    ops = "Conv Gemm LayerNormalization Clip Attention MultiHeadAttention FastGelu".split()  # noqa: SIM905
    found = [n for n in model.graph.node if n.op_type in ops and len(n.input) > 2]
    node = _pick(rng, found)
    if node is None:
        return False
    if node.op_type == "Attention" and len(node.input) < 4:
        return False
    del node.input[-1]
    while node.input and not node.input[-1]:
        del node.input[-1]
    return True


def operands(model, rng):
    ops = """Sub Div Pow MatMul Gemm Greater Less Conv Attention MultiHeadAttention Where
    Concat BatchNormalization LayerNormalization SkipLayerNormalization""".split()  # noqa: SIM905
    node = _pick(rng, [n for n in model.graph.node if n.op_type in ops and len(n.input) > 1])
    if node is None:
        return False
    i, j = rng.sample(range(len(node.input)), 2)
    if node.input[i] == node.input[j]:
        return False
    node.input[i], node.input[j] = node.input[j], node.input[i]
    return True


def other_way(model, rng):
    """A row is broadcast as a column."""
    t = _constant(model, rng, "f", lambda a: a.size > 1 and a.size == max(a.shape))
    if t is None:
        return False
    array = numpy_helper.to_array(t)
    _store(t, array.reshape(-1, 1) if array.ndim == 1 else np.moveaxis(array, -1, 0))
    return True


def transposed(model, rng):
    t = _constant(model, rng, "f", lambda a: a.ndim >= 2 and len(set(a.shape[-2:])) == 1)
    if t is None:
        return False
    _store(t, np.swapaxes(numpy_helper.to_array(t), -1, -2))
    return True


def scaled(model, rng):
    """One element of a constant by a thousandth, or all of them."""
    t = _constant(model, rng, "f", lambda a: bool(np.any(a)))
    if t is None:
        return False
    array = np.array(numpy_helper.to_array(t))
    if rng.random() < 0.5:
        array = (array * np.float32(1.001)).astype(array.dtype)
    else:
        flat = array.reshape(-1)
        flat[rng.choice(list(np.flatnonzero(flat)))] *= 1.001
    _store(t, array)
    return True


def sign(model, rng):
    t = _constant(model, rng, "f", lambda a: bool(np.any(a)))
    if t is not None:
        _store(t, -numpy_helper.to_array(t))
    return t is not None


def operator(model, rng):
    pairs = (
        "Add Sub,Mul Div,Max Min,Tanh Sigmoid,Relu Abs,ReduceMean ReduceSum,ReduceMax ReduceMin,"
    )
    pairs += "And Or,Greater Less,Softmax LogSoftmax,Floor Ceil,Sqrt Reciprocal,Erf Tanh,Exp Neg"
    kin = {}
    for pair in pairs.split(","):
        a, b = pair.split()
        kin.setdefault(a, b)
        kin.setdefault(b, a)
    node = _pick(rng, [n for n in model.graph.node if n.op_type in kin])
    if node is not None:
        node.op_type = kin[node.op_type]
    return node is not None


def _around(model, rng, pairs):
    """Two nodes of float constants behind a node's output."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    places = [(n, k) for n in model.graph.node for k, i in enumerate(n.input) if kinds.get(i) == 1]
    place = _pick(rng, places)
    if place is None:
        return False
    node, k = place
    new, value = [], node.input[k]
    for j, (op, x) in enumerate(pairs):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(x).reshape(()), f"mu{j}"))
        new.append(helper.make_node(op, [value, f"mu{j}"], [f"mv{j}"], name=f"mn{j}"))
        value = f"mv{j}"
    node.input[k] = value
    nodes = [*new, *model.graph.node]
    copies = []
    for n in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return True


def overflow(model, rng):
    return _around(
        model,
        rng,
        rng.choice(
            [
                [("Mul", 1e30), ("Mul", 1e-30)],
                [("Mul", 1e-35), ("Mul", 1e35)],
                [("Div", 1e-30), ("Mul", 1e-30)],
            ]
        ),
    )


def cancelled(model, rng):
    big = rng.choice([1e6, 1e8, 1e30])
    return _around(model, rng, [("Add", big), ("Sub", big)])


MUTATIONS = {
    f.__name__: f
    for f in (
        absent, axis, cancelled, dropped, epsilon, exchanged, frozen_size, integer, number,
        off_by_one, operands, operator, other_way, overflow, permutation, scaled, sign, transposed,
    )
}  # fmt: skip
