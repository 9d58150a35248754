"""The converter's process: started in the interpreter that has the framework, asked, and ended."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.converting import child
from graphopt.errors import MissingExtra, ModelError

__all__ = ["Converter", "converter", "interpreter"]

logger = logging.getLogger("graphopt")
#: What the converter prints, beside the model that it writes.
LOG = "log.txt"


def interpreter(framework: str) -> str:
    """The Python that has a framework: what GRAPHOPT_PYTHON_<FRAMEWORK> names, else this one."""
    return os.environ.get(f"GRAPHOPT_PYTHON_{framework.upper()}", sys.executable)


class Converter:
    """A running process that holds a framework's model."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._runs = process, folder, 0

    def answer(self) -> dict[str, Any]:
        """The next line that it says. Raises ModelError if it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ModelError(f"its converter ended with code {code}{self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        """What was printed before the end: the last line that tells of an error, if any does."""
        log = re.sub(r"\x1b\[[0-9;]*m", "", (self._folder / LOG).read_text(errors="replace"))
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()] or lines
        return f": {told[-1][:300]}" if told else " and said nothing"

    def predict(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[int, Any]:
        """The framework's own outputs by position, those that it tells. Raises ModelError."""
        self._runs += 1
        name = f"{self._runs}.npz"
        plain = {k: x.astype(str) if x.dtype.kind == "O" else x for k, x in feeds.items()}
        np.savez(self._folder / name, allow_pickle=False, **plain)
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        told = self.answer()
        if "error" in told:
            raise ModelError(told["error"])
        with np.load(self._folder / f"{name}.out.npz", allow_pickle=False) as held:
            return {int(k): held[k] for k in held.files}


@contextmanager
def converter(
    framework: str, title: str, path: str, folder: Path, environment: Mapping[str, str]
) -> Iterator[Converter]:
    """Convert `path` to `folder`/model.onnx and keep the framework's model at hand.

    Variables of `environment` are added to this process's own.

    Raises:
        MissingExtra: the framework or its converter is not installed.
        ModelError: what the converter says.
    """
    python = interpreter(framework)
    command = [python, "-I", "-W", "ignore", child.__file__, framework, path, str(folder)]
    log = folder / LOG
    with log.open("w") as heard:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=heard,
                text=True,
                env={**os.environ, **environment},
            )
        except OSError as error:
            raise ModelError(f"{python} does not start: {error}") from error
    with process:
        try:
            running = Converter(process, folder)
            told = running.answer()
            if "missing" in told:
                variable = f"GRAPHOPT_PYTHON_{framework.upper()}"
                raise MissingExtra(
                    framework,
                    f"reading models of {title} ({told['missing']} is not there, and {variable} "
                    "names no other Python that has it)",
                )
            if "refused" in told:
                raise ModelError(told["refused"])
            if "error" in told:
                logger.info("what the converter said:\n%s", log.read_text(errors="replace"))
                raise ModelError(f"{title}'s converter does not take it: {told['error']}")
            yield running
        finally:
            process.kill()
