"""Coding a model whose layers are rounded: the integers, the coded bytes, the pack's file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.context import Progress, silent
from graphopt.entropy.container import CHUNK, write_pack
from graphopt.entropy.integers import Rounded, bits_taken, counts_of, tables_of
from graphopt.io.writing import write_model
from graphopt.packing.files import files_of
from graphopt.packing.lossless import check
from graphopt.packing.rounding import Costs, Layer, as_rounded, rounded_for
from graphopt.replacing import replace_files

__all__ = ["Coded", "coded", "integers_at", "pieces_of", "size_of", "write"]

Array = np.ndarray[Any, Any]

#: Rounds that costs are learned in.
ROUNDS = 2


@dataclasses.dataclass(frozen=True)
class Coded:
    """A model with rounded weights, and these as a pack codes them.

    Attributes:
        model: with the weights that integers stand for.
        pieces: rounded tensors by name, in pieces as they are stored.
        tables: the frequencies that all are coded by.
        sizes: bytes of each tensor as coded, by the information of its symbols.
        rounded: the tensors in the order of the layers.
    """

    model: ir.Model
    pieces: dict[str, list[Rounded]]
    tables: bytes
    sizes: dict[str, float]
    rounded: list[Rounded]

    @property
    def bytes(self) -> int:
        """Of the coded weights."""
        return round(sum(self.sizes.values()))


def size_of(layers: Sequence[Layer]) -> float:
    """The root mean square of weights in units of their layers' steps."""
    wide = [one.scaled for one in layers if one.scaled.shape[1] > 1] or [
        one.scaled for one in layers
    ]
    squares = sum(float(np.square(w, dtype=np.float64).sum()) for w in wide)
    return float(np.sqrt(squares / sum(w.size for w in wide))) or 1.0


def integers_at(layers: Sequence[Layer], step: float) -> list[Array]:
    """The integers [rows, columns] of each layer, all rounded at one step."""
    found = [np.rint(one.scaled / np.float32(step)).astype(np.int32) for one in layers]
    for _ in range(ROUNDS):
        costs = Costs()
        for one, q in zip(layers, found, strict=True):
            costs.add(q, one.taps)
        table = costs.table()
        found = [rounded_for(one, step, q, table) for one, q in zip(layers, found, strict=True)]
    return found


def coded(model: ir.Model, layers: Sequence[Layer], found: Sequence[Array], step: float) -> Coded:
    """The model with integers `found` at one step in place of its layers, and these coded."""
    rounded = [as_rounded(one, q, step) for one, q in zip(layers, found, strict=True)]
    pieces = {one.name: pieces_of(whole) for one, whole in zip(layers, rounded, strict=True)}
    counts = {name: [counts_of(p) for p in parts] for name, parts in pieces.items()}
    tables = tables_of(c for parts in counts.values() for c in parts)
    sizes = {n: sum(bits_taken(c, tables) for c in parts) / 8 for n, parts in counts.items()}
    model = model.clone()
    for one, tensor in zip(layers, rounded, strict=True):
        values = tensor.values().reshape(one.shape)
        model.graph.initializers[one.name].const_value = ir.Tensor(values, name=one.name)
    return Coded(model, pieces, tables, sizes, rounded)


def pieces_of(tensor: Rounded) -> list[Rounded]:
    """A tensor in pieces of at most a chunk, along the axis that is stored first."""
    q, (rows, columns) = tensor.q, tensor.q.shape
    most = max(1, CHUNK // 4 // (rows if tensor.turned else columns))
    if tensor.turned:
        most = max(tensor.taps, most // tensor.taps * tensor.taps)
        return [
            dataclasses.replace(
                tensor,
                q=tensor.q[:, k : k + most],
                column=tensor.column[k // tensor.taps : -(-(k + most) // tensor.taps)],
            )
            for k in range(0, columns, most)
        ]
    return [
        dataclasses.replace(tensor, q=q[k : k + most], row=tensor.row[k : k + most])
        for k in range(0, rows, most)
    ]


def write(coded: Coded, target: Path, progress: Progress = silent) -> None:
    """Write the pack once it was decoded: every byte of the model must come out."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        whole = Path(folder, "model.onnx")
        write_model(coded.model, whole)
        files = files_of(whole, coded.pieces)
        content = write_pack(files, coded.tables, progress)
        replace_files([(target, content)], check)
