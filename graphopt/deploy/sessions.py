"""Sessions: a lowered model opened as its manifest says, called with arrays by name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from graphopt.deploy.manifest import Manifest, read_manifest
from graphopt.deploy.opened import BoundSession, OpenVinoSession, OrtSession, WatchedSession
from graphopt.deploy.packed import decoded
from graphopt.deploy.prepared import prepared_for
from graphopt.deploy.processors import threads_to_ask_for
from graphopt.deploy.runtime import CPU, open_cpu, session_options
from graphopt.entropy.container import is_pack, unpack
from graphopt.errors import InputError, MissingExtra, ModelError
from graphopt.plugins import BACKENDS, find

__all__ = ["open_manifest", "session"]


def session(
    path: str | Path, *, threads: int | None = None, watch: bool = False
) -> OrtSession | OpenVinoSession | WatchedSession:
    """Open the model at `path` as its manifest says; without one, on the CPU provider.

    Args:
        path: an .onnx file, the folder that a backend wrote it into (as `model.onnx`), or a pack
            (.gopt); for targets other than the CPU, and if it has external data, it is unpacked
            into a temporary folder for as long as opening takes.
        threads: overrides the manifest's.
        watch: count the values that leave the ranges an int8 model was calibrated to, for
            `session.drift()`; each run takes about twice as long.

    Raises:
        InputError: no such file, or the manifest is not one.
        MissingExtra: the provider's package is not installed.
        ModelError: the runtime refuses the model, or the pack is damaged.
    """
    path = Path(path)
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no model at {path}")
    manifest = read_manifest(file) or Manifest("cpu")
    if threads is not None:
        manifest = dataclasses.replace(manifest, threads=threads)
    if is_pack(file):
        plain = manifest.provider == CPU and not (manifest.backend or manifest.plugin or watch)
        if plain and (held := decoded(file)) is not None:
            return _open_held(file, manifest, *held)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            unpack(file, whole := Path(folder, "model.onnx"))
            opened = open_manifest(whole, manifest)
            return WatchedSession(opened, whole) if watch else opened
    opened = open_manifest(file, manifest)
    return WatchedSession(opened, file) if watch else opened


def open_manifest(
    path: Path, manifest: Manifest, *, profile: Path | None = None
) -> OrtSession | OpenVinoSession:
    """Open the model at `path` as `manifest` says; `profile` is a prefix for a profile's file.

    A plugin provider that finds none of its own devices (OpenVINO's looks for Intel's alone) gives
    way to its native package, which runs the same file with the same properties, if that is there.
    """
    if manifest.backend:
        return _open_by_backend(path, manifest)
    devices = plugin_devices(manifest) if manifest.plugin else []
    if not (manifest.plugin or manifest.provider in (CPU, *_providers())):
        raise MissingExtra(manifest.extra, f"target '{manifest.target}'")
    with _refusals(path, manifest):
        if manifest.plugin and not devices:
            return _open_native(path, manifest, profile is not None)
        return _open_ort(path, manifest, devices, profile)


def _open_held(
    path: Path, manifest: Manifest, graph: bytes, weights: Mapping[str, Any]
) -> OrtSession:
    """A graph and its weights, both in memory, on the CPU provider."""
    import onnxruntime as ort

    options = _options(manifest)
    options.add_external_initializers(
        list(weights), [ort.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
    )
    with _refusals(path, manifest):
        return OrtSession(open_cpu(graph, options))


@contextlib.contextmanager
def _refusals(path: Path, manifest: Manifest) -> Iterator[None]:
    """Tell a runtime's errors as one of the model or the target."""
    try:
        yield
    except RuntimeError as error:  # OpenVINO raises no narrower public type
        raise _refused(path, manifest, error) from error
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise _refused(path, manifest, error) from error
        raise


def _open_by_backend(path: Path, manifest: Manifest) -> OrtSession:
    """Another runtime's file, in the session of the installed backend that the manifest names."""
    entry = find(BACKENDS).get(manifest.backend)
    if entry is None:
        raise InputError(f"{path.name} is for a backend '{manifest.backend}', which is not here")
    backend = entry.load()
    target = backend.target(manifest.target)
    if manifest.threads:
        target = dataclasses.replace(target, threads=manifest.threads)
    opened: OrtSession = backend.session(path, target)  # with the same attributes
    return opened


def plugin_devices(manifest: Manifest) -> list[Any]:
    """The runtime's devices of a plugin provider, registered if it was not yet; maybe none."""
    import onnxruntime as ort

    package = _package(manifest.plugin)
    if package is None:
        if _package(manifest.native) is None:
            raise MissingExtra(manifest.extra, f"target '{manifest.target}'")
        return []
    names = set(package.get_ep_names())
    _register(manifest.provider, package.get_library_path())
    wanted = manifest.device.items()
    every = [d for d in ort.get_ep_devices() if d.ep_name in names]
    return [d for d in every if wanted <= dict(d.ep_metadata).items()][:1]


@cache
def _register(provider: str, library: str) -> None:
    """Make a plugin known to this process's ONNX Runtime, once."""
    import onnxruntime as ort

    ort.register_execution_provider_library(provider, library)


