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
    """List the passes: what each does and needs, what its options mean and are by default."""
    from graphopt import plugins
    from graphopt.spec import explanations, options, pass_class, type_name

    listed: list[dict[str, Any]] = []
    for name in plugins.find(plugins.PASSES):
        cls = pass_class(name)
        explained = explanations(cls)
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
                        "explanation": explained.get(option, ""),
                    }
                    for option, (hint, default) in options(cls).items()
                },
            }
        )
    if as_json:
        emit_json(listed)
        return
    from graphopt.reporting.text import out, table

    made = table("pass", "option", "default", "what it does")
    for item in listed:
        about = [item["summary"], "Outputs may change." if item["lossy"] else ""]
        about += [f"Needs {' and '.join(item['needs'])}."] if item["needs"] else []
        made.add_row(item["name"], "", "", " ".join(filter(None, about)), style="bold")
        for name, option in item["options"].items():
            default = "required" if option["required"] else repr(option["default"])
            made.add_row("", name, default, option["explanation"])
    out().print(made)
