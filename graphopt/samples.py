"""Samples: input data for calibration and checking, streamed and re-iterable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Feeds", "Samples"]

#: One run's inputs: arrays by input name.
Feeds = dict[str, np.ndarray[Any, Any]]


class Samples:
    """Feeds for a model's inputs, one dict of arrays per run; iterate as often as needed.

    Attributes:
        source: where they come from, as shown to the user.
        synthetic: True if they were drawn at random for want of real ones.
    """

    source: str = ""
    synthetic: bool = False

    def __iter__(self) -> Iterator[Feeds]:
        raise NotImplementedError
