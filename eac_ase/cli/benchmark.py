"""``eac benchmark``: published benchmarks on data of your own or on the published data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eac_ase.cli.app import app
from eac_ase.cli.console import DeviceOption, JsonOption, print_facts, print_json, status
from eac_model.errors import ConfigurationError, DensityFileError

benchmark_app = typer.Typer(no_args_is_help=True, help="Run published benchmarks.")
app.add_typer(benchmark_app, name="benchmark")


@benchmark_app.command(
    "ecd",
    epilog="""[bold]Examples[/]

eac benchmark ecd PBE-id --data data/ecd-mini --config recipes/ecd-mini.yaml

eac benchmark ecd OOD-id --data data/ecd-mini --model runs/ecd/models/pbe/model.safetensors

eac benchmark ecd PBE_HSE_tuning-id --data data/ecd-mini --config recipes/ecd-mini.yaml
--tuning recipes/ecd-mini-tuning.yaml --scf 5

Stop it whenever you like; running it again does what is missing. Tasks with one output folder share
their trainings.""",
)
def ecd(
    task: Annotated[
        str,
        typer.Argument(
            help="PBE-id, MP-id, HSE-id, PBE_HSE-id, PBE_HSE_tuning-id, EXP-id or OOD-id."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder in ECD's layout: pbe, hse, gnome with CHGCARs and lists.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Trainings, measurements and tables.")
    ] = Path("runs/ecd"),
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of trainings; the task sets their data.train."),
    ] = None,
    tuning: Annotated[
        Path | None, typer.Option(help="Configuration of fine-tunings (default: --config).")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Test this model instead of training.")
    ] = None,
    structures: Annotated[
        int | None, typer.Option(min=1, help="Test so many structures (default: all).")
    ] = None,
    scf: Annotated[
        int,
        typer.Option(min=0, help="Count iterations with GPAW on so many of them (with states)."),
    ] = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a task of the ECD benchmark: train, or take a model; measure; print the table."""
    with status("loading", as_json):
        from eac_ase.ecd import TASKS, Budget, run_task
        from eac_model.training import TrainingConfig

        if task not in TASKS:
            raise ConfigurationError(f"{task!r} is no task of ECD; one of {', '.join(TASKS)}.")
        if model is not None and (config is not None or tuning is not None):
            raise ConfigurationError("--model takes the place of trainings: leave out --config.")
        budget = Budget(
            training=None if config is None else TrainingConfig.from_yaml(config),
            tuning=None if tuning is None else TrainingConfig.from_yaml(tuning),
            structures=structures,
            scf=scf,
        )
    content = run_task(
        TASKS[task],
        data,
        output,
        budget,
        model=model,
        device=device,
        progress=False if as_json else None,
    )
    if as_json:
        print_json(content)
        return
    from eac_ase.ecd.report import table

    _print_markdown(table([content]))
    left_out = [row for row in content["structures"] if "error" in row]
    if left_out:
        raise DensityFileError(
            f"{len(left_out)} structures are left out, {left_out[0]['name']} because: "
            f"{left_out[0]['error']} {output / task}.json has the other reasons."
        )


@benchmark_app.command(
    "layout",
    epilog="""[bold]Example[/]

eac data gpaw recipes/data/ecd-mini.yaml -o data/ecd-mini.store

eac benchmark layout data/ecd-mini.store -o data/ecd-mini --gaps recipes/data/ecd-mini-gaps.csv""",
)
def layout(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORES...", help="Stores of `eac data gpaw`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the data set.")],
    gaps: Annotated[
        Path | None, typer.Option(help="Measured band gaps: CSV of name, gap_ev, source.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write stores in ECD's layout: CHGCARs, lists, splits, and the states beside them.

    The functional of a calculation decides its folder, pbe or hse; stores for testing
    (…-test.store) go to gnome. Running it again adds what is new.
    """
    with status("loading", as_json):
        from eac_ase.ecd import export_stores

    counts = export_stores(
        stores, output, gaps=gaps, seed=seed, progress=False if as_json else None
    )
    if as_json:
        print_json(counts)
        return
    print_facts(
        {
            name: ", ".join(f"{count} {split}" for split, count in parts.items())
            for name, parts in counts.items()
        }
    )


def _print_markdown(text: str) -> None:
    """Tables in markdown, as tables of the terminal."""
    for block in text.strip().split("\n\n"):
        heading, _, *rows = (
            [cell.strip() for cell in line.strip("| ").split("|")] for line in block.split("\n")
        )
        shown = Table(box=None, header_style="bold")
        for cell in heading:
            shown.add_column(cell, overflow="fold")
        for row in rows:
            shown.add_row(*map(escape, row))
        Console().print(shown)
