"""Recipe: everything needed to make the same optimized model again, as JSON inside the model.

It holds the pipeline, versions, hashes, the seed and every decision that timing or bisecting made,
and no time, folder or latency, so that the same run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from graphopt.errors import InputError
from graphopt.graph import provenance

__all__ = ["Decision", "Recipe", "read"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """One step: its spec, whether it stayed, edits denied, and what the pass decided by timing.

    `ran` is the weaker form of the pass that was run in its place, or "".
    """

    spec: str
    kept: bool
    denied: tuple[tuple[str, str], ...] = ()
    ran: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model was made; `source` and `samples` are SHA-256 digests (None: no samples).

    `max_opset` is the opset that no pass was to raise the model beyond, or None.
    """

    graphopt: str
    target: str
    seed: int
    source: str
    samples: str | None
    validated: bool
    versions: dict[str, str]
    steps: tuple[Decision, ...]
    max_opset: int | None = None

    def to_text(self) -> str:
        """Compact JSON with sorted keys: the same recipe gives the same text."""
        data = dataclasses.asdict(self)
        data["steps"] = [_without_defaults(d) for d in data["steps"]]
        if self.max_opset is None:
            del data["max_opset"]
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Recipe:
        """Read `to_text`'s JSON. Raises InputError if it is something else."""
        try:
            data = json.loads(text)
            steps = tuple(
                Decision(
                    d["spec"],
                    d.get("kept", True),
                    tuple((r, n) for r, n in d.get("denied", ())),
                    d.get("ran", ""),
                    d.get("facts", {}),
                )
                for d in data.pop("steps")
            )
            return cls(**data, steps=steps)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"this is not a graphopt recipe ({type(error).__name__}: {error})"
            ) from error


def read(path: str | Path) -> Recipe:
    """The recipe in a JSON file or an optimized model. Raises InputError if there is none."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            text = path.read_text()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        found = json.loads(text) if text.lstrip().startswith("{") else {}
        inner = found.get("recipe") if isinstance(found, dict) else None
        return Recipe.from_text(json.dumps(inner) if isinstance(inner, dict) else text)
    from graphopt.formats import load

    text = load(path).metadata_props.get(provenance.RECIPE, "")
    if not text:
        raise InputError(
            f"{path} holds no recipe: it was not written by graphopt, or --strip was used"
        )
    return Recipe.from_text(text)


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    from importlib.metadata import version

    import onnxruntime  # of several packages: the GPU's build is called onnxruntime-gpu

    found = {n: version(n) for n in ("numpy", "onnx", "onnx-ir")}
    return {**found, "onnxruntime": onnxruntime.__version__}


def portable(spec: str) -> str:
    """A spec without folders: `/home/me/my.py:MyPass` -> `my.py:MyPass`."""
    return re.sub(r"(?<![\w\"'])/[^\s:,()\"']*/(?=[^/\s:,()]+\.py:)", "", spec)


def _without_defaults(step: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v
        for k, v in step.items()
        if k == "spec" or (k == "kept" and not v) or (k != "kept" and v)
    }
