"""Manifest: a small file beside a lowered model that says how ONNX Runtime should open it.

`model.opt.onnx` has `model.opt.session.json`. `graphopt.session` reads it; docs/deploy.md shows
how to do the same without graphopt. A manifest comes with a model from anywhere, so what it may
name is bounded: packages from a list, and files beside the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import InputError, UsageError
from graphopt.replacing import check_replaceable, replace_files

__all__ = [
    "Manifest",
    "check_manifest",
    "is_signed",
    "manifest_from",
    "manifest_path",
    "read_manifest",
    "sign",
    "write_manifest",
]

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How ONNX Runtime should open a model.

    Attributes:
        target: the target the model was lowered for.
        provider: the execution provider that runs it; the CPU provider takes what it leaves.
        provider_options: the provider's own options.
        fallbacks: providers that take, in this order, what the provider leaves to others.
        bind: device ("cuda") whose memory holds inputs and outputs between runs; "" for none.
        plugin: package whose `get_library_path()` holds the provider, if it comes as a plugin.
        device: metadata that tells a plugin's device for this target from its others.
        native: package that runs the model where the plugin finds no device of its own.
        properties: properties of the device, for the plugin and the native package alike.
        extra: the extra of graphopt that installs what is needed.
        prepared: the model's prepared form and what it depends on (`graphopt.deploy.prepared`).
        threads: threads of one run; 0 takes what the machine has when the model is opened.
        config: session configuration entries.
        free_dimensions: sizes of named dynamic dimensions, where they are fixed.
        rows: rows of one run at which trees take the most rows a second, as measured; 0: unknown.
        arena: activations come from a pool that the session keeps.
        pattern: their places in it are planned ahead where shapes repeat.
        backend: the backend that opens the model, where it is a file of another runtime.
        files: names of the other files beside it that belong to the model.
        sha256: of the model's file, if that holds no recipe by which graphopt knows it as its own.
    """

    target: str
    provider: str = "CPUExecutionProvider"
    provider_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    bind: str = ""
    plugin: str = ""
    device: Mapping[str, str] = dataclasses.field(default_factory=dict)
    native: str = ""
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: str = ""
    prepared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = 0
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    free_dimensions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rows: int = 0
    arena: bool = True
    pattern: bool = True
    backend: str = ""
    files: tuple[str, ...] = ()
    sha256: str = ""


#: Packages that a manifest may name; they are imported.
PLUGINS, NATIVES = ("", "onnxruntime_ep_openvino"), ("", "openvino")
#: What options that name files and libraries are called, and the ones that may be given.
_NAMES_FILES = re.compile("path|file|dir|folder|lib|plugin|extension", re.IGNORECASE)
_FOLDERS = ("trt_engine_cache_path", "trt_timing_cache_path")


def manifest_path(path: Path) -> Path:
    """Where the manifest lies: of `m.onnx` `m.session.json`, of `m.bin` `m.bin.session.json`."""
    return path.with_name(f"{path.name.removesuffix('.onnx')}.session.json")


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Write the manifest beside the model at `path`; only fields that say something.

    Raises:
        UsageError: a file there is no manifest, and would be overwritten.
        ModelError: it cannot be written.
    """
    check_manifest(path)
    given, usual = dataclasses.asdict(manifest), dataclasses.asdict(Manifest(""))
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v != usual[k]}
    fields["provider"] = manifest.provider
    text = json.dumps({"schema": SCHEMA, **fields}, indent=2, sort_keys=True) + "\n"
    replace_files([(manifest_path(path), [text.encode()])])
    return manifest_path(path)


def sign(path: Path) -> None:
    """Have the manifest know the model at `path`, if it has one, for `is_signed`."""
    manifest = read_manifest(path)
    if manifest is not None:
        write_manifest(path, dataclasses.replace(manifest, sha256=_sha256(path)))


def is_signed(path: Path) -> bool:
    """Whether the model at `path` is the one that its manifest was signed for."""
    try:
        manifest = read_manifest(path)
    except InputError:
        return False
    return manifest is not None and bool(manifest.sha256) and manifest.sha256 == _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_manifest(path: Path) -> None:
    """Raise UsageError if what lies where the model at `path` has its manifest is not one."""
    file = manifest_path(path)
    if not file.exists():
        return
    check_replaceable(file)
    try:
        data = json.loads(file.read_bytes())
        ours = {"schema", "target", "provider"} <= data.keys()
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise UsageError(
            f"{file} is no session manifest and would be overwritten: move it, or name another "
            "output"
        )


def manifest_from(data: Mapping[str, Any]) -> Manifest:
    """A manifest from its fields as JSON has them.

    Raises TypeError for a field it has not, or that is of another type.
    """
    made = Manifest(**{**data, **{k: tuple(data.get(k, ())) for k in ("fallbacks", "files")}})
    usual = Manifest("")
    for field in dataclasses.fields(Manifest):
        value, kind = getattr(made, field.name), type(getattr(usual, field.name))
        if type(value) is not kind:
            raise TypeError(f"'{field.name}' should be {kind.__name__}, not {value!r}")
    texts = [made.config, made.device, made.provider_options, made.properties]
    listed = (*made.fallbacks, *made.files, *(v for t in texts for v in t.values()))
    if not all(isinstance(v, str) for v in listed):
        raise TypeError("options should be texts")
    if not all(type(v) is int for v in made.free_dimensions.values()):
        raise TypeError("'free_dimensions' should be integers")
    return made


def read_manifest(path: Path) -> Manifest | None:
    """The manifest beside the model at `path`, or None if there is none.

    Raises:
        InputError: it is not one, or names a package, library or file that it may not name.
    """
    file = manifest_path(path)
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_bytes())
        schema = data.pop("schema")
        if schema == SCHEMA:
            manifest = manifest_from(data)
            _check_names(file, manifest)
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is not a session manifest: {error}") from error
    raise InputError(f"{file} is of schema {schema}; this graphopt reads schema {SCHEMA}")


def _check_names(file: Path, manifest: Manifest) -> None:
    """Raise InputError if the manifest would have code loaded, or files used, from elsewhere."""
    for name, known in ((manifest.plugin, PLUGINS), (manifest.native, NATIVES)):
        if name not in known:
            raise InputError(
                f"{file} names the package '{name}', and a manifest may name only "
                f"{PLUGINS[1]} and {NATIVES[1]}; open the model with code of your own"
            )
    if away := [name for name in manifest.files if Path(name).name != name]:
        raise InputError(f"{file} names '{away[0]}', which is not beside the model")
    options = {**manifest.provider_options, **manifest.properties, **manifest.config}
    for key, value in options.items():
        inside = not (Path(value).is_absolute() or ".." in Path(value).parts)
        if _NAMES_FILES.search(key) and not (key in _FOLDERS and inside):
            raise InputError(
                f"{file} sets '{key}' to '{value}', and a manifest may name no files but folders "
                "beside the model for TensorRT's caches; open the model with code of your own"
            )
