"""NVIDIA GPUs as data, and what CUDA's and TensorRT's lowering share.

Everything here works without a GPU: the model, its provider options and the script that runs it
are written where there is none, and opened where there is one.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.io.replacing import replace_files

__all__ = [
    "CAPABILITIES",
    "capability",
    "check_script",
    "fixed_shapes",
    "precisions",
    "write_script",
]

#: Compute capability -> element types with tensor-core paths there, fastest last.
CAPABILITIES: dict[str, tuple[str, ...]] = {
    "sm70": ("float32", "float16"),
    "sm75": ("float32", "float16", "int8"),
    "sm80": ("float32", "bfloat16", "float16", "int8"),
    "sm86": ("float32", "bfloat16", "float16", "int8"),
    "sm89": ("float32", "bfloat16", "float16", "int8"),
    "sm90": ("float32", "bfloat16", "float16", "int8"),
}
DEFAULT = "sm80"


def precisions(capability: str) -> tuple[str, ...]:
    """Those of the newest known capability that is not newer."""
    known = [c for c in CAPABILITIES if int(c[2:]) <= int(capability[2:])]
    return CAPABILITIES[known[-1]] if known else ("float32",)


@cache
def capability() -> str | None:
    """The compute capability of this machine's first GPU ("sm90"), or None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_capability(asked.stdout) if asked.returncode == 0 else None


def parse_capability(text: str) -> str | None:
    """The first line of nvidia-smi's answer, "9.0", as "sm90"."""
    first = text.strip().splitlines()[:1]
    digits = first[0].strip().replace(".", "") if first else ""
    return f"sm{digits}" if digits.isdigit() else None


def fixed_shapes(model: ir.Model) -> bool:
    """Whether every input and output of the model has a static shape."""
    values = (*model.graph.inputs, *model.graph.outputs)
    return all(
        v.shape is not None and all(isinstance(d, int) for d in v.shape)
        for v in values
        if v.name not in model.graph.initializers
    )


def check_script(path: Path) -> None:
    """Raise UsageError if another script lies where that of the model at `path` goes."""
    script = _script(path)
    if script.exists() and not script.read_bytes().startswith(_text().splitlines()[0]):
        raise UsageError(f"{script} is not graphopt's: move it, or name another output")


def write_script(path: Path) -> Path:
    """Write the script that runs the model at `path` with onnxruntime alone: `model.run.py`."""
    replace_files([(_script(path), [_text()])])
    return _script(path)


def _script(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.onnx')}.run.py")


def _text() -> bytes:
    found = find_spec("graphopt.backends.standalone")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_bytes()
