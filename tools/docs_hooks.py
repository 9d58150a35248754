"""What MkDocs lacks for the documentation: formulas without a script, and a name for its search."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```", re.MULTILINE | re.DOTALL)
SEARCH = '<div class="md-search" data-md-component="search" role="dialog"'


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Each block of formulas, LaTeX, one a line, becomes MathML."""

    def drawn(block: re.Match[str]) -> str:
        lines = [convert(line, display="block") for line in block[1].splitlines() if line.strip()]
        return f'<div class="math">{"".join(lines)}</div>'

    return BLOCK.sub(drawn, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """A screen reader is told what the theme's dialog is."""
    return output.replace(SEARCH, f'{SEARCH} aria-label="Search"')
