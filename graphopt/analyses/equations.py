"""Sizes that a model's own weights demand of its dynamic axes: shape constraints, solved.

A product wants as many columns as its weights have rows, a convolution as many channels, a Reshape
to fixed sizes as many elements. Each is an equation of symbolic sizes. Linear ones are solved as
they are; where windows and strides divide in between, the size is found by bisection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt.analyses.shapes.analysis import bound_shapes, infer
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.rules import product
from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_array, is_constant
from graphopt.graph.traverse import RECURRENT

__all__ = ["demanded", "may_hold", "required"]

#: Sizes to be equal, and whether the model may run without (where 1 would do, or a multiple).
Equation = tuple[Dim, Dim, bool]
#: No size is looked for beyond.
LARGEST = 1 << 17
#: Bisections, each of some twenty walks through the model, and the nodes they are worth it for.
SEARCHES, NODES = 3, 2_000
#: Sizes that tell whether an axis counts for an equation at all.
PROBES = (512, 4096)
_SAME_ELEMENTS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Where"})


def demanded(
    model: ir.Model,
    known: Mapping[str, int],
    usual: Mapping[str, int],
    shapes_at: Callable[[Mapping[str, int]], dict[str, tuple[int, ...]]],
) -> dict[str, int]:
    """The sizes of input axes, by the names of their symbols, that equations leave no choice of.

    Args:
        model: the model.
        known: sizes of symbols that are settled.
        usual: sizes that others have where products and the like demand nothing else.
        shapes_at: the shapes of all inputs at some sizes of symbols; any for those left out.
    """
    model = _flat(model)
    facts = infer(model)
    every = _open(model, facts)
    told = [(n, k, e) for n in model.graph for k, e in enumerate(_equations(n, facts))]
    symbolic = [
        (n, k, (a, b, soft))
        for n, k, (a, b, soft) in told
        if (isinstance(a, Expr) or isinstance(b, Expr)) and not (soft and 1 in (a, b))
    ]
    hard = [e for _, _, e in symbolic if not e[2]]
    sizes = {**usual, **_settled(model, facts, hard, dict(known), set(usual))}
    _solve([e for _, _, e in symbolic], sizes, every)
    wanted = [t for t in symbolic if isinstance(t[2][0], int) or isinstance(t[2][1], int)]
    searches = SEARCHES if len(told) < NODES else 0
    for node, k, (a, b, _) in sorted(wanted, key=lambda t: t[2][2]):
        left = {x for d in (a, b) if isinstance(d, Expr) for x in d.atoms} - set(sizes)
        if not searches or every <= set(sizes) or left <= every:
            continue
        searches -= 1
        found = _search(model, node, k, sorted(every - set(sizes)), sizes, shapes_at)
        sizes.update(found)
        if found:
            _solve([e for _, _, e in symbolic], sizes, every)
    for name, least in _indexed(model, facts):
        if name in every and sizes.get(name, least) < least:
            sizes[name] = least
    return {s: n for s, n in sizes.items() if s not in known}


def required(model: ir.Model) -> dict[str, int]:
    """The sizes of input axes, by the names of their symbols, without which the model cannot run.

    Of linear equations alone, and of those that broadcasting does not soften. Where only multiples
    will do, the smallest.
    """
    model = _flat(model)
    facts = infer(model)
    hard = [e for node in model.graph for e in _equations(node, facts) if not e[2]]
    return _settled(model, facts, hard, {}, _open(model, facts))


def _settled(
    model: ir.Model,
    facts: Shapes,
    hard: list[Equation],
    sizes: dict[str, int],
    smallest: set[str],
) -> dict[str, int]:
    """`sizes`, what equations settle by them, and the least of `smallest` where multiples do."""
    every = _open(model, facts)
    _solve(hard, sizes, every)
    sizes = {**_divided(model, facts, smallest), **sizes}
    _solve(hard, sizes, every)
    return sizes


def may_hold(model: ir.Model) -> bool:
    """Whether any node might leave a batch no choice, told without a shape: most models have none.

    A Reshape to fixed sizes, all or all but one, and what is joined with a constant or starts from
    one.
    """
    for node in model.graph:
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx"):
            target = constant_array(node.inputs[1])
            if target is None or target.min(initial=1) > 0 or _whole(target):
                return True
        beside = node.inputs[5:] if node.op_type in RECURRENT else node.inputs
        if node.op_type in {"Concat", *RECURRENT} and any(map(is_constant, beside)):
            return True
    return bool(model.functions)


def _flat(model: ir.Model) -> ir.Model:
    """The model with its functions where they are called, as far as their opsets allow."""
    imports = model.graph.opset_imports
    given = [i for f in model.functions.values() for i in f.opset_imports.items()]
    if not model.functions or any(imports.get(d, v) != v for d, v in given):
        return model
    copy = model.clone()
    InlinePass()(copy)
    return copy


def _open(model: ir.Model, facts: Shapes) -> set[str]:
    """The symbols in sizes of the inputs."""
    dims = (d for value in model.graph.inputs for d in facts.shape(value) or ())
    return {a for d in dims if isinstance(d, Expr) for a in d.atoms}


def _indexed(model: ir.Model, facts: Shapes) -> Iterator[tuple[str, int]]:
    """Axes that elements are taken from by constant positions, and how many they have at least."""
    for node in model.graph:
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
            continue
        x, at = (None if v is None else facts.fact(v) for v in node.inputs)
        if x is None or at is None or not x.dims or at.concrete is None:
            continue
        dim = x.dims[attribute(node, "axis", 0)]
        if isinstance(dim, Expr) and dim.name is not None and at.concrete.size:
            yield dim.name, max(int(at.concrete.max()) + 1, -int(at.concrete.min()))


def _divided(model: ir.Model, facts: Shapes, symbols: set[str]) -> dict[str, int]:
    """Axes that a Reshape to [4, -1] or [-1, 4, n] divides: the least that it takes."""
    found: dict[str, int] = {}
    for node in model.graph:
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        target = constant_array(node.inputs[1])
        size = _elements(node.inputs[0], facts)
        if target is None or not isinstance(size, Expr) or len(size.terms) != 1:
            continue
        ((atoms, k),) = size.terms
        whole = _whole(target)
        if whole and len(atoms) == 1 and atoms[0] in symbols:
            step = whole // math.gcd(whole, k)
            found[atoms[0]] = math.lcm(found.get(atoms[0], 1), step)
    return {name: step for name, step in found.items() if 1 < step <= LARGEST}


def _elements(value: ir.Value | None, facts: Shapes) -> Dim | None:
    """How many elements a value has, though it may be unknown which of its axes are left."""
    while value is not None:
        dims, node = facts.shape(value), value.producer()
        if dims is not None:
            return product(dims)
        if node is None or node.op_type not in _SAME_ELEMENTS:
            return None
        value = node.inputs[0]
    return None


def _whole(target: np.ndarray[Any, Any]) -> int:
    """What elements are a multiple of, by a Reshape to fixed sizes and a free one; 0 of a row.

    A Reshape to [-1, n] makes rows of rows, as a rule.
    """
    sizes: list[int] = target.ravel().tolist()
    free = -1 in sizes and 0 not in sizes and (sizes[0] > 1 or len(sizes) > 2)
    return -math.prod(sizes) if free else 0


def _solve(equations: list[Equation], sizes: dict[str, int], symbols: set[str]) -> None:
    """Settle symbols that an equation is linear in and has no other unknown than."""
    settled = -1
    while settled != len(sizes):
        settled = len(sizes)
        for a, b, _ in equations:
            found = _root(a - b, sizes)
            if found is None or found[0] not in symbols or found[1] < 1:
                continue
            sizes[found[0]] = found[1]


def _root(e: Dim, sizes: Mapping[str, int]) -> tuple[str, int] | None:
    """The unknown that makes `e` 0, and its size."""
    if isinstance(e, int):
        return None
    constant, slopes = 0, dict[str, int]()
    for atoms, k in e.terms:
        unknown = [a for a in atoms if a not in sizes]
        factor = k
        for a in atoms:
            factor *= sizes.get(a, 1)
        if not unknown:
            constant += factor
        elif len(unknown) == 1:
            slopes[unknown[0]] = slopes.get(unknown[0], 0) + factor
        else:
            return None
    if len(slopes) != 1:
        return None
    ((name, slope),) = slopes.items()
    return (name, -constant // slope) if slope and constant % slope == 0 else None


def _search(
    model: ir.Model,
    node: ir.Node,
    k: int,
    unknown: list[str],
    sizes: Mapping[str, int],
    shapes_at: Callable[[Mapping[str, int]], dict[str, tuple[int, ...]]],
) -> dict[str, int]:
    """The smallest size, one for all symbols that count, at which the k-th equation holds."""

    def excess(symbols: list[str], size: int) -> int:
        facts = bound_shapes(model, shapes_at({**sizes, **dict.fromkeys(symbols, size)}))
        read = None if node.inputs[0] is None else facts.static(node.inputs[0])
        if read is None or min(read, default=1) < 1:
            return -1  # windows do not fit
        a, b, _ = next(itertools.islice(_equations(node, facts), k, None), (0, 1, False))
        return a - b if isinstance(a, int) and isinstance(b, int) else -1

    free = [s for s in unknown if excess([s], PROBES[0]) != excess([s], PROBES[1])]
    low, high = 1, LARGEST
    if not free or excess(free, low) >= 0 or excess(free, high) < 0:
        return {}
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(free, middle) >= 0 else (middle + 1, high)
    return dict.fromkeys(free, low) if excess(free, low) == 0 else {}


def _equations(node: ir.Node, facts: Shapes) -> Iterator[Equation]:
    """What must be equal for a node to run, of what its operands' ranks show."""
    if node.domain not in ("", "ai.onnx"):
        return
    ins = [None if v is None else facts.shape(v) for v in node.inputs]
    x = ins[0] if ins else None
    w = ins[1] if len(ins) > 1 else None
    match node.op_type:
        case "MatMul" if x and w:
            yield x[-1], w[-2] if len(w) > 1 else w[0], False
        case "Gemm" if x and w and len(x) == len(w) == 2:
            turned = attribute(node, "transA", 0), attribute(node, "transB", 0)
            yield x[0 if turned[0] else 1], w[1 if turned[1] else 0], False
        case "Conv" if x and w and len(x) > 2 and len(w) > 2:
            yield x[1], w[1] * attribute(node, "group", 1), False
        case "ConvTranspose" if x and w and len(x) > 2 and len(w) > 2:
            yield x[1], w[0], False
        case op if op in RECURRENT and x and w and len(x) == len(w) == 3:
            yield x[2], w[2], False
            state = ins[5] if len(ins) > 5 else None
            if state is not None and len(state) == 3 and not attribute(node, "layout", 0):
                yield state[1], x[1], False
        case "BatchNormalization" | "InstanceNormalization" if x and w and len(x) > 1:
            yield x[1], w[0], False
        case "LayerNormalization" if x and w:
            yield x[-1], w[-1], False
        case "Reshape" if x and (rest := _rows(facts.fact(node.inputs[1]).data)):
            yield product(x[1:]), rest, True
        case "Reshape" if x and (made := facts.static(node.outputs[0])):
            yield product(x), product(made), False
        case "Concat":
            axis = attribute(node, "axis", 0)
            for one in ins[1:]:
                if x and one and len(one) == len(x):
                    pairs = zip(x, one, strict=True)
                    yield from (
                        (a, b, False) for k, (a, b) in enumerate(pairs) if k != axis % len(x)
                    )
        case op if op in _ELEMENTWISE and x and w:
            for a, b in zip(reversed(x), reversed(w), strict=False):
                yield a, b, True


def _rows(target: np.ndarray[Any, Any] | None) -> int | None:
    """The elements of a row where a Reshape is to [-1, ...]: as a rule, of what it reads too."""
    if target is None or target.dtype == object or target.ndim != 1 or len(target) < 2:
        return None
    first, *rest = target.tolist()
    return math.prod(rest) if first == -1 and min(rest) > 0 else None
