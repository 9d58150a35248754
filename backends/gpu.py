"""NVIDIA GPUs as data, and what CUDA's and TensorRT's lowering share.

Everything here works without a GPU: the model, its provider options and the script that runs it
are written where there is none, and opened where there is one.
"""

from __future__ import annotations

import abc
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir
from graphopt.backends.ort import OrtBackend

from graphopt.deploy.manifest import Manifest, read_manifest, write_manifest
from graphopt.deploy.sessions import open_manifest
from graphopt.errors import GraphOptError, UsageError
from graphopt.formats import save
from graphopt.replacing import replace_files
from graphopt.target import Target

__all__ = ["CAPABILITIES", "GpuBackend", "fixed_shapes", "precisions"]

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
_RELU = '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'


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


@cache
def opens(provider: str) -> bool:
    """Whether the provider opens a model here: the runtime also lists those it can't load."""
    relu = onnx.parser.parse_model(_RELU).SerializeToString()
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(relu)
        try:
            open_manifest(path, Manifest("", provider, extra="cuda"))
        except GraphOptError:
            return False
    return True


def fixed_shapes(model: ir.Model) -> bool:
    """Whether every input and output of the model has a static shape."""
    values = (*model.graph.inputs, *model.graph.outputs)
    return all(
        v.shape is not None and all(isinstance(d, int) for d in v.shape)
        for v in values
        if v.name not in model.graph.initializers
    )


class GpuBackend(OrtBackend):
    """What CUDA and TensorRT share: a manifest that depends on the model, and a script to run it.

    Attributes:
        name: of the backend, of its target for this machine, and of the extra it needs.
        provider: ONNX Runtime's.
    """

    name: str
    provider: ClassVar[str]

    @abc.abstractmethod
    def manifest(self, model: ir.Model, target: Target) -> Manifest:
        """How `model` is to be opened."""

    def targets(self) -> Sequence[str]:
        """This machine's GPU (or an sm80 where there is none), and every known capability."""
        return (self.name, *(f"{self.name}-{c}" for c in CAPABILITIES))

    def capability(self, target: str) -> tuple[str, bool]:
        """The compute capability of a target by its name, and whether it can be run here."""
        if target != self.name:
            return target.removeprefix(f"{self.name}-"), False
        here = capability()
        return here or DEFAULT, here is not None and opens(self.provider)

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the model, its manifest and the script that runs it; needs no GPU.

        Raises UsageError if a file of somebody else's lies where the script goes.
        """
        found = find_spec("graphopt.backends.standalone")
        assert found is not None
        assert found.origin is not None
        text = Path(found.origin).read_bytes()
        script = path.with_name(f"{path.name.removesuffix('.onnx')}.run.py")
        if script.exists() and not script.read_bytes().startswith(text.splitlines()[0]):
            raise UsageError(f"{script} is not graphopt's: move it, or name another output")
        save(model, path)
        write_manifest(path, self.manifest(model, target))
        replace_files([(script, [text])])
        return path

    def how(self, path: Path, target: Target) -> Manifest:
        """As the manifest beside the model says."""
        return read_manifest(path) or Manifest(target.name, self.provider, extra=self.name)
