"""The charge that a structure states."""

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
