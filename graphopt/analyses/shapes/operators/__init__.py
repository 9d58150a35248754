"""What each operator does to shapes and shape data: one function per operator, in one table.

A function takes the node, the facts of its inputs and the analysis (for fresh unknowns) and returns
the facts of the outputs, or None to leave the node to ONNX's own inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphopt.analyses.shapes import values as shape_data
from graphopt.analyses.shapes.by_onnx import by_onnx
from graphopt.analyses.shapes.facts import DATA_LIMIT, Fact, Shapes, small_data
from graphopt.analyses.shapes.operators import classical, windows
from graphopt.analyses.shapes.operators import contrib as shape_extensions
from graphopt.analyses.shapes.operators import control as shape_bodies
from graphopt.analyses.shapes.operators import layout as shape_moving
from graphopt.analyses.shapes.rules import (
    Facts,
    axes_of,
    broadcast,
    matrix_product,
)
from graphopt.analyses.shapes.symbolic import Expr
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value
from graphopt.graph.evaluation import deterministic, quick

__all__ = ["OPERATORS", "infer_node"]

Operator = Callable[[ir.Node, Facts, Shapes], "list[Fact] | None"]


def infer_node(node: ir.Node, inputs: Facts, shapes: Shapes) -> list[Fact] | None:
    """Facts of a node's outputs; unknown where nothing is sure, None for unknown operators.

    An operator may stand where it never runs with what it cannot take (a permutation out of range,
    a step of 0, sizes of 2^70): nothing is known of what it makes, and a runtime that does run it
    says what is wrong.
    """
    try:
        found = _infer(node, inputs, shapes)
        return None if found is None else [_settled(f) for f in found]
    except _MISFITS:
        return []


#: What NumPy, Python and `onnx_ir` raise on arguments that do not fit each other, or are fractions
#: where sizes belong.
_MISFITS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def _infer(node: ir.Node, inputs: Facts, shapes: Shapes) -> list[Fact] | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == "":
        function = OPERATORS.get(node.op_type)
    else:
        tables = shape_extensions.OPERATORS, classical.OPERATORS
        function = next((t[key] for t in tables if (key := (domain, node.op_type)) in t), None)
    facts = None if function is None else function(node, inputs, shapes)
    if facts is None:
        facts = by_onnx(node, domain, inputs, shapes)
    if facts is None:
        return None
    if len(facts) == 1 and facts[0].data is None and inputs and _small(facts[0]):
        return [_computed(node, inputs, facts[0])]
    return facts


def _settled(fact: Fact) -> Fact:
    """A type that is none is unknown; elements from among symbols are numbers if none is one.

    Elements of another type than the value's are of operands that do not fit each other; sizes
    below zero (Expand to -1, a Pad that crops more than there is) are no shape.
    """
    if fact.dims is not None and any(isinstance(d, int) and d < 0 for d in fact.dims):
        fact = fact._replace(dims=None, data=None)
    if fact.dtype is ir.DataType.UNDEFINED:
        return fact._replace(dtype=None, data=None)
    if fact.data is None or fact.dtype is None:
        return fact
    if fact.data.dtype != object:
        return fact if fact.data.dtype == fact.dtype.numpy() else fact._replace(data=None)
    if any(isinstance(e, Expr) for e in fact.data.ravel().tolist()):
        return fact
    return fact._replace(data=fact.data.astype(fact.dtype.numpy()))


def _small(fact: Fact) -> bool:
    if fact.dims is None:
        return False
    sizes = [d for d in fact.dims if isinstance(d, int)]
    count = math.prod(sizes)
    return count == 0 or (len(sizes) == len(fact.dims) and count <= DATA_LIMIT)


def _computed(node: ir.Node, inputs: Facts, fact: Fact) -> Fact:
    """With the data of an operator on small numbers, floating point included."""
    given = [f.concrete for f in inputs]
    if any(g is None and v is not None for g, v in zip(given, node.inputs, strict=True)):
        return fact
    made = quick(node, given) if deterministic(node) else None
    if made is None or made[0].shape != fact.dims:
        return fact
    return Fact(fact.dtype, fact.dims, made[0])


def _elementwise(result: ir.DataType | None = None) -> Operator:
    def infer(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
        given = [f for f, v in zip(ins, node.inputs, strict=True) if v is not None]
        first = given[1] if node.op_type == "Where" and len(given) > 1 else given[0]
        dims = broadcast(shapes, *(f.dims for f in given))
        dtype = result if result is not None else first.dtype
        return [Fact(dtype, dims, shape_data.compute(node, given, dtype, dims, shapes))]

    return infer


def _same(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    """Unary, type and shape kept."""
    return [Fact(ins[0].dtype, ins[0].dims, type=ins[0].type)]


def _identity(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    return [ins[0]]


def _constant(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    tensor = constant_value(node.outputs[0])
    if tensor is None:
        return None
    return [Fact(tensor.dtype, tuple(int(d) for d in tensor.shape), small_data(tensor))]  # type: ignore[arg-type]


def _cast(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    to = ins[1].dtype if node.op_type == "CastLike" else ir.DataType(attribute(node, "to"))
    return [Fact(to, ins[0].dims, shape_data.cast(ins[0], to))]


def _matmul(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    return [Fact(ins[0].dtype, matrix_product(shapes, ins[0].dims, ins[1].dims))]


def _reduce(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x = ins[0]
    if x.dims is None:
        return [Fact(x.dtype)]
    rank = len(x.dims)
    axes = axes_of(node, ins, 1)
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    if axes is None and given:
        return [Fact(x.dtype)]
    if not axes:
        noop = attribute(node, "noop_with_empty_axes", 0)
        axes = [] if noop else list(range(rank))
    gone = {a % rank for a in axes} if rank else set()
    keep = attribute(node, "keepdims", 1)
    dims = tuple(1 if k in gone else d for k, d in enumerate(x.dims) if keep or k not in gone)
    data = None
    if x.data is not None and gone == set(range(rank)):
        data = shape_data.reduce(node.op_type, x, dims)
    return [Fact(x.dtype, dims, data)]


_KEEP = (
    "Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Hardmax LeakyRelu Log LogSoftmax Mish Reciprocal Relu "
    "Round Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu PRelu CumSum Trilu LpNormalization MeanVarianceNormalization "
    "InstanceNormalization GroupNormalization LRN ScatterElements ScatterND Scatter "
    "RMSNormalization Shrink"
)
_ARITHMETIC = (
    "Add Sub Mul Div Mod Min Max Sum Mean Where BitwiseAnd BitwiseOr BitwiseXor BitShift Pow "
    "Neg Abs"
)
_COMPARE = "Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not"
_REDUCE = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

OPERATORS: dict[str, Operator] = {
    **shape_extensions.RUNTIME_OPERATORS,
    **shape_moving.OPERATORS,
    **shape_bodies.OPERATORS,
    **windows.OPERATORS,
    **dict.fromkeys(_KEEP.split(), _same),
    **{name: _elementwise() for name in _ARITHMETIC.split()},
    **{name: _elementwise(ir.DataType.BOOL) for name in _COMPARE.split()},
    **{f"Reduce{name}": _reduce for name in _REDUCE.split()},
    "Cast": _cast,
    "CastLike": _cast,
    "Constant": _constant,
    "Identity": _identity,
    "MatMul": _matmul,
}
