"""`graphopt passes`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from graphopt.cli.common import emit_json, standard


@click.command("passes")
@standard
def command(as_json: bool, debug: bool) -> None:
    """List the passes: what each does, its options with their defaults, what it needs."""
    from graphopt import plugins
    from graphopt.spec import options, pass_class, type_name

    listed: list[dict[str, Any]] = []
    for name in plugins.find(plugins.PASSES):
        cls = pass_class(name)
        listed.append(
            {
                "name": name,
                "summary": (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
                "lossy": cls.lossy,
                "needs": sorted(cls.needs),
                "options": {
                    option: {
                        "type": type_name(hint),
                        "default": None if default is dataclasses.MISSING else default,
                        "required": default is dataclasses.MISSING,
                    }
                    for option, (hint, default) in options(cls).items()
                },
            }
        )
    if as_json:
        emit_json(listed)
        return
    from graphopt.reporting.text import lines, out, table

    made = table("pass", "outputs", "needs", "what it does, and its options")
    for item in listed:
        about_it = [item["summary"]]
        for option, about in item["options"].items():
            default = "required" if about["required"] else repr(about["default"])
            about_it.append(f"  {option}={default}  ({about['type']})")
        made.add_row(
            item["name"],
            "may change" if item["lossy"] else "equal",
            ", ".join(item["needs"]) or "-",
            lines(about_it),
        )
    out().print(made)
