"""Plots as SVG files: one style, which follows the viewer's light or dark scheme."""

from __future__ import annotations

__all__ = ["CATEGORIES", "opening"]

#: Classes `c0` to `c5` colour what is of one kind.
CATEGORIES = 6
_LIGHT = ("#3563d9", "#b45309", "#0f766e", "#a21caf", "#4d7c0f", "#be123c")
_DARK = ("#8fb0ff", "#f0a65a", "#5fcfc0", "#e08be8", "#a8cf60", "#ff8fa3")


def opening(width: float, height: float) -> str:
    """The start tag, the styles and the ground; `</svg>` is the caller's.

    Classes: `strong` and plain text, `line`, `rule`, `limit`, `dot`, and `c0` to `c5`.
    """
    light = _rules("#ffffff", "#1b1d22", "#585e69", "#e2e3e0", "#b3261e", _LIGHT)
    dark = _rules("#191b1f", "#e9eaed", "#a2a8b3", "#2c2f36", "#ff9c94", _DARK)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="system-ui, sans-serif" '
        f'font-size="12"><style>{light}@media (prefers-color-scheme:dark){{{dark}}}</style>'
        f'<rect class="ground" width="{width:g}" height="{height:g}"/>'
    )


def _rules(
    ground: str, ink: str, dim: str, line: str, bad: str, categories: tuple[str, ...]
) -> str:
    return (
        f".ground{{fill:{ground}}}text,.dot{{fill:{dim}}}.strong{{fill:{ink}}}"
        f".rule{{stroke:{line};fill:none}}.whisker{{stroke:{ink};fill:none}}"
        f".limit{{stroke:{bad};fill:none;stroke-dasharray:4}}"
        f".line{{stroke:{categories[0]};fill:none;stroke-width:2}}"
        + "".join(f".c{k}{{fill:{c}}}" for k, c in enumerate(categories))
    )
