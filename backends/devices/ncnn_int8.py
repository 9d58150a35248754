"""ncnn's int8 layers, as `ncnn2int8` writes them from a table, written from a model's own grids.

    .param   8=1 (depthwise) or 8=2 on the layer's line
    .bin     weights: a mark and bytes; behind the bias: scales of weights, scale of data

A scale of ncnn's is 1 / ours. Files say nothing of where a layer came from: weights are known by
their content, and lines and weights come in one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.quantized import QuantizedLayer

from graphopt.errors import ModelError
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import weight_of

__all__ = ["write_integers"]

Array = np.ndarray[Any, Any]

#: Before weights that are integers of 8 bits; before floats stand four zeros.
_MARK = (0x000D4B38).to_bytes(4, "little")
#: How many weights of convolutions and products a layer has.
_LAYERS = {
    "Convolution": 1,
    "Convolution1D": 1,
    "ConvolutionDepthWise": 1,
    "ConvolutionDepthWise1D": 1,
    "Gemm": 1,
    "InnerProduct": 1,
    "MultiHeadAttention": 4,
}


def write_integers(path: Path, model: ir.Model, layers: Sequence[QuantizedLayer]) -> None:
    """Let `layers` of the files that pnnx wrote of `model` compute in integers.

    Raises:
        ModelError: the weights of the model are not those of the files.
    """
    lines = path.read_text().splitlines()
    data = path.with_suffix(".bin").read_bytes()
    found = _found(data, model)
    planned = {layer.weight.tobytes(): layer for layer in layers}
    pieces: list[bytes] = []
    done = 0
    for k, line in enumerate(lines):
        words = line.split()
        count = _LAYERS.get(words[0] if words else "", 0)
        if count == 1 and words[0] == "Gemm" and "5=1" not in words:
            continue  # a product of two values
        here, found = found[:count], found[count:]
        if len(here) < count:
            raise ModelError(f"pnnx gave '{words[1]}' another weight than the model's: float only")
        if count != 1 or (layer := planned.get(here[0][1])) is None:
            continue
        if (made := _quantized(words, layer)) is None:
            continue
        lines[k] = made
        at = here[0][0]
        end = at + len(here[0][1])
        pieces += [data[done : at - 4], _MARK, _integers(layer)]
        bias = 4 * len(layer.weight) if _has_bias(words) else 0
        end += 4 if bias and words[0] == "Gemm" else 0  # its bias has a mark of its own
        scales = [*(1 / layer.scales), 1 / layer.data.scale]
        pieces += [data[end : end + bias], np.asarray(scales, "<f4").tobytes()]
        done = end + bias
    if found:
        raise ModelError("pnnx wrote other layers than the model's: float only")
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".bin").write_bytes(b"".join([*pieces, data[done:]]))


def _found(data: bytes, model: ir.Model) -> list[tuple[int, bytes]]:
    """Where the weights of convolutions and products lie, in order, and their bytes."""
    places = []
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight = weight_of(node.inputs[1])
        if weight is None:
            continue
        array = weight.array()
        if node.op_type != "Conv" and not attribute(node, "transB", 0):
            array = array.T
        given = np.ascontiguousarray(array, "<f4").tobytes()
        at = data.find(given)
        while at >= 0:
            places.append((at, given))
            at = data.find(given, at + len(given))
    return sorted(set(places))


def _quantized(words: list[str], layer: QuantizedLayer) -> str | None:
    """The line of a layer in integers; None if ncnn has no such layer."""
    kind, fields = words[0], dict(w.split("=", 1) for w in words if "=" in w)
    inputs, outputs = int(words[2]), int(words[3])
    head = words[: 4 + inputs + outputs]
    if layer.data.zero or kind.endswith("1D"):
        return None
    if kind == "ConvolutionDepthWise":
        if int(fields.get("7", "1")) != len(layer.weight):
            return None
        fields["8"] = "1"
    elif kind == "Gemm":
        if (fields.get("2", "0"), fields.get("3", "0"), fields.get("4", "0")) != ("0", "1", "0"):
            return None
        fields = {"0": fields["8"], "1": str(int(_has_bias(words))), "2": str(layer.weight.size)}
        fields["8"] = "2"
        head[0] = "InnerProduct"
    else:
        fields["8"] = "2"
    head[0] = f"{head[0]:24}"
    return " ".join([*head, *(f"{k}={v}" for k, v in fields.items())])


def _has_bias(words: list[str]) -> bool:
    key = {"InnerProduct": "1", "Gemm": "6"}.get(words[0], "5")
    return f"{key}=1" in words


def _integers(layer: QuantizedLayer) -> bytes:
    """The weight as bytes, padded to words of four."""
    scales = layer.scales.reshape(-1, *[1] * (layer.weight.ndim - 1))
    given = np.clip(np.rint(layer.weight / scales), -127, 127).astype(np.int8).tobytes()
    return given + bytes(-len(given) % 4)
