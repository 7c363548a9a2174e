"""The command line ``eac``: predict, train, evaluate, vasp, data, models, info."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from eac_model.errors import (
    ConfigurationError,
    DensityFileError,
    EACError,
    GridError,
    StructureError,
)
from eac_model.registry import bundled_models, find_model

# Everything that imports torch or SciPy is imported where it is used: `eac --help` is instant.
if TYPE_CHECKING:
    from ase import Atoms

    from eac_ase.calculator import EACDensity
    from eac_ase.grid import DensityGrid, Shape
    from eac_model.checkpoint import ModelHeader

DEFAULT_MODEL = "water-scan"
DEMO_STRUCTURE = "water48.xyz"

WRONG_INPUT = 2
INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns errors that are the input's fault into one line, and Ctrl-C into a clean end."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (EACError, CalculatorError, PropertyNotImplementedError, OSError) as error:
            _complain(str(error))
            raise typer.Exit(WRONG_INPUT) from error
        except KeyboardInterrupt as error:
            _say("Interrupted. Files that were not complete are not there.")
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
data_app = typer.Typer(
    no_args_is_help=True, help="Collect densities of many calculations in one store."
)
app.add_typer(data_app, name="data")

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Bundled model (see `eac models`) or model file.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default the GPU if there is one.")
]
SpacingOption = Annotated[
    float | None, typer.Option(help="Largest distance of grid points, Å (default 0.1).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


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


# -- predict -----------------------------------------------------------------------------------


@app.command(
    epilog="""[bold]Examples[/]

eac predict POSCAR -o CHGCAR

eac predict water.xyz -o water.cube -o water.h5 --spacing 0.08 --plot water.png

eac predict md.traj@-1 -o CHGCAR --shape 120 120 120 --json

eac predict Fe.cif --model my-iron.safetensors --spin Fe=2.2 -o CHGCAR"""
)
def predict(
    structure: Annotated[
        str, typer.Argument(help="Any structure file ASE reads; file@3 picks a frame.")
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="CHGCAR*, *.vasp, *.cube, *.h5 or *.xsf; may be given several times.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    shape: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Grid points along the cell vectors.")
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(help="Largest distance of grid points, Å (default 0.1)."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of a plane through a molecule (png, pdf, svg).")
    ] = None,
    spin: Annotated[
        str | None,
        typer.Option(
            help="Initial moments, μ_B: one for all atoms (2), one each (2,-2,0), or by element "
            "(Fe=2.2,O=0). By default those of the structure file."
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale to the exact number of electrons.")
    ] = False,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the electron density of a structure."""
    outputs = output or []
    if not outputs and plot is None:
        raise typer.BadParameter("give at least one output: -o CHGCAR, -o x.cube, --plot x.png")
    _check_targets(outputs, plot, force)
    if shape is not None and spacing is not None:
        raise typer.BadParameter("give --shape or --spacing, not both")
    atoms = _read_structure(structure)
    calculator = _calculator(model, device, normalize)
    if spin is not None:
        if not calculator.network.config.spin:
            raise ConfigurationError(f"The model {model!r} knows no spin: leave --spin out.")
        atoms.set_initial_magnetic_moments(_moments(spin, atoms))
    report = _predict(calculator, atoms, structure, outputs, plot, shape, spacing, as_json)
    _report(report, as_json)


def _predict(
    calculator: EACDensity,
    atoms: Atoms,
    name: str,
    outputs: list[Path],
    plot: Path | None,
    shape: Shape | None,
    spacing: float | None,
    quiet: bool,
) -> dict[str, Any]:
    """Evaluate, write, and say what was done."""
    from eac_ase.plotting import save_plane

    progress = False if quiet else None
    began = perf_counter()
    grid: DensityGrid = calculator.get_density_grid(
        atoms, shape=shape, spacing=spacing, progress=progress
    )
    seconds = perf_counter() - began
    for path in outputs:
        grid.write(path, progress=progress)
    if plot is not None:
        with _status("drawing", quiet):
            save_plane(grid, plot)
    report: dict[str, Any] = {
        "structure": name,
        "formula": atoms.get_chemical_formula(),
        "atoms": len(atoms),
        "model": calculator.card.name,
        "device": str(calculator.network.device),
        "shape": list(grid.shape),
        "density_kind": grid.kind,
        "electrons": grid.integrate(),
    }
    if grid.spin is not None:
        report["magnetic_moment"] = grid.integrate_spin()
    return report | {
        "seconds": seconds,
        "points_per_second": grid.values.size / seconds,
        "files": [str(path) for path in [*outputs, *([plot] if plot else [])]],
    }


