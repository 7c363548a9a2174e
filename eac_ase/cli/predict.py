"""``eac predict`` and ``eac demo``."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from ase.calculators.calculator import PropertyNotImplementedError
from rich.console import Console

from eac_ase.cli.app import app
from eac_ase.cli.console import (
    DEFAULT_MODEL,
    DeviceOption,
    JsonOption,
    ModelOption,
    SpacingOption,
    check_target,
    hint_at_charge,
    hint_at_moments,
    open_calculator,
    print_facts,
    print_json,
    read_structure,
    set_moments,
    status,
)
from eac_model.errors import GridError
from eac_model.registry import WATER

if TYPE_CHECKING:
    from ase import Atoms

    from eac_ase.calculator import EACDensity
    from eac_ase.grid import DensityGrid
    from eac_model.lattice import Shape

DEFAULT_MEMORY = 4.0
"""GiB."""

BYTES_A_VALUE = 16
"""What a value takes in memory from its evaluation to the file, copies included."""

DEMO_STRUCTURE = "water48.xyz"

KINDS = {
    "valence": "valence",
    "pseudo": "GPAW's pseudo density: no count of valence electrons, no start for VASP",
    "all-electron": "all-electron",
    "unknown": "unknown",
}
"""What is said of the number of electrons, by kind of density."""


@app.command(
    epilog="""[bold]Examples[/]

eac predict POSCAR --model runs/mine/model.safetensors -o CHGCAR

eac predict water.xyz -o water.cube -o water.h5 --spacing 0.08 --plot water.png

eac predict md.traj@-1 -o CHGCAR --shape 120 120 120 --json

eac predict huge.cif -o rho.h5 --spacing 0.05 --memory 2

