"""Configuration: `graphopt.toml` in the working directory, or the file that `--config` names.

It holds what `graphopt optimize` takes, by option name: `passes = "prune(ratio=0.3), fuse"`,
`target = "cpu"`, `max_drop = 0.5`, `[shape] x = [1, 3, 224, 224]`. The command line wins. A file
beside the model is never read: a pass path in it would run code from a downloaded folder.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError, nearest

__all__ = ["DEFAULT", "read_config"]

DEFAULT = "graphopt.toml"


def read_config(path: str | None, known: set[str]) -> dict[str, Any]:
    """Options by name. Raises UsageError for an unreadable file or an unknown option.

    Args:
        path: what `--config` named; None reads graphopt.toml here if there is one.
        known: option names, with underscores.
    """
    file = Path(path or DEFAULT)
    if path is None and not file.is_file():
        return {}
    try:
        data = tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    options = {k.replace("-", "_"): v for k, v in data.items()}
    for key in options:
        if key not in known:
            raise UsageError(f"{file}: no option '{key}'{nearest(key, known)}")
    return options
