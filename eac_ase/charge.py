"""What of a structure belongs to its density beside the atoms' places: the charge it states."""

from __future__ import annotations

import math

from ase import Atoms

from eac_model.errors import StructureError


def stated_charge(atoms: Atoms, given: float | None = None) -> float | None:
    """Charge of the cell, e: `given`, else ``atoms.info["charge"]``; None if neither says it.

    Raises
    ------
    StructureError
        It is no finite number.
    """
    value = atoms.info.get("charge") if given is None else given
    if value is None:
        return None
    try:
        charge = float(value)
    except (TypeError, ValueError):
        charge = math.nan
    if not math.isfinite(charge):
        raise StructureError(
            f"The charge of the cell is a number of elementary charges, not {value!r}: correct "
            'atoms.info["charge"], or delete it.'
        )
    return charge


def plain_atoms(atoms: Atoms) -> Atoms:
    """The structure as its density goes with it: with charge and masses, and nothing else."""
    plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("masses"):
        plain.set_masses(atoms.get_masses())
    if "charge" in atoms.info:
        plain.info["charge"] = atoms.info["charge"]
    return plain
