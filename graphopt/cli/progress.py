"""Progress on stderr: shown on a terminal once something takes over two seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from graphopt.reporting.escaping import printable

__all__ = ["progress"]

#: Seconds before anything is shown.
PATIENCE = 2.0

logger = logging.getLogger("graphopt")


@contextmanager
def progress(enabled: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A function `(text, done, total)` that keeps one line on stderr up to date.

    Where stderr is no terminal each new text is logged (`--log-level info` shows it).
    """
    if not (enabled and sys.stderr.isatty()):
        told = [""]

        def log(text: str, done: int, total: int) -> None:
            if text != told[0]:
                logger.info("%s", printable(text))
            told[0] = text

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[share]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None, share="")
    began = time.monotonic()

    def update(text: str, done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > PATIENCE:
            bar.start()
        share = f"{done}/{total}" if total else ""
        bar.update(
            task, description=printable(text), completed=done, total=total or None, share=share
        )

    try:
        yield update
    finally:
        bar.stop()
