"""Varints: unsigned integers in base 128, little end first (LEB128, as protobuf has them)."""

from __future__ import annotations

__all__ = ["decode_varint", "encode_varint"]


def encode_varint(value: int) -> bytes:
    """`value` in base 128, low digits first, high bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends.

    Raises:
        EOFError: it does not end before `end`.
        OverflowError: it is longer than 64 bits.
    """
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise OverflowError("a number is longer than 64 bits")
    raise EOFError("a number is cut off")
