"""Operators on each element, with ONNX's broadcasting and types."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from graphopt.backends.torch_fx.types import torch_dtype

from graphopt.errors import ModelError

__all__ = ["TABLE"]

Lower = Callable[..., Any]
_INTEGER = frozenset(ir.DataType[s + "INT" + n] for s in ("", "U") for n in ("8", "16", "32", "64"))


def unary(function: Callable[[Any], Any]) -> Lower:
    """f(x)"""
    return lambda op, x: function(x)


def binary(function: Callable[[Any, Any], Any]) -> Lower:
    """f(a, b)"""
    return lambda op, a, b: function(a, b)


def variadic(function: Callable[[Any, Any], Any]) -> Lower:
    """f(f(a, b), c) ..."""
    return lambda op, *values: reduce(function, values)


def _mean(op: Any, *values: Any) -> Any:
    return reduce(operator.add, values) / len(values)


def _div(op: Any, a: Any, b: Any) -> Any:
    if op.dtype() in _INTEGER:
        return torch.div(a, b, rounding_mode="trunc")
    return a / b


def _mod(op: Any, a: Any, b: Any) -> Any:
    return torch.fmod(a, b) if op.attribute("fmod", 0) else torch.remainder(a, b)


def _pow(op: Any, a: Any, b: Any) -> Any:
    exponent = op.constant(1)
    if exponent is not None and exponent.size == 1:
        b = exponent.reshape(-1)[0].item()
        b = int(b) if float(b).is_integer() and abs(b) < 16 else b
        if not isinstance(b, int) and op.dtype() in _INTEGER:
            return torch.pow(a.to(torch.float64), b).to(torch_dtype(op.dtype()))
        if exponent.ndim > op.rank(0):
            a = a.reshape([1] * (exponent.ndim - op.rank(0)) + [-1])
        return torch.pow(a, b)
    if op.dtype(0) in _INTEGER and op.dtype(1) not in _INTEGER:
        return torch.pow(a.to(torch.float64), b).to(torch_dtype(op.dtype()))
    return torch.pow(a, b).to(a.dtype)


def _cast(op: Any, x: Any) -> Any:
    return x.to(torch_dtype(op.attribute("to")))


def _cast_like(op: Any, x: Any, like: Any) -> Any:
    return x.to(torch_dtype(op.dtype(1)))


def _clip(op: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    if op.opset < 11:
        return torch.clamp(x, op.attribute("min"), op.attribute("max"))
    bounds = []
    for k, given in ((1, low), (2, high)):
        fixed = op.constant(k)
        bounds.append(given if fixed is None else fixed.reshape(()).item())
    if any(b is not None and not isinstance(b, (int, float)) for b in bounds):
        if bounds[0] is not None:
            x = torch.maximum(x, low)
        return x if bounds[1] is None else torch.minimum(x, high)
    if all(b is None for b in bounds):
        return x
    return torch.clamp(x, bounds[0], bounds[1])


def _gelu(op: Any, x: Any) -> Any:
    return F.gelu(x, approximate=op.attribute("approximate", "none"))


def _fast_gelu(op: Any, x: Any, bias: Any = None) -> Any:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _prelu(op: Any, x: Any, slope: Any) -> Any:
    return torch.where(x >= 0, x, x * slope)


def _is_inf(op: Any, x: Any) -> Any:
    if not op.attribute("detect_negative", 1):
        return torch.isposinf(x)
    return torch.isinf(x) if op.attribute("detect_positive", 1) else torch.isneginf(x)


def _shrink(op: Any, x: Any) -> Any:
    bias, lambd = op.attribute("bias", 0.0), op.attribute("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def _shift(op: Any, a: Any, b: Any) -> Any:
    left = op.attribute("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


def _celu(op: Any, x: Any) -> Any:
    return F.celu(x, op.attribute("alpha", 1.0))


def _selu(op: Any, x: Any) -> Any:
    alpha, gamma = op.attribute("alpha"), op.attribute("gamma")
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0.0)))


def _elu(op: Any, x: Any) -> Any:
    return F.elu(x, op.attribute("alpha", 1.0))


def _hard_sigmoid(op: Any, x: Any) -> Any:
    return torch.clamp(x * op.attribute("alpha", 0.2) + op.attribute("beta", 0.5), 0.0, 1.0)


def _dropout(op: Any, x: Any, *_: Any) -> Any:
    training = op.constant(2)
    if op.given(2) and (training is None or bool(training.reshape(-1)[0])):
        raise ModelError(f"Dropout '{op.node.name}' drops elements, which is not lowered")
    return (x, torch.ones_like(x, dtype=torch.bool)) if op.wanted(1) else x


TABLE: dict[str, Lower] = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Add": binary(operator.add),
    "And": binary(torch.logical_and),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "BitShift": _shift,
    "BitwiseAnd": binary(torch.bitwise_and),
    "BitwiseNot": unary(torch.bitwise_not),
    "BitwiseOr": binary(torch.bitwise_or),
    "BitwiseXor": binary(torch.bitwise_xor),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": unary(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": binary(torch.eq),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "Gelu": _gelu,
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": unary(F.hardswish),
    "Identity": lambda op, x: x,
    "IsInf": _is_inf,
    "IsNaN": unary(torch.isnan),
    "LeakyRelu": lambda op, x: F.leaky_relu(x, op.attribute("alpha", 0.01)),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "Log": unary(torch.log),
    "Max": variadic(torch.maximum),
    "Mean": _mean,
    "Min": variadic(torch.minimum),
    "Mish": unary(F.mish),
    "Mod": _mod,
    "Mul": binary(operator.mul),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Or": binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": unary(torch.reciprocal),
    "Relu": unary(torch.relu),
    "Round": unary(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": unary(torch.sigmoid),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Softplus": lambda op, x: torch.logaddexp(x, torch.zeros_like(x)),
    "Softsign": unary(F.softsign),
    "Sqrt": unary(torch.sqrt),
    "Sub": binary(operator.sub),
    "Sum": variadic(operator.add),
    "Swish": lambda op, x: x * torch.sigmoid(x * op.attribute("alpha", 1.0)),
    "Tan": unary(torch.tan),
    "Tanh": unary(torch.tanh),
    "ThresholdedRelu": lambda op, x: torch.where(
        x > op.attribute("alpha", 1.0), x, torch.zeros_like(x)
    ),
    "Where": lambda op, c, a, b: torch.where(c, a, b),
    "Xor": binary(torch.logical_xor),
    "com.microsoft:BiasGelu": lambda op, x, bias: F.gelu(x + bias),
    "com.microsoft:FastGelu": _fast_gelu,
    "com.microsoft:Gelu": unary(F.gelu),
    "com.microsoft:QuickGelu": lambda op, x: x * torch.sigmoid(x * op.attribute("alpha", 1.702)),
}
