"""pymatgen: ``Chgcar`` objects from densities and back.

pymatgen is not a dependency of this package; these functions import it when they are called. A
``Chgcar`` holds density × cell volume, as the file does, and the augmentation occupancies as the
lines of the file (pymatgen up to 2025) or as arrays (pymatgen-core 2026): both are understood, and
lines are given, which both write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eac_ase.grid import DensityGrid
from eac_model.data.chgcar import (
    Occupancies,
    OnsiteSection,
    assemble,
    format_onsite,
    in_vasp_layout,
    onsite_sections,
    read_onsite,
)
from eac_model.data.sample import DensityKind, DensitySample, Provenance
from eac_model.data.textfile import NumberedText
from eac_model.errors import DensityFileError, StructureError

if TYPE_CHECKING:
    from pymatgen.io.vasp.outputs import Chgcar

_COMPONENTS = ("diff_x", "diff_y", "diff_z")


def to_pymatgen(density: DensityGrid | DensitySample) -> Chgcar:
    """Give a density to pymatgen.

    Parameters
    ----------
    density
        A grid, or a sample on a full grid; on-site data in VASP's layout become ``data_aug``,
        initial magnetic moments the site property ``magmom``. Matrices of other codes are left out.

    Returns
    -------
    pymatgen.io.vasp.outputs.Chgcar
        With ``data["total"]`` and, of collinear densities, ``data["diff"]``, of non-collinear ones
        ``data["diff_x"]`` … ``data["diff_z"]``; e.

    """
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.vasp.outputs import Chgcar

    sample = in_vasp_layout(density.to_sample() if isinstance(density, DensityGrid) else density)
    volume = sample.atoms.get_volume()
    grids = {"total": sample.density}
    if sample.spin_density is not None:
        grids["diff"] = sample.spin_density
    if sample.magnetization is not None:
        grids |= dict(zip(_COMPONENTS, sample.magnetization.density, strict=True))
    sections = onsite_sections(sample)
    lines: dict[str, Any] = {
        name: format_onsite(section).decode().splitlines(keepends=True)
        for name, section in zip(grids, sections, strict=True)
    }
    structure: Any = AseAtomsAdaptor.get_structure(sample.atoms)
    data = {name: np.asarray(grid, dtype=float) * volume for name, grid in grids.items()}
    return Chgcar(structure, data, lines if any(lines.values()) else None)


def from_pymatgen(chgcar: Chgcar, density_kind: DensityKind = "valence") -> DensitySample:
    """Take a density from pymatgen.

    Parameters
    ----------
    chgcar
        ``Chgcar`` of an ordered structure.
    density_kind
        What the density counts; the object does not say. Those of VASP count valence electrons.

    Returns
    -------
    DensitySample
        What :func:`~eac_model.data.chgcar.read_chgcar` returns for its file;
        ``DensityGrid.from_sample`` makes a grid of it.

    Raises
    ------
    StructureError
        If sites are partly occupied.
    DensityFileError
        If the augmentation occupancies are damaged or not those of all atoms.
    """
    from pymatgen.io.ase import AseAtomsAdaptor

    if not chgcar.structure.is_ordered:
        raise StructureError("A structure with partly occupied sites has no atoms to give.")
    atoms = AseAtomsAdaptor.get_atoms(chgcar.structure, msonable=False)
    names = ["total"]
    if all(name in chgcar.data for name in _COMPONENTS):
        names += _COMPONENTS
    elif "diff" in chgcar.data:
        names.append("diff")
    grids = [np.asarray(chgcar.data[name], dtype=float) / atoms.get_volume() for name in names]
    augmentation: Any = chgcar.data_aug or {}
    sections = [_section(augmentation.get(name), name, len(atoms)) for name in names]
    code = "VASP" if density_kind == "valence" else "unknown"
    return assemble(atoms, grids, sections, Provenance(code=code, density_kind=density_kind))


def _section(given: Any, name: str, n_atoms: int) -> OnsiteSection:
    if given is None or len(given) == 0:
        return OnsiteSection()
    if isinstance(given, dict):
        return _from_arrays(given, name, n_atoms)
    lines = (line if line.endswith("\n") else line + "\n" for line in given)
    text = NumberedText(f"Chgcar.data_aug[{name!r}]", "".join(lines).encode())
    section, line = read_onsite(text, 0, n_atoms)
    if line < len(text):
        text.fail(line, f"unexpected {text.line(line)[:40]!r} after the occupancies.")
    return section


def _from_arrays(given: dict[int, NDArray], name: str, n_atoms: int) -> OnsiteSection:
    if sorted(given) != list(range(1, n_atoms + 1)):
        raise DensityFileError(
            f"Chgcar.data_aug[{name!r}] has occupancies of {len(given)} of {n_atoms} atoms."
        )
    arrays = [np.ravel(given[index]) for index in range(1, n_atoms + 1)]
    real: Occupancies = tuple(np.asarray(one.real, dtype=float) for one in arrays)
    imaginary: Occupancies = tuple(np.asarray(one.imag, dtype=float) for one in arrays)
    return OnsiteSection(real, imaginary if any(map(np.iscomplexobj, arrays)) else None)