def _open_ort(
    path: Path, manifest: Manifest, devices: list[Any], profile: Path | None
) -> OrtSession:
    import onnxruntime as ort

    prepared = prepared_for(path, manifest) if profile is None else None
    options = _options(manifest, optimize=prepared is None)
    path = prepared or path
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if devices:
        given = dict(manifest.provider_options)
        if manifest.properties:
            given["load_config"] = json.dumps({"CPU": _properties(manifest)})
        options.add_provider_for_devices(devices, given)
        return OrtSession(ort.InferenceSession(str(path), options))
    if manifest.provider == CPU:
        raw = ort.InferenceSession(str(path), options, providers=[CPU])
    else:
        given = _placed(path, manifest.provider_options)
        # a replayed graph names no nodes in a profile
        raw = _open_provider(path, options, manifest, given if profile is None else _eager(given))
    return BoundSession(raw, manifest.bind) if manifest.bind else OrtSession(raw)


def _options(manifest: Manifest, *, optimize: bool = True) -> Any:
    """The runtime's options that a manifest asks for, whatever the provider."""
    options = session_options(
        optimize=optimize,
        threads=manifest.threads or threads_to_ask_for(),
        config=manifest.config,
    )
    options.enable_cpu_mem_arena = manifest.arena
    options.enable_mem_pattern = manifest.pattern
    for name, size in manifest.free_dimensions.items():
        options.add_free_dimension_override_by_name(name, size)
    return options


def _open_provider(path: Path, options: Any, manifest: Manifest, given: Mapping[str, str]) -> Any:
    """The runtime's session on the manifest's provider, or an error: never on the CPU unasked.

    A model with nodes that the provider leaves to the CPU can't be replayed as one CUDA graph; the
    runtime refuses it, and it is opened without.
    """
    import onnxruntime as ort

    ort.preload_dlls()  # CUDA's libraries, where they are Python packages
    if manifest.provider == "TensorrtExecutionProvider":
        _package("tensorrt")  # which loads its own
    behind = [*manifest.fallbacks, CPU]
    try:
        raw = ort.InferenceSession(
            str(path), options, providers=[(manifest.provider, given), *behind], enable_fallback=0
        )
    except Exception as error:
        if "graph capture" not in str(error):
            raise
        return _open_provider(path, options, manifest, _eager(given))
    if manifest.provider not in raw.get_providers():
        raise ModelError(
            f"onnxruntime could not load {manifest.provider} for '{manifest.target}': its log says "
            f"which library is missing (CUDA and cuDNN: pip install onnxruntime-gpu[cuda,cudnn])"
        )
    return raw


def _eager(options: Mapping[str, str]) -> dict[str, str]:
    """Provider options without CUDA graphs."""
    return {k: "0" if "cuda_graph" in k else v for k, v in options.items()}


def _open_native(path: Path, manifest: Manifest, profile: bool) -> OpenVinoSession:
    openvino = _package(manifest.native)
    if openvino is None:
        raise MissingExtra(manifest.extra, f"target '{manifest.target}'")
    model = openvino.Core().read_model(str(path))
    outputs = [o.get_any_name() for o in model.outputs]
    if manifest.free_dimensions:
        model.reshape(_fixed_shapes(path, manifest.free_dimensions))
    properties = _properties(manifest)
    if profile:
        properties["PERF_COUNT"] = "YES"
    return OpenVinoSession(openvino.Core().compile_model(model, "CPU", properties), outputs)


def _properties(manifest: Manifest) -> dict[str, str]:
    """The provider's own properties, with the number of threads where one is given."""
    count = manifest.threads or threads_to_ask_for()
    threads = {"INFERENCE_NUM_THREADS": str(count)} if count else {}
    return {**manifest.properties, **threads}


def _fixed_shapes(path: Path, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """The shapes of the model's inputs, with named dimensions as `sizes` and -1 for unknown."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constant = {i.name for i in graph.initializer}
    return {
        i.name: [sizes.get(d.dim_param, d.dim_value or -1) for d in i.type.tensor_type.shape.dim]
        for i in graph.input
        if i.name not in constant
    }


def _placed(path: Path, options: Mapping[str, str]) -> dict[str, str]:
    """Provider options with paths of caches made relative to the model, not to the caller."""
    return {
        k: str(path.parent / v) if k.endswith("_path") and not Path(v).is_absolute() else v
        for k, v in options.items()
    }


def _package(name: str) -> Any:
    """The package called `name`, or None if it is not installed."""
    try:
        return import_module(name) if name else None
    except ImportError:
        return None


def _providers() -> list[str]:
    import onnxruntime as ort

    return list(ort.get_available_providers())


def _refused(path: Path, manifest: Manifest, error: Exception) -> ModelError:
    """One line: the runtime's own words, without where in its source they come from."""
    lines = [t.strip() for t in str(error).splitlines() if t.strip()]
    placed = ("Exception from", "Check '", "[ONNXRuntimeError] : 11")
    said = [t for t in lines if not t.startswith(placed)] or lines or [type(error).__name__]
    text = next((t for t in said if t.startswith("While validating")), said[0])
    text = re.sub(r"^/\S+:\d+ .*?\) (?=\S)", "", text)
    return ModelError(f"{path.name} does not open for '{manifest.target}': {text[:400]}")
