"""XNNPACK's announcement on stderr, once a process: made at a model that nobody waits for.

LiteRT has no switch for its log. What else comes meanwhile is passed on, and what models of the
user's say is never touched.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile

import onnx_ir as ir
from graphopt.backends.litert.tables import TABLE
from graphopt.backends.litert.writer import Writer

__all__ = ["announced"]

ANNOUNCEMENT = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
one (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }
"""
STDERR = 2


@functools.cache
def announced() -> None:
    """Let XNNPACK say what it says once a process, and keep that line to ourselves."""
    from ai_edge_litert.interpreter import Interpreter

    content = Writer(ir.from_onnx_text(MODEL), TABLE).run()
    try:
        stderr = os.dup(STDERR)
    except OSError:  # it is closed: there is nothing to keep quiet
        return
    with tempfile.TemporaryFile() as file:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), STDERR)
        try:
            Interpreter(model_content=content, num_threads=1).allocate_tensors()
        finally:
            os.dup2(stderr, STDERR)
            file.seek(0)
            for line in file:
                if line.strip() != ANNOUNCEMENT:
                    os.write(stderr, line)
            os.close(stderr)
