"""Escaping: names from files as a terminal shows them, whatever characters they hold."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""`text` on one line, with control characters and bytes that are no UTF-8 as `\x1b`.

    A name in a model can hold an escape sequence, a line end or a mark that reverses a line.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
