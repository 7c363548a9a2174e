"""``eac partition``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from eac_ase.cli.app import app
from eac_ase.cli.console import (
    DEFAULT_MODEL,
    DeviceOption,
    JsonOption,
    ModelOption,
    check_target,
    hint_at_moments,
    open_calculator,
    parse_valences,
    print_json,
    read_structure,
    say,
    set_moments,
    status,
)
from eac_model.errors import AnalysisError, ConfigurationError, DensityFileError, GridError

if TYPE_CHECKING:
    from eac_ase.analysis import Partition
    from eac_ase.grid import DensityGrid


@app.command(
    epilog="""[bold]Examples[/]

eac partition water.xyz

eac partition water.xyz --scheme hirshfeld --scheme bader -o charges.json

eac partition run/CHGCAR --scheme bader

eac partition CHGCAR --scheme bader --reference AECCAR0 --reference AECCAR2 --valence Na=1,Cl=7

eac partition density.cube --scheme hirshfeld --all-electron -o charges.xyz"""
)
def partition(
    file: Annotated[
        str, typer.Argument(help="A structure, for a model; or a density (CHGCAR, cube, gpw, h5).")
    ],
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            help="eac (models only), bader, hirshfeld, iterative-hirshfeld, voronoi; may be given "
            "several times. Default: eac for structures, hirshfeld for densities.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="*.json: everything; *.xyz, *.traj: atoms with charges and moments.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    spin: Annotated[
        str | None, typer.Option(help="Initial moments for a model, as in `eac predict`.")
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="Density whose basins bader takes; several are added. By default AECCAR0 and "
            "AECCAR2 beside a CHGCAR, or the density with cores of free atoms."
        ),
    ] = None,
    valence: Annotated[
        str | None,
        typer.Option(
            help="Electrons of each neutral atom that the density counts: O=6,H=1. By default "
            "those of the POTCAR beside a CHGCAR, or of the model's card."
        ),
    ] = None,
    all_electron: Annotated[
        bool, typer.Option("--all-electron", help="The file's density counts every electron.")
    ] = False,
    charge: Annotated[
        float | None, typer.Option(help="Charge of the cell, e (default 0, or the structure's).")
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(
            help="Distance of a model's grid points, Å (default 0.08; pseudo densities 0.12)."
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option(help="Scale to the exact number of electrons, where it is known.")
    ] = True,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Charges, moments, dipoles and volumes of the atoms in a density."""
    if output is not None:
        _check_target(output, force, len(scheme or [""]))
    density = _density(Path(file))
    if density is None:
        if all_electron or reference or valence:
            raise ConfigurationError(
                f"{file} is a structure: --all-electron, --reference and --valence are for "
                "densities in files."
            )
        found = _of_model(
            file, scheme or ["eac"], model, spin, charge, spacing, normalize, device, as_json
        )
    else:
        if spacing is not None or spin is not None:
            raise ConfigurationError(f"{file} is a density: --spacing and --spin are for models.")
        found = _of_file(
            Path(file),
            density,
            scheme or ["hirshfeld"],
            reference or [],
            valence,
            all_electron,
            charge,
            normalize,
            as_json,
        )
    if output is not None:
        _write(found, output)
    if as_json:
        print_json({result.scheme: result.as_dict() for result in found})
        return
    for result in found:
        Console().print(escape(result.table()), soft_wrap=True, highlight=False)
        print()


def _density(path: Path) -> DensityGrid | None:
    """The density in a file; None if it holds a structure only."""
    from eac_ase.grid import DensityGrid
    from eac_model.data.readers import holds_density

    try:
        return DensityGrid.read(path)
    except (DensityFileError, GridError):
        if holds_density(path):
            raise
        return None


