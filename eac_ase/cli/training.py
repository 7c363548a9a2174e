"""``eac train`` and ``eac evaluate``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eac_ase.cli.app import app
from eac_ase.cli.console import (
    INTERRUPTED,
    WRONG_INPUT,
    DeviceOption,
    JsonOption,
    complain,
    format_number,
    open_calculator,
    print_json,
    say,
    status,
)
from eac_model.errors import EACError

if TYPE_CHECKING:
    from eac_model.data import DensitySample

WIDE = 110
"""Columns of a terminal that has room for everything."""


@app.command(
    epilog="""[bold]Examples[/]

eac train water.yaml

eac train water.yaml --directory runs/second

eac train water.yaml --directory runs/second --resume"""
)
def train(
    config: Annotated[Path, typer.Argument(help="Configuration, YAML (see the documentation).")],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory", "-o", help="Where the files go (default: runs/ and the name of CONFIG)."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the directory.")
    ] = False,
) -> None:
    """Train a model on your own densities; any moment is a good one to stop and resume.

    In the log of a batch job, lines take the place of the progress bar.
    """
    with status("loading"):
        from eac_model.training import TrainingConfig
        from eac_model.training import train as run
        from eac_model.training.run import TERMINATED

        settings = TrainingConfig.from_yaml(config)
    directory = directory or Path("runs") / config.stem
    try:
        with _logged("eac_model.training.run" if sys.stdout.isatty() else "eac_model.training"):
            model = run(settings, directory, resume=resume)
    except (SystemExit, KeyboardInterrupt) as ended:
        # Lightning turns Ctrl-C into an ordinary exit.
        by_hand = any(isinstance(e, KeyboardInterrupt) for e in (ended, ended.__context__))
        if not by_hand and getattr(ended, "code", None) != TERMINATED:
            raise
        say(
            f"Interrupted. Go on with:\neac train {config} --directory {directory} --resume"
            if (directory / "checkpoints" / "last.ckpt").exists()
            else "Interrupted; there is no checkpoint yet."
        )
        raise typer.Exit(INTERRUPTED if by_hand else TERMINATED) from ended
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # of several processes one speaks
        shown = escape(str(model))
        Console().print(f"Model: {shown}\nTry it: eac evaluate {shown} FILES")


@contextmanager
def _logged(name: str) -> Iterator[None]:
    """What is logged under a name, as lines on stderr."""
    log, handler = logging.getLogger(name), logging.StreamHandler()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@app.command(
    epilog="""[bold]Examples[/]

eac evaluate water-scan CHGCAR_1 CHGCAR_2

eac evaluate runs/mine/model.safetensors left-out/*.h5 --json > errors.json"""
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Bundled model or model file.")],
    references: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Density files and stores.")
    ],
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Compare predictions with reference densities, at every point of the references.

    Files, and samples of stores, that cannot be used are reported, the others evaluated; the exit
    code is then 2.
    """
    from eac_ase.evaluation import SampleErrors, evaluate_sample, kinds_differ, references_in

    calculator = open_calculator(model, device, normalize=False)
    total, rows, failures = SampleErrors(), [], []
    found: list[tuple[str, Callable[[], DensitySample]]] = []

    def fail(name: str, error: Exception) -> None:
        failures.append({"file": name, "error": str(error)})
        complain(str(error) if name in str(error) else f"{name}: {error}")

    for path in references:
        try:
            found += references_in(path)
        except (EACError, OSError) as error:
            fail(str(path), error)
    for name, read in found:
        try:
            sample = read()
            if kinds_differ(calculator, sample):
                say(
                    f"{name} is a {sample.provenance.density_kind} density, the model "
                    f"predicts {calculator.card.provenance.density_kind} densities."
                )
            errors = evaluate_sample(calculator, sample)
        except (EACError, OSError) as error:
            fail(name, error)
            continue
        total += errors
        rows.append({"file": name, **errors.as_dict()})
    if not rows:
        raise typer.Exit(WRONG_INPUT)
    result = {
        "model": calculator.card.name,
        "files": rows,
        "overall": {**total.as_dict(), "samples": len(rows)},
        "failures": failures,
    }
    if as_json:
        print_json(result)
    else:
        _print_errors(rows, result["overall"])
    if failures:
        raise typer.Exit(WRONG_INPUT)


def _print_errors(rows: list[dict[str, Any]], overall: Any) -> None:
    console = Console()
    columns = {"ε_mae / %": ("nmae_percent", ".3f")}
    if console.width >= WIDE:
        columns |= {"MAE / e Å⁻³": ("mae", ".2e"), "max / e Å⁻³": ("max_error", ".3f")}
    columns |= {
        "electrons": ("electrons_reference", ".3f"),
        "predicted": ("electrons_predicted", ".3f"),
    }
    spin = any("spin" in row for row in rows)
    table = Table(box=None, header_style="bold")
    table.add_column("file", overflow="fold")
    for heading in [*columns, *["spin ε_mae / %"] * spin]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in [*rows, {"file": "overall", **overall}]:
        figures = [format_number(row[key], form) for key, form in columns.values()]
        if spin:
            figures.append(format_number(row.get("spin", {}).get("nmae_percent"), ".3f"))
        style = "bold" if row["file"] == "overall" else None
        table.add_row(escape(row["file"]), *figures, style=style)
    console.print(table)
