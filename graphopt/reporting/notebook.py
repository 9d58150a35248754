"""Tables as HTML for a notebook's cell."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphopt.reporting.escaping import printable

__all__ = ["table_html"]


def table_html(
    heads: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], notes: Sequence[str]
) -> str:
    """A table, the last row bold; each row is its cells and what a mouse over it is told."""
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    lines = []
    for k, (cells, why) in enumerate(rows):
        style = ' style="font-weight:600"' if k == len(rows) - 1 else ""
        told = f' title="{_text(why)}"' if why else ""
        lines.append(f"<tr{style}{told}>{''.join(f'<td>{_text(c)}</td>' for c in cells)}</tr>")
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return (
        f"<div><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"{f'<ul>{listed}</ul>' if listed else ''}</div>"
    )


def _text(words: str) -> str:
    return escape(printable(words))
