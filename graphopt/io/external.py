"""External data: tensors that lie in files beside the model, mapped, never outside its folder."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.io.tensors import MappedFile, MappedTensor

__all__ = ["data_path", "map_external", "mapped"]


def mapped(
    tensor: ir.ExternalTensor, file: MappedFile, offset: int, length: int, *, external: bool
) -> MappedTensor:
    """A tensor of so many bytes of a file. Raises ModelError: its shape needs another number."""
    made = MappedTensor(
        file,
        offset,
        tensor.dtype,
        tensor.shape,
        name=tensor.name,
        external=external,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
    if made.nbytes != length:
        raise ModelError(
            f"tensor '{tensor.name}' holds {length} bytes where its shape "
            f"{list(tensor.shape)} of {tensor.dtype.name} needs {made.nbytes}"
        )
    return made


def map_external(
    tensor: ir.ExternalTensor, model: Path, opened: dict[Path, MappedFile]
) -> MappedTensor:
    """A tensor of the file that the model names, which must lie beside it (`data_path`)."""
    what = f"external data of '{tensor.name}'"
    path = data_path(str(tensor.location), model, what)
    if path not in opened:
        try:
            opened[path] = MappedFile(path)
        except FileNotFoundError:
            raise ModelError(
                f"{what}: there is no file '{tensor.location}' beside the model; "
                "copy it there (it belongs to the model)"
            ) from None
        except OSError as error:
            raise ModelError(f"{what}: '{tensor.location}': {error.strerror}") from error
    file, offset = opened[path], tensor.offset or 0
    length = tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or offset + length > len(file.view):
        raise ModelError(
            f"{what}: '{tensor.location}' has {len(file.view)} bytes, the model needs "
            f"{offset + length}: the file is cut off or belongs to another model"
        )
    return mapped(tensor, file, offset, length, external=True)


def data_path(location: str, model: Path, what: str) -> Path:
    """The file at `location`; it must lie in the folder of the model, links followed.

    A model that is itself a link (as in the cache of the Hugging Face hub) may have its data
    beside the link's target.
    """
    path = model.parent / location
    named = os.path.normpath(location)
    if "\0" in location:
        raise ModelError(f"{what} lies at {location!r}, which is no name of a file")
    if not location or os.path.isabs(location) or named.split(os.sep)[0] == os.pardir:
        raise ModelError(
            f"{what} lies at '{location}', outside the model's folder: refused, since a model "
            "file could read any file that way"
        )
    real = Path(os.path.realpath(path))
    homes = {Path(os.path.realpath(model.parent)), Path(os.path.realpath(model)).parent}
    if not any(real.is_relative_to(home) for home in homes):
        raise ModelError(
            f"{what}: '{location}' is a link to {real}, outside the model's folder: refused"
        )
    return real
