"""Output paths of `graphopt optimize`: what the result is written as, where, and what is beside."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graphopt.cli.config import DEFAULTS
from graphopt.cli.destinations import Destinations, is_model
from graphopt.cli.reports import ours
from graphopt.errors import UsageError

__all__ = ["destinations", "folder_of", "new_folder", "output_of", "suffix_of"]


def suffix_of(named: str | None, emit: str | None, external: bool | None, target: Any) -> str:
    """What is written: `.onnx`, `.pt2`, for which PyTorch must be there (MissingExtra), or what the
    target's files end in.
    """
    wanted = ".onnx" if target == "auto" else target.suffix
    if wanted != ".onnx":
        if emit or external or (named and not named.endswith(wanted)):
            raise UsageError(
                f"target '{target.name}' writes *{wanted}: name it so after -o, and leave out "
                "--emit and --external-data"
            )
        return str(wanted)
    program = named is not None and named.endswith(".pt2")
    if named and emit and program != (emit == "torch"):
        raise UsageError(f"-o {named}: --emit {emit} writes {'.pt2' if not program else '.onnx'}")
    if not (program or emit == "torch"):
        return ".onnx"
    if external:
        raise UsageError("--external-data is for .onnx files: a .pt2 file holds its weights itself")
    from graphopt.backend import find_target

    find_target("torch")
    return ".pt2"


def output_of(source: Path, named: str | None, suffix: str) -> Path:
    """Where to write; unnamed: beside the model."""
    return Path(named) if named else source.with_name(f"{source.stem}.opt{suffix}")


def folder_of(source: str, named: str | None, suffix: str) -> Path | None:
    """The folder to write for a folder of onnxruntime-genai; None where -o names a file."""
    if suffix != ".onnx" or (named and named.endswith((".onnx", ".gopt"))):
        return None
    return Path(named) if named else Path(os.path.abspath(source) + ".opt")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder, which goes again if it stays empty."""
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def destinations(options: dict[str, Any], passes: list[Any], model: Any, output: Path) -> Any:
    """What will be written, checked: UsageError for a file of the user's."""
    from graphopt.deploy.manifest import check_manifest, manifest_path
    from graphopt.io.reading import source_of
    from graphopt.io.writing import check_data, weights_beside

    read = [options[k] for k in ("model", "samples", "evaluate", "replay", "target")]
    read += [options["config"]] if options["config"] else DEFAULTS
    for one in passes:
        read.append(getattr(sys.modules.get(type(one).__module__), "__file__", None))
        read += [v for v in vars(one).values() if isinstance(v, str)]
    source = source_of(model)
    files = Destinations(read, source.files if source else ())
    files.add(output, "-o", is_model)
    if output.suffix != ".pt2":
        check_manifest(output)
        files.add(manifest_path(output), "the manifest of -o", lambda path: True)
        beside = options["external_data"]
        if beside or (beside is None and weights_beside(model)):
            data = output.with_name(f"{output.name}.data")
            check_data(output, data)
            files.add(data, "the weights of -o", lambda path: True)
    if options["report_file"]:
        files.add(options["report_file"], "--report", ours(options["report_file"]))
    return files
