"""What the bytes of a pack are: rounded weights, exact ones, the rest, told by its records."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

from graphopt.entropy.container import KINDS, LAST, read_pack
from graphopt.errors import ModelError

__all__ = ["weighed"]

_TITLES = {
    "rounded": "rounded FLOAT",
    "f8": "DOUBLE, exact",
    "f4": "FLOAT, exact",
    "f2": "16-bit floats, exact",
    "i1": "8-bit integers, exact",
    "text": "graph and all else",
}


def weighed(pack: Path) -> dict[str, int]:
    """Bytes by cause, the most first: what they are of, and of how many bytes in the model's files.

    Raises:
        ModelError: `pack` is none, or is cut off; only its records are looked at, not what is in.
    """
    coded: Counter[str] = Counter()
    kinds = tuple(KINDS)
    with pack.open("rb") as file:
        plain: Counter[str] = Counter()
        for stored in read_pack(file):
            for kind, size in stored.runs:
                plain[kind] += size
        while len(start := file.read(5)) == 5 and start[0] != LAST:
            number, length = struct.unpack("<BI", start)
            if number >= len(kinds):
                break
            coded[kinds[number]] += 5 + length + 4
            file.seek(length + 4, 1)
    whole = pack.stat().st_size
    if len(start) < 5 or start[0] != LAST or coded.total() > whole:
        raise ModelError("the pack is cut off: copy it again")
    found = Counter({f"{_TITLES[k]} ({plain[k]:,} bytes)": coded[k] for k in kinds if plain[k]})
    found["names, tables, checksums"] = whole - coded.total()
    return dict(found.most_common())
