"""The program itself: its help, its version, and one clear line for whatever goes wrong."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer
from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError
from typer.core import TyperGroup

from eac_ase.cli.console import INTERRUPTED, PIPE_CLOSED, WRONG_INPUT, complain, say
from eac_model.errors import EACError, UnfamiliarStructureWarning


class _Commands(TyperGroup):
    """Turns errors that are the input's fault into one line, and Ctrl-C into a clean end."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show
                return super().invoke(ctx)
        except (BrokenPipeError, SystemExit) as ended:
            # rich makes an exit of it.
            if not any(isinstance(e, BrokenPipeError) for e in (ended, ended.__context__)):
                raise
            # Whoever read the output has seen enough; nothing is left to be flushed at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except (EACError, CalculatorError, PropertyNotImplementedError, OSError) as error:
            complain(str(error))
            raise typer.Exit(WRONG_INPUT) from error
        except KeyboardInterrupt as error:
            say(
                "Interrupted. Files that were not complete are not there; of a large grid a "
                "*.partial.h5 may be, with which the same command goes on."
            )
            raise typer.Exit(INTERRUPTED) from error


_show_with_its_source = warnings.showwarning


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Warnings for users as remarks, those for programmers as ever."""
    if issubclass(category, UnfamiliarStructureWarning):
        say(str(message))
    else:
        _show_with_its_source(message, category, *where, **more)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Electron densities of materials in seconds, from an equivariant neural network.",
    epilog="A first try: [bold]eac demo[/]. Every command explains itself: "
    "[bold]eac predict --help[/].",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eac {version('eac-density')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
