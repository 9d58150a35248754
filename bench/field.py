#!/usr/bin/env python3
"""Trained models that packages ship, optimized, put back in place and judged by the packages' own
clients, beside ONNX Runtime's quantizers, NNCF, onnxsim and onnxslim.

    python bench/field.py [--env .field] [--models NAME,...] [--specs SPEC ...] [--peers NAME,...]
                          [--search TIME] [--seconds 20] [--no-measure]
                          [--out bench/results/field]

The clients and the peers run in an environment of their own under --env, made on the first run.
Per model: its client runs on two parts of inputs and what it feeds the model is recorded; graphopt
and the peers see the calibration part alone; every result is opened in place of the model, and the
client's answers on the held-out part are compared with those it gave with its own model. A row is
written as soon as it is known, and rows that are there are not made again (--again makes them).
Times are CPU times of one thread over the recorded held-out runs, source and results interleaved,
each in a process of its own; --seconds 0 times nothing. To make what --out lacks and the table:
the same command again. --search 5m adds what `graphopt search` finds in that time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import field_client
from field_env import make
from field_table import write_table
from field_timing import ratios

HERE = Path(__file__).parent
SPECS = ("clean,fold,fuse", "fuse,int8", "prune(ratio=0.3),fuse,int8")
PEERS = ("ort-dynamic", "ort-static", "nncf", "onnxsim", "onnxslim")
#: Longest that one client, one optimization or one peer may take, in seconds.
PATIENCE = 1800

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--env", type=Path, default=Path(".field"), help="kept between runs")
    parser.add_argument(
        "--graphopt", default=f"{sys.executable} -P -m graphopt", help="its command"
    )
    parser.add_argument("--models", help="names, separated by commas")
    parser.add_argument("--specs", nargs="*", default=SPECS)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--search", metavar="TIME", help="search too, for so long")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing a model")
    parser.add_argument("--no-measure", action="store_true", help="graphopt times no step")
    parser.add_argument("--again", action="store_true", help="make rows anew")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "field")
    parser.add_argument("--list", action="store_true", help="name the models")
    args = parser.parse_args()
    clients = field_client.load_clients()
    unknown = {n for n in (args.models or "").split(",") if n} - set(clients)
    if unknown:
        raise SystemExit(f"no such models: {', '.join(sorted(unknown))}; --list names them")
    if args.list:
        print("\n".join(f"{c.name}: {c.task} ({c.package})" for c in clients.values()))
        return
    args.env = args.env.resolve()
    python = make(args.env, clients.values(), nncf="nncf" in args.peers)
    rows = Rows(args.out.with_suffix(".json"), "python " + shlex.join(sys.argv), args.env)
    for name in args.models.split(",") if args.models else clients:
        one = Field(clients[name], python, args, rows)
        try:
            one.run()
        except Failed as error:
            rows.put({"model": name, "tool": "client", "exit": error.code, "said": error.said})
        write_table(rows.all(), args.out.with_suffix(".md"))


class Failed(Exception):
    """A process that did not end with 0."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code, self.said = code, said


def call(command: list[str], log: Path) -> str:
    """Its standard output; what it says on standard error goes to `log`.

    Raises:
        Failed: the exit code, and the last line said.
    """
    threads = {f"{n}_NUM_THREADS": "2" for n in ("OMP", "OPENBLAS")}
    with open(log, "w") as errors:
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=PATIENCE,
                env={**os.environ, **threads},
                cwd=log.parent,
            )
        except subprocess.TimeoutExpired:
            raise Failed(124, f"no end within {PATIENCE} s") from None
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if done.returncode:
        raise Failed(done.returncode, said[-1][:400] if said else "")
    return done.stdout


