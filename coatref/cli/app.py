"""The application: its commands, and what becomes of errors."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

import coatref
from coatref.cli.classify import EXAMPLES as CLASSIFY_EXAMPLES
from coatref.cli.classify import classify
from coatref.cli.forward import EXAMPLES as FORWARD_EXAMPLES
from coatref.cli.forward import forward
from coatref.cli.info import info
from coatref.cli.onnx import EXAMPLES as ONNX_EXAMPLES
from coatref.cli.onnx import onnx
from coatref.cli.output import one_line
from coatref.cli.specs import spec, specs
from coatref.cli.weights import CONVERT_EXAMPLES, EXPORT_EXAMPLES, convert_weights, export
from coatref.errors import CoatrefError

USAGE_OR_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141  # the last two as a shell shows a process that a signal ended

# Modules with more commands, by name: what defines a CoAtNet imports nothing of what judges one. Each has a function
# `register(app)`, and imports little.
COMMANDS = ("coatref.conformance.commands",)

app = typer.Typer(
    name="coatref",
    help="The reference definition of CoAtNet (Dai et al. 2021): its networks, their output, and a judge of others.",
    epilog="Examples:\n\ncoatref forward\n\ncoatref spec coatnet_0\n\ncoatref COMMAND --help",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog="Examples:\n\ncoatref specs\n\ncoatref specs --json")(specs)
app.command(
    epilog="Examples:\n\ncoatref spec coatnet_0\n\ncoatref spec timm/coatnet_0_rw_224 --size 256x320 --classes 10\n\n"
    "coatref spec coatnet_7 --json"
)(spec)
app.command(epilog=FORWARD_EXAMPLES)(forward)
app.command(epilog=CLASSIFY_EXAMPLES)(classify)
app.command(epilog=EXPORT_EXAMPLES)(export)
app.command("convert-weights", epilog=CONVERT_EXAMPLES)(convert_weights)
app.command(epilog=ONNX_EXAMPLES)(onnx)
app.command(epilog="Examples:\n\ncoatref info\n\ncoatref info --json")(info)
for _module in COMMANDS:
    importlib.import_module(_module).register(app)


def _print_version(wanted: bool) -> None:
    """Print the version and end, where that was asked for."""
    if wanted:
        print(f"coatref {coatref.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Without a command, show the help."""
    if context.invoked_subcommand is None:
        print(context.get_help().rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without some character gets "?"
    try:
        code = get_command(app).main(args=arguments, prog_name="coatref", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except SystemExit:  # what typer and rich make of the same
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (CoatrefError, OSError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("There is not enough memory for this; try a smaller --size.")
    except Exception as error:  # noqa: BLE001 - the code 1 of an uncaught one would mean "no"
        if hasattr(error, "format_message"):  # wrong usage; some versions of typer bring a click of their own
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "coatref"
            return _fail(f"{error.format_message().rstrip('.')}. See: {command} --help")
        traceback.print_exc()  # a fault of ours
        return USAGE_OR_ERROR


def _fail(message: str) -> int:
    """Print an error in one line and give the exit code for it."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return USAGE_OR_ERROR
