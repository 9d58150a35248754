"""Neighbours of a node that have no twin yet, and the nodes that alone read a weight."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import onnx_ir as ir

from graphopt.differing.flow import Flow

__all__ = ["STEPS", "WEIGHT", "chain", "readers", "readers_of_weights"]

#: A constant of so many elements tells a layer from others.
WEIGHT = 16
#: Nodes on the way to a neighbour that may be new, such as QuantizeLinear and DequantizeLinear.
STEPS = 4
#: Readers of a value that are looked at for each neighbour.
FAN = 64


def chain(flow: Flow, value: ir.Value | None, taken: list[int | None], steps: int) -> list[int]:
    """Up to `steps` free nodes from the one that makes `value` upwards, along first inputs."""
    found: list[int] = []
    k = flow.maker(value)
    while k is not None and taken[k] is None and len(found) < steps:
        found.append(k)
        k = next((m for v in flow.reads[k] if (m := flow.maker(v)) is not None), None)
    return found


def readers(
    flow: Flow,
    value: ir.Value,
    taken: list[int | None],
    steps: int,
    keys: Sequence[Hashable],
) -> dict[Hashable, list[int]]:
    """Free nodes that read a value, by key and slot, looked for behind single readers too."""
    found: dict[Hashable, list[int]] = {}
    for _ in range(steps):
        edges = [(k, s) for k, s in flow.readers.get(value, ())[:FAN] if taken[k] is None]
        for k, slot in edges:
            found.setdefault((keys[k], slot), []).append(k)
        if len(edges) != 1 or not flow.nodes[edges[0][0]].outputs:
            break
        value = flow.nodes[edges[0][0]].outputs[0]
    return found


def readers_of_weights(flow: Flow) -> dict[bytes, int]:
    """The node that reads a weight, of weights that one node alone reads; by what they hold."""
    found: dict[bytes, int] = {}
    shared: set[bytes] = set()
    for k, values in enumerate(flow.reads):
        for value in values:
            tensor = flow.constant(value)
            if tensor is not None and tensor.size >= WEIGHT:
                key = flow.digests(tensor)
                if found.setdefault(key, k) != k:
                    shared.add(key)
    return {key: k for key, k in found.items() if key not in shared}
