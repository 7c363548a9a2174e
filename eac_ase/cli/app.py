"""The program itself: its help, its version, and one clear line for whatever goes wrong."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError
from typer.core import TyperGroup

from eac_ase.cli.console import INTERRUPTED, WRONG_INPUT, complain, say
from eac_model.errors import EACError


class _Commands(TyperGroup):
    """Turns errors that are the input's fault into one line, and Ctrl-C into a clean end."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (EACError, CalculatorError, PropertyNotImplementedError, OSError) as error:
            complain(str(error))
            raise typer.Exit(WRONG_INPUT) from error
        except KeyboardInterrupt as error:
            say(
                "Interrupted. Files that were not complete are not there; the same command goes on "
                "with a *.partial.h5, if it left one."
            )
            raise typer.Exit(INTERRUPTED) from error


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
