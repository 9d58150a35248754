"""Asymmetric numeral systems: symbols in as many bits as their frequencies say, to 0.1 %.

The coder is `constriction`'s (Bamler, arXiv 2201.01741; Duda, arXiv 1311.2540). What it is told are
integer frequencies alone, which lie in the file, each a byte that stands for an exact integer:

    b -> 0 for b = 0, else (8 + b mod 8) 2^(b div 8)

so that decoding does the same IEEE arithmetic on the same integers everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from graphopt.errors import MissingExtra, ModelError

__all__ = ["Decoder", "bits_of", "encode", "frequencies", "rounded"]

Array = np.ndarray[Any, Any]

#: What a byte stands for.
_VALUES = np.array([0] + [(8 + b % 8) << (b // 8) for b in range(1, 128)], np.float64)
_LARGEST = int(_VALUES[-1])


def rounded(counts: Array) -> Array:
    """The bytes [..., symbols] uint8 that stand nearest to counts; none that occurs becomes 0."""
    top = np.maximum(counts.max(axis=-1, keepdims=True), 1)
    scaled = counts * (_LARGEST / top)
    low = np.clip(np.searchsorted(_VALUES, scaled, side="right") - 1, 1, len(_VALUES) - 2)
    up = scaled - _VALUES[low] > _VALUES[low + 1] - scaled
    made: Array = np.where(counts > 0, low + up, 0).astype(np.uint8)
    return made


def frequencies(codes: Array) -> Array:
    """The numbers that bytes stand for, float64. Raises ModelError: a byte stands for none."""
    if codes.size and int(codes.max()) >= len(_VALUES):
        raise ModelError("a frequency is out of range")
    found: Array = _VALUES[codes]
    return found


def bits_of(frequencies: Array) -> Array:
    """Bits of each symbol [..., symbols], float64; those of frequency 0 cost 24."""
    whole = np.maximum(frequencies.sum(axis=-1, keepdims=True), 1e-9)
    shares = np.maximum(frequencies, 1e-9) / whole
    bits: Array = np.minimum(-np.log2(shares), 24.0)
    return bits


@cache
def _library() -> Any:
    try:
        from constriction import stream
    except ImportError as error:
        raise MissingExtra("pack", "a packed model") from error
    return stream


@lru_cache(maxsize=1024)
def _model(frequencies: bytes) -> tuple[Any, int]:
    """The library's model of what may occur, and the first symbol that may."""
    values = np.frombuffer(frequencies, np.float64)
    used = np.flatnonzero(values)
    if not len(used):
        raise ModelError("a table of frequencies is empty")
    low = min(int(used[0]), len(values) - 2)  # two symbols at least
    values = values[low : max(int(used[-1]), low + 1) + 1]
    return _library().model.Categorical(values, perfect=False), low


def encode(parts: Sequence[tuple[Array, Array]]) -> bytes:
    """Symbols coded so that they come out in this order.

    Args:
        parts: (symbols int, frequencies float64) of the symbols from 0 on; at least two each.
    """
    coder = _library().stack.AnsCoder()
    for symbols, frequencies in reversed(parts):
        model, low = _model(frequencies.tobytes())
        coder.encode_reverse(symbols.astype(np.int32) - np.int32(low), model)
    return bytes(coder.get_compressed().astype("<u4").tobytes())


class Decoder:
    """Symbols out of what `encode` made, in its order.

    Raises:
        ModelError: the bytes are no stream.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        if len(data) % 4:
            raise ModelError("a stream of symbols is cut off")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        try:
            self._coder = _library().stack.AnsCoder(words)
        except ValueError as error:
            raise ModelError("a stream of symbols is damaged") from error

    def take(self, frequencies: Array, out: Array) -> None:
        """Fill `out`, uint8, with the next symbols, of these frequencies, float64."""
        model, low = _model(frequencies.tobytes())
        out[:] = self._coder.decode(model, len(out))
        out += np.uint8(low)
