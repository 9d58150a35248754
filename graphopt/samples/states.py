"""Recurrent states and key-value caches: inputs that take what an output gave the run before.

    y_t, s_t = f(x_t, s_{t-1})

Nothing in a file says so but names, types and shapes, which exporters keep alike.
"""

from __future__ import annotations

import re

import onnx_ir as ir

__all__ = ["states_of"]

#: What exporters put around a state's name to tell what came in from what goes out.
_AROUND = re.compile(
    r"^(past|present)(_key_values?)?|(^|[_.])(in|out|input|output|prev|previous|next|new|old|last"
    r"|init|initial|updated|past|present|cur|current)(?=$|[_.\d])",
    re.I,
)
#: h0 and hn, c_0 and c_n, state and stateN.
_FIRST = re.compile(r"_?[0n]$|(?<=[a-z])N$")

#: Element types of states: floats, or the integers of a quantized cache.
_NUMBERS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
    | {ir.DataType.INT8, ir.DataType.UINT8}
)


def states_of(model: ir.Model) -> dict[str, str]:
    """Input name -> name of the output that it takes in the next run, in order of the inputs.

    A state and its successor have one element type and one rank; sizes that both declare are the
    same, or, of one axis that grows (a cache), named differently.
    """
    given = [v for v in model.graph.inputs if not v.is_initializer()]
    outputs = {_plain(v.name): v for v in model.graph.outputs}
    if len(outputs) < len(model.graph.outputs):
        return {}
    pairs = {}
    for one in given:
        after = outputs.get(_plain(one.name)) if _plain(one.name) else None
        if after is not None and one.name and after.name and _follows(one, after):
            pairs[one.name] = after.name
    return pairs


def _plain(name: str | None) -> str:
    found = _AROUND.sub("", name or "").strip("_.").lower() if name else ""
    return _FIRST.sub("", found) if not found.isdigit() else found


def _follows(one: ir.Value, after: ir.Value) -> bool:
    if one.dtype != after.dtype or one.dtype not in _NUMBERS:
        return False
    if one.shape is None or after.shape is None:
        return False
    if len(one.shape) != len(after.shape) or len(one.shape) < 2:
        return False
    pairs = list(zip(one.shape, after.shape, strict=True))
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
        return False
    return sum(not isinstance(a, int) and a != b for a, b in pairs) <= 1
