"""What MkDocs lacks for the documentation: files, formulas without a script, a named search."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```python file=(\S+)( append)?$", re.MULTILINE)
SEARCH = '<div class="md-search" data-md-component="search" role="dialog"'


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A block that is a file is titled so; one of formulas, LaTeX, one a line, becomes MathML."""

    def drawn(block: re.Match[str]) -> str:
        lines = [convert(line, display="block") for line in block[1].splitlines() if line.strip()]
        return f'<div class="math">{"".join(lines)}</div>'

    def titled(block: re.Match[str]) -> str:
        return f'```python title="{block[1]}{", continued" if block[2] else ""}"'

    return BLOCK.sub(drawn, FILE.sub(titled, markdown))


def on_post_page(output: str, **_: Any) -> str:
    """A screen reader is told what the theme's dialog is."""
    return output.replace(SEARCH, f'{SEARCH} aria-label="Search"')
