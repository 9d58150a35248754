"""Codebook: weights as one byte for every few, an index into 256 vectors found by k-means.

    W    ->    Reshape(Gather(C, Cast(I)), shape of W),    C float32 [256, 8 / bits], I uint8

(weight sharing, Han et al., Deep Compression, ICLR 2016; vectors of neighbours: product
quantization, Jegou et al., 2011; palettization). Stock operators of every opset, so every runtime
reads it; runtimes compute W once, when they load the model, so memory is then what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear, linear_of
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names
from graphopt.layers import by_node, pattern_of
from graphopt.pass_ import Pass

__all__ = ["Codebook", "clustered"]

Array = np.ndarray[Any, Any]

#: Vectors of a codebook: what a byte tells apart.
SIZE = 256
#: Vectors that a codebook is learned from, rounds of it, and vectors compared at a time.
LEARNED, ROUNDS, PART = 1 << 15, 20, 1 << 14
#: Bytes of three nodes and two small constants.
NODES = 400


@dataclass(frozen=True)
class Codebook(Pass):
    """Store the weights of products, convolutions and tables as indices into codebooks.

    Each tensor has its own; a tensor that would not be smaller stays as it is. The file is small,
    the memory after loading is not.

    Attributes:
        bits: of a weight, 1, 2, 4 or 8: a byte stands for 8 / bits neighbours.
        layers: (pattern, bits) pairs (`graphopt.layers`): nodes whose name matches read weights of
            so many bits instead, or with 0 of floats; the first match counts.
    """

    bits: Literal[1, 2, 4, 8] = 4
    layers: tuple[tuple[str, Literal[0, 1, 2, 4, 8]], ...] = ()

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise ValueError(f"bits is 1, 2, 4 or 8, not {self.bits}")
        for pattern, bits in self.layers:
            if bits not in (0, 1, 2, 4, 8):
                raise ValueError(f"layers: '{pattern}' has 0, 1, 2, 4 or 8 bits, not {bits}")

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[int, ...]]:
        """The bits that the weight of each layer may have."""
        return {pattern_of(op.node): (8, 4, 2) for op in _weights(model).values()}

    def only(
        self, layers: tuple[tuple[str, Literal[0, 1, 2, 4, 8]], ...], others: Sequence[str] = ()
    ) -> Codebook:
        """Stores these layers' weights so, and no other's."""
        return replace(self, layers=(*layers, ("*", 0)))

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace weights of the main graph in place; returns how many."""
        given = by_node(self.layers, model.graph, "codebook")
        names, found = Names(model), 0
        weights = _weights(model)
        for value, op in ctx.track(weights.items(), len(weights), "finding codebooks"):
            bits = given.get(op.node, self.bits)
            size = value.const_value.size if value.const_value is not None else 0
            if bits == 0:
                ctx.refuse(self, op.node, "layers= says so: it stays as it is")
            elif SIZE * 4 * 8 // bits + size * bits // 8 + NODES >= 4 * size:
                ctx.refuse(self, op.node, "its codebook would be no smaller: it stays as it is")
            elif ctx.edit(self, op.node):
                _replace(model, value, bits, names, ctx)
                found += 1
        return found or ctx.nothing("no weight would be smaller")


def _weights(model: ir.Model) -> dict[ir.Value, Linear]:
    """The finite float32 initializers that layers read, with the first that does."""
    found: dict[ir.Value, Linear] = {}
    for node in model.graph:
        op = linear_of(node)
        if isinstance(op, str) or not op.weight.is_initializer():
            continue
        value, tensor = op.weight, op.weight.const_value
        held = not value.is_graph_input() and not value.is_graph_output()
        if not held or tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if np.isfinite(tensor.numpy()).all():
            found.setdefault(value, op)
    return found


def clustered(vectors: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """k-means: the codebook float32 [256, d] and the index of each of vectors [n, d], uint8.

    It starts from vectors at even ranks by their mean, and codes that nothing is near to go to
    vectors that are far from theirs.
    """
    some = vectors
    if len(vectors) > LEARNED:
        some = vectors[np.sort(rng.choice(len(vectors), LEARNED, replace=False))]
    order = np.argsort(some.mean(axis=1), kind="stable")
    codes = some[order[np.linspace(0, len(some) - 1, SIZE).astype(int)]].astype(np.float32)
    for _ in range(ROUNDS):
        index, off = _nearest(some, codes)
        counts = np.bincount(index, minlength=SIZE)
        sums = np.stack([np.bincount(index, x, SIZE) for x in some.T.astype(np.float64)], axis=1)
        codes = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], codes)
        empty = np.flatnonzero(counts == 0)
        codes[empty] = some[np.argsort(-off, kind="stable")[: len(empty)]]
        codes = codes.astype(np.float32)
    return codes, _nearest(vectors, codes)[0].astype(np.uint8)


def _nearest(vectors: Array, codes: Array) -> tuple[Array, Array]:
    """The nearest code of each vector, and its squared distance."""
    index, off = [], []
    square = np.square(codes).sum(axis=1)
    for at in range(0, len(vectors), PART):
        part = vectors[at : at + PART]
        far = square - 2 * (part @ codes.T)
        best = far.argmin(axis=1)
        index.append(best)
        off.append(far[np.arange(len(part)), best] + np.square(part).sum(axis=1))
    return np.concatenate(index), np.concatenate(off)


def _replace(model: ir.Model, value: ir.Value, bits: int, names: Names, ctx: Context) -> None:
    """What looks the weight up before whatever reads it; the weight goes."""
    tensor = value.const_value
    assert tensor is not None
    assert value.name is not None
    array, width = tensor.numpy(), 8 // bits
    flat = np.pad(array.reshape(-1), (0, -array.size % width)).reshape(-1, width)
    codes, index = clustered(flat, ctx.rng)
    readers = [u.node for u in value.uses()]
    builder = Builder(model, model.graph[0], names)
    table = builder.constant(codes, f"{value.name}_codes")
    stored = builder.constant(index, f"{value.name}_indices")
    wide = builder.node("Cast", [stored], {"to": ir.DataType.INT32.value}).outputs[0]
    made = builder.node("Gather", [table, wide], {"axis": 0}).outputs[0]
    if array.size % width:
        line = builder.constant(np.array([-1]), f"{value.name}_line")
        made = builder.node("Reshape", [made, line]).outputs[0]
        bounds = [builder.constant(np.array([n]), f"{value.name}_bound") for n in (0, array.size)]
        made = builder.node("Slice", [made, *bounds]).outputs[0]
    shape = builder.constant(np.array(array.shape), f"{value.name}_shape")
    made = builder.node("Reshape", [made, shape]).outputs[0]
    made.type, made.shape = value.type, value.shape
    value.replace_all_uses_with(made)
    del model.graph.initializers[value.name]
    provenance.derive(builder.nodes, readers, ctx.pass_name)
