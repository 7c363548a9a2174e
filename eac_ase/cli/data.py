"""``eac data``: stores of densities, and calculations that fill them."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eac_ase.cli.app import app
from eac_ase.cli.console import (
    WRONG_INPUT,
    JsonOption,
    complain,
    format_number,
    print_facts,
    print_json,
    say,
    show_configuration,
    status,
)

if TYPE_CHECKING:
    from eac_model.data import DensityStore
    from eac_model.data.sample import PawDataset

data_app = typer.Typer(
    no_args_is_help=True, help="Collect densities of many calculations in one store."
)
app.add_typer(data_app, name="data")


@data_app.command(
    "convert",
    epilog="""[bold]Examples[/]

eac data convert runs/*/CHGCAR -o water.store

eac data convert *.gpw *.cube -o mixed.store --json

Running it again adds what is new and skips what is there.""",
)
def data_convert(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="CHGCAR, cube, gpw, h5; also gzipped."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the store.")],
    as_json: JsonOption = False,
) -> None:
    """Read densities of any known format into a store.

    A file that cannot be read is reported with place and cause, and the rest goes on; the exit
    code is then 2.
    """
    with status("loading", as_json):
        from eac_ase.progress import progress_bar
        from eac_model.data import convert

    show = False if as_json else None
    with progress_bar("converting", len(sources), show) as advance:
        report = convert(sources, output, progress=lambda path: advance(1))
    for failure in report.failures:
        known = str(failure.path) in failure.message
        complain(failure.message if known else f"{failure.path}: {failure.message}")
    if as_json:
        print_json(
            {
                "store": str(output),
                "converted": [str(path) for path in report.converted],
                "skipped": [str(path) for path in report.skipped],
                "failures": [
                    {"file": str(failure.path), "error": failure.message}
                    for failure in report.failures
                ],
            }
        )
    else:
        counts = len(report.converted), len(report.skipped), len(report.failures)
        print_facts(
            {
                "store": str(output),
                "converted": str(counts[0]),
                "already there": str(counts[1]),
                "failed": str(counts[2]),
            }
        )
    if report.failures:
        raise typer.Exit(WRONG_INPUT)


@data_app.command(
    "gpaw",
    epilog="""[bold]Examples[/]

eac data gpaw recipes/data/si-pbe.yaml -o data/si-pbe.store

eac data gpaw recipe.yaml -o data/mine.store --workers 8

Stop it whenever you like; running it again does what is missing. Structures for testing go into a
store beside it, here data/mine-test.store.""",
)
def data_gpaw(
    recipe: Annotated[Path, typer.Argument(help="Recipe, YAML (see the documentation).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the store for training.")
    ],
    workers: Annotated[
        int, typer.Option(min=1, help="Processes side by side, of one thread each.")
    ] = 1,
    dask: Annotated[
        str | None, typer.Option(help="Let the workers of this dask scheduler calculate.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is to do.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make structures from a recipe, calculate them with GPAW, and store densities and matrices.

    Structures that fail are written to failures.jsonl in the store, and the rest goes on; the exit
    code is then 2.
    """
    with status("loading", as_json):
        from eac_ase.progress import progress_bar
        from eac_ase.reference import Recipe, make_plan, run_plan

        plan = make_plan(Recipe.from_yaml(recipe), output, retry_failed=retry_failed)
    if plan.stale:
        say(
            f"{len(plan.stale)} samples in the stores are not in the recipe (any more), such as "
            f"{plan.stale[0]}."
        )
    counts = {"present": plan.present, "failed_before": plan.failed, "made": 0, "failed": 0}
    total, began = len(plan.todo), perf_counter()
    lines = not as_json and not Console(stderr=True).is_terminal
    if total and not dry_run:
        with progress_bar("calculating", total, False if as_json else None) as advance:
            for outcome in run_plan(plan, workers=workers, dask=dask):
                counts["failed" if outcome.failure else "made"] += 1
                advance(1)
                done = counts["made"] + counts["failed"]
                if outcome.failure:
                    complain(f"{outcome.key}: {outcome.failure}")
                if lines:
                    left = (perf_counter() - began) / done * (total - done)
                    print(
                        f"{done}/{total}  {outcome.key}  {outcome.formula}  "
                        f"{outcome.seconds:.1f} s  {left / 60:.0f} min left",
                        file=sys.stderr,
                        flush=True,
                    )
    if as_json:
        print_json({"store": str(output), "todo": total, **counts})
    else:
        print_facts(
            {
                "store": str(output),
                "to do" if dry_run else "calculated": str(total if dry_run else counts["made"]),
                "already there": str(counts["present"]),
                "failed": str(counts["failed"]),
                "failed before": str(counts["failed_before"]),
            }
        )
    if counts["failed"]:
        raise typer.Exit(WRONG_INPUT)


@data_app.command("info", epilog="[bold]Example[/]\n\neac data info water.store")
def data_info(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    as_json: JsonOption = False,
) -> None:
    """List the samples of a store."""
    from eac_model.data import DensityStore

    opened = DensityStore.open(store)
    entries = opened.entries
    layout = _gpaw_layout(opened)
    if as_json:
        content = {"store": str(store), "samples": [vars(entry) for entry in entries]}
        print_json(content | ({"configuration": layout} if layout else {}))
        return
    table = Table(box=None, header_style="bold")
    for heading in (
        "",
        "formula",
        "atoms",
        "grid or points",
        "electrons",
        "kind",
        "with",
        "source",
    ):
        table.add_column(heading, justify="right" if heading in ("", "atoms") else "left")
    for index, entry in enumerate(entries):
        extras = [name for name in ("spin", "onsite") if getattr(entry, name)]
        table.add_row(
            str(index),
            entry.formula,
            str(entry.n_atoms),
            " × ".join(map(str, entry.shape)),
            format_number(entry.electrons, ".3f"),
            entry.density_kind,
            ", ".join(extras),
            escape(entry.source),
        )
    Console().print(table)
    if layout:
        show_configuration(layout, "the matrices D")


def _gpaw_layout(store: DensityStore) -> dict[str, Any]:
    """What a training configuration needs of a store with GPAW's matrices: keys of ``network``."""
    from ase.formula import Formula

    from eac_model.onsite import OnsiteLayout

    found: dict[str, PawDataset] = {}
    seen: set[str] = set()
    for index, entry in enumerate(store.entries):
        symbols = set(Formula(entry.formula).count())
        if not entry.onsite or symbols <= seen:
            continue
        calculation = store.calculation(index)
        if calculation is not None:
            found |= calculation.datasets
        seen |= symbols
    if not found:
        return {}
    layout = OnsiteLayout.of_gpaw(found).model_dump(mode="json", exclude_defaults=True)
    return {"network": {"onsite": layout}}
