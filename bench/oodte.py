"""Optimizers compared by what they do to models' outputs: OODTE's protocol (arXiv 2505.01892).

    python bench/oodte.py PATH ... --peers PYTHON --work DIR --out bench/results/oodte.md

Every model of at most `--largest` bytes below the PATHs goes through each optimizer. The source and
the result run on the same inputs, without the runtime's own optimizations: recorded ones where an
.npz of the model's name lies beside it, three draws, and two draws each at three other assignments
of the dynamic axes, as far as the source runs on them. `PYTHON` is that of an environment with the
peers. What was found is kept in DIR, and a run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from oodte_tools import TOOLS

#: Seconds that a tool has for a model, and the judge for a result.
SECONDS = 180
ASKED = Path(__file__).with_name("oodte_tools.py")


class Worker:
    """A process that is started anew when it dies or takes too long."""

    def __init__(self, python: str) -> None:
        self.python, self.process = python, None

    def __call__(self, *request: str) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [self.python, str(ASKED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.process.kill()
        code = self.process.wait()
        return {"crashed": f"died ({code})" if ready else f"took more than {SECONDS} s"}


def examine(path: Path, folder: Path, ours: Worker, peers: Worker, found: dict[str, Any]) -> None:
    """Add to `found` what every tool made of a model that runs, beside what is known already."""
    if "source" not in found:
        found["source"] = ours("judge", str(path), str(path))
    for tool in TOOLS if found["source"].get("runs") else ():
        if tool in found:
            continue
        out = folder / f"{tool}.onnx"
        out.unlink(missing_ok=True)
        out.with_name(out.name + ".data").unlink(missing_ok=True)
        made = (ours if tool == "graphopt" else peers)(tool, str(path), str(out))
        if not made and out.exists():
            made = ours("judge", str(path), str(out))
            if "crashed" in made:
                made = {"changed": f"the runtime dies of it: {made['crashed']}"}
        elif not made:
            made = {"crashed": "no result"}
        found[tool] = made


def origin(path: Path) -> str:
    """Where a model is from, by its folder or its name."""
    if "_light_light_" in path.name or "light" in path.parts:
        return "light models of onnx"
    if path.name.startswith("onnx_backend"):
        return "torch's own, in onnx"
    return path.parent.name if path.parent.name.startswith("tiny") else "field packages"


def kind(told: dict[str, Any]) -> str:
    for one in ("crashed", "refused"):
        if one in told:
            return one
    return "changed" if told["changed"] else "same"


def table(every: dict[str, dict[str, Any]], python: str) -> list[str]:
    """The report: one row per tool, the models by origin, and each deviation."""
    runs = {p: f for p, f in every.items() if f["source"].get("runs")}
    origins = collections.Counter(origin(Path(p)) for p in runs)
    dynamic = sum(f["source"]["sizes"] > 1 for f in runs.values())
    old = sum("too old" in f["source"].get("crashed", "") for f in every.values())
    lines = [
        f"{len(runs)} models: " + ", ".join(f"{n} {o}" for o, n in origins.most_common()) + ".",
        f"{dynamic} of them ran at two or more assignments of their dynamic axes. Not counted are "
        f"{old} of opsets before 7, which graphopt refuses in one line, and "
        f"{len(every) - len(runs) - old} that do not run on drawn inputs or draw random numbers.",
        "",
        "| optimizer | same | changed | crashed | refused | nodes, of those that all kept |",
        "|" + "---|" * 6,
    ]
    kept = [f for f in runs.values() if all(kind(f[t]) == "same" for t in TOOLS)]
    before = sum(f["source"]["nodes"] for f in kept)
    for tool in TOOLS:
        seen = collections.Counter(kind(f[tool]) for f in runs.values())
        nodes = sum(f[tool]["nodes"] for f in kept)
        lines.append(
            f"| {tool} {version(tool, python)} | {seen['same']} | {seen['changed']} | "
            f"{seen['crashed']} | {seen['refused']} | {nodes} of {before} |"
        )
    lines += ["", "What is not the same:", ""]
    for path, found in sorted(runs.items()):
        for tool in TOOLS:
            if (what := kind(found[tool])) != "same":
                why = " ".join(str(found[tool][what]).split()).replace("|", "/")[:160]
                lines.append(f"* {origin(Path(path))}, {Path(path).stem}: {tool} {what}: {why}")
    return lines


def version(tool: str, python: str) -> str:
    if tool == "graphopt":
        return importlib.metadata.version(tool)
    told = f"import importlib.metadata as m; print(m.version({tool!r}))"
    return subprocess.run([python, "-c", told], capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--peers", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--largest", type=int, default=50_000_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    known = args.work / "found.json"
    every = json.loads(known.read_text()) if known.exists() else {}
    models = [p for q in args.paths for p in (sorted(q.glob("*.onnx")) if q.is_dir() else [q])]
    models = [p for p in models if p.stat().st_size <= args.largest]
    ours, peers = Worker(sys.executable), Worker(args.peers)
    for path in models:
        found = every.setdefault(str(path), {})
        runs = found.get("source", {"runs": 1}).get("runs")
        if runs and not {"source", *TOOLS} <= found.keys():
            examine(path, args.work, ours, peers, found)
            told = {t: kind(found[t]) for t in TOOLS if t in found}
            print(path.name, found["source"].get("runs"), told, flush=True)
            known.write_text(json.dumps(every, indent=1))
    lines = table({str(p): every[str(p)] for p in models}, args.peers)
    print("\n".join(lines))
    if args.out:
        head = [
            "# Optimizers under one judge (arXiv 2505.01892)",
            "",
            "`python bench/oodte.py PATH ...`",
            "",
        ]
        args.out.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
