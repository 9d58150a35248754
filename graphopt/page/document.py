"""Self-contained HTML: a page's body, its data, styles and scripts in one file that loads nothing.

A content security policy of `default-src 'none'` allows the page's own styles and scripts by their
hashes and nothing else; data is gzipped JSON in a script element of type text/plain.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from html import escape
from importlib import resources
from string import Template
from typing import Any

from graphopt.reporting.records import finite

__all__ = ["MARK", "document"]

#: What a page begins with.
MARK = b"<!-- graphopt page -->\n"
SCRIPTS = ("page.js", "graph.js", "panes.js")


def document(title: str, body: str, data: dict[str, Any]) -> bytes:
    """The bytes of a page.

    Args:
        title: of the browser's tab.
        body: HTML, escaped.
        data: what the scripts draw: `{stages, strings, passes, layers}`.
    """
    style, scripts = asset("page.css"), [asset(name) for name in SCRIPTS]
    text = json.dumps(finite(data), separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
    page = Template(asset("page.html")).substitute(
        title=escape(title),
        style=style,
        style_hash=_hash(style),
        script_hashes=" ".join(f"'{_hash(s)}'" for s in scripts),
        body=body,
        data=packed,
        scripts="\n".join(f"<script>{s}</script>" for s in scripts),
    )
    return MARK + page.encode("utf-8", "backslashreplace")


def asset(name: str) -> str:
    """A file of `graphopt/page/assets`."""
    return resources.files("graphopt.page").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
