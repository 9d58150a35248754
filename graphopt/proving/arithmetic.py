"""Elementwise operators and activations as polynomials."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import ONE, Poly, Unprovable, written
from graphopt.proving.terms import Term

__all__ = ["ARITHMETIC", "activated", "clipped", "operands"]

HALF = Fraction(1, 2)


# --- elementwise -----------------------------------------------------------------------------


def operands(m: Meaning, t: Term, ix: Index) -> list[Poly]:
    """The elements of all inputs that meet at an index."""
    return [m.broadcast(a, ix, m.dims(t)) for a in t.args]


def _add(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.algebra.add(*operands(m, t, ix))


def _average(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.algebra.scale(_add(m, t, ix), Fraction(1, len(t.args)))


def _sub(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.algebra.sub(*operands(m, t, ix))


def _mul(m: Meaning, t: Term, ix: Index) -> Poly:
    a, b = operands(m, t, ix)
    return m.algebra.product(a, b)


def _div(m: Meaning, t: Term, ix: Index) -> Poly:
    a, b = operands(m, t, ix)
    if not m.real(t):
        return m.algebra.function("integer quotient", a, b)
    return m.algebra.product(a, m.algebra.power(b, Fraction(-1)))


def _neg(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.algebra.scale(m.at(t.args[0], ix), -1)


def _pow(m: Meaning, t: Term, ix: Index) -> Poly:
    a, e = operands(m, t, ix)
    if len(e) == 1 and not e[0][0].factors and m.real(t):
        return m.algebra.power(a, e[0][1])
    return m.algebra.function("pow", a, e)


def _root(e: Fraction) -> Operator:
    def made(m: Meaning, t: Term, ix: Index) -> Poly:
        return m.algebra.power(m.at(t.args[0], ix), e)

    return made


def _cast(m: Meaning, t: Term, ix: Index) -> Poly:
    """A wider type holds the same number."""
    source = t.args[0]
    while source is not None and source.op == "Cast" and source not in m.leaves:
        if not _holds(source.dtype, source.args[0]):
            break
        source = source.args[0]
    x = m.at(source, ix)
    if source is None or source.dtype is None or t.dtype is None:
        raise Unprovable("a Cast of an unknown type")
    wider = m.real(source) and m.real(t) and t.dtype.bitwidth > source.dtype.bitwidth
    if source.dtype == t.dtype or wider:
        return x
    if source.dtype.is_integer() and t.dtype.is_integer() and t.dtype.bitwidth > 16 and _axis(x):
        return x
    return m.algebra.function("cast", x, data=(t.dtype.name, source.dtype.name))


def _axis(p: Poly) -> bool:
    """Whether it is the size of an axis, chosen by position: no axis has 2^31 elements."""
    for (bound, factors), k in p:
        sizes = [power for atom, power in factors if atom.kind == "size"]
        rest = [atom for atom, _ in factors if atom.kind not in ("size", "in")]
        if bound or rest or k != 1 or sizes not in ([], [1]):
            return False
    return bool(p)


def _holds(to: ir.DataType | None, x: Term | None) -> bool:
    """Whether every value of the type of `x` is one of the type `to`."""
    if to is None or x is None or x.dtype is None:
        return False
    if x.dtype.bitwidth == 64 and x.dtype.is_integer() and not to.is_integer():
        return False  # numpy calls it safe
    return np.can_cast(x.dtype.numpy(), to.numpy(), "safe")


def clipped(m: Meaning, p: Poly, low: float | None, high: float | None) -> Poly:
    """clip(x, a, b) = a + (b - a) clip((x - a) / (b - a), 0, 1)"""
    a = m.algebra
    if low is not None and high is not None and math.isfinite(high - low) and high > low:
        width = Fraction(high) - Fraction(low)
        inner = a.scale(a.sub(p, a.number(low)), 1 / width)
        return a.add(a.number(low), a.scale(a.function("unit clip", inner), width))
    if high is None and low == 0:
        return _once(m, "relu", p)
    return a.function("clip", p, data=(low, high))


def _clip(m: Meaning, t: Term, ix: Index) -> Poly:
    bounds: list[float | None] = []
    for k in (1, 2):
        given = m.argument(t, k)
        if given is None:
            bounds.append(None)
        elif given.op == "const":
            x = float(given.array().reshape(-1)[0])
            if math.isnan(x) or x == (math.inf if k == 1 else -math.inf):
                raise Unprovable("a Clip to what is no number")
            bounds.append(x if math.isfinite(x) else None)
        else:
            raise Unprovable("a Clip whose bounds are not constant")
    return clipped(m, m.at(t.args[0], ix), *bounds)


def gelu(m: Meaning, p: Poly, approximate: str = "none") -> Poly:
    """x / 2 (1 + erf(x / sqrt 2)), or tanh's approximation of it (arXiv:1606.08415)"""
    a = m.algebra
    if approximate == "tanh":
        cube = a.mul(a.mul(p, p), p)
        inner = a.scale(
            a.add(p, a.scale(cube, Fraction(0.044715))), Fraction(math.sqrt(2 / math.pi))
        )
        inside = a.function("tanh", inner)
    else:
        inside = a.function("erf", a.scale(p, Fraction(math.sqrt(0.5))))
    return a.scale(a.mul(p, a.add(a.number(1), inside)), HALF)


