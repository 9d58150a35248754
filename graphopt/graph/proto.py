"""The tensors of a model as protobuf: weights, attributes, those of subgraphs and functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

__all__ = ["tensors_of"]


def tensors_of(message: Any) -> Iterator[Any]:
    """Every tensor within a model's graphs and functions."""
    if isinstance(message, onnx.ModelProto):
        parts: list[Any] = [message.graph, *message.functions]
    elif isinstance(message, onnx.GraphProto):
        yield from message.initializer
        for sparse in message.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        parts = list(message.node)
    elif isinstance(message, (onnx.FunctionProto, onnx.NodeProto)):
        parts = [*(message.node if isinstance(message, onnx.FunctionProto) else message.attribute)]
    else:
        yield from (message.t, *message.tensors)
        parts = [*([message.g] if message.HasField("g") else ()), *message.graphs]
    for part in parts:
        yield from tensors_of(part)
