"""Lossless packing: the very bytes of a model's files, weights as exponents and mantissas."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from graphopt.context import Progress, silent
from graphopt.entropy.container import read_pack, write_pack
from graphopt.packing.files import files_of
from graphopt.replacing import replace_files

__all__ = ["Packed", "check", "pack_lossless"]


@dataclasses.dataclass(frozen=True)
class Packed:
    """What a pack holds and weighs.

    Attributes:
        before, after: bytes of the model's files and of the pack.
        kinds: bytes of the model's files by how they are coded: "f4" floats, "text" the rest, ...
    """

    before: int
    after: int
    kinds: dict[str, int]

    @property
    def ratio(self) -> float:
        """How many times smaller the pack is than the files."""
        return self.before / self.after


def pack_lossless(model: Path, target: Path, progress: Progress = silent) -> Packed:
    """Pack an ONNX file with its external data; `graphopt unpack` gives the same bytes again.

    The pack is read again and compared before it is put in place.

    Raises:
        ModelError: it is no ONNX file, or the pack cannot be written.
        MissingExtra: the packages that code it are not installed.
    """
    files = files_of(model)
    replace_files([(target, write_pack(files, progress=progress))], check)
    kinds: Counter[str] = Counter()
    for _, runs in files:
        for run in runs:
            kinds[run.kind] += len(run.data)
    return Packed(kinds.total(), target.stat().st_size, dict(kinds))


def check(pack: Path) -> None:
    """Decode a pack to its end. Raises ModelError: it is damaged."""
    with pack.open("rb") as file:
        for stored in read_pack(file):
            for _ in stored.content:
                pass
