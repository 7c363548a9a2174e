"""ASE: ``VaspChargeDensity`` objects from densities and back.

A ``VaspChargeDensity`` (:mod:`ase.calculators.vasp`) holds e/Å³, the images of a CHG file one after
the other, and the augmentation occupancies of a CHGCAR as text.
"""

from __future__ import annotations

import numpy as np
from ase.calculators.vasp import VaspChargeDensity

from eac_ase.grid import DensityGrid
from eac_model.data.chgcar import (
    OnsiteSection,
    assemble,
    format_onsite,
    in_vasp_layout,
    onsite_sections,
    read_onsite,
)
from eac_model.data.sample import DensityKind, DensitySample, Provenance
from eac_model.data.textfile import NumberedText
from eac_model.errors import GridError


def to_vasp_charge_density(density: DensityGrid | DensitySample) -> VaspChargeDensity:
    """Give a density to ASE.

    Parameters
    ----------
    density
        A grid, or a sample on a full grid, spin-paired or collinear. On-site data in VASP's layout
        become the texts ``aug`` and ``augdiff``; matrices of other codes are left out.

    Raises
    ------
    GridError
        If the density is non-collinear.
    """
    sample = in_vasp_layout(density.to_sample() if isinstance(density, DensityGrid) else density)
    if sample.magnetization is not None:
        raise GridError("ASE's VaspChargeDensity cannot hold a non-collinear magnetisation.")
    texts = [format_onsite(section).decode() for section in onsite_sections(sample)]
    charge = VaspChargeDensity(None)
    charge.atoms = [sample.atoms.copy()]
    charge.chg = [np.array(sample.density, dtype=float)]
    charge.aug = texts[0]
    if sample.spin_density is not None:
        charge.chgdiff = [np.array(sample.spin_density, dtype=float)]
        charge.augdiff = texts[1]
    return charge


def from_vasp_charge_density(
    charge: VaspChargeDensity, image: int = -1, density_kind: DensityKind = "valence"
) -> DensitySample:
    """Take a density from ASE.

    Parameters
    ----------
    charge
        As read from CHG or CHGCAR.
    image
        Which of the images of a CHG file. Occupancies belong to the last one.
    density_kind
        What the density counts; the object does not say. Those of VASP count valence electrons.

    Returns
    -------
    DensitySample
        What :func:`~eac_model.data.chgcar.read_chgcar` returns for its file;
        ``DensityGrid.from_sample`` makes a grid of it.

    Raises
    ------
    GridError
        If there is no such image.
    DensityFileError
        If the augmentation occupancies are damaged or not those of all atoms.
    """
    if not -len(charge.chg) <= image < len(charge.chg):
        raise GridError(f"There is no image {image} among {len(charge.chg)}.")
    atoms = charge.atoms[image].copy()
    grids = [np.array(charge.chg[image], dtype=float)]
    texts = [charge.aug]
    if charge.is_spin_polarized():
        grids.append(np.array(charge.chgdiff[image], dtype=float))
        texts.append(charge.augdiff)
    if image % len(charge.chg) != len(charge.chg) - 1:
        texts = [""] * len(grids)
    sections = [_section(text, len(atoms)) for text in texts]
    code = "VASP" if density_kind == "valence" else "unknown"
    return assemble(atoms, grids, sections, Provenance(code=code, density_kind=density_kind))


def _section(content: str, n_atoms: int) -> OnsiteSection:
    text = NumberedText("VaspChargeDensity.aug", content.encode())
    section, line = read_onsite(text, 0, n_atoms)
    if line < len(text):
        text.fail(line, f"unexpected {text.line(line)[:40]!r} after the occupancies.")
    return section
