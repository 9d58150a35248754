"""Opening a lowered model as it was meant to run: a small manifest beside it says how.

`model.opt.onnx` runs in plain ONNX Runtime with the options in `model.opt.session.json`;
`graphopt.session("model.opt.onnx")` applies them. docs/deploy.md does the same without graphopt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import InputError, MissingExtra, ModelError

__all__ = ["Manifest", "OrtSession", "manifest_path", "read_manifest", "session", "write_manifest"]

SCHEMA = 1
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How ONNX Runtime should open a model.

    Attributes:
        target: the target the model was lowered for.
        provider: the execution provider that runs it; the CPU provider takes what it leaves.
        provider_options: the provider's own options.
        plugin: package whose `get_library_path()` holds the provider, if it comes as a plugin.
        device: metadata that tells a plugin's device for this target from its others.
        extra: the extra of graphopt that installs what is needed.
        threads: threads of one run; 0 leaves it to the runtime.
        config: session configuration entries.
        free_dimensions: sizes of named dynamic dimensions, where they are fixed.
    """

    target: str
    provider: str = "CPUExecutionProvider"
    provider_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plugin: str = ""
    device: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: str = ""
    threads: int = 0
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    free_dimensions: Mapping[str, int] = dataclasses.field(default_factory=dict)


class OrtSession:
    """An ONNX Runtime session that takes and gives arrays by name; `raw` is the runtime's own."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.inputs: list[str] = [i.name for i in raw.get_inputs()]
        self.outputs: list[str] = [o.name for o in raw.get_outputs()]

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        return dict(zip(self.outputs, self.raw.run(self.outputs, dict(feeds)), strict=True))


def session(path: str | Path, *, threads: int | None = None) -> OrtSession:
    """Open the model at `path` as its manifest says; without one, on the CPU provider.

    Args:
        path: an .onnx file, or the folder that a backend wrote it into (as `model.onnx`).
        threads: overrides the manifest's.

    Raises:
        InputError: no such file, or the manifest is not one.
        MissingExtra: the provider's package is not installed.
        ModelError: ONNX Runtime refuses the model.
    """
    path = Path(path)
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no model at {path}")
    manifest = read_manifest(file) or Manifest("cpu")
    if threads is not None:
        manifest = dataclasses.replace(manifest, threads=threads)
    return open_manifest(file, manifest)


def open_manifest(path: Path, manifest: Manifest, *, profile: Path | None = None) -> OrtSession:
    """Open the model at `path` as `manifest` says; `profile` is a prefix for a profile's file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = manifest.threads
    for key, value in manifest.config.items():
        options.add_session_config_entry(key, value)
    for name, size in manifest.free_dimensions.items():
        options.add_free_dimension_override_by_name(name, size)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        if manifest.plugin:
            options.add_provider_for_devices(_devices(manifest), dict(manifest.provider_options))
            return OrtSession(ort.InferenceSession(str(path), options))
        providers: list[Any] = ["CPUExecutionProvider"]
        if manifest.provider != "CPUExecutionProvider":
            if manifest.provider not in ort.get_available_providers():
                raise MissingExtra(manifest.extra, f"target '{manifest.target}'")
            providers.insert(0, (manifest.provider, dict(manifest.provider_options)))
        return OrtSession(ort.InferenceSession(str(path), options, providers=providers))
    except MissingExtra:
        raise
    except Exception as error:  # the runtime's exceptions share no narrower public base
        text = str(error).split("\n", 1)[0]
        raise ModelError(f"{path.name} does not open for '{manifest.target}': {text}") from error


def manifest_path(path: Path) -> Path:
    """Where the manifest of `model.opt.onnx` lies: `model.opt.session.json` beside it."""
    return path.with_suffix(".session.json")


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Write the manifest beside the model at `path`; only fields that say something."""
    fields = {k: v for k, v in dataclasses.asdict(manifest).items() if v}
    file = manifest_path(path)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps({"schema": SCHEMA, **fields}, indent=2, sort_keys=True) + "\n")
    return partial.replace(file)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest beside the model at `path`, or None if there is none."""
    file = manifest_path(path)
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text())
        schema = data.pop("schema")
        if schema == SCHEMA:
            return Manifest(**data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a session manifest: {error}") from error
    raise InputError(f"{file} is of schema {schema}; this graphopt reads schema {SCHEMA}")


def _devices(manifest: Manifest) -> list[Any]:
    """The runtime's devices of a plugin provider, whose library is registered if it was not yet."""
    import onnxruntime as ort

    try:
        package = import_module(manifest.plugin)
    except ImportError as error:
        raise MissingExtra(manifest.extra, f"target '{manifest.target}'") from error
    names = set(package.get_ep_names())
    if not any(d.ep_name in names for d in ort.get_ep_devices()):
        ort.register_execution_provider_library(manifest.provider, package.get_library_path())
    wanted = manifest.device.items()
    found = [
        d
        for d in ort.get_ep_devices()
        if d.ep_name in names and wanted <= dict(d.ep_metadata).items()
    ]
    if not found:
        raise ModelError(f"{manifest.provider} finds no device for '{manifest.target}' here")
    return found[:1]
