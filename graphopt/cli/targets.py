"""`graphopt targets`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli.common import emit_json, standard


@click.command("targets")
@standard
def command(as_json: bool, debug: bool) -> None:
    """List what --target takes: which run and are measured here, and what the others need."""
    from graphopt.backend import every_target
    from graphopt.errors import MissingExtra

    listed: list[dict[str, Any]] = []
    for backend, name, target in every_target():
        item: dict[str, Any] = {
            "name": name,
            "backend": backend.name,
            "measured": False,
            "absent": None,
        }
        if isinstance(target, MissingExtra):
            listed.append({**item, "absent": str(target)})
            continue
        scheme = target.int8
        listed.append(
            {
                **item,
                "measured": target.measured,
                "isa": target.isa,
                "precisions": target.precisions,
                "int8": scheme and f"{scheme.activation} x {scheme.weight}",
                "channel_multiple": target.channel_multiple,
            }
        )
    if as_json:
        emit_json(listed)
        return
    from graphopt.reporting.text import out, table

    made = table("target", "here", "precisions", "int8", ">channels x", "instructions")
    for item in listed:
        if item["absent"]:
            made.add_row(item["name"], "absent", *[""] * 4)
            continue
        made.add_row(
            item["name"],
            "measured" if item["measured"] else "not measured",
            ", ".join(item["precisions"]),
            item["int8"] or "-",
            str(item["channel_multiple"]),
            ", ".join(item["isa"]) or "-",
        )
    console = out()
    console.print(made)
    for reason in dict.fromkeys(i["absent"] for i in listed if i["absent"]):
        console.print(reason)
    console.print("auto: the pipeline for every target measured here, the fastest result kept")
    console.print(
        "./file.py:NAME: the first target of a backend of your own (docs/write-a-backend.md)"
    )
