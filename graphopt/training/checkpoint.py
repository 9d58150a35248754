"""Checkpoint: a training's state in one file, replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from graphopt.errors import InputError

__all__ = ["Checkpoint"]


class Checkpoint:
    """The state of one training, at `path`; `key` says which training it is."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self) -> dict[str, Any] | None:
        """The state, or None if there is none yet.

        Raises:
            InputError: the file is no checkpoint, or that of another training.
        """
        import pickle

        import torch

        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            key = state.pop("key")
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise InputError(
                f"checkpoint {self.path} cannot be read ({type(error).__name__}); delete it"
            ) from error
        if key != self.key:
            raise InputError(
                f"checkpoint {self.path} is of another training (model, samples, seed or options "
                "differ); name another folder, or delete it"
            )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Put `state` in the place of what was there; an interruption leaves one of the two."""
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({**state, "key": self.key}, file)
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
