"""The command line. Commands are imported when they run, so that `--help` is quick."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from graphopt import __version__
from graphopt.cli.surroundings import Ended, discard_output, settled
from graphopt.errors import GraphOptError
from graphopt.reporting.escaping import printable

__all__ = ["main"]

#: Command name -> module in this package and the one line that `--help` shows.
COMMANDS = {
    "optimize": ("optimize", "Run passes over a model and write the result."),
    "search": ("search", "Find the cheapest model that loses no more than it may."),
    "pack": ("pack", "Write a model as one small file (.gopt), exactly or within a budget."),
    "unpack": ("unpack", "Write the model in a .gopt file as ONNX."),
    "merge": ("merge", "Write several models as one that shares what they have in common."),
    "inspect": ("inspect", "Show what is in a model: operators, parameters, MACs, memory."),
    "compare": ("compare", "Compare two models: outputs, structure, cost, latency."),
    "diff": ("diff", "Tell two models apart: nodes, weights, metadata, interface."),
    "view": ("view", "Show a model as a page: its graph, and what every layer costs."),
    "bench": ("bench", "Time models on targets, threads and batch sizes, beside each other."),
    "show": ("show", "Show the recipe and provenance of an optimized model."),
    "record": ("record", "Run a program and record what it feeds its models, as samples."),
    "passes": ("passes", "List the passes with their options."),
    "targets": ("targets", "List what --target takes, and what runs on this machine."),
    "demo": ("demo", "Optimize a small trained model that ships with graphopt."),
}


@contextmanager
def _while_read() -> Iterator[None]:
    """End quietly where the reader of standard output has read enough, as `| head` does."""
    try:
        yield
    except BrokenPipeError:
        discard_output()
        raise click.exceptions.Exit(0) from None


class _Lazy(click.Group):
    """A group that imports a command's module only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"graphopt.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise click.UsageError(f"no command is called '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _while_read():  # `--help` prints here
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _while_read():
            done = super().invoke(ctx)
            sys.stdout.flush()
            return done

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="graphopt", message="%(prog)s %(version)s")
def cli() -> None:
    """Make a trained model smaller and faster: as measured, never silently wrong.

    \b
    graphopt optimize model.onnx -p prune,fuse,int8 -o model.opt.onnx

    Exit codes: 0 done, 1 internal error, 2 usage, 3 bad model, samples or file,
    4 budget missed, 5 a missing extra, 130 interrupted, 143 terminated.
    """


# a graph goes with its process: what the last collection of all would free, the system frees
atexit.register(gc.freeze)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code the contract names."""
    with settled():
        sys.exit(_main(sys.argv[1:] if args is None else args))


def _main(argv: list[str]) -> int:
    """Run the command line; the exit code."""
    gc.set_threshold(200_000, 20, 50)  # graphs are many objects that stay: search them less often
    debug = "--debug" in argv
    try:
        asked = argv or ["--help"]
        code: Any = cli.main(args=asked, prog_name="graphopt", standalone_mode=False, obj=argv)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ if isinstance(error, click.exceptions.Abort) else error
        number = cause.number if isinstance(cause, Ended) else signal.SIGINT
        return _fail("interrupted", 128 + number, cause, "nothing was written")
    except click.ClickException as error:
        hint = (
            f" See 'graphopt {_path(error)}--help'." if isinstance(error, click.UsageError) else ""
        )
        return _fail(error.format_message() + hint, 2, error)
    except GraphOptError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code, error)
    except OSError as error:
        if debug:
            raise
        name = "standard output" if discard_output() else error.filename
        return _fail(": ".join(str(t) for t in (name, error.strerror or error) if t), 3, error)
    except MemoryError as error:
        return _fail("out of memory", 1, error, "nothing was written")
    except Exception as error:
        if debug:
            raise
        return _fail(
            f"internal error: {type(error).__name__}: {error}. Please report it with the output "
            "of the same command and --debug",
            1,
            error,
            "nothing was written",
        )


def _fail(message: str, code: int, error: BaseException | None, untold: str = "") -> int:
    """Say in one line what happened and what its notes add, or `untold` if there are none."""
    notes = getattr(error, "__notes__", None) or ([untold] if untold else [])
    line = " ".join("; ".join([message, *notes]).split())
    click.echo(f"graphopt: {printable(line)}", err=True)
    return code


def _path(error: click.UsageError) -> str:
    words = error.ctx.command_path.split()[1:] if error.ctx is not None else []
    return "".join(f"{w} " for w in words)
