"""Manifest: a small file beside a lowered model that says how ONNX Runtime should open it.

`model.opt.onnx` has `model.opt.session.json`. `graphopt.session` reads it; docs/deploy.md shows
how to do the same without graphopt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import InputError

__all__ = ["Manifest", "manifest_from", "manifest_path", "read_manifest", "write_manifest"]

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
        arena: activations come from a pool that the session keeps.
        pattern: their places in it are planned ahead where shapes repeat.
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
    arena: bool = True
    pattern: bool = True


def manifest_path(path: Path) -> Path:
    """Where the manifest of `model.opt.onnx` lies: `model.opt.session.json` beside it."""
    return path.with_suffix(".session.json")


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Write the manifest beside the model at `path`; only fields that say something."""
    given, usual = dataclasses.asdict(manifest), dataclasses.asdict(Manifest(""))
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v != usual[k]}
    fields["provider"] = manifest.provider
    file = manifest_path(path)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps({"schema": SCHEMA, **fields}, indent=2, sort_keys=True) + "\n")
    return partial.replace(file)


def manifest_from(data: Mapping[str, Any]) -> Manifest:
    """A manifest from its fields as JSON has them. Raises TypeError for a field it has not."""
    return Manifest(**{**data, "fallbacks": tuple(data.get("fallbacks", ()))})


def read_manifest(path: Path) -> Manifest | None:
    """The manifest beside the model at `path`, or None if there is none."""
    file = manifest_path(path)
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text())
        schema = data.pop("schema")
        if schema == SCHEMA:
            return manifest_from(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a session manifest: {error}") from error
    raise InputError(f"{file} is of schema {schema}; this graphopt reads schema {SCHEMA}")
