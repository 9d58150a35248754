"""Units: bytes, counts and times as people read them."""

from __future__ import annotations

__all__ = ["count", "milliseconds", "size"]


def size(n: int | None) -> str:
    """Bytes for people: 4.44 MB."""
    return "-" if n is None else f"{count(n)}B" if n >= 1000 else f"{n} B"


def count(n: int | None) -> str:
    """A count for people: three digits and a decimal prefix."""
    if n is None:
        return "-"
    value = float(n)
    for prefix in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.0f}{prefix}" if prefix == "" else f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g} T"


def milliseconds(ms: float | None) -> str:
    """Milliseconds to three digits."""
    return "-" if ms is None else f"{ms:.3g} ms"