def _report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    rows = {
        "structure": f"{report['structure']}  ({report['formula']}, {report['atoms']} atoms)",
        "model": f"{report['model']} on {report['device']}",
        "grid": " × ".join(map(str, report["shape"])),
        "electrons": f"{report['electrons']:.4f}  ({report['density_kind']})",
    }
    if "magnetic_moment" in report:
        rows["moment"] = f"{report['magnetic_moment']:.4f} μ_B"
    rows["wall time"] = f"{report['seconds']:.2f} s"
    rows["speed"] = f"{report['points_per_second']:,.0f} points/s"
    rows["written"] = "\n".join(report["files"])
    _print_facts(rows)


@app.command(epilog="[bold]Example[/]\n\neac demo --directory /tmp/demo")
def demo(
    model: ModelOption = DEFAULT_MODEL,
    directory: Annotated[Path, typer.Option(help="Where the files go.")] = Path("demo"),
    spacing: SpacingOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the density of 16 water molecules and write CHGCAR, cube and a picture.

    The cell (48 atoms, 1 g/cm³) was made for this project by seeded TIP3P molecular dynamics
    (examples/make_water_box.py). No reference density exists for it: what the model is worth, its
    card tells (`eac models water-scan`).
    """
    atoms = _read_structure(str(files("eac_ase") / "structures" / DEMO_STRUCTURE))
    calculator = _calculator(model, device, normalize=False)
    directory.mkdir(parents=True, exist_ok=True)
    outputs = [directory / "CHGCAR", directory / "water.cube"]
    picture = directory / "water.png"
    report = _predict(calculator, atoms, DEMO_STRUCTURE, outputs, picture, None, spacing, as_json)
    if set(atoms.symbols) <= set(calculator.card.valence_electrons):
        report["electrons_expected"] = sum(
            calculator.card.valence_electrons[symbol] for symbol in atoms.symbols
        )
    _report(report, as_json)
    if not as_json and "electrons_expected" in report:
        Console().print(
            f"The atoms have {report['electrons_expected']:g} valence electrons; the prediction "
            "was not scaled to that number (--normalize of eac predict does).",
            style="dim",
        )


# -- other codes -------------------------------------------------------------------------------


@app.command(
    epilog="""[bold]Examples[/]

eac vasp run

eac vasp run --write-incar

eac vasp bands --bands --like run/OUTCAR

eac vasp run --model my-iron.safetensors --no-occupancies --json"""
)
def vasp(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A prepared run: POSCAR, INCAR, POTCAR.")
    ],
    model: ModelOption = DEFAULT_MODEL,
    bands: Annotated[
        bool,
        typer.Option("--bands", help="Keep the density (ICHARG = 11): bands, density of states."),
    ] = False,
    write_incar: Annotated[
        bool, typer.Option("--write-incar", help="Set the tags in INCAR instead of naming them.")
    ] = False,
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="NGXF NGYF NGZF; by default what VASP chooses for ENCUT and PREC."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Take the grid of this CHGCAR, OUTCAR or vasprun.xml.")
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize/--no-normalize", help="Scale to the number of electrons (ZVAL, NELECT)."
        ),
    ] = True,
    no_occupancies: Annotated[
        bool, typer.Option("--no-occupancies", help="Leave out the augmentation occupancies.")
    ] = False,
    any_functional: Annotated[
        bool,
        typer.Option(
            "--any-functional", help="Accept a density of another functional as a mere start."
        ),
    ] = False,
    device: DeviceOption = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing CHGCAR.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the CHGCAR that a VASP run starts from.

    The model has to fit the run: functional, valence electrons and projectors are compared with
    INCAR and POTCAR. INCAR is left alone without --write-incar; what it needs is printed.
    """
    if shape is not None and like is not None:
        raise typer.BadParameter("give --shape or --like, not both")
    with _status("loading", as_json):
        from eac_ase.adapters.vasp import prepare_vasp_start

    calculator = _calculator(model, device, normalize=False)
    start = prepare_vasp_start(
        directory,
        calculator,
        bands=bands,
        shape=shape,
        like=like,
        normalize=normalize,
        occupancies=not no_occupancies,
        any_functional=any_functional,
        write_incar=write_incar,
        force=force,
        progress=False if as_json else None,
    )
    if as_json:
        _print_json({**vars(start), "chgcar": str(start.chgcar), "model": calculator.card.name})
        return
    settings = "\n".join(f"{tag} = {value}" for tag, value in start.incar_changes.items())
    rows = {
        "written": str(start.chgcar),
        "functional": start.functional,
        "grid": " × ".join(map(str, start.shape)),
        "electrons": f"{start.electrons:.4f}  (predicted {start.electrons_predicted:.4f})",
    }
    if start.magnetic_moment is not None:
        rows["moment"] = f"{start.magnetic_moment:.4f} μ_B"
    rows["PAW occupancies"] = "yes" if start.occupancies else "none"
    if start.incar_written:
        rows["INCAR"] = "edited"
    elif settings:
        rows["set in INCAR"] = settings
    else:
        rows["INCAR"] = "ready as it is"
    rows["wall time"] = f"{start.seconds:.2f} s"
    _print_facts(rows)
    for note in start.notes:
        _say(f"Note: {note}")


# -- train and evaluate ------------------------------------------------------------------------


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
    """Train a model on your own densities; any moment is a good one to stop and resume."""
    with _status("loading"):
        from eac_model.training import TrainingConfig
        from eac_model.training import train as run

        settings = TrainingConfig.from_yaml(config)
    directory = directory or Path("runs") / config.stem
    try:
        model = run(settings, directory, resume=resume)
    except SystemExit as ended:
        # Lightning turns Ctrl-C into an ordinary exit.
        if isinstance(ended.__context__, KeyboardInterrupt):
            _say(f"Go on with: eac train {config} --directory {directory} --resume")
            raise KeyboardInterrupt from ended
        raise
    Console().print(f"Model: {escape(str(model))}\nTry it: eac evaluate {escape(str(model))} FILES")


@app.command(
    epilog="""[bold]Examples[/]

eac evaluate water-scan CHGCAR_1 CHGCAR_2

eac evaluate runs/mine/model.safetensors left-out/*.h5 --json errors.json"""
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Bundled model or model file.")],
    references: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Density files and stores.")
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON; - for stdout.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Compare predictions with reference densities, at every point of the references.

    Files that cannot be used are reported, the others evaluated; the exit code is then 2.
    """
    from eac_ase.evaluation import SampleErrors, evaluate_sample, kinds_differ, samples_in

    to_stdout = json_file == Path("-")
    calculator = _calculator(model, device, normalize=False)
    total, rows, failures = SampleErrors(), [], []
    for path in references:
        try:
            for name, sample in samples_in(path):
                if kinds_differ(calculator, sample):
                    _say(
                        f"{name} is a {sample.provenance.density_kind} density, the model "
                        f"predicts {calculator.card.provenance.density_kind} densities."
                    )
                errors = evaluate_sample(calculator, sample)
                total += errors
                rows.append({"file": name, **errors.as_dict()})
        except (EACError, OSError) as error:
            failures.append({"file": str(path), "error": str(error)})
            _complain(str(error) if str(path) in str(error) else f"{path}: {error}")
    if not rows:
        raise typer.Exit(WRONG_INPUT)
    result = {
        "model": calculator.card.name,
        "files": rows,
        "overall": {**total.as_dict(), "samples": len(rows)},
        "failures": failures,
    }
    if to_stdout:
        _print_json(result)
    else:
        _print_errors(rows, result["overall"])
        if json_file is not None:
            from eac_model.files import replacing

            with replacing(json_file) as temporary:
                temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if failures:
        raise typer.Exit(WRONG_INPUT)


def _print_errors(rows: list[dict[str, Any]], overall: Any) -> None:
    spin = any("spin" in row for row in rows)
    table = Table(box=None, header_style="bold")
    table.add_column("file", overflow="fold")
    headings = ["ε_mae / %", "MAE / e Å⁻³", "max / e Å⁻³", "electrons", "predicted"]
    for heading in headings + ["spin ε_mae / %"] * spin:
        table.add_column(heading, justify="right")
    for row in [*rows, {"file": "overall", **overall}]:
        figures = [
            _number(row["nmae_percent"], ".3f"),
            _number(row["mae"], ".2e"),
            _number(row["max_error"], ".3f"),
            _number(row["electrons_reference"], ".3f"),
            _number(row["electrons_predicted"], ".3f"),
        ]
        if spin:
            figures.append(_number(row.get("spin", {}).get("nmae_percent"), ".3f"))
        style = "bold" if row["file"] == "overall" else None
        table.add_row(escape(row["file"]), *figures, style=style)
    Console().print(table)


# -- data --------------------------------------------------------------------------------------


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
    with _status("loading", as_json):
        from eac_ase.progress import progress_bar
        from eac_model.data import convert

    show = False if as_json else None
    with progress_bar("converting", len(sources), show) as advance:
        report = convert(sources, output, progress=lambda path: advance(1))
    for failure in report.failures:
        known = str(failure.path) in failure.message
        _complain(failure.message if known else f"{failure.path}: {failure.message}")
    if as_json:
        _print_json(
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
        _print_facts(
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
    with _status("loading", as_json):
        from eac_ase.progress import progress_bar
        from eac_ase.reference import Recipe, make_plan, run_plan

        plan = make_plan(Recipe.from_yaml(recipe), output, retry_failed=retry_failed)
    if plan.stale:
        _say(
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
                    _complain(f"{outcome.key}: {outcome.failure}")
                if lines:
                    left = (perf_counter() - began) / done * (total - done)
                    print(
                        f"{done}/{total}  {outcome.key}  {outcome.formula}  "
                        f"{outcome.seconds:.1f} s  {left / 60:.0f} min left",
                        file=sys.stderr,
                        flush=True,
                    )
    if as_json:
        _print_json({"store": str(output), "todo": total, **counts})
    else:
        _print_facts(
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

    entries = DensityStore.open(store).entries
    if as_json:
        _print_json({"store": str(store), "samples": [vars(entry) for entry in entries]})
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
            _number(entry.electrons, ".3f"),
            entry.density_kind,
            ", ".join(extras),
            escape(entry.source),
        )
    Console().print(table)


# -- models and files --------------------------------------------------------------------------


@app.command(epilog="[bold]Examples[/]\n\neac models\n\neac models water-scan\n\neac models --json")
def models(
    name: Annotated[
        str | None, typer.Argument(help="Show the card of this model (or model file).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the bundled models, or show the card of one."""
    from eac_model.checkpoint import read_header

    if name is not None:
        _show_model(find_model(name), as_json)
        return
    cards = [_card_facts(read_header(find_model(bundled))) for bundled in bundled_models()]
    if as_json:
        _print_json(cards)
        return
    if not cards:
        _say("No models are bundled with this installation; `eac train` makes one.")
        return
    table = Table(box=None, header_style="bold")
    for heading in ("name", "elements", "density", "reference", "summary"):
        table.add_column(heading, overflow="fold")
    for card in cards:
        origin = card["provenance"]
        table.add_row(
            card["name"],
            " ".join(card["elements"]),
            origin["density_kind"],
            f"{origin['code']} {origin['functional']}",
            escape(card["summary"]),
        )
    Console().print(table)


@app.command(
    epilog="""[bold]Examples[/]

eac info CHGCAR

eac info water.store

eac info POTCAR

eac info runs/mine/model.safetensors --json"""
)
def info(
    file: Annotated[Path, typer.Argument(help="A density, store, structure, model or POTCAR.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a file is and what is in it."""
    if file.suffix == ".safetensors" or str(file) in bundled_models():
        _show_model(find_model(file), as_json)
    elif file.is_dir():
        data_info(file, as_json)
    elif file.name.upper().startswith("POTCAR"):
        _show_potcar(file, as_json)
    else:
        facts = _density_or_structure(file)
        if as_json:
            _print_json(facts)
        else:
            _print_facts({key.replace("_", " "): _text(value) for key, value in facts.items()})


def _show_potcar(path: Path, as_json: bool) -> None:
    """Headers of the data sets, and what a training configuration needs of them."""
    from dataclasses import asdict

    import yaml

    from eac_ase.adapters.potcar import read_potcar

    datasets = read_potcar(path)
    keys = {
        "network": {
            "onsite": {
                "code": "VASP",
                "channels": {d.symbol: list(d.channels) for d in datasets},
                "datasets": {d.symbol: d.title for d in datasets},
            }
        },
        "card": {"valence_electrons": {d.symbol: d.valence for d in datasets}},
    }
    if as_json:
        found = [asdict(dataset) for dataset in datasets]
        _print_json({"file": str(path), "datasets": found, "configuration": keys})
        return
    table = Table(box=None, header_style="bold")
    for heading in ("data set", "LEXCH", "ZVAL", "ENMAX / eV", "l of projectors"):
        table.add_column(heading)
    for d in datasets:
        channels = " ".join(map(str, d.channels))
        table.add_row(escape(d.title), d.functional, f"{d.valence:g}", f"{d.enmax:g}", channels)
    Console().print(table)
    Console().print(
        "\nFor the configuration of `eac train`, to learn occupancies too:", style="dim"
    )
    print(yaml.safe_dump(keys, sort_keys=False, default_flow_style=None, width=100), end="")


def _density_or_structure(path: Path) -> dict[str, Any]:
    from eac_model.data import read_density

    name = path.name.lower().removesuffix(".gz")
    density_only = name.startswith(("chg", "aeccar", "parchg")) or name.endswith(
        (".cube", ".cub", ".h5", ".chgcar")
    )
    try:
        sample = read_density(path)
    except DensityFileError:
        if density_only or not path.is_file():
            raise
        atoms = _read_structure(str(path))
        return {"file": str(path), "what": "structure", **_structure_facts(atoms)}
    origin = sample.provenance
    facts = {
        "file": str(path),
        "what": "density on a grid" if sample.is_grid else "density at scattered points",
        **_structure_facts(sample.atoms),
        "density_kind": origin.density_kind,
        "code": origin.code,
        "functional": origin.functional,
        "paw_datasets": list(origin.paw_datasets),
        "points": list(sample.density.shape),
        "spin_density": sample.spin_density is not None,
        "onsite_data": sample.onsite is not None,
    }
    if sample.is_grid:
        from eac_ase.grid import DensityGrid

        grid = DensityGrid.from_sample(sample)
        facts["spacing"] = [round(float(h), 4) for h in grid.spacing]
        facts["electrons"] = grid.integrate()
        if grid.spin is not None:
            facts["magnetic_moment"] = grid.integrate_spin()
    return facts


def _structure_facts(atoms: Atoms) -> dict[str, Any]:
    return {
        "formula": atoms.get_chemical_formula(),
        "atoms": len(atoms),
        "cell": [[float(x) for x in row] for row in atoms.cell],
        "pbc": [bool(flag) for flag in atoms.pbc],
    }


def _show_model(path: Path, as_json: bool) -> None:
    from eac_model.checkpoint import read_header

    facts = {"file": str(path), **_card_facts(read_header(path))}
    if as_json:
        _print_json(facts)
        return
    origin = facts.pop("provenance")
    training, valences = facts.pop("training"), facts.pop("valence_electrons")
    facts.pop("network")
    rows = {key.replace("_", " "): _text(value) for key, value in facts.items() if value}
    rows["density"] = f"{origin['density_kind']}, {origin['code']} {origin['functional']}"
    if origin["paw_datasets"]:
        rows["PAW data sets"] = " ".join(origin["paw_datasets"])
    if valences:
        rows["electrons"] = ", ".join(f"{symbol} {n:g}" for symbol, n in valences.items())
    blocks = training.pop("validation_onsite_blocks_percent", {})
    rows |= {f"training: {key.replace('_', ' ')}": _text(v) for key, v in training.items()}
    _print_facts(rows)
    if blocks:
        table = Table(title="Error of on-site data, left out, in % of their spread", box=None)
        for heading, side in (("element, channels", "left"), ("L", "right"), ("%", "right")):
            table.add_column(heading, justify=side)  # type: ignore[arg-type]
        for name, percent in blocks.items():
            channels, _, rest = name.partition(" L=")
            table.add_row(channels, rest, f"{percent:.1f}")
        Console().print(table)


def _card_facts(header: ModelHeader) -> dict[str, Any]:
    from dataclasses import asdict

    onsite = header.config.onsite
    return {
        **asdict(header.card),
        "parameters": header.parameters,
        "spin": header.config.spin,
        "onsite": onsite.code if onsite is not None else "",
        "network": header.config.model_dump(mode="json"),
    }


# -- helpers -----------------------------------------------------------------------------------


def _calculator(model: str, device: str | None, normalize: bool) -> EACDensity:
    with _status("loading the model"):
        from eac_ase.calculator import EACDensity

        try:
            return EACDensity(model, device=device, normalize=normalize)
        except RuntimeError as error:
            if device is None:
                raise
            raise ConfigurationError(f"--device {device}: {error}") from error


def _read_structure(name: str) -> Atoms:
    from ase import Atoms
    from ase.io import read

    try:
        atoms = read(name)
    except FileNotFoundError:
        raise StructureError(f"There is no structure file {name}.") from None
    except Exception as error:
        # ASE's readers fail in every way there is.
        raise StructureError(
            f"ASE cannot read a structure from {name} ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(atoms, Atoms):
        raise StructureError(f"{name} names several structures: pick one, as in file.traj@-1.")
    return atoms


def _moments(text: str, atoms: Atoms) -> list[float]:
    """Initial moments from the command line."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if "=" in text:
            of_element = {k.strip(): float(v) for k, v in (part.split("=") for part in parts)}
            absent = set(of_element) - set(atoms.symbols)
            if absent:
                raise ConfigurationError(f"--spin: the structure has no {', '.join(absent)}.")
            return [of_element.get(symbol, 0.0) for symbol in atoms.symbols]
        values = [float(part) for part in parts]
    except ConfigurationError:
        raise
    except ValueError:
        raise ConfigurationError(
            f"--spin {text!r}: expected 2, or 2,-2,0, or Fe=2.2,O=0."
        ) from None
    if len(values) == 1:
        values *= len(atoms)
    if len(values) != len(atoms):
        raise ConfigurationError(f"--spin: {len(values)} moments for {len(atoms)} atoms.")
    return values


def _check_targets(outputs: list[Path], plot: Path | None, force: bool) -> None:
    """Refuse what could not be written, before any work."""
    from eac_ase.formats import density_format

    for path in outputs:
        density_format(path)
    if plot is not None:
        from eac_ase.plotting import check_picture

        check_picture(plot)
    for path in [*outputs, *([plot] if plot else [])]:
        if not path.parent.is_dir():
            raise GridError(f"There is no folder {path.parent} to write {path.name} into.")
        if path.exists() and not force:
            raise GridError(f"{path} exists already. Replace it with --force, or rename it.")


def _complain(message: str) -> None:
    Console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)


def _say(message: str) -> None:
    Console(stderr=True).print(escape(message), soft_wrap=True, style="yellow")


@contextmanager
def _status(what: str, quiet: bool = False) -> Iterator[None]:
    """A spinner on stderr, on terminals only."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _print_json(content: Any) -> None:
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def _print_facts(rows: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    Console().print(table)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case [[*_], *_]:
            return "\n".join("  ".join(f"{x:10.5f}" for x in row) for row in value)
        case list() | tuple():
            return ", ".join(_text(item) for item in value) or "–"
        case dict():
            return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)
