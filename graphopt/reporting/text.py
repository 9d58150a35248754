"""Reports as tables on a terminal: how sizes, counts and times are written, and names as text."""

from __future__ import annotations

import copy
import dataclasses
import io
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graphopt.reporting.confidence import upper_bound
from graphopt.reporting.escaping import printable
from graphopt.reporting.records import Agreement, Figures, Report, Step
from graphopt.reporting.units import count, milliseconds, size

__all__ = [
    "lines",
    "out",
    "print_table",
    "report_table",
    "report_text",
    "table",
]

#: Nodes that are named of those where a rule was undone for one reason.
_FEW = 2
_STYLE = {"kept": "green", "unchanged": "dim", "undone": "red", "refused": "yellow"}
_FOLDED = 20  # characters of a line of a folded name


class _Plain(Console):
    """A console that prints strings as they are: names in models look like markup, or worse."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        raise  # the caller knows how to end


def out(file: IO[str] | None = None) -> Console:
    """A console on stdout: plain and wide when piped. What it prints is text, never markup."""
    stream = file or sys.stdout
    return _Plain(file=stream, width=None if stream.isatty() else 140, highlight=False)


def lines(texts: Iterable[str]) -> Text:
    """A cell of several lines."""
    return Text("\n".join(map(printable, texts)))


def print_table(console: Console, made: Table, keys: int = 1) -> None:
    """Print a table; where it is too wide, in parts that each begin with its first `keys` columns.

    A terminal of 80 columns would cut off what does not fit.
    """
    rest = list(made.columns[keys:])
    while rest:
        part = copy.copy(made)
        part.columns = [*made.columns[:keys], *rest]
        while len(part.columns) > keys + 1 and _width(console, part) > console.width:
            part.columns.pop()
        rest = rest[len(part.columns) - keys :]
        part.columns = [dataclasses.replace(c, _index=k) for k, c in enumerate(part.columns)]
        console.print(part)


def _width(console: Console, made: Table) -> int:
    """The least width at which no number is cut and no name is folded below `_FOLDED`."""
    wide = console.options.update(max_width=10_000)
    total = 2 * len(made.columns) - 2
    for column in made.columns:
        cells = [column.header, *column.cells]
        least = max(Measurement.get(console, wide, c).minimum for c in cells)
        total += least if column.no_wrap else min(least, _FOLDED)
    return total


def table(*columns: str) -> Table:
    """An empty table; columns whose name starts with `>` are right-aligned numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    return made


def report_table(report: Report) -> Table:
    """The source, one row a step, and the result."""
    metric = report.before.metric is not None
    errors = any(s.error_vs_source for s in report.steps)
    made = table(
        "step",
        "",
        ">size",
        ">nodes",
        ">params",
        ">MACs",
        ">latency",
        *([">error"] if errors else []),
        *([">metric"] if metric else []),
    )

    def row(name: str, status: Text, f: Figures | Step, error: str, last: bool = False) -> None:
        cells: list[Any] = [name, status, size(f.bytes), count(f.nodes), count(f.params)]
        cells += [count(f.macs), milliseconds(f.latency_ms)]
        cells += [error] if errors else []
        cells += ["-" if f.metric is None else f"{f.metric:.4f}"] if metric else []
        made.add_row(*cells, style="bold" if last else None, end_section=last)

    row("source", Text(), report.before, "")
    for step in report.steps:
        row(step.spec, Text(step.status, _STYLE[step.status]), step, _worst(step))
    row(
        "result",
        Text(report.gain, "red" if report.verdict == "slower" else "green"),
        report.after,
        "",
        last=True,
    )
    return made


def agreed(step: Step) -> list[tuple[str, Agreement]]:
    """What each output agrees in, the worst first."""
    found = (step.agreement or {}).items()
    return sorted(found, key=lambda item: -item[1].over)


def bound(found: Agreement) -> str:
    """What the samples allow to say of all inputs, 95 times in 100."""
    if found.disagreements is None or not found.n:
        return ""
    return f"; with 95 % confidence at most {upper_bound(found.disagreements, found.n):.2g} do"


def _worst(step: Step) -> str:
    if not step.error_vs_source:
        return "-"
    return f"{max(e.rel_l2 for e in step.error_vs_source.values()):.2g}"


def _undone_lines(step: Step) -> list[str]:
    """A sentence for every rule and reason that edits were undone for; the JSON lists all."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in step.undone:
        places.setdefault((one.rule, one.reason), []).append(one.node)
    lines = []
    for (rule, reason), nodes in places.items():
        more = f" and {len(nodes) - _FEW} more" if len(nodes) > _FEW else ""
        lines.append(f"undone at {', '.join(nodes[:_FEW])}{more} ({rule}): {reason}")
    return lines


def print_report(console: Console, report: Report) -> None:
    """The table, then what was undone and every note, step by step."""
    print_table(console, report_table(report), keys=2)
    for step in report.steps:
        said = [step.reason] if step.reason else []
        if step.status == "kept":
            said += [f"{name}: {found}{bound(found)}" for name, found in agreed(step)]
        said += _undone_lines(step)
        said += step.notes
        if said:
            console.print(Text(printable(step.spec), "bold"), Text(f"({step.status})", "dim"))
            for line in said:
                console.print(f"  {line}")
    if report.evidence is not None:
        console.print(str(report.evidence))
    if changed := report.changed_operators:
        pairs = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in changed.items())
        console.print(f"operators: {pairs}")
    for note in report.notes:
        console.print(Text(printable(note), "yellow"))


def report_text(report: Report) -> str:
    """What `print_report` prints, as plain text."""
    text = io.StringIO()
    print_report(out(text), report)
    return text.getvalue().rstrip()
