"""Folders of onnxruntime-genai: `genai_config.json` names a decoder; its tokenizer lies beside it.

A folder stands for its decoder. Written, all else in it is carried along: the tokenizer, the
configuration, other models that the configuration names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.io.reading import read_model, source_of
from graphopt.io.writing import write_model
from graphopt.replacing import replace_files

__all__ = ["CONFIG", "FORMAT", "GenaiFormat", "carry", "companions", "decoder_of"]

CONFIG = "genai_config.json"
#: Bytes that are copied at a time.
CHUNK = 1 << 24


def decoder_of(folder: Path) -> Path:
    """The decoder's file in a folder.

    Raises:
        ModelError: its configuration names none in it.
    """
    try:
        name = json.loads((folder / CONFIG).read_bytes())["model"]["decoder"]["filename"]
    except OSError as error:
        raise ModelError(f"it is a folder without a {CONFIG}: name a file in it") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{CONFIG} names no file at model.decoder.filename: name the .onnx file itself"
        ) from error
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ModelError(f"{CONFIG} names a decoder outside of its folder: {name!r}")
    return folder / name


def companions(source: Path, target: Path) -> dict[Path, Path]:
    """Every file of a folder that is not its decoder's, and where in another folder it goes.

    Raises:
        UsageError: another file is there under one of the names.
    """
    found = {path: target / path.relative_to(source) for path in _beside(decoder_of(source))}
    for path, there in found.items():
        if there.exists() and not _same(path, there):
            raise UsageError(f"{there} is another file than {path}: name another folder with -o")
    return found


def carry(source: Path, target: Path) -> list[Path]:
    """Copy all of a folder but its decoder to another, the configuration last; the files there.

    Raises:
        UsageError: as `companions`.
        ModelError: a file cannot be written; what was there before is whole.
    """
    found = companions(source, target)
    for path, there in found.items():
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            replace_files([(there, _chunks(path))])
    return list(found.values())


class GenaiFormat:
    """A folder with a `genai_config.json`; see `graphopt.formats.Format`."""

    def load(self, path: str) -> ir.Model:
        """Read the decoder; its weights stay there, mapped."""
        return read_model(decoder_of(Path(path)))

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Write the decoder, and beside it what lay beside the one that the model was read from."""
        source = source_of(model)
        if source is None or not (source.path.parent / CONFIG).is_file():
            raise UsageError(
                f"{path} is a folder, but the model was not read from one: name a file"
            )
        path.mkdir(exist_ok=True)
        write_model(model, path / source.path.name, external=external)
        carry(source.path.parent, path)


def _beside(decoder: Path) -> list[Path]:
    """All files of the folder that are not the decoder's own, the configuration last."""
    folder = decoder.parent
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    others = [p for p in files if p.suffix == ".onnx" and p != decoder]
    shared = {p for other in others for p in _data(other)}
    own = {decoder, *_data(decoder)} - shared
    kept = [p for p in files if p not in own and p.name != CONFIG]
    return [*kept, folder / CONFIG]


def _data(path: Path) -> tuple[Path, ...]:
    source = source_of(read_model(path))
    return tuple(p.absolute() for p in source.data) if source else ()


def _same(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    return all(x == y for x, y in zip(_chunks(a), _chunks(b), strict=True))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


FORMAT = GenaiFormat()
