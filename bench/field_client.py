"""Run one client with its own model or another file in its place; record what it feeds the model.

    python bench/field_client.py NAME PART [--use MODEL] [--record DIR] [--out ANSWERS.json]

Runs in the field environment. The client opens the model that its package ships; onnxruntime's
InferenceSession is replaced so that this one file is opened from MODEL instead, on one thread.
Nothing in the package is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import field_agreement
import numpy as np
from field_inputs import shipped

#: Most runs that are recorded of a part, spread evenly over all that the client makes.
RUNS = 128


@dataclasses.dataclass(frozen=True)
class Client:
    """A shipped model with what its package does with it.

    Attributes:
        path: where the package keeps the model, below the environment's packages.
        package: what to install, as pip takes it.
        task: in a few words, for the table.
        judge: agreement of the answers, in 0..1; see field_agreement.
        answer: the client, from the part to a list of answers that JSON can hold.
    """

    name: str
    package: str
    path: str
    task: str
    judge: field_agreement.Judge
    answer: Callable[[str], list[Any]]

    @property
    def model(self) -> Path:
        return shipped(self.path)


CLIENTS: dict[str, Client] = {}


def client(
    name: str, package: str, path: str, task: str, judge: field_agreement.Judge
) -> Callable[[Callable[[str], list[Any]]], Callable[[str], list[Any]]]:
    """Register the decorated function as the client of a model."""

    def register(answer: Callable[[str], list[Any]]) -> Callable[[str], list[Any]]:
        CLIENTS[name] = Client(name, package, path, task, judge, answer)
        return answer

    return register


def load_clients() -> dict[str, Client]:
    import field_denoising
    import field_detectors
    import field_music
    import field_signals
    import field_speech
    import field_text
    import field_vision

    del (
        field_denoising,
        field_detectors,
        field_music,
        field_signals,
        field_speech,
        field_text,
        field_vision,
    )
    return CLIENTS


def stub(*names: str) -> None:
    """Nothing in place of heavy modules that a package imports and its client does not use."""
    for name in names:
        sys.modules.setdefault(name, MagicMock())


def replace(one: Client, use: Path | None) -> list[dict[str, Any]]:
    """Have the client's model opened from `use`; the list takes what the client feeds it."""
    import onnxruntime

    feeds: list[dict[str, Any]] = []
    source = one.model.resolve()
    contents = source.read_bytes()
    real = onnxruntime.InferenceSession

    def is_model(given: Any) -> bool:
        if isinstance(given, bytes):
            return given == contents
        return Path(given).resolve() == source

    class Session(real):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, *args: Any, **more: Any) -> None:
            options = sess_options or onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self.taken = is_model(model)
            if self.taken:
                model = str(use or source)
            super().__init__(model, options, *args, **more)
            self.types = {i.name: i.type for i in self.get_inputs()}

        def run(self, names: Any, feed: dict[str, Any], *more: Any) -> Any:
            if self.taken:
                feeds.append({k: as_taken(v, self.types[k]) for k, v in feed.items()})
            return super().run(names, feed, *more)

    onnxruntime.InferenceSession = Session
    return feeds


def as_taken(value: Any, kind: str) -> Any:
    """A copy of what was fed; lists get the input's type, such as `tensor(int32)`."""
    if isinstance(value, np.ndarray):
        return value.copy()
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.array(value, {"float": "float32", "double": "float64"}.get(name, name))


def spread(feeds: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    picks = np.linspace(0, len(feeds) - 1, min(most, len(feeds))).round().astype(int)
    return [feeds[k] for k in picks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name")
    parser.add_argument("part")
    parser.add_argument("--use", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    one = load_clients()[args.name]
    random.seed(0)
    np.random.seed(0)  # some clients draw their own noise
    feeds = replace(one, args.use)
    answers = one.answer(args.part)
    if not feeds:
        raise SystemExit(f"{args.name}: the client did not run {one.model}")
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        for k, feed in enumerate(spread(feeds, RUNS)):
            np.savez(args.record / f"{k:03d}.npz", **feed)
    text = json.dumps({"runs": len(feeds), "answers": answers}, default=plain)
    (args.out.write_text if args.out else print)(text)


def plain(value: Any) -> Any:
    """NumPy's numbers and arrays as JSON takes them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no answer")


if __name__ == "__main__":
    sys.modules["field_client"] = sys.modules["__main__"]  # the clients register here
    main()
