"""The tables of bench/exact.py."""

from __future__ import annotations

from typing import Any

STANDARD = ("graphopt", "onnxsim", "onnxslim", "onnxscript", "ort-basic")
RUNTIME = ("graphopt-cpu", "ort-extended")
VERIFIED = ("graphopt", "graphopt-verified")
TOOLS = (*STANDARD, *RUNTIME)
HEAD = """# Exact passes beside their peers

`python bench/exact.py --models DIR ... --light` (how each figure is taken: the head of that file).
Standard operators: graphopt (`--target onnx`), onnxsim 0.8.1, onnxslim 0.1.98, onnxscript 0.7.2,
ONNX Runtime offline, basic. The runtime's own operators: graphopt (`--target cpu`), ONNX Runtime
offline, extended. Nodes count subgraphs and Constant nodes. A dash: the tool failed or its result
does not run.
"""


def as_text(rows: dict[str, Any], reasons: dict[str, str], notes: str = "") -> str:
    parts = [HEAD, notes, _nodes(rows, reasons)]
    parts.append(_table("Seconds", rows, "seconds", "{:.2f}"))
    parts.append(_table("CPU seconds", rows, "cpu_seconds", "{:.2f}"))
    title = "CPU seconds without and with verification (outputs compared after every pass)"
    parts.append(_table(title, rows, "cpu_seconds", "{:.2f}", tools=VERIFIED))
    parts.append(
        _table("Peak anonymous memory, MB above imports", rows, "anonymous", "{:.0f}", 1e-6)
    )
    parts.append(_table("Bytes of the file, MB", rows, "bytes", "{:.2f}", 1e-6, before="bytes"))
    parts.append(_table("Largest relative L2 difference of an output", rows, "error", "{:.1e}"))
    parts.append(_table("Latency, as a multiple of the source's", rows, "ratio", "{:.2f}"))
    parts.append(_verdicts(rows))
    return "\n".join(parts)


def _cell(row: dict[str, Any], tool: str, key: str, form: str, factor: float = 1.0) -> str:
    value = row.get(tool, {}).get(key)
    return "-" if value is None else form.format(value * factor)


def _table(
    title: str,
    rows: dict[str, Any],
    key: str,
    form: str,
    factor: float = 1.0,
    before: str = "",
    tools: tuple[str, ...] = TOOLS,
) -> str:
    columns = (["before"] if before else []) + list(tools)
    lines = [f"## {title}", "", "| model | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [form.format(row[before] * factor)] if before else []
        cells += [_cell(row, t, key, form, factor) for t in tools]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fewer(rows: dict[str, Any]) -> dict[str, list[str]]:
    """Per model, the peers that leave fewer nodes than graphopt with the same operators."""
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        for group in (STANDARD, RUNTIME):
            ours = row.get(group[0], {}).get("nodes")
            for peer in group[1:]:
                theirs = row.get(peer, {}).get("nodes")
                runs = "unrunnable" not in row.get(peer, {})
                if ours is not None and theirs is not None and theirs < ours and runs:
                    found.setdefault(name, []).append(f"{peer} {theirs} < {ours}")
    return found


def _nodes(rows: dict[str, Any], reasons: dict[str, str]) -> str:
    text = _table("Nodes", rows, "nodes", "{:.0f}", before="nodes")
    behind = fewer(rows)
    lines = [text, "### Where a peer leaves fewer", ""]
    if not behind:
        lines.append("Nowhere.")
    for name, peers in behind.items():
        model = name.rsplit("/", 1)[-1]
        reason = reasons.get(name, reasons.get(model, "no reason given"))
        lines.append(f"* {name} ({', '.join(peers)}): {reason}")
    return "\n".join(lines) + "\n"


def _verdicts(rows: dict[str, Any]) -> str:
    ours = [(n, t, r[t]) for n, r in rows.items() for t in ("graphopt", "graphopt-cpu") if t in r]
    worst = max((r["error"] for _, _, r in ours if "error" in r), default=0.0)
    slower = [
        f"{n} ({t}): {r['ratio']:.3f} [{r['ratio_ci'][0]:.3f}, {r['ratio_ci'][1]:.3f}]"
        for n, t, r in ours
        if "ratio" in r and r["ratio_ci"][0] > 1.02
    ]
    memory = [
        f"{n} ({t}): {r['anonymous'] / 1e6:.0f} MB"
        for n, t, r in ours
        if "anonymous" in r and r["anonymous"] > 150e6 + 1.3 * rows[n]["bytes"]
    ]
    failed = [
        f"{n} ({t}): {r.get('failed', r.get('unrunnable'))}"
        for n, t, r in ours
        if "failed" in r or "unrunnable" in r
    ]
    lines = [
        "## What follows",
        "",
        f"* Largest output difference of graphopt's results: {worst:.1e}.",
        f"* Slower than the source (95 % interval above 1.02): {'; '.join(slower) or 'none'}.",
        f"* Above 150 MB + 1.3 x the model: {'; '.join(memory) or 'none'}.",
        f"* Failed: {'; '.join(failed) or 'none'}.",
    ]
    for name, row in rows.items():
        if row["nodes"] > 1000 and "cpu_seconds" in row.get("graphopt", {}):
            mine = row["graphopt"]["cpu_seconds"]
            ratios = [
                f"{mine / row[t]['cpu_seconds']:.2f} of {t}'s"
                for t in ("onnxsim", "onnxslim", "ort-basic", "ort-extended")
                if "cpu_seconds" in row.get(t, {})
            ]
            lines.append(
                f"* {name}, {row['nodes']} nodes, CPU seconds: {mine:.2f}, " + ", ".join(ratios)
            )
    return "\n".join(lines) + "\n"