eac predict Fe.cif --model my-iron.safetensors --spin Fe=2.2 -o CHGCAR"""
)
def predict(
    structure: Annotated[
        str,
        typer.Argument(help="Any structure file ASE reads; of several frames the last, or file@3."),
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
    spacing: SpacingOption = None,
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
        bool,
        typer.Option(
            "--normalize",
            help="Scale to the exact number of electrons; not for pseudo densities (eac-pbe).",
        ),
    ] = False,
    memory: Annotated[
        float,
        typer.Option(
            help="GiB. Grids that need more are written piece by piece; started again after a "
            "break, the command goes on where it was."
        ),
    ] = DEFAULT_MEMORY,
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
    atoms = read_structure(structure)
    calculator = open_calculator(model, device, normalize)
    if spin is not None:
        set_moments(atoms, spin, calculator, model)
    hint_at_moments(atoms, calculator)
    hint_at_charge(atoms, normalize)
    if not memory > 0:
        raise typer.BadParameter(f"--memory is a number of GiB, not {memory}")
    wanted = calculator.get_grid_shape(atoms, shape, spacing)
    held = math.prod(wanted) * BYTES_A_VALUE * calculator.network.n_spin
    if held > memory * 2**30:
        _check_streamable(outputs, plot, held)
        report = _stream(calculator, atoms, structure, outputs, wanted, memory, as_json)
    else:
        report = _predict(calculator, atoms, structure, outputs, plot, shape, spacing, as_json)
    _report(report, as_json)


def _check_streamable(outputs: list[Path], plot: Path | None, held: int) -> None:
    """Refuse what needs the whole grid at once."""
    from eac_ase.formats import density_format

    whole = [path for path in outputs if density_format(path) == "xsf"]
    if whole or plot is not None:
        raise GridError(
            f"This grid takes {held / 2**30:.1f} GiB, more than --memory, and "
            f"{whole[0] if whole else plot} cannot be written piece by piece: leave it out, raise "
            "--memory, or take a larger --spacing."
        )


def _stream(
    calculator: EACDensity,
    atoms: Atoms,
    name: str,
    outputs: list[Path],
    shape: Shape,
    memory: float,
    quiet: bool,
) -> dict[str, Any]:
    """Evaluate and write piece by piece, and say what was done."""
    began = perf_counter()
    # A quarter for values: evaluation needs room, too.
    done = calculator.write_density(
        outputs,
        atoms,
        shape=shape,
        memory=int(memory * 2**28),
        progress=False if quiet else None,
    )
    seconds = perf_counter() - began
    report = _facts(calculator, atoms, name, shape) | {"electrons": done.electrons}
    if done.magnetic_moment is not None:
        report["magnetic_moment"] = done.magnetic_moment
    return report | _outcome(math.prod(shape), seconds, outputs)


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
        with status("drawing", quiet):
            save_plane(grid, plot)
    report = _facts(calculator, atoms, name, grid.shape) | {"electrons": grid.integrate()}
    if grid.spin is not None:
        report["magnetic_moment"] = grid.integrate_spin()
    return report | _outcome(grid.values.size, seconds, [*outputs, *([plot] if plot else [])])


def _facts(calculator: EACDensity, atoms: Atoms, name: str, shape: Shape) -> dict[str, Any]:
    try:
        estimate = calculator.get_error_estimate(atoms)
    except PropertyNotImplementedError:
        trust: dict[str, Any] = {}
    else:
        worst = int(estimate.atoms.argmax())
        trust = {
            "expected_error_percent": _finite(estimate.structure),
            "expected_error_of_atoms_percent": [_finite(error) for error in estimate.atoms],
            "largest_at": f"{atoms.symbols[worst]} {worst}",
            "unfamiliar_atoms": estimate.unfamiliar.tolist(),
        }
    return trust | {
        "structure": name,
        "formula": atoms.get_chemical_formula(),
        "atoms": len(atoms),
        "model": calculator.card.name,
        "device": str(calculator.network.device),
        "shape": list(shape),
        "density_kind": calculator.card.provenance.density_kind,
    }


def _finite(percent: float) -> float | None:
    """JSON knows no infinity, the error where nothing is known of one."""
    return float(percent) if math.isfinite(percent) else None


def _outcome(points: int, seconds: float, files: list[Path]) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "points_per_second": points / seconds,
        "files": [str(path) for path in files],
    }


def _report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    rows = {
        "structure": f"{report['structure']}  ({report['formula']}, {report['atoms']} atoms)",
        "model": f"{report['model']} on {report['device']}",
        "grid": " × ".join(map(str, report["shape"])),
        "electrons": f"{report['electrons']:.4f}  ({KINDS[report['density_kind']]})",
    }
    if "magnetic_moment" in report:
        pseudo = report["density_kind"] == "pseudo"
        rows["moment"] = f"{report['magnetic_moment']:.4f} μ_B" + (
            "  (of the pseudo density; eac partition adds the PAW spheres)" if pseudo else ""
        )
    if report.get("unfamiliar_atoms"):
        rows["expected error"] = "unknown: surroundings unlike the training data"
    elif "expected_error_percent" in report:
        largest = max(report["expected_error_of_atoms_percent"])
        rows["expected error"] = (
            f"{report['expected_error_percent']:.2f} %  (around {report['largest_at']} "
            f"{largest:.2f} %)"
        )
    rows["wall time"] = f"{report['seconds']:.2f} s"
    rows["speed"] = f"{report['points_per_second']:,.0f} points/s"
    rows["written"] = "\n".join(report["files"])
    print_facts(rows)


@app.command(epilog="[bold]Example[/]\n\neac demo --directory /tmp/demo")
def demo(
    model: ModelOption = WATER,
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
    atoms = read_structure(str(files("eac_ase") / "structures" / DEMO_STRUCTURE))
    calculator = open_calculator(model, device, normalize=False)
    directory.mkdir(parents=True, exist_ok=True)
    outputs = [directory / "CHGCAR", directory / "water.cube"]
    picture = directory / "water.png"
    with status("first use: compiling", as_json):
        # Once an installation, some ten seconds that are not the prediction's.
        calculator.get_density_grid(atoms[:3], shape=(8, 8, 8), progress=False)
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


def _check_targets(outputs: list[Path], plot: Path | None, force: bool) -> None:
    """Refuse what could not be written, before any work."""
    from eac_ase.formats import density_format

    for path in outputs:
        density_format(path)
    if plot is not None:
        from eac_ase.plotting import check_picture

        check_picture(plot)
    for path in [*outputs, *([plot] if plot else [])]:
        check_target(path, force)
