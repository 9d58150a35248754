"""Linear quantization as a function of an element, its scale and its zero point."""

from __future__ import annotations

from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.terms import Term

__all__ = ["QUANTIZED"]


def _parameters(m: Meaning, t: Term, ix: Index) -> tuple[Poly, Poly]:
    """Scale and zero point: of the whole tensor, or of an index of one axis."""
    scale, zero = t.args[1], m.argument(t, 2)
    rank = len(m.dims(scale))
    if rank > 1 or m.attribute(t, "block_size", 0):
        raise Unprovable("scales of blocks")
    at = (ix[m.axis(m.attribute(t, "axis", 1), len(ix))],) if rank else ()
    return m.at(scale, at), () if zero is None else m.at(zero, at)


def _quantize(m: Meaning, t: Term, ix: Index) -> Poly:
    """round(x / s) + z, within the type"""
    if t.dtype is None or not t.dtype.is_integer():
        raise Unprovable("a type that holds no integers")
    args = (m.at(t.args[0], ix), *_parameters(m, t, ix))
    return m.algebra.function("quantize", *args, data=(t.dtype.name,))


def _dequantize(m: Meaning, t: Term, ix: Index) -> Poly:
    """(x - z) s"""
    scale, zero = _parameters(m, t, ix)
    return m.algebra.product(m.algebra.sub(m.at(t.args[0], ix), zero), scale)


QUANTIZED: dict[str, Operator] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
