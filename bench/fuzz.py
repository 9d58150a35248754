"""Fuzzing: mutated model files through the command line, and kills at random moments.

    python bench/fuzz.py --files 20000 [--seed 0] [--lossy 2000] [--found FOLDER] [--out FILE]
    python bench/fuzz.py --only 1234 [--seed 0]     one file again, with what it does
    python bench/fuzz.py --kills 200

Each file is a seed (`fuzz_seeds.py`) with one to four mutations (`fuzz_mutations.py`), made from
its number alone. It goes through `inspect` and `optimize -p clean,fold,fuse`, the first `--lossy`
also through `prune` and `int8`. Allowed is success with outputs equal to the source's (as in
`random_graphs.py`), or exit 3 with one line. Found is everything else: another exit code, a signal,
more than 10 s of CPU time, more than 1 GiB of memory.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fuzz_mutations import mutated
from fuzz_seeds import seeds
from random_graphs import difference

SECONDS, MEBIBYTES = 10.0, 1024
EXACT, LOSSY = "clean,fold,fuse", ("prune(ratio=0.3)", "int8")


def file(number: int, seed: int) -> bytes:
    """The mutated file of this number."""
    rng = random.Random(f"{seed}-{number}")
    return mutated(rng.choice(seeds()), rng)


# --- one file, in a worker ----------------------------------------------------------------------


def work(jobs: Connection, folder: str, seed: int) -> None:
    """Answer (number, lossy) with what each command did, until there are no more."""
    from graphopt.cli import main

    os.chdir(folder)
    for stream in (1, 2):  # what the runtime prints is not what the tool says
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    while (job := jobs.recv()) is not None:
        number, lossy = job
        Path("m.onnx").write_bytes(file(number, seed))
        commands = [["inspect", "m.onnx"]]
        for k, spec in enumerate((EXACT, *(LOSSY if lossy else ()))):
            Path(f"{k}.onnx").unlink(missing_ok=True)
            commands.append(
                ["optimize", "m.onnx", "-p", spec, "--no-measure", "-o", f"{k}.onnx", "--json"]
            )
        for command in commands:
            jobs.send(("runs", command))
            jobs.send(("ran", (command, *call(main, command))))
        jobs.send(("compares", None))
        jobs.send(("done", compared(Path("m.onnx"), Path("0.onnx"))))


def call(main: Any, command: list[str]) -> tuple[int, str, float, float]:
    """Exit code, what it said on standard error, CPU seconds, peak MiB."""
    said, start = io.StringIO(), time.process_time()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of this command alone
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main(command)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, said.getvalue(), time.process_time() - start, peak()


def peak() -> float:
    """Peak memory of this process in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compared(source: Path, result: Path) -> str:
    """What differs between the outputs of two models, or "" (also if the source does not run)."""
    if not result.exists():
        return ""
    try:
        one = session(source)
        feeds = feeds_of(one)
        expected = one.run(None, feeds)
        noise = session(source, optimize=True).run(None, feeds)
    except Exception:  # the runtime refuses the source, whatever it says
        return ""
    names = [o.name for o in one.get_outputs()]
    try:
        other = session(result)
        got = other.run(None, feeds)
    except Exception as error:
        return f"the result does not run: {str(error)[:200]}"
    if [o.name for o in other.get_outputs()] != names:
        return "other outputs"
    for name, a, b, c in zip(names, expected, got, noise, strict=True):
        if not isinstance(a, np.ndarray):
            continue
        allowed = max(1e-5, 4 * difference(a, c))
        error = difference(a, b)
        if error > allowed:
            return f"output {name}: {error:.3g}"
    return ""


def session(path: Path, optimize: bool = False) -> ort.InferenceSession:
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(one: ort.InferenceSession) -> dict[str, Any]:
    """Inputs that a session takes, drawn; ValueError for what is too large or no tensor."""
    rng, feeds = np.random.default_rng(1), {}
    for value in one.get_inputs():
        kind = onnx.helper.tensor_dtype_to_np_dtype(_kind(value.type))
        shape = [d if isinstance(d, int) and d >= 0 else 3 for d in value.shape]
        if np.prod(shape, dtype=float) > 1e7:
            raise ValueError(value.shape)
        drawn = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name] = (
            drawn.astype(str).astype(object) if kind.kind == "O" else drawn.astype(kind)
        )
    return feeds


