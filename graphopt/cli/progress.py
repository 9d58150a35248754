"""Progress on stderr: a line on a terminal once something takes over a second, with time left."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from graphopt.reporting.escaping import printable

__all__ = ["Estimate", "progress"]

#: Seconds before anything is shown, and between two changes of what is.
PATIENCE, PERIOD = 1.0, 0.1

logger = logging.getLogger("graphopt")


class Estimate:
    """How long what is going on will take, from how long what is done of it took.

    What goes on is known by its text up to the last colon: losses and counts may follow.
    """

    def __init__(self) -> None:
        self._now: tuple[str, int] = ("", 0)
        self._began, self._first = 0.0, 0

    def __call__(self, text: str, done: int, total: int, now: float) -> str:
        """`3/20, about 17 s left`; "" where nobody knows how much there is.

        Args:
            text: what goes on.
            done, total: how much of it is done, and how much there is.
            now: seconds, of any clock.
        """
        what = (text.rpartition(":")[0] or text, total)
        if what != self._now or done < self._first:
            self._now, self._began, self._first = what, now, done
        if not total:
            return ""
        finished = done - self._first
        if not finished:
            return f"{done}/{total}"
        left = (now - self._began) / finished * (total - done)
        return f"{done}/{total}, about {_seconds(left)} left"


def _seconds(left: float) -> str:
    if left < 90:
        return f"{left:.0f} s"
    return f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"


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
    task = bar.add_task("starting", total=None, share="")
    estimate = Estimate()
    shown = ("", 0.0)

    def update(text: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        share = estimate(text, done, total, now)
        if text == shown[0] and now < shown[1] + PERIOD:
            return
        shown = (text, now)
        bar.update(
            task, description=printable(text), completed=done, total=total or None, share=share
        )

    late = threading.Timer(PATIENCE, bar.start)
    late.daemon = True
    late.start()
    try:
        yield update
    finally:
        late.cancel()
        late.join()  # it may be about to begin
        bar.stop()
