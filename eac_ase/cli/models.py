"""``eac models``, ``eac models import`` and ``eac info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from eac_ase.cli.app import app
from eac_ase.cli.console import (
    JsonOption,
    format_value,
    parse_valences,
    print_facts,
    print_json,
    read_structure,
    say,
    show_configuration,
    status,
)
from eac_ase.cli.data import data_info
from eac_model.errors import ConfigurationError, DensityFileError, StructureError
from eac_model.registry import bundled_models, find_model

if TYPE_CHECKING:
    from ase import Atoms

    from eac_model.checkpoint import ModelHeader


class _NamesToo(TyperGroup):
    """Takes what is no command for the name of a model: ``eac models water-scan``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


models_app = typer.Typer(cls=_NamesToo, rich_markup_mode="rich")
app.add_typer(models_app, name="models")


@models_app.callback(
    invoke_without_command=True,
    epilog="[bold]Examples[/]\n\neac models\n\neac models water-scan\n\neac models --json",
)
def models(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the bundled models; show the card of one; import models of other programs."""
    from eac_model.checkpoint import read_header

    if ctx.invoked_subcommand is not None:
        return
    cards = [_card_facts(read_header(find_model(bundled))) for bundled in bundled_models()]
    if as_json:
        print_json(cards)
        return
    if not cards:
        say("No models are bundled with this installation; `eac train` makes one.")
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


@models_app.command()
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Bundled model or model file.")],
    as_json: JsonOption = False,
) -> None:
    """Show the card of a model; `eac models NAME` does the same."""
    assert ctx.parent is not None
    _show_model(find_model(name), as_json or ctx.parent.params["as_json"])


@models_app.command(
    "import",
    epilog="""[bold]Examples[/]

eac models import eac-mp-l5-6000.pt -o eac-mp.safetensors --functional PBE --valence H=1,O=6

eac models import charge3net_qm9.pt -o qm9.safetensors --elements "H C N O F\"""",
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Checkpoint (.pt) of EAC-Net or ChargE3Net.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")],
    name: Annotated[
        str | None, typer.Option(help="Name on the card; by default that of the output.")
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(help="Elements the model shall know ('H O'); by default all in the file."),
    ] = None,
    functional: Annotated[
        str, typer.Option(help="Functional of the training data, which the file does not say.")
    ] = "unknown",
    cutoff: Annotated[
        float,
        typer.Option(min=0.1, help="Cutoff of ChargE3Net, Å, which its file does not say."),
    ] = 4.0,
    valence: Annotated[
        str | None,
        typer.Option(
            help="Electrons of the neutral atoms in the training data (H=1,O=6), which the file "
            "does not say: charges and --normalize need them."
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the card.")] = "",
) -> None:
    """Turn a published checkpoint into a model file, without executing anything in it."""
    from dataclasses import replace

    from eac_model.checkpoint import save_model
    from eac_model.imports import import_model

    if output.suffix != ".safetensors":
        raise ConfigurationError(f"--output {output}: model files end in .safetensors.")
    numbers = None if elements is None else _atomic_numbers(elements)
    electrons = {} if valence is None else parse_valences(valence)
    with status("reading the checkpoint"):
        network, card = import_model(
            file,
            elements=numbers,
            name=name or output.stem,
            functional=functional,
            cutoff=cutoff,
        )
    save_model(network, replace(card, licence=licence, valence_electrons=electrons), output)
    Console().print(
        f"{escape(str(output))}: {escape(card.summary)} {len(card.elements)} elements, "
        f"{sum(p.numel() for p in network.parameters()):,} parameters.",
        soft_wrap=True,
    )


def _atomic_numbers(symbols: str) -> list[int]:
    """Atomic numbers of 'H O' or 'H,O'."""
    from ase.data import atomic_numbers

    found = symbols.replace(",", " ").split()
    unknown = [symbol for symbol in found if atomic_numbers.get(symbol, 0) < 1]
    if unknown or not found:
        raise ConfigurationError(f"--elements {symbols!r}: give symbols of elements, as in 'H O'.")
    return [atomic_numbers[symbol] for symbol in found]


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
            print_json(facts)
        else:
            print_facts(
                {key.replace("_", " "): format_value(value) for key, value in facts.items()}
            )


def _show_potcar(path: Path, as_json: bool) -> None:
    """Headers of the data sets, and what a training configuration needs of them."""
    from dataclasses import asdict

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
        print_json({"file": str(path), "datasets": found, "configuration": keys})
        return
    table = Table(box=None, header_style="bold")
    for heading in ("data set", "LEXCH", "ZVAL", "ENMAX / eV", "l of projectors"):
        table.add_column(heading)
    for d in datasets:
        channels = " ".join(map(str, d.channels))
        table.add_row(escape(d.title), d.functional, f"{d.valence:g}", f"{d.enmax:g}", channels)
    Console().print(table)
    show_configuration(keys, "occupancies")


def _density_or_structure(path: Path) -> dict[str, Any]:
    from eac_model.data import read_density
    from eac_model.data.readers import holds_density

    # ASE's file.traj@-1 names a frame.
    there = Path(str(path).rsplit("@", 1)[0]).is_file()
    try:
        sample = read_density(path)
    except DensityFileError as error:
        if holds_density(path) or not there:
            raise
        try:
            atoms = read_structure(str(path))
        except StructureError:
            raise DensityFileError(f"{error} Nor does ASE read a structure from it.") from None
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
        print_json(facts)
        return
    origin = facts.pop("provenance")
    training, valences = facts.pop("training"), facts.pop("valence_electrons")
    facts.pop("network")
    rows = {key.replace("_", " "): format_value(value) for key, value in facts.items() if value}
    rows["density"] = f"{origin['density_kind']}, {origin['code']} {origin['functional']}"
    if origin["paw_datasets"]:
        rows["PAW data sets"] = " ".join(origin["paw_datasets"])
    if valences:
        rows["electrons"] = ", ".join(f"{symbol} {n:g}" for symbol, n in valences.items())
    blocks = training.pop("validation_onsite_blocks_percent", {})
    rows |= {f"training: {key.replace('_', ' ')}": format_value(v) for key, v in training.items()}
    print_facts(rows)
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
        "architecture": header.config.architecture,
        "parameters": header.parameters,
        "spin": header.config.spin,
        "onsite": onsite.code if onsite is not None else "",
        "network": header.config.model_dump(mode="json"),
    }
