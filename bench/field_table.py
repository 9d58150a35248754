"""The Markdown tables of bench/field.py's rows."""

from __future__ import annotations

from pathlib import Path
from statistics import geometric_mean
from typing import Any

from field_client import CLIENTS

Row = dict[str, Any]


def write_table(rows: list[Row], path: Path) -> None:
    """One table of agreement, bytes and speed a model and tool, one of nodes, one of faults."""
    tools = list(dict.fromkeys(r["tool"] for r in rows if r["tool"] not in ("source", "client")))
    by_key = {(r["model"], r["tool"]): r for r in rows}
    models = [n for n in CLIENTS if (n, "source") in by_key]
    lines = ["# Trained models in the field", "", INTRODUCTION, ""]
    head = ["model", "task", "MB", "nodes", *tools]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in models:
        source = by_key[name, "source"]
        cells = [name, CLIENTS[name].task, f"{source['bytes'] / 1e6:.2f}", str(source["nodes"])]
        cells += [cell(by_key.get((name, t)), source) for t in tools]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| **all** | | | | " + " | ".join(total(t, models, by_key) for t in tools) + " |")
    lines += ["", "## What failed or lost its task", ""]
    for row in rows:
        problem = trouble(row)
        if problem:
            lines.append(f"- {row['model']}, {row['tool']}: {problem}")
    path.write_text("\n".join(lines) + "\n")


INTRODUCTION = (
    "Each cell: agreement of the client's answers with those of its own model on inputs that no "
    "tool saw / bytes relative to it / times faster in CPU time of one thread (- where not timed) "
    "/ nodes. Made by the command in the .json file beside this one."
)


def cell(row: Row | None, source: Row) -> str:
    if row is None:
        return ""
    if row["exit"]:
        return f"exit {row['exit']}"
    speed = f"{row['speed']:.2f}" if "speed" in row else "-"
    size = row["bytes"] / source["bytes"]
    undone = ", ".join(
        s["spec"].split("(")[0]
        for s in row.get("steps", ())
        if s["status"] not in ("kept", "unchanged")
    )
    said = f"{100 * row['agreement']:.1f} % / {size:.2f} / {speed} / {row['nodes']}"
    return said + (f" (undone: {undone})" if undone else "")


def total(tool: str, models: list[str], by_key: dict[tuple[str, str], Row]) -> str:
    """Geometric means of bytes and speed over the models that came out, and how many did."""
    made = [
        (by_key[n, tool], by_key[n, "source"])
        for n in models
        if (n, tool) in by_key and by_key[n, tool]["exit"] == 0
    ]
    if not made:
        return ""
    size = geometric_mean(r["bytes"] / s["bytes"] for r, s in made)
    timed = [r["speed"] for r, _ in made if r.get("speed", 0) > 0]
    speed = f"{geometric_mean(timed):.2f}" if timed else "-"
    good = sum(r["agreement"] >= 0.99 for r, _ in made)
    return f"{good} of {len(made)} at 99 % / {size:.2f} / {speed}"


def trouble(row: Row) -> str:
    if row["exit"]:
        return f"exit {row['exit']}: {row.get('said', '')}"
    if "client" in row:
        return f"the client stopped: {row['client']}"
    if row["agreement"] < 0.99:
        steps = "; ".join(
            f"{s['spec']} {s['status']}, error {s['error']}" for s in row.get("steps", ())
        )
        return f"agreement {100 * row['agreement']:.1f} %" + (f" ({steps})" if steps else "")
    return ""
