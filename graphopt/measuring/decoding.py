"""Decoder throughput: prompt and new tokens a second, memory, and the roofline of the memory.

    tokens/s <= bandwidth / bytes of weights that one token reads

A model that writes one token after another reads all its weights for each, but the table, of which
a token reads a row. The bandwidth is what a triad a = b + s c over 256 MB takes in the same process
(McCalpin, STREAM).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.blame import described
from graphopt.children import child_command
from graphopt.errors import GraphOptError, ModelError
from graphopt.formats import load
from graphopt.graph.constants import weight_of
from graphopt.samples.tokens import TokenModel, token_model

__all__ = ["Decoded", "decode"]

#: Bytes of each of the triad's three arrays.
TRIAD = 1 << 28


@dataclasses.dataclass(frozen=True)
class Decoded:
    """How fast a decoder is in a process of its own.

    Attributes:
        model: path as given.
        prompt_per_second: tokens of a prompt that are read at once, a second.
        new_per_second: tokens written one after another, a second (median).
        memory_bytes: most that the process had resident beyond an empty one's.
        weight_bytes: read for each token.
        bandwidth: bytes a second of the triad.
        roofline: tokens a second that the bandwidth allows.
        tokens: those written, greedily.
    """

    model: str
    prompt_per_second: float
    new_per_second: float
    memory_bytes: int | None
    weight_bytes: int
    bandwidth: float
    roofline: float
    tokens: tuple[int, ...]


def decode(path: Path, *, prompt: int = 128, new: int = 32, threads: int = 0) -> Decoded:
    """Let the decoder at `path` read `prompt` tokens and write `new` ones, in its own process.

    Raises:
        ModelError: it is no decoder with caches, or does not run.
    """
    model = load(path)
    form = token_model(model)
    if form is None or not form.caches:
        raise ModelError(
            f"{path} is no decoder that keeps caches: its inputs are to be input_ids, perhaps "
            "attention_mask and position_ids, and caches that its outputs continue"
        )
    command = [*child_command("graphopt.measuring.decoding", "main"), str(path)]
    command += [json.dumps(dataclasses.asdict(form)), str(prompt), str(new), str(threads)]
    command.append(str(_read_bytes(model)))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ModelError(f"{path}: its process ended with exit code {done.returncode}") from None
    if "error" in said:
        raise ModelError(f"{path}: {said['error']}")
    return Decoded(str(path), **{**said, "tokens": tuple(said["tokens"])})


def _read_bytes(model: ir.Model) -> int:
    """Bytes of the weights that every token reads: all but tables that are looked up in."""
    looked_up = {
        held.root
        for node in model.graph
        if node.op_type in ("Gather", "GatherBlockQuantized")
        for value in (node.inputs[0], *node.inputs[2:])
        if (held := weight_of(value)) is not None
        and all(use.node.op_type == node.op_type for use in held.root.uses())
    }
    values = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value and v not in looked_up)


def main() -> None:
    """Decode in this process: MODEL FORM PROMPT NEW THREADS BYTES; one JSON line."""
    path, form, prompt, new, threads, weights = sys.argv[1:]
    try:
        how = TokenModel(**json.loads(form))
        found = _decode(Path(path), how, int(prompt), int(new), int(threads))
        found |= {"weight_bytes": int(weights), "roofline": found["bandwidth"] / int(weights)}
    except Exception as error:  # runtimes raise of every kind; the parent makes a ModelError of it
        found = {"error": str(error) if isinstance(error, GraphOptError) else described(error)}
    sys.stdout.write(f"{json.dumps(found)}\n")


def _decode(path: Path, form: TokenModel, prompt: int, new: int, threads: int) -> dict[str, Any]:
    from graphopt.deploy.runtime import open_cpu, session_options
    from graphopt.measuring.footprint import resident

    before = resident(reset=True)
    session = open_cpu(path, session_options(threads=threads))
    outputs = [o.name for o in session.get_outputs()]
    ids, caches = np.arange(1, prompt + 1)[None] % 97, None
    times, written, length = [], [], 0
    for _ in range(new + 1):
        feeds = form.fed(ids, length, caches)
        length += ids.shape[1]
        began = time.perf_counter()
        made = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        times.append(time.perf_counter() - began)
        caches = {name: made[after] for name, after in form.caches.items()}
        ids = made[form.logits][:, -1:].argmax(-1)
        written.append(int(ids[0, 0]))
    after = resident()
    return {
        "prompt_per_second": prompt / times[0],
        "new_per_second": 1 / float(np.median(times[1:])),
        "memory_bytes": after - before if before is not None and after is not None else None,
        "bandwidth": _bandwidth(),
        "tokens": written,
    }


def _bandwidth() -> float:
    """Bytes a second that a = b + s c moves, the best of five."""
    b, c = (np.full(TRIAD // 8, k) for k in (1.0, 2.0))
    a = np.empty_like(b)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        np.multiply(c, 3.0, out=a)
        np.add(a, b, out=a)
        best = max(best, 5 * TRIAD / (time.perf_counter() - began))
    return best
