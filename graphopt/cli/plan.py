"""Dry run: what `graphopt optimize` would do, with everything checked that can be beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.cli.common import emit_json
from graphopt.pass_ import check_needs, format_pass
from graphopt.pipeline.prepare import Setting

__all__ = ["show_plan"]


def show_plan(
    setting: Setting, passes: Sequence[Any], target: str, writes: Sequence[Path], as_json: bool
) -> None:
    """Print the model, samples, passes and files of a run; nothing is written.

    Raises:
        UsageError, MissingExtra: a pass lacks what it needs.
    """
    for one in passes:
        check_needs(one, samples=setting.given)
    figures = setting.source.figures()
    data: dict[str, Any] = {
        "model": {"path": str(setting.source.path), "bytes": figures.bytes, "nodes": figures.nodes},
        "target": target,
        "samples": setting.samples.source if setting.given else None,
        "limits": {k: v for k, v in setting.budget.limits().items() if v not in (None, False)},
        "steps": [
            {
                "spec": format_pass(one),
                "lossy": bool(getattr(one, "lossy", False)),
                "timed": bool(setting.target.measured and getattr(one, "speeds_up", True)),
            }
            for one in passes
        ],
        "writes": [str(path) for path in writes],
        "notes": list(setting.notes),
    }
    if as_json:
        emit_json(data)
        return
    from graphopt.reporting.text import out, table
    from graphopt.reporting.units import size

    facts = table("", "")
    facts.add_row("model", f"{setting.source.path}, {size(figures.bytes)}, {figures.nodes} nodes")
    facts.add_row("target", target)
    facts.add_row("samples", setting.samples.source if setting.given else "drawn at random")
    for name, limit in data["limits"].items():
        facts.add_row(f"--{name.replace('_', '-')}", str(limit))
    for step in data["steps"]:
        outputs = "outputs may change" if step["lossy"] else "outputs stay equal"
        facts.add_row("step", f"{step['spec']}: {outputs}{', timed' if step['timed'] else ''}")
    facts.add_row("writes", ", ".join(data["writes"]))
    console = out()
    console.print(facts)
    for note in setting.notes:
        console.print(note)
    console.print("dry run: all of this was checked; no pass was run and nothing was written")