def _of_model(
    file: str,
    schemes: list[str],
    model: str,
    spin: str | None,
    charge: float | None,
    spacing: float | None,
    normalize: bool,
    device: str | None,
    quiet: bool,
) -> list[Partition]:
    atoms = read_structure(file)
    calculator = open_calculator(model, device, normalize=False)
    if spin is not None:
        set_moments(atoms, spin, calculator, model)
    hint_at_moments(atoms, calculator)
    if charge is not None:
        atoms.info["charge"] = charge
    progress = False if quiet else None
    found = []
    for scheme in schemes:
        with status(scheme, quiet):
            found.append(
                calculator.partition(
                    scheme,  # type: ignore[arg-type]  # a wrong name is refused with the right ones
                    atoms,
                    spacing=spacing,
                    normalize=normalize,
                    progress=progress,
                )
            )
    return found


def _of_file(
    path: Path,
    grid: DensityGrid,
    schemes: list[str],
    references: list[Path],
    valence: str | None,
    all_electron: bool,
    charge: float | None,
    normalize: bool,
    quiet: bool,
) -> list[Partition]:
    from dataclasses import replace

    from eac_ase.analysis import partition
    from eac_ase.grid import DensityGrid

    if all_electron:
        grid = replace(grid, kind="all-electron")
    chgcar = path.name.upper().startswith("CHGCAR")
    electrons = None if valence is None else parse_valences(valence)
    potcar = path.parent / "POTCAR"
    if electrons is None and chgcar and grid.kind == "valence" and potcar.is_file():
        electrons = _valences_of(potcar)
        say("Valence electrons: those of the POTCAR beside the file.")
    beside = [path.parent / name for name in ("AECCAR0", "AECCAR2")]
    if not references and "bader" in schemes and chgcar and all(p.is_file() for p in beside):
        references = beside
        say("Reference density: AECCAR0 + AECCAR2 beside the file.")
    core = None
    for one in references:
        core = DensityGrid.read(one) if core is None else core + DensityGrid.read(one)
    found = []
    for scheme in schemes:
        with status(scheme, quiet):
            try:
                result = partition(
                    grid,
                    scheme,  # type: ignore[arg-type]
                    reference=core if scheme == "bader" else None,
                    valence_electrons=electrons,
                    charge=charge,
                    normalize=normalize,
                    progress=False if quiet else None,
                )
            except AnalysisError as error:
                raise AnalysisError(
                    f"{error} What is to be known of a file: --valence O=6,H=1 (or a POTCAR beside "
                    "it), --charge, --all-electron, --reference, --no-normalize."
                ) from None
        found.append(result)
    if any(result.charges is None for result in found):
        say(
            "Net charges need the electrons of the neutral atoms: --valence O=6,H=1, say, or a "
            "POTCAR beside the file, or --all-electron."
        )
    return found


def _valences_of(path: Path) -> dict[str, float]:
    from eac_ase.adapters.potcar import read_potcar

    found: dict[str, float] = {}
    for one in read_potcar(path):
        if found.setdefault(one.symbol, one.valence) != one.valence:
            raise ConfigurationError(
                f"{path} has data sets of {one.symbol} with {found[one.symbol]:g} and with "
                f"{one.valence:g} valence electrons. Charges need one number for each element."
            )
    return found


def _check_target(path: Path, force: bool, schemes: int) -> None:
    check_target(path, force)
    if path.suffix.lower() == ".json":
        return
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        kind = ioformats.get(filetype(str(path), read=False))
    except UnknownFileTypeError:
        kind = None
    if kind is None or not kind.can_write or kind.name in ("db", "json"):
        raise ConfigurationError(
            f"{path.name} names no format of ASE: write *.json, *.xyz or *.traj."
        )
    if schemes > 1:
        raise ConfigurationError(
            f"{path.name} holds the charges of one scheme: ask for one, or write *.json."
        )


def _write(found: list[Partition], path: Path) -> None:
    """One scheme as it is; several as a mapping of names to results."""
    import json

    from eac_model.files import write_bytes

    if len(found) == 1:
        found[0].write(path)
        return
    content = {result.scheme: result.as_dict() for result in found}
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