class Rows:
    """The results file: a row per model and tool, written whenever one is known.

    Messages that name the environment's folder name it `.field`, wherever it was.
    """

    def __init__(self, path: Path, command: str, env: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.command, self.env = path, command, env

    def all(self) -> list[Row]:
        return json.loads(self.path.read_text())["rows"] if self.path.is_file() else []

    def get(self, model: str, tool: str) -> Row | None:
        found = (r for r in self.all() if (r["model"], r["tool"]) == (model, tool))
        return next(found, None)

    def put(self, row: Row) -> None:
        key = row["model"], row["tool"]
        rest = [r for r in self.all() if (r["model"], r["tool"]) != key]
        content = {"command": self.command, "rows": [*rest, row]}
        scratch = self.path.with_suffix(".part")
        text = json.dumps(content, indent=1, ensure_ascii=False)
        scratch.write_text(text.replace(str(self.env), ".field") + "\n")
        scratch.replace(self.path)
        print(json.dumps(row, ensure_ascii=False)[:300], flush=True)


class Field:
    """One model, its client, and the folder that keeps its samples, answers and results."""

    #: More options of `graphopt optimize`.
    options: tuple[str, ...] = ()

    def __init__(self, client: field_client.Client, python: Path, args: Any, rows: Rows) -> None:
        self.client, self.python, self.args, self.rows = client, python, args, rows
        self.work = args.env / "work" / client.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = Path(call([str(python), "-c", PURELIB], self.work / "path.log").strip())
        self.model /= client.path

    def run(self) -> None:
        self.record()
        made: dict[str, Path] = {}
        for tool, start in self.tools():
            row = self.rows.get(self.client.name, tool)
            out = self.work / slug(tool) / "model.onnx"
            if row is None or self.args.again or (row["exit"] == 0 and not out.is_file()):
                row = self.judged(tool, start, out)
                self.rows.put(row)
            if row["exit"] == 0 and "client" not in row:  # else nothing opens it
                made[tool] = out
        self.time(made)

    def tools(self) -> list[tuple[str, Callable[[Path], Row]]]:
        """What makes a model, by name: graphopt's pipelines, then the peers."""
        peers = [p for p in self.args.peers.split(",") if p]
        return [
            *((f"graphopt {s}", lambda out, s=s: self.graphopt(s, out)) for s in self.args.specs),
            *([("graphopt search", self.search)] if self.args.search else []),
            *((p, lambda out, p=p: self.peer(p, out)) for p in peers),
        ]

    def record(self) -> None:
        """Samples of both parts, and the answers of the client with its own model, once."""
        for part in ("calibration", "held"):
            answers = self.work / f"{part}.json"
            if not answers.is_file() or self.args.again:
                shutil.rmtree(self.work / part, ignore_errors=True)
                self.ask(part, answers, "--record", str(self.work / part))
        if self.rows.get(self.client.name, "source") is None or self.args.again:
            row = {"model": self.client.name, "tool": "source", "exit": 0}
            self.rows.put({**row, **self.described(self.model), **self.agreed("held.json")})

    def ask(self, part: str, answers: Path, *more: str) -> None:
        command = [str(self.python), str(HERE / "field_client.py"), self.client.name, part]
        scratch = answers.with_suffix(".part")
        call([*command, "--out", str(scratch), *more], answers.with_suffix(".log"))
        scratch.replace(answers)

    def agreed(self, answers: str) -> Row:
        want, got = (json.loads((self.work / f).read_text()) for f in ("held.json", answers))
        share = self.client.judge(want["answers"], got["answers"])
        return {"agreement": share, "answers": len(want["answers"]), "runs": want["runs"]}

    def described(self, model: Path) -> Row:
        said = call(
            [str(self.python), str(HERE / "field_peers.py"), "describe", str(model)],
            self.work / "describe.log",
        )
        return dict(json.loads(said))

    def judged(self, tool: str, start: Callable[[Path], Row], out: Path) -> Row:
        """Make the model and ask the client with it in place."""
        row: Row = {"model": self.client.name, "tool": tool, "exit": 0}
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        try:
            row |= start(out)
            row |= self.described(out)
        except Failed as error:
            return row | {"exit": error.code, "said": error.said}
        try:
            self.ask("held", out.parent / "answers.json", "--use", str(out))
            row |= self.agreed(f"{out.parent.name}/answers.json")
        except Failed as error:
            row |= {"agreement": 0.0, "client": error.said}
        return row

    def graphopt(self, spec: str, out: Path) -> Row:
        """graphopt's row: what every step became and why."""
        command = [*shlex.split(self.args.graphopt), "optimize", str(self.model), "-p", spec]
        command += ["--samples", str(self.work / "calibration"), "-o", str(out), "--json"]
        command += [*self.options, *["--no-measure"] * self.args.no_measure]
        report = json.loads(call(command, out.parent / "log"))
        kept = ("spec", "status", "reason", "notes", "seconds", "latency_ratio")
        steps = [{k: s[k] for k in kept} | {"error": worst_error(s)} for s in report["steps"]]
        return {"steps": steps, "notes": report["notes"], "measured": not self.args.no_measure}

    def search(self, out: Path) -> Row:
        """What a search keeps that changes one decision of a hundred at most."""
        command = [*shlex.split(self.args.graphopt), "search", str(self.model)]
        command += ["--samples", str(self.work / "calibration"), "-o", str(out), "--json"]
        command += ["--max-disagreement", "0.01", "--time", self.args.search]
        report = json.loads(call(command, out.parent / "log"))["search"]
        return {"spec": report["spec"], "trials": len(report["trials"])}

    def peer(self, name: str, out: Path) -> Row:
        python = self.args.env / "nncf" / "bin" / "python" if name == "nncf" else self.python
        call(
            [
                str(python),
                str(HERE / "field_peers.py"),
                name,
                str(self.model),
                str(out),
                str(self.work / "calibration"),
            ],
            out.parent / "log",
        )
        return {}

    def time(self, made: dict[str, Path]) -> None:
        """CPU times beside the source, for the rows that have none yet."""
        rows = {t: self.rows.get(self.client.name, t) for t in made}
        rows = {t: r for t, r in rows.items() if r and "speed" not in r}
        if not rows or not self.args.seconds:
            return
        paths = [self.model, *(made[t] for t in rows)]
        found = ratios(self.python, paths, self.work / "held", self.args.seconds)
        for (_, row), speed in zip(rows.items(), found, strict=True):
            self.rows.put({**row, **speed})


def worst_error(step: Row) -> float | None:
    errors = [e["rel_l2"] for e in (step["error_vs_source"] or {}).values()]
    return max((e for e in errors if e is not None), default=None)


def slug(tool: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in tool).strip("-")


PURELIB = "import sysconfig; print(sysconfig.get_paths()['purelib'])"

if __name__ == "__main__":
    main()
