"""Operators of ONNX by name, and the functions that write them for LiteRT."""

from __future__ import annotations

from graphopt.backends.litert.attention import ATTENTION
from graphopt.backends.litert.convolution import CONVOLUTION
from graphopt.backends.litert.elementwise import BINARY, COMPARED, UNARY
from graphopt.backends.litert.moving import MOVING
from graphopt.backends.litert.norms import NORMS
from graphopt.backends.litert.pooling import POOLING
from graphopt.backends.litert.products import PRODUCTS
from graphopt.backends.litert.quantized import QUANTIZATION, in_integers
from graphopt.backends.litert.recurrent import RECURRENT
from graphopt.backends.litert.writer import Lower

__all__ = ["TABLE"]

_FLOAT: dict[str, Lower] = {
    **ATTENTION,
    **BINARY,
    **COMPARED,
    **CONVOLUTION,
    **MOVING,
    **NORMS,
    **POOLING,
    **PRODUCTS,
    **RECURRENT,
    **UNARY,
}
#: Every operator that is written; in integers where it stands between Q/DQ.
TABLE: dict[str, Lower] = {
    **{name: in_integers(name, lower) for name, lower in _FLOAT.items()},
    **QUANTIZATION,
}
