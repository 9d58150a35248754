"""Surroundings of a command: import path, standard streams, and signals that end it."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from graphopt.user_code import import_path

__all__ = ["Ended", "discard_output", "settled"]

#: Signals that ask a command to end; what it has begun is cleaned up as after Ctrl-C.
SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]


class Ended(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def settled() -> Iterator[None]:
    """Nothing is imported from the working folder, streams take any text, signals clean up."""
    path, sys.path[:] = list(sys.path), import_path()
    _open_streams()
    handled = _handle_signals()
    try:
        yield
    finally:
        for number, former in handled.items():
            signal.signal(number, former)
        sys.path[:] = path


def discard_output() -> bool:
    """Let go of what standard output does not take; whether there was anything."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return True
    return False


def _open_streams() -> None:
    """A stream that is closed takes anything; what an encoding lacks is shown as `\\xb1`."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _handle_signals() -> dict[int, Any]:
    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # cleaning up takes a moment
        raise Ended(number)

    handled: dict[int, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores some
            try:
                handled[number] = signal.signal(number, end)
            except ValueError:  # not in the main thread, which gets them
                break
    return handled
