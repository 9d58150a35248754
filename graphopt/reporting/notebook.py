"""Reports as HTML for a notebook's cell: the table of steps, with styles of its own."""

from __future__ import annotations

from html import escape

from graphopt.reporting.escaping import printable
from graphopt.reporting.records import Figures, Report, Step
from graphopt.reporting.text import count, milliseconds, size

__all__ = ["report_html"]

HEADS = ("step", "", "size", "nodes", "params", "MACs", "latency")


def report_html(report: Report) -> str:
    """The source, one row a step, and the result; notes below."""
    rows = [_row("source", "", report.before)]
    rows += [_row(step.spec, step.status, step, step.reason) for step in report.steps]
    rows.append(_row("result", report.gain, report.after, bold=True))
    head = "".join(f"<th>{name}</th>" for name in HEADS)
    notes = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
    return (
        f"<div><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def _row(name: str, status: str, f: Figures | Step, why: str = "", bold: bool = False) -> str:
    cells = [name, status, size(f.bytes), count(f.nodes), count(f.params), count(f.macs)]
    cells.append(milliseconds(f.latency_ms))
    style = ' style="font-weight:600"' if bold else ""
    told = f' title="{_text(why)}"' if why else ""
    return f"<tr{style}{told}>{''.join(f'<td>{_text(c)}</td>' for c in cells)}</tr>"


def _text(words: str) -> str:
    return escape(printable(words))
