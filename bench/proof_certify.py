"""onnxsim's `certify` beside our evidence: what each proves of its own result on the same models.

    python bench/proof_certify.py FOLDER ... --peers PYTHON --work DIR --out FILE

`PYTHON` is that of an environment with onnxsim of 0.8 or later and z3-solver. `certify` compares
its `simplify`'s result with the source output by output, within its own limit of 10 s; ours are the
edits of `clean,fold,fuse`. What was found is kept in DIR: a run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path
from typing import Any

from oodte import Worker
from proof_regions import examined

from graphopt.formats import load


def ours(path: Path) -> dict[str, int]:
    """Edits by verdict."""
    found: collections.Counter[str] = collections.Counter()
    for evidence, _, _ in examined(load(path)):
        if evidence is not None:
            found.update(v for _, v in evidence.edits)
    return dict(found)


def row(name: str, every: list[dict[str, Any]]) -> str:
    """One folder: models of which everything is proved, and regions or edits."""
    theirs = [e["certify"] for e in every if "outputs" in e["certify"]]
    proved = [all(s.startswith("proved") for s in c["outputs"].values()) for c in theirs]
    windows = collections.Counter(s.split("-")[0] for c in theirs for s in c["windows"])
    edits: collections.Counter[str] = collections.Counter()
    for e in every:
        edits.update(e["ours"])
    whole = sum(e["ours"].get("proved", 0) == sum(e["ours"].values()) for e in every)
    return (
        f"| {name}: {len(every)} | {sum(proved)} | {windows['proved']} | "
        f"{windows['skipped']} | {windows['refuted']} | {len(every) - len(theirs)} | {whole} | "
        f"{edits['proved']} of {sum(edits.values())} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--peers", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    known = args.work / "certified.json"
    every = json.loads(known.read_text()) if known.exists() else {}
    peer = Worker(args.peers)
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder in args.folders:
        for path in sorted(folder.glob("*.onnx")):
            entry = every.setdefault(str(path), {})
            if "ours" not in entry:
                entry["ours"] = ours(path)
            if "certify" not in entry:
                entry["certify"] = peer("certify", str(path), "")
            known.write_text(json.dumps(every, indent=1))
            rows.setdefault(folder.name, []).append(every[str(path)])
    lines = [
        "| models | certify: all outputs proved | regions proved | skipped | refuted | failed | "
        "ours: all edits proved | edits proved |",
        "|" + "---|" * 8,
        *(row(name, found) for name, found in rows.items()),
    ]
    print("\n".join(lines))
    if args.out:
        head = "# onnxsim's certify beside our evidence\n\n`python bench/proof_certify.py ...`\n\n"
        args.out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
