"""Varints: the numbers of the LEB128 description, round trips, and what is cut or too long."""

import pytest

from graphopt.varint import decode_varint, encode_varint


@pytest.mark.parametrize(
    ("value", "code"), [(0, "00"), (127, "7f"), (128, "8001"), (624485, "e58e26")]
)
def test_known_codes(value, code):
    assert encode_varint(value).hex() == code
    assert decode_varint(memoryview(bytes.fromhex("ff" + code)), 1, 5) == (
        value,
        1 + len(code) // 2,
    )


def test_all_that_64_bits_hold_comes_back():
    for value in (2**14 - 1, 2**14, 2**35 + 1, 2**64 - 1):
        code = encode_varint(value)
        assert decode_varint(memoryview(code), 0, len(code)) == (value, len(code))


def test_what_is_cut_or_too_long_is_told():
    with pytest.raises(EOFError):
        decode_varint(memoryview(b"\xe5\x8e\x26"), 0, 2)
    with pytest.raises(OverflowError):
        decode_varint(memoryview(b"\x80" * 20), 0, 20)
