"""The protobuf wire format of ONNX: where tensor bytes lie in a file, and how to put them back.

A message is a run of fields, each `varint(number << 3 | type)` and a value. Only type 2 (length,
bytes) nests. Tensors are reached on the paths below; everything else is copied as it is, so the
cost is one step per field of a graph, not one per weight.

    ModelProto.graph, .functions > node > attribute > t, tensors, g, graphs
    GraphProto.initializer

Specification: https://protobuf.dev/programming-guides/encoding, field numbers from onnx.proto.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from graphopt.varint import decode_varint, encode_varint

__all__ = ["Hole", "Malformed", "Span", "TooDeep", "Truncated", "fill", "strip"]

#: For each message kind: the fields that may hold tensors, and the kind they are.
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_DIMS, _DATA_TYPE, _FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA = 1, 2, 4, 9, 10
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
#: Messages within messages that protobuf reads; a graph in a node of a graph is three of them.
_DEEPEST = 100
#: The end of an attribute as protobuf writes it, field 20 last: a type that holds no tensor (float,
#: int, string, and lists of them).
_PLAIN = tuple(b"\xa0\x01" + bytes([t]) for t in (1, 2, 3, 6, 7, 8))
#: Packed arrays that are raw little-endian numbers: field -> the data type they hold.
_PACKED = {_FLOAT_DATA: 1, _DOUBLE_DATA: 11}


class Malformed(ValueError):
    """The bytes are not protobuf."""


class Truncated(Malformed):
    """A field reaches past the end of its message."""


class TooDeep(Malformed):
    """Messages nest deeper than protobuf reads."""


@dataclass(frozen=True)
class Span:
    """Bytes of one tensor within a file."""

    offset: int
    length: int


@dataclass(frozen=True)
class Hole:
    """A place in the output where the bytes of tensor `index` go."""

    index: int
    length: int


Piece = memoryview | Hole
_Field = tuple[int, int, int, int, int]  # number, wire type, start, value start, value end


def strip(
    data: memoryview, threshold: int, location: Callable[[int], str]
) -> tuple[bytes, list[Span]]:
    """A model without the bytes of its large tensors, and where those bytes are.

    Each tensor with at least `threshold` bytes of raw data becomes one with external data at
    `location(i)`, where `i` is its index in the list of spans.

    Raises:
        Malformed: `data` is not a protobuf message (`Truncated`: it ends early, `TooDeep`).
    """
    spans: list[Span] = []

    def leaf(start: int, end: int) -> list[Piece]:
        span = _raw_span(data, start, end)
        if span is None or span.length < threshold:
            return [data[start:end]]
        spans.append(span)
        kept = _without(data, start, end, {_RAW_DATA, *_PACKED})
        return [*kept, memoryview(_external(location(len(spans) - 1)))]

    def wants(start: int, end: int, kind: str) -> bool:
        plain = kind == "attribute" and bytes(data[end - 3 : end]) in _PLAIN
        return end - start >= threshold and not plain  # a tree ensemble has millions of numbers

    pieces = _rebuild(data, 0, len(data), "model", wants, leaf)
    return b"".join(p for p in pieces if isinstance(p, memoryview)), spans


def fill(data: bytes, token: bytes, lengths: Sequence[int]) -> list[Piece]:
    """The pieces of a model in which tensors at external location `token + i` get raw data.

    Args:
        data: a serialized model; the token occurs in it exactly at those tensors.
        token: what the locations start with; a decimal index follows.
        lengths: bytes of each tensor.
    """
    view = memoryview(data)
    found: list[int] = []
    at = data.find(token)
    while at >= 0:
        found.append(at)
        at = data.find(token, at + 1)

    def holds(start: int, end: int, kind: str) -> bool:
        k = bisect_left(found, start)
        return k < len(found) and found[k] < end

    def leaf(start: int, end: int) -> list[Piece]:
        text = found[bisect_left(found, start)] + len(token)
        digits = text
        while digits < end and 48 <= data[digits] <= 57:
            digits += 1
        index = int(data[text:digits])
        kept = _without(view, start, end, {_EXTERNAL_DATA, _DATA_LOCATION})
        head = encode_varint(_RAW_DATA << 3 | 2) + encode_varint(lengths[index])
        return [*kept, memoryview(head), Hole(index, lengths[index])]

    return _rebuild(view, 0, len(view), "model", holds, leaf)


def _rebuild(
    data: memoryview,
    start: int,
    end: int,
    kind: str,
    wants: Callable[[int, int, str], bool],
    leaf: Callable[[int, int], list[Piece]],
    depth: int = 1,
) -> list[Piece]:
    """The message at [start, end) with `leaf` applied to each tensor whose range `wants`."""
    if depth > _DEEPEST:
        raise TooDeep(f"graphs nest deeper than the {_DEEPEST} messages that protobuf reads")
    nested = _NESTED[kind]
    pieces: list[Piece] = []
    copied = start
    for number, wire, begin, first, last in _fields(data, start, end):
        inner = nested.get(number) if wire == 2 else None
        if inner is None or not wants(first, last, inner):
            continue
        if inner == "tensor":
            body = leaf(first, last)
        else:
            body = _rebuild(data, first, last, inner, wants, leaf, depth + 1)
        size = sum(p.length if isinstance(p, Hole) else len(p) for p in body)
        pieces.append(data[copied:begin])
        pieces.append(memoryview(encode_varint(number << 3 | 2) + encode_varint(size)))
        pieces.extend(body)
        copied = last
    pieces.append(data[copied:end])
    return pieces


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message at [start, end)."""
    at = start
    while at < end:
        begin = at
        tag = data[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint_at(data, begin, end)
        wire = tag & 7
        if wire == 2:
            if at >= end:
                raise Truncated("a length is missing")
            size = data[at]
            at += 1
            if size > 0x7F:
                size, at = _varint_at(data, at - 1, end)
            first, at = at, at + size
        elif wire == 0:
            first = at
            while at < end and data[at] > 0x7F:
                at += 1
            at += 1
        elif wire in (1, 5):
            first, at = at, at + (8 if wire == 1 else 4)
        else:
            raise Malformed(f"wire type {wire} does not occur in ONNX files")
        if tag >> 3 == 0:
            raise Malformed("field number 0")
        if at > end:
            raise Truncated(f"a field of {at - first} bytes has only {max(end - first, 0)} left")
        yield tag >> 3, wire, begin, first, at


def _varint_at(data: memoryview, at: int, end: int) -> tuple[int, int]:
    try:
        return decode_varint(data, at, end)
    except EOFError as error:
        raise Truncated(str(error)) from None
    except OverflowError as error:
        raise Malformed(str(error)) from None


def _raw_span(data: memoryview, start: int, end: int) -> Span | None:
    """Where a tensor's bytes lie: raw_data, or float or double data packed in one run."""
    raw: Span | None = None
    packed: list[tuple[int, Span]] = []
    data_type = 0
    for number, wire, _, first, last in _fields(data, start, end):
        if number == _RAW_DATA and wire == 2:
            raw = Span(first, last - first)
        elif number in _PACKED:
            packed.append((number, Span(first, last - first)))
        elif number == _DATA_TYPE and wire == 0:
            data_type = _varint_at(data, first, end)[0]
        elif number == _DATA_LOCATION and wire == 0 and data[first] == 1:
            return None
    if raw is None and len(packed) == 1 and _PACKED[packed[0][0]] == data_type:
        return packed[0][1]
    return raw


def _without(data: memoryview, start: int, end: int, drop: set[int]) -> list[Piece]:
    return [data[b:last] for n, _, b, _, last in _fields(data, start, end) if n not in drop]


def _external(location: str) -> bytes:
    """Fields external_data = {"location": location} and data_location = EXTERNAL."""
    text = location.encode()
    entry = b"\x0a\x08location\x12" + encode_varint(len(text)) + text
    head = encode_varint(_EXTERNAL_DATA << 3 | 2) + encode_varint(len(entry))
    return head + entry + encode_varint(_DATA_LOCATION << 3) + b"\x01"
