"""`--report FILE`: a page if the name ends in .html, else JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt.errors import GraphOptError

__all__ = ["is_html", "ours", "write_report"]


def is_html(path: str | None) -> bool:
    """Whether a report at `path` is a page."""
    return path is not None and path.lower().endswith((".html", ".htm"))


def ours(path: str) -> Callable[[Path], bool]:
    """What tells whether a file at `path` is a report that may be written over."""
    from graphopt.cli.destinations import is_page, is_report

    return is_page if is_html(path) else is_report


def write_report(path: str | None, data: Any, page: bytes | None) -> GraphOptError | None:
    """Write the page, or the data as JSON.

    Why it could not be is returned, for later: the result is written, and shown first.
    """
    from graphopt.replacing import replace_files
    from graphopt.reporting.records import finite

    if path is None:
        return None
    content = page or (json.dumps(finite(data), indent=2) + "\n").encode()
    try:
        replace_files([(Path(path), [content])])
    except GraphOptError as error:
        return error
    return None
