"""ONNX Runtime sessions: the options that every session of ours starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["BESIDE", "CPU", "open_cpu", "session_options"]

CPU = "CPUExecutionProvider"
#: Configuration of a session that shares the machine: its threads stop spinning when a run ends.
#: Without this they keep processors busy for 50 ms after each run, and two sessions in one process
#: slow each other down up to twofold and at random.
BESIDE = {"session.force_spinning_stop": "1"}


def session_options(
    *, optimize: bool = True, threads: int = 0, config: Mapping[str, str] | None = None
) -> Any:
    """`onnxruntime.SessionOptions` that logs nothing.

    Args:
        optimize: let the runtime apply its own graph optimizations.
        threads: intra-op threads; 0 leaves the choice to the runtime.
        config: session configuration entries.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def open_cpu(model: Path | bytes, options: Any = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU provider, for a file or a serialized model."""
    import onnxruntime as ort

    given = session_options() if options is None else options
    file = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(file, given, providers=[CPU])
