"""Shell completion of the names of passes and targets."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

__all__ = ["complete_passes", "complete_targets"]


def complete_passes(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The pipelines that go on with one more name: `clean,fu` -> `clean,fuse`."""
    from graphopt import plugins

    return _one_more(plugins.find(plugins.PASSES), incomplete)


def complete_targets(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Every target's name, and `auto`; of several the next: `cpu,op` -> `cpu,openvino`."""
    from graphopt import plugins

    known = [b.load().targets() for b in plugins.find(plugins.BACKENDS).values()]
    return _one_more(["auto", *(name for targets in known for name in targets)], incomplete)


def _one_more(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    before, comma, begun = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{n}") for n in names if n.startswith(begun)]
