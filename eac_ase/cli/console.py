"""What the commands share: options, a model and a structure from the command line, printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eac_model.errors import ConfigurationError, GridError, StructureError
from eac_model.registry import default_model

if TYPE_CHECKING:
    from ase import Atoms

    from eac_ase.calculator import EACDensity

DEFAULT_MODEL = default_model()

MAGNETIC = ("Cr", "Mn", "Fe", "Co", "Ni")
"""Elements whose moments had better be given, or be 0 on purpose."""

WRONG_INPUT = 2
INTERRUPTED = 130
PIPE_CLOSED = 141

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


def open_calculator(model: str, device: str | None, normalize: bool) -> EACDensity:
    """The calculator of ``--model``, ``--device`` and ``--normalize``."""
    with status("loading the model"):
        from eac_ase.calculator import EACDensity

        try:
            return EACDensity(model, device=device, normalize=normalize)
        except RuntimeError as error:
            if device is None:
                raise
            raise ConfigurationError(f"--device {device}: {error}") from error


def read_structure(name: str) -> Atoms:
    """One structure from any file ASE reads, of several the last one.

    ASE's failures of every kind become a StructureError.
    """
    from ase import Atoms
    from ase.io import read
    from ase.io.formats import filetype, ioformats

    from eac_model.data.readers import holds_density

    try:
        one = "@" in name or ioformats[filetype(name)].single
        # Two frames tell that there are several.
        found = read(name, None if one else slice(-2, None))
    except FileNotFoundError:
        raise StructureError(f"There is no structure file {name}.") from None
    except Exception as error:
        if Path(name).is_dir():
            raise StructureError(
                f"{name} is a folder: name the structure file in it, {name.rstrip('/')}/POSCAR say."
            ) from None
        if holds_density(Path(name)):
            raise StructureError(
                f"{name} is a density: name a structure file, the POSCAR beside it say."
            ) from None
        if isinstance(error, StopIteration | IndexError) and "@" in name:
            raise StructureError(f"{name}: the file has no such frame; the first is 0.") from None
        # ASE's readers fail in every way there is.
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise StructureError(f"ASE cannot read a structure from {name} ({cause}).") from error
    if isinstance(found, Atoms):
        return found
    if "@" in name:
        raise StructureError(f"{name} names several structures: pick one, as in file.traj@-1.")
    if not found:
        raise StructureError(f"{name} holds no structure.")
    if len(found) > 1:
        say(f"{name} holds several structures: the last one is taken, {name}@0 is the first.")
    return found[-1]


def check_target(path: Path, force: bool) -> None:
    """Refuse what could not be written, before any work."""
    if not path.parent.is_dir():
        raise GridError(f"There is no folder {path.parent} to write {path.name} into.")
    if path.exists() and not force:
        raise GridError(f"{path} exists already. Replace it with --force, or rename it.")


def set_moments(atoms: Atoms, spin: str, calculator: EACDensity, model: str) -> None:
    """Give atoms the moments of ``--spin``, whatever theirs were."""
    if not calculator.network.config.spin:
        raise ConfigurationError(f"The model {model!r} knows no spin: leave --spin out.")
    atoms.set_initial_magnetic_moments(None)
    atoms.set_initial_magnetic_moments(parse_moments(spin, atoms))


def hint_at_charge(atoms: Atoms, normalize: bool) -> None:
    """Say that a charge is stated which the density will not have."""
    from eac_ase.charge import stated_charge

    if not normalize and (charge := stated_charge(atoms)):
        say(f"The structure has the charge {charge:+g}: models know neutral ones, and so is this.")


def hint_at_moments(atoms: Atoms, calculator: EACDensity) -> None:
    """Say that elements which often are magnetic have no moments."""
    magnetic = [symbol for symbol in MAGNETIC if symbol in atoms.symbols]
    spin_model = calculator.network.config.spin
    if spin_model and magnetic and not atoms.get_initial_magnetic_moments().any():
        say(
            f"No initial moments: {', '.join(magnetic)} is taken to be non-magnetic. If it is not: "
            f"--spin {magnetic[0]}=2.5, say."
        )


def parse_moments(text: str, atoms: Atoms) -> list[float]:
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


def parse_valences(text: str) -> dict[str, float]:
    """Electrons of neutral atoms from the command line."""
    from ase.data import atomic_numbers

    try:
        pairs = (part.split("=") for part in text.split(","))
        found = {symbol.strip(): float(electrons) for symbol, electrons in pairs}
    except ValueError:
        found = {}
    if not found or any(atomic_numbers.get(s, 0) < 1 or not n > 0 for s, n in found.items()):
        raise ConfigurationError(f"--valence {text!r}: expected O=6,H=1.")
    return found


def complain(message: str) -> None:
    """An error, on stderr."""
    Console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)


def say(message: str) -> None:
    """A remark, on stderr."""
    Console(stderr=True).print(escape(message), soft_wrap=True, style="yellow")


@contextmanager
def status(what: str, quiet: bool = False) -> Iterator[None]:
    """A spinner on stderr, on terminals only."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def print_json(content: Any) -> None:
    """JSON on stdout."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_facts(rows: dict[str, str]) -> None:
    """Names and values in two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    Console().print(table)


def format_number(value: float | None, form: str) -> str:
    """A number in a table, a dash where there is none."""
    return "–" if value is None else format(value, form)


def format_value(value: Any) -> str:
    """Any value of a card or a file, for people to read."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case [[*_], *_]:
            return "\n".join("  ".join(f"{x:10.5f}" for x in row) for row in value)
        case list() | tuple():
            return ", ".join(format_value(item) for item in value) or "–"
        case dict():
            return ", ".join(f"{key} {format_value(item)}" for key, item in value.items())
    return str(value)


def show_configuration(keys: dict[str, Any], what: str) -> None:
    """Keys of a training configuration, as YAML to copy."""
    import yaml

    Console().print(f"\nFor the configuration of `eac train`, to learn {what} too:", style="dim")
    print(yaml.safe_dump(keys, sort_keys=False, default_flow_style=None, width=100), end="")
