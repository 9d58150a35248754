"""What action.yml runs: `graphopt compare` with limits, its figures as a Markdown table.

Options come in the environment: MODEL, BASELINE, MAX_SIZE, MAX_LATENCY, MAX_ERROR, SAMPLES, REPORT.
The table goes to graphopt-gate.md and the job's summary; the exit code is that of the comparison.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

#: By which the action finds the comment that it wrote before.
MARK = "<!-- graphopt gate -->"
ROWS = (
    ("size", "bytes", "bytes"),
    ("latency", "latency_ms", "ms"),
    ("MACs", "macs", ""),
    ("parameters", "params", ""),
    ("nodes", "nodes", ""),
    ("peak activations", "peak_activation_bytes", "bytes"),
)


def main() -> int:
    """Compare, write the table, and pass the verdict on."""
    given = os.environ
    command = [sys.executable, "-m", "graphopt", "compare", given["BASELINE"], given["MODEL"]]
    for name in ("max-size", "max-latency", "max-error", "samples", "report"):
        value = given.get(name.upper().replace("-", "_"))
        command += [f"--{name}", value] if value else []
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 4):
        return done.returncode
    text = table(json.loads(done.stdout))
    print(text)
    Path("graphopt-gate.md").write_text(f"{MARK}\n{text}")
    if summary := given.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as file:
            file.write(text)
    return done.returncode


def table(data: dict) -> str:
    """The comparison in Markdown: what was missed, figures side by side."""
    a, b, missed = data["a"], data["b"], data["missed"]
    head = "misses its budget" if missed else "keeps its budget"
    lines = [f"### The model {head}", ""]
    lines += [f"- {reason}" for reason in missed] + [""] * bool(missed)
    lines += ["| | baseline | this | ratio |", "|---|---:|---:|---:|"]
    for label, key, unit in ROWS:
        x, y = a[key], b[key]
        if x is not None and y is not None:
            ratio = f"{y / x:.3f}" if x else "-"
            lines.append(f"| {label} | {x:,.4g} {unit} | {y:,.4g} {unit} | {ratio} |")
    worst = max((e["rel_l2"] or 0.0 for e in data["outputs"].values()), default=0.0)
    told = "equal" if data["equal"] else f"differ by at most {worst:.3g} (relative L2)"
    timing = data["timing"]
    lines += ["", f"Outputs {told}."]
    if timing:
        low, high = timing["ci"]
        lines.append(f"Latency ratio {timing['ratio']:.3f} (95 %: {low:.3f} to {high:.3f}).")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
