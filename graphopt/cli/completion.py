"""Shell completion of the names of passes and targets."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

__all__ = ["complete_passes", "complete_targets"]


def complete_passes(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The pipelines that go on with one more name: `clean,fu` -> `clean,fuse`."""
    from graphopt import plugins

    before, comma, begun = incomplete.rpartition(",")
    names = [n for n in plugins.find(plugins.PASSES) if n.startswith(begun)]
    return [CompletionItem(f"{before}{comma}{n}") for n in names]


def complete_targets(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Every target's name, and `auto`."""
    from graphopt import plugins

    known = [b.load().targets() for b in plugins.find(plugins.BACKENDS).values()]
    names = ["auto", *(name for targets in known for name in targets)]
    return [CompletionItem(n) for n in names if n.startswith(incomplete)]
