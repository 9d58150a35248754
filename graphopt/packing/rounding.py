"""Rate-distortion rounding: each weight is the integer that costs least in errors and in bits.

    minimize   sum_o u[o] (w^ - w)[o] H (w^ - w)[o]^T  +  lambda * bits(q)

with H = E[x x^T] of what the weight multiplies and u[o] how much errors of output o matter. Columns
are rounded one after another and the error of each is made up for by those to come (optimal brain
quantization; Frantar et al., GPTQ, ICLR 2023), the bits of each integer told by what its neighbours
are, as the coder will tell them (CERWU, arXiv 2505.18758). Steps follow outputs and columns, so
that an error of one step does the same harm everywhere: by 1 / sqrt(u[o]), and by one over the
diagonal of the Cholesky factor of H (WaterSIC, arXiv 2603.04956).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from graphopt.entropy.contexts import LARGEST
from graphopt.entropy.integers import MOST, Rounded, steps_of

__all__ = ["GROUP", "Costs", "Layer", "rounded_for"]

Array = np.ndarray[Any, Any]

#: Added to the diagonal of H, relative to its mean.
DAMP = 0.01
#: Neighbours in a matrix.
GROUP = 8
#: Columns rounded before the ones behind them are told.
BLOCK = 64
#: Levels of rows and columns in octaves, and kinds of known neighbours, of the bits' model.
LEVELS, KINDS = 16, 3
#: lambda of a step of 1. What uniform rounding trades at high rates, d(step^2 / 12) / d(bits), is
#: 0.1155; on trained models half of it with larger steps loses less in the same bytes.
TRADE = 0.05


@dataclasses.dataclass
class Layer:
    """A weight to round.

    Attributes:
        name: of its initializer.
        w: float64 [rows, columns]; not kept.
        taps: columns that are neighbours.
        turned: whether it is stored with columns first.
        shape: as it is stored.
        second: H [columns, columns], or None where columns are independent.
        weight: u [rows].
        even: all columns have one step.
        size: rows and columns.
        scaled: the weights in units of their steps, float32 [rows, columns].
    """

    name: str
    w: dataclasses.InitVar[Array]
    taps: int
    turned: bool
    shape: tuple[int, ...]
    second: Array | None
    weight: Array
    even: bool = False

    def __post_init__(self, w: Array) -> None:
        _, columns = self.size = w.shape
        if self.second is None:
            self.upper, diagonal = None, np.ones(columns)
        else:
            damp = max(DAMP * float(np.trace(self.second)) / columns, 1e-12)
            h = self.second + damp * np.eye(columns)
            # the inverse of H = L L^T has the upper factor U with U[j, j] = 1 / (the part of x[j]
            # that later columns do not explain)
            low = np.linalg.inv(np.linalg.cholesky(h[::-1, ::-1]))[::-1, ::-1]
            self.upper = np.ascontiguousarray(low, np.float32)
            diagonal = 1 / np.diag(low)
        self.second = None
        alike = columns if self.even else self.taps
        grouped = np.repeat(_means(diagonal, alike), alike)[:columns]
        mean = float(np.exp(np.log(grouped).mean()))
        u = np.maximum(self.weight, 1e-3 * self.weight.mean() + 1e-30)
        row_mean = float(np.exp(np.log(u).mean()))
        self.row = _levels(np.sqrt(row_mean / u))
        self.column = _levels(mean / grouped)
        self.unit = 2.0 ** -((_ZERO + _ZERO) / 4) / (mean * np.sqrt(row_mean))
        self.scaled = (w / self.steps).astype(np.float32)
        # what an error of one unit costs, which is about 1
        self.harm_row = u * np.exp2(self.row / 2.0) * np.exp2(-_ZERO / 2) / row_mean
        harm = diagonal * np.exp2((self.column - float(_ZERO)) / 4) / mean
        self.harm_column = np.square(harm)
        if self.upper is not None:
            columns_step = np.exp2((self.column - float(_ZERO)) / 4)
            # errors in units of the steps: U in the same units, rows by the diagonal
            scaled = self.upper / np.diag(self.upper)[:, None]
            self.upper = scaled * (columns_step[:, None] / columns_step[None, :]).astype(np.float32)

    @property
    def steps(self) -> Array:
        """What a step of 1 is for each weight, float64 [rows, columns]."""
        steps: Array = np.exp2(self.row[:, None] / 4.0) * np.exp2(self.column / 4.0) * self.unit
        return steps

    def stored(self, array: Array) -> Array:
        """An array [rows, columns] as the weight is stored."""
        return np.ascontiguousarray(array.T if self.turned else array).reshape(self.shape)

    def unstored(self, array: Array) -> Array:
        """Integers as they are stored, as int32 [rows, columns]: undoes `stored`."""
        rows, columns = self.size
        whole = array.reshape(columns, rows).T if self.turned else array.reshape(rows, columns)
        return np.ascontiguousarray(whole, np.int32)


#: The level of a factor of 1, and how far levels reach, in quarter octaves.
_ZERO = 16


def _levels(factors: Array) -> Array:
    """Factors as quarter octaves above -4 octaves, in whole half octaves."""
    halves = np.rint(2 * np.log2(factors))
    levels: Array = (np.clip(halves, -_ZERO // 2, _ZERO // 2) * 2 + _ZERO).astype(np.uint8)
    return levels


def _means(values: Array, size: int) -> Array:
    """The geometric mean of each group of `size`."""
    logs = np.pad(np.log(values), (0, -len(values) % size), mode="edge").reshape(-1, size)
    means: Array = np.exp(logs.mean(axis=1))
    return means


class Costs:
    """Bits of an integer by where it stands and what stands before it, learned from integers."""

    def __init__(self) -> None:
        self._counts = np.zeros((LEVELS * KINDS, 2 * LARGEST + 1))

    def add(self, q: Array, taps: int) -> None:
        """Count the integers [rows, columns]."""
        clipped = np.clip(q, -LARGEST, LARGEST)
        row, column = levels_of(clipped, taps)
        level = np.clip(row[:, None] + column, 0, LEVELS - 1)
        index = (level * KINDS + kinds_of(clipped, taps)) * (2 * LARGEST + 1) + clipped + LARGEST
        more = np.bincount(index.ravel(), minlength=self._counts.size)
        self._counts += more.reshape(self._counts.shape)

    def table(self) -> Array:
        """Bits [levels, kinds, integers from -LARGEST to LARGEST], float32."""
        whole = self._counts.sum(axis=0) + 0.02
        smooth = self._counts + 4 * whole / whole.sum()
        bits = -np.log2(smooth / smooth.sum(axis=1, keepdims=True))
        # a magnitude that never occurred costs no less than the next smaller one
        for sign in (-1, 1):
            half = slice(LARGEST, None, sign)
            bits[:, half] = np.where(
                np.arange(LARGEST + 1) == 0, bits[:, half], np.maximum.accumulate(bits[:, half], 1)
            )
        made: Array = bits.astype(np.float32).reshape(LEVELS, KINDS, -1)
        return made


def levels_of(q: Array, taps: int) -> tuple[Array, Array]:
    """Summands of each row and column, whose sum is the level: 12 for a mean of 1."""
    size = np.minimum(np.abs(q), 4).astype(np.float64)
    mean = max(float(size.mean()), 1e-6)
    row = (size.sum(axis=1) + 8 * mean) / (size.shape[1] + 8)
    sums = size.sum(axis=0)
    grouped = np.pad(sums, (0, -len(sums) % taps)).reshape(-1, taps).sum(axis=1)
    column = (grouped + 8 * mean) / (len(size) * taps + 8)
    logs = (2 * np.log2(row / mean), 2 * np.log2(np.maximum(column, 1e-9)) + 12)
    row_level, column_level = (np.rint(v).astype(np.int64) for v in logs)
    return row_level, np.repeat(column_level, taps)[: q.shape[1]]


def kinds_of(q: Array, taps: int) -> Array:
    """0: all earlier taps of the group are 0, 1: few are not, 2: most are not."""
    rows, columns = q.shape
    size = np.pad(np.minimum(np.abs(q), 2), ((0, 0), (0, -columns % taps))).reshape(rows, -1, taps)
    before = np.cumsum(size, axis=2) - size
    kinds = np.where(before == 0, 0, np.where(before <= np.arange(taps), 1, 2))
    found: Array = np.asarray(kinds.reshape(rows, -1)[:, :columns])
    return found


def rounded_for(layer: Layer, step: float, before: Array, costs: Array | None) -> Array:
    """The integers [rows, columns] int32 of a layer.

    Args:
        layer: the weight.
        step: in units of the layer's own steps.
        before: integers of an earlier round, which say what rows and columns are like.
        costs: `Costs.table`; None for the nearest integers, errors made up for.
    """
    left = layer.scaled / np.float32(step)
    rows, columns = left.shape
    done = np.zeros((rows, columns), np.int32)
    row_level, column_level = levels_of(before, layer.taps)
    trade = (TRADE / layer.harm_row).astype(np.float32)
    known = np.zeros(rows, np.int64)
    index = np.arange(rows)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        off = np.zeros((rows, stop - start), np.float32)
        for k in range(start, stop):
            x = left[:, k]
            if costs is None:
                q = np.rint(x)
            else:
                tap = k % layer.taps
                if tap == 0:
                    known[:] = 0
                kind = np.where(known == 0, 0, np.where(known <= tap, 1, 2))
                level = np.clip(row_level + column_level[k], 0, LEVELS - 1)
                q = _cheapest(
                    x, costs[level, kind], trade / np.float32(layer.harm_column[k]), index
                )
                known += np.minimum(np.abs(q), 2).astype(np.int64)
            done[:, k] = q
            off[:, k - start] = x - q
            if layer.upper is not None and k + 1 < stop:
                left[:, k + 1 : stop] -= off[:, k - start, None] * layer.upper[k, k + 1 : stop]
        if layer.upper is not None and stop < columns:
            left[:, stop:] -= off @ layer.upper[start:stop, stop:]
    return done


def _cheapest(x: Array, bits: Array, trade: Array, index: Array) -> Array:
    """Of the two nearest integers and 0, what costs least in squares and bits [rows, integers]."""
    near = np.rint(x)
    inner = near - np.sign(x) * (np.abs(near) >= np.abs(x))
    inner = np.where(near == 0, 0, np.where(inner == near, near - np.sign(x), inner))
    best, least = near, _price(x, near, bits, trade, index)
    for other in (inner, np.zeros_like(x)):
        price = _price(x, other, bits, trade, index)
        better = price < least
        best, least = np.where(better, other, best), np.where(better, price, least)
    return best


def _price(x: Array, q: Array, bits: Array, trade: Array, index: Array) -> Array:
    at = np.clip(q, -LARGEST, LARGEST).astype(np.int64) + LARGEST
    price: Array = np.square(x - q) + trade * bits[index, at]
    return price


def as_rounded(layer: Layer, q: Array, step: float) -> Rounded:
    """The layer's integers with their steps."""
    base = np.float32(step * layer.unit)
    low_row, low_column = int(layer.row.min()), int(layer.column.min())
    base = steps_of(base, np.array([low_row + low_column]))[0]
    row = layer.row - np.uint8(low_row)
    column = layer.column[:: layer.taps] - np.uint8(low_column)
    q, taps, turned = np.clip(q, -MOST, MOST), layer.taps, layer.turned
    if taps == 1:  # a vector, of one step: as one row, so that neighbours tell
        q, taps, turned, row, column = q.T, GROUP, True, row[:1], row[::GROUP]
    return Rounded(q, base, row, column, taps, turned)