def _kind(text: str) -> int:
    """`tensor(float)` as the number of its element type."""
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    return int(onnx.TensorProto.DataType.Value(name))


# --- judging ------------------------------------------------------------------------------------


def judged(command: list[str], code: int, said: str, seconds: float, memory: float) -> str:
    """What is wrong with what a command did, or ""."""
    name = command[0] if command[0] == "inspect" else command[3]
    if code not in (0, 3):
        return f"{name}: exit {code}: {said.strip()[-300:]}"
    if code == 3 and len(said.strip().splitlines()) != 1:
        return f"{name}: exit 3 in {len(said.strip().splitlines())} lines: {said.strip()[:300]}"
    if code == 3 and "Traceback" in said:
        return f"{name}: a traceback"
    if seconds > SECONDS:
        return f"{name}: {seconds:.0f} s"
    if memory > MEBIBYTES:
        return f"{name}: {memory:.0f} MiB"
    return ""


class Worker:
    """A process that works through files, replaced when it dies or takes too long."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.folder = tempfile.mkdtemp(prefix="fuzz-")
        self.process: Any = None
        self.number = -1

    def start(self, number: int, lossy: bool) -> None:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.jobs, other = context.Pipe()
            self.process = context.Process(target=work, args=(other, self.folder, self.seed))
            self.process.start()
            other.close()
        self.number, self.command, self.found, self.codes = number, ["start"], "", []
        self.before, self.since = self.cpu(), time.monotonic()
        self.jobs.send((number, lossy))

    def cpu(self) -> float:
        """CPU seconds that the process has taken so far."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def listen(self) -> bool:
        """Take what it says; True when the file is done."""
        try:
            what, told = self.jobs.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            if self.command[0] != "compares":  # there it is the runtime that died of the source
                self.found = self.found or f"{self.command}: died, {self.process.exitcode}"
            self.process = None
            return True
        if what == "runs":
            self.command, self.before, self.since = told, self.cpu(), time.monotonic()
        elif what == "ran":
            self.codes.append(told[1])
            self.found = self.found or judged(*told)
        elif what == "compares":
            self.command, self.since = ["compares"], time.monotonic()
        else:
            self.found = self.found or told
        return bool(what == "done")

    def late(self) -> bool:
        """End it if it takes too long; True if so."""
        used, passed = self.cpu() - self.before, time.monotonic() - self.since
        if self.command[0] == "start" or (used < 2 * SECONDS and passed < 12 * SECONDS):
            return False
        if self.command[0] != "compares":
            self.found = f"{self.command}: {used:.0f} s of CPU, {passed:.0f} s and no end"
        self.end()
        return True

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def survey(args: argparse.Namespace) -> tuple[collections.Counter[str], list[dict[str, Any]]]:
    """Every file through the commands: counts, and what was found."""
    counts: collections.Counter[str] = collections.Counter()
    found: list[dict[str, Any]] = []
    todo = iter(
        [args.only] if args.only is not None else range(args.first, args.first + args.files)
    )
    idle = [Worker(args.seed) for _ in range(1 if args.only is not None else args.processes)]
    busy: dict[Any, Worker] = {}
    folders = [w.folder for w in idle]

    def ended(worker: Worker) -> None:
        counts["files"] += 1
        counts.update(f"exit {c}" for c in worker.codes)
        if worker.found:
            found.append({"number": worker.number, "found": worker.found})
            print(worker.number, worker.found, flush=True)
            if args.found:
                args.found.mkdir(parents=True, exist_ok=True)
                shutil.copy(
                    Path(worker.folder, "m.onnx"), args.found / f"{args.seed}-{worker.number}.onnx"
                )
        if counts["files"] % 500 == 0:
            print(counts["files"], "files", len(found), "found", dict(counts), flush=True)
        idle.append(worker)

    while True:
        while idle and (number := next(todo, None)) is not None:
            worker = idle.pop()
            worker.start(number, args.only is not None or number < args.lossy)
            busy[worker.jobs] = worker
        if not busy:
            break
        for ready in wait(list(busy), 0.5):
            if busy[ready].listen():
                ended(busy.pop(ready))
        for jobs, worker in list(busy.items()):
            if worker.late():
                ended(busy.pop(jobs))
    for worker in idle:
        worker.end()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    counts["found"] = len(found)
    return counts, found


