"""Polynomials of `graphopt.proving` as numbers, by an evaluator that no proof uses."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import on_demand
from graphopt.proving.meaning import Meaning
from graphopt.proving.numbering import Walk
from graphopt.proving.polynomials import Unprovable
from graphopt.proving.scalars import Algebra
from graphopt.proving.terms import Terms
from graphopt.proving.windows import OPERATORS

SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _cast(x, to, source):
    numpy = ir.DataType[to].numpy()
    made = x != 0 if numpy.kind == "b" else np.asarray(x).astype(numpy)
    return made.astype(float)


def _shift(x, by, direction):
    a, b = np.asarray(x).astype(np.int64), np.asarray(by).astype(np.int64)
    return (a << b if direction == "LEFT" else a >> b).astype(float)


def _whole(f):
    return lambda *xs: f(*(np.asarray(x).astype(np.int64) for x in xs)).astype(float)


def _truth(f):
    return lambda *xs: f(*(np.asarray(x) != 0 for x in xs)).astype(float)


def _mod(a, b, fmod):
    return np.fmod(a, b) if fmod else np.mod(a, b)


def _clip(x, low, high):
    return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


def _selu(x, alpha, gamma):
    return gamma * np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1))


def _quantize(x, scale, zero, dtype):
    span = np.iinfo(ir.DataType[dtype].numpy())
    return np.clip(np.round(x / scale) + zero, span.min, span.max)


FUNCTIONS = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "celu": lambda x, a: np.maximum(x, 0) + np.minimum(0, a * (np.exp(x / a) - 1)),
    "cos": np.cos,
    "cosh": np.cosh,
    "elu": lambda x, a: np.where(x > 0, x, a * (np.exp(np.minimum(x, 0)) - 1)),
    "erf": np.vectorize(math.erf, otypes=[float]),
    "exp": np.exp,
    "floor": np.floor,
    "isnan": lambda x: np.isnan(x).astype(float),
    "leakyrelu": lambda x, a: np.where(x < 0, a * x, x),
    "log": np.log,
    "not": lambda x: 1.0 - np.asarray(x),
    "round": np.round,
    "selu": _selu,
    "shrink": lambda x, b, d: np.where(x < -d, x + b, np.where(x > d, x - b, 0)),
    "sigmoid": sigmoid,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tan": np.tan,
    "tanh": np.tanh,
    "thresholdedrelu": lambda x, a: np.where(x > a, x, 0),
    "quantize": _quantize,
    "relu": lambda x: np.maximum(x, 0),
    "unit clip": lambda x: np.clip(x, 0, 1),
    "clip": _clip,
    "where": lambda c, a, b: np.where(np.asarray(c) != 0, a, b),
    "guarded": lambda x: np.where(np.isnan(x), 0, x),
    "inf": lambda: np.asarray(np.inf),
    "nan": lambda: np.asarray(np.nan),
    "integer quotient": lambda a, b: np.trunc(np.asarray(a) / b),
    "pow": np.power,
    "cast": _cast,
    "mod": _mod,
    "bitshift": _shift,
    "bitwiseand": _whole(np.bitwise_and),
    "bitwiseor": _whole(np.bitwise_or),
    "bitwisexor": _whole(np.bitwise_xor),
    "and": _truth(np.logical_and),
    "or": _truth(np.logical_or),
    "xor": _truth(np.logical_xor),
    "equal": lambda a, b: np.equal(a, b).astype(float),
    "greater": lambda a, b: np.greater(a, b).astype(float),
    "greaterorequal": lambda a, b: np.greater_equal(a, b).astype(float),
    "less": lambda a, b: np.less(a, b).astype(float),
    "lessorequal": lambda a, b: np.less_equal(a, b).astype(float),
    "max": lambda *xs: np.asarray(max_of(xs)),
    "min": lambda *xs: -np.asarray(max_of([-np.asarray(x) for x in xs])),
    "prelu": lambda x, s: np.where(np.asarray(x) < 0, np.asarray(s) * x, x),
}


def _arg(find, last):
    def made(x, axis):
        x = np.flip(x, axis[0]) if last else x
        found = find(x, axis[0])
        return x.shape[axis[0]] - 1 - found if last else found

    return made


OVER = {
    "ArgMax": _arg(np.argmax, False),
    "ArgMax last": _arg(np.argmax, True),
    "ArgMin": _arg(np.argmin, False),
    "ArgMin last": _arg(np.argmin, True),
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
}


def max_of(xs):
    made = xs[0]
    for x in xs[1:]:
        made = np.maximum(made, x)
    return made


class Evaluator:
    """Values of the atoms of one algebra: `arrays` by the serial of a term, `sizes` by name."""

    def __init__(self, algebra, arrays, sizes):
        self.algebra, self.arrays, self.sizes = algebra, arrays, sizes

    def size(self, d):
        return d if isinstance(d, int) else d.at(self.sizes)

    def index(self, e, env):
        return self.algebra.ranges.values(e, {**self.sizes, **env})

    def poly(self, p, env):
        return sum((float(k) * self.monomial(m, env) for m, k in p), np.zeros(()))

    def monomial(self, m, env):
        inner, axes = self._opened(m.bound, env)
        made = np.ones(())
        for atom, e in m.factors:
            made = made * np.asarray(self.atom(atom, inner), float) ** float(e)
        return self._closed(made, inner, axes, np.sum) if m.bound else made

    def _opened(self, bound, env):
        """The variables that are bound here as axes at the end."""
        n = len(bound)
        inner = {k: np.asarray(v).reshape(np.shape(v) + (1,) * n) for k, v in env.items()}
        for j, (name, size) in enumerate(bound):
            inner[name] = np.arange(self.size(size)).reshape((-1,) + (1,) * (n - 1 - j))
        return inner, n

    @staticmethod
    def _closed(made, inner, axes, reduce):
        whole = np.broadcast_arrays(made, *inner.values())[0]
        return reduce(whole, axis=tuple(range(whole.ndim - axes, whole.ndim)))

    def atom(self, a, env):
        if a.kind == "elem":
            array = self.arrays[a.data[0]]
            return self._at(array, [self.index(e, env) for e in a.index])
        if a.kind == "in":
            e = self.index(a.index[0], env)
            return ((e >= 0) & (e < self.index(a.index[1], env))).astype(float)
        if a.kind in ("index", "size"):
            return self.index(a.index[0], env)
        if a.kind == "base":
            return self.poly(a.polys[0], env)
        if a.kind == "over":
            inner, axes = self._opened(a.bound, env)
            return self._closed(self.poly(a.polys[0], inner), inner, axes, OVER[a.data[0]])
        name, *data = a.data
        args = [self.poly(p, env) for p in a.polys]
        if name == "gather":
            serial, axis = data
            at = [self.index(e, env) for e in a.index]
            at.insert(axis, np.asarray(args[0]).astype(int))
            return self._at(self.arrays[serial], at, wrap=axis)
        return FUNCTIONS[name](*args, *data)

    @staticmethod
    def _at(array, at, wrap=None):
        at = [
            np.where(i < 0, i + n, i) if k == wrap else np.clip(i, 0, n - 1)
            for k, (i, n) in enumerate(zip(at, array.shape, strict=True))
        ]
        return array[tuple(np.broadcast_arrays(*at))] if at else array


def denoted(model, feeds, sizes, shape, output=0):
    """The values of an output, from the polynomial that is said to be its element.

    Args:
        model: an `onnx_ir.Model`.
        feeds: array by input.
        sizes: the number that each symbolic size stands for.
        shape: of the output, for sizes that have no closed form.

    Raises:
        Unprovable: the operator was not looked into.
    """
    terms = Terms()
    walk = Walk(terms, model, on_demand(model))
    for node in model.graph:
        walk.visit(node)
    term = walk.of(model.graph.outputs[output])
    if term.dims is None:
        raise Unprovable("a shape that is not known")
    leaves = {walk.of(v): v.name for v in model.graph.inputs}
    algebra = Algebra()
    meaning = Meaning(algebra, set(leaves), OPERATORS)
    index = tuple(algebra.ranges.variable(d, f"#i{k}") for k, d in enumerate(term.dims))
    p = meaning.at(term, index)
    if term.serial in meaning.terms:
        raise Unprovable("not looked into")
    arrays = {t.serial: feeds[n] for t, n in leaves.items()}
    arrays |= {s: t.array() for s, t in meaning.terms.items() if t.op == "const"}
    made = zip(term.dims, shape, strict=True)
    sizes = {**{d.name: s for d, s in made if not isinstance(d, int)}, **sizes}
    evaluator = Evaluator(algebra, arrays, sizes)
    if tuple(evaluator.size(d) for d in term.dims) != shape:
        raise Unprovable("a size of no closed form")
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij") if shape else []
    env = {i.name: g for i, g in zip(index, grid, strict=True) if not isinstance(i, int)}
    with np.errstate(all="ignore"):
        found = evaluator.poly(p, env)
    return np.broadcast_to(found, shape)
