"""HTML by hand: elements with their text escaped."""

from __future__ import annotations

from html import escape

from graphopt.reporting.escaping import printable

__all__ = ["element", "listed", "section", "text"]

#: Elements without an end tag.
VOID = frozenset(("br", "input"))


def text(value: object) -> str:
    """A value as text in HTML; control characters and the like are shown, not obeyed."""
    return escape(printable(str(value)))


def element(tag: str, *inner: str, **attributes: str | int | None) -> str:
    """An element around HTML; `class_` is class, underscores are hyphens, None leaves out."""
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return f"<{tag}{told}>"
    return f"<{tag}{told}>{''.join(inner)}</{tag}>"


def section(title: str, hint: str, *inner: str, id_: str | None = None, wide: bool = False) -> str:
    """A part of the page under a heading."""
    head = element("h2", text(title)) + (element("p", text(hint), class_="hint") if hint else "")
    return element("section", head, *inner, id_=id_, class_="wide" if wide else None)


def listed(items: list[str]) -> str:
    """A list of HTML items; nothing of none."""
    return element("ul", *(element("li", item) for item in items)) if items else ""