def _gelu(m: Meaning, t: Term, ix: Index) -> Poly:
    return gelu(m, m.at(t.args[0], ix), m.attribute(t, "approximate", "none"))


def _fast_gelu(m: Meaning, t: Term, ix: Index) -> Poly:
    x = m.at(t.args[0], ix)
    if m.argument(t, 1) is not None:
        x = m.algebra.add(x, m.broadcast(t.args[1], ix, m.dims(t)))
    return gelu(m, x, "tanh")


def _bias_gelu(m: Meaning, t: Term, ix: Index) -> Poly:
    return gelu(m, m.algebra.add(*operands(m, t, ix)))


def hard_sigmoid(m: Meaning, p: Poly, alpha: float, beta: float) -> Poly:
    a = m.algebra
    return a.function("unit clip", a.add(a.scale(p, Fraction(alpha)), a.number(beta)))


def _unary(name: str) -> Operator:
    def made(m: Meaning, t: Term, ix: Index) -> Poly:
        return activated(m, name, m.at(t.args[0], ix), lambda n: m.attribute(t, n))

    return made


def activated(m: Meaning, name: str, p: Poly, attribute: Callable[[str], float | None]) -> Poly:
    """A named activation of one element."""
    a = m.algebra
    if name == "Relu":
        return clipped(m, p, 0, None)
    if name == "HardSigmoid":
        alpha, beta = attribute("alpha"), attribute("beta")
        return hard_sigmoid(m, p, 0.2 if alpha is None else alpha, 0.5 if beta is None else beta)
    if name == "HardSwish":
        return a.mul(p, hard_sigmoid(m, p, 1 / 6, 0.5))
    if name == "Mish":
        return a.mul(p, a.function("tanh", a.function("softplus", p)))
    if name in ("Swish", "QuickGelu"):
        alpha = attribute("alpha")
        steep = (1.0 if name == "Swish" else 1.702) if alpha is None else alpha
        return a.mul(p, a.function("sigmoid", a.scale(p, Fraction(steep))))
    if name == "Exp":
        return a.exp(p)
    if name == "Log":
        return a.log(p)
    if name == "Abs":
        return p if a.nonnegative(p) else a.function("abs", p)
    if name in IDEMPOTENT:
        return _once(m, name.lower(), p)
    extra = tuple(attribute(n) for n in _PARAMETERS.get(name, ()))
    return a.function(name.lower(), p, data=extra)


def _once(m: Meaning, name: str, p: Poly) -> Poly:
    """f(f(x)) = f(x)"""
    alone = len(p) == 1 and p[0][1] == 1 and not p[0][0].bound and len(p[0][0].factors) == 1
    if alone:
        atom, power = p[0][0].factors[0]
        if power == 1 and atom.kind == "fn" and atom.data == (name,):
            return p
    return m.algebra.function(name, p)


IDEMPOTENT = frozenset(("Ceil", "Floor", "Round", "Sign"))
_PARAMETERS = {
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "Celu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "ThresholdedRelu": ("alpha",),
    "Shrink": ("bias", "lambd"),
}
UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid
HardSwish IsNaN LeakyRelu Log Mish Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
Softsign Swish Tan Tanh ThresholdedRelu""".split()  # noqa: SIM905
BINARY = """BitShift BitwiseAnd BitwiseOr BitwiseXor Equal Greater GreaterOrEqual Less LessOrEqual
Max Min Mod""".split()  # noqa: SIM905
#: The order of their operands is of no account.
COMMUTES = frozenset("Equal Max Min BitwiseAnd BitwiseOr BitwiseXor".split())  # noqa: SIM905


def _named(name: str) -> Operator:
    def made(m: Meaning, t: Term, ix: Index) -> Poly:
        args = operands(m, t, ix)
        if len(args) == 1:
            return args[0]
        if name in COMMUTES:
            args.sort(key=lambda p: [written(x) for x, _ in p])
        said = {"Mod": "fmod", "BitShift": "direction"}.get(name)
        data = () if said is None else (m.attribute(t, said),)
        return m.algebra.function(name.lower(), *args, data=data)

    return made


def _prelu(m: Meaning, t: Term, ix: Index) -> Poly:
    """x where it is positive, else s x; of one slope everywhere, LeakyRelu."""
    x, slope = operands(m, t, ix)
    if any(monomial != ONE for monomial, _ in slope):
        return m.algebra.function("prelu", x, slope)
    alpha = float(sum(k for _, k in slope))
    return activated(m, "LeakyRelu", x, lambda _: alpha)


ARITHMETIC: dict[str, Operator] = {
    "Add": _add,
    "Cast": _cast,
    "Clip": _clip,
    "Div": _div,
    "Gelu": _gelu,
    "Mean": _average,
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _root(Fraction(-1)),
    "Sqrt": _root(HALF),
    "Sub": _sub,
    "Sum": _add,
    "com.microsoft:BiasGelu": _bias_gelu,
    "com.microsoft:FastGelu": _fast_gelu,
    "com.microsoft:Gelu": _gelu,
    **{name: _unary(name) for name in UNARY},
    "com.microsoft:QuickGelu": _unary("QuickGelu"),
    **{name: _named(name) for name in BINARY},
}
