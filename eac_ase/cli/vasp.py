"""``eac vasp``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eac_ase.cli.app import app
from eac_ase.cli.console import (
    DeviceOption,
    JsonOption,
    ModelOption,
    open_calculator,
    print_facts,
    print_json,
    say,
    status,
)
from eac_model.registry import WATER


@app.command(
    epilog="""[bold]Examples[/]

eac vasp run

eac vasp run --write-incar

eac vasp bands --bands --model my-silicon.safetensors --like run/OUTCAR

eac vasp run --model my-iron.safetensors --no-occupancies --json"""
)
def vasp(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A prepared run: POSCAR, INCAR, POTCAR.")
    ],
    model: ModelOption = WATER,
    bands: Annotated[
        bool,
        typer.Option(
            "--bands",
            help="Keep the density (ICHARG = 11): bands, density of states. Not for meta-GGAs "
            "(hence not with water-scan) and hybrids.",
        ),
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
    with status("loading", as_json):
        from eac_ase.adapters.vasp import prepare_vasp_start

    calculator = open_calculator(model, device, normalize=False)
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
        print_json({**vars(start), "chgcar": str(start.chgcar), "model": calculator.card.name})
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
    print_facts(rows)
    for note in start.notes:
        say(f"Note: {note}")