# --- kills --------------------------------------------------------------------------------------


#: Exit codes after a signal: it was done already, or ended by the signal, or cleaned up first.
ENDS = {signal.SIGKILL: (0, -9), signal.SIGTERM: (0, -15, 143)}


def kills(count: int, seed: int) -> tuple[collections.Counter[str], list[dict[str, Any]]]:
    """SIGKILL and SIGTERM at random moments of a run: outputs are whole or absent."""
    rng = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, spare = folder / "in.onnx", folder / "temporary"
        source.write_bytes(seeds()[0])
        command = [sys.executable, "-m", "graphopt", "optimize", str(source), "-p", EXACT]
        command += ["--no-measure", "-o", "out/o.onnx", "--report", "out/r.json"]
        environment = {**os.environ, "TMPDIR": str(spare)}
        start = time.monotonic()
        for k in range(-1, count):
            shutil.rmtree(folder / "out", ignore_errors=True)
            shutil.rmtree(spare, ignore_errors=True)
            (folder / "out").mkdir()
            spare.mkdir()
            said = (folder / "said").open("w+")
            one = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            if k < 0:  # the whole run once, to know how long it takes
                one.wait()
                whole, seconds = left(folder), time.monotonic() - start
                said.close()
                continue
            how = rng.choice((signal.SIGKILL, signal.SIGTERM))
            time.sleep(seconds * rng.choice((rng.random(), rng.uniform(0.85, 1.05))))
            one.send_signal(how)
            code = one.wait()
            counts.update(("kills", f"{how.name}: exit {code}"))
            if code not in ENDS[how]:
                said.seek(0)
                found.append({"number": k, "found": f"{how.name}: exit {code}: {said.read()}"})
                print(k, found[-1]["found"], flush=True)
            said.close()
            for text in torn(folder, how, whole):
                found.append({"number": k, "found": f"{how.name}: {text}"})
                print(k, how.name, text, flush=True)
    counts["found"] = len(found)
    return counts, found


def left(folder: Path) -> set[str]:
    return {p.name for p in (folder / "out").iterdir()}


def torn(folder: Path, how: signal.Signals, whole: set[str]) -> Iterator[str]:
    """What a kill left that it may not leave."""
    names = left(folder)
    if "o.onnx" in names:
        try:
            onnx.checker.check_model(onnx.load(folder / "out/o.onnx"))
        except Exception as error:
            yield f"half a model: {error}"
    if "r.json" in names:
        try:
            json.loads((folder / "out/r.json").read_text())
        except ValueError as error:
            yield f"half a report: {error}"
    if how is signal.SIGTERM:  # SIGKILL leaves what it leaves, under other names
        if names - whole:
            yield f"left in the output folder: {sorted(names - whole)}"
        if spare := [p.name for p in (folder / "temporary").glob("graphopt-*")]:
            yield f"left in the temporary folder: {spare}"


def as_text(
    command: str, seconds: float, counts: dict[str, int], found: list[dict[str, Any]]
) -> str:
    lines = [
        "# Mutated files and kills",
        "",
        f"`{command}`: what is mutated and what is allowed stands at the head of that "
        f"file. {seconds:.0f} s.",
        "",
        *(f"* {k}: {v}" for k, v in sorted(counts.items())),
        *(f"* {f['number']}: {f['found']}" for f in found),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--lossy", type=int, default=0, help="so many through prune and int8 too")
    parser.add_argument("--only", type=int, help="this file alone")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--found", type=Path, help="keep what was found here")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args()
    start = time.monotonic()
    counts, found = kills(args.kills, args.seed) if args.kills else survey(args)
    text = as_text(" ".join(["python", *sys.argv]), time.monotonic() - start, counts, found)
    print(text)
    if args.out:
        args.out.with_suffix(".md").write_text(text)
        told = {"counts": counts, "found": found}
        args.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
