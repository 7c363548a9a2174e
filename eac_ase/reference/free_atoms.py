"""Free atoms and ions from GPAW's atomic solver: the tables in ``eac_ase/analysis/free_atoms.h5``.

    python -m eac_ase.reference.free_atoms free_atoms.h5

Spherical, spin-paired, PBE, Dirac equation (scalar effects of relativity included), electrons of an
open shell spread evenly over its orbitals. Ions lose electrons from, and gain them in, the highest
occupied shell that has some, or room, by the eigenvalues of the neutral atom. Anions that are not
bound by themselves are held by a Watson sphere, as they are in a crystal: a shell of the opposite
charge, with the radius of the covalent bond plus 0.75 Å, which is within 0.05 Å of Shannon's radii
of N³⁻, O²⁻, F⁻, S²⁻ and Cl⁻ (Watson, Phys. Rev. 111, 1108; Shannon, Acta Cryst. A32, 751).
Beside the atoms, densities of cores are kept: the electrons of whole shells, deepest first.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.units import Bohr
from numpy.typing import NDArray

from eac_ase.progress import progress_bar
from eac_model.files import replacing

RADII = 0.01 * 1200 ** (np.arange(100) / 99)
"""Å; uniform in ln r from 0.01 to 12."""

CHARGES = (0, 1, -1, 2, 3, 4, -2)
"""Net charges of the ions; −2 where a p shell has room."""

VALENCE = 20
"""Cores of pseudopotentials leave at most this many electrons to the valence."""

WATSON = 0.75
"""Å. A Watson sphere is larger than the covalent radius by this."""


def ion_configuration(symbol: str, charge: int) -> list[tuple[int, int, float, float]] | None:
    """Shells (n, l, occupation, eigenvalue) of an ion; None if electrons or room are missing."""
    from gpaw.atom.configurations import configurations

    shells = [list(shell) for shell in configurations[symbol][1]]
    if charge < -1 and not any(l == 1 and 2 <= f < 5 for _, l, f, _ in shells):
        return None
    for _ in range(abs(charge)):
        free = [s for s in shells if (s[2] > 0 if charge > 0 else s[2] < 4 * s[1] + 2)]
        if not free:
            return None
        highest = max(free, key=lambda shell: shell[3])
        highest[2] -= 1 if charge > 0 else -1
    return [(int(n), int(l), f, e) for n, l, f, e in shells]


def solve(symbol: str, charge: int) -> Any:
    """A self-consistent ion; None where there is none, or no convergence."""
    from gpaw.atom.aeatom import AllElectronAtom

    class Ion(AllElectronAtom):
        def step(self) -> None:
            super().step()
            if charge < 0:
                radius = (covalent_radii[self.Z] + WATSON) / Bohr
                grid: Any = self.rgd
                r = grid.r_g
                self.vr_sg += charge * r / np.maximum(r, radius)

    configuration = ion_configuration(symbol, charge)
    if configuration is None or sum(shell[2] for shell in configuration) == 0:
        return None
    for mix, steps in (0.4, 150), (0.1, 600):
        ion = Ion(symbol, xc="PBE", dirac=True, configuration=configuration, log=io.StringIO())
        try:
            ion.run(mix=mix, maxiter=steps, dnmax=1e-4)
        except RuntimeError:
            continue
        return ion
    return None


def on_radii(ion: Any, density: NDArray[np.floating]) -> NDArray[np.float32]:
    """ln ρ (ρ in e/Å³) at :data:`RADII`."""
    r = ion.rgd.r_g[1:] * Bohr
    logarithms = np.log(np.maximum(density[1:] / Bohr**3, 1e-30))
    return np.interp(np.log(RADII), np.log(r), logarithms).astype(np.float32)


def cores(atom: Any) -> list[tuple[float, NDArray[np.floating]]]:
    """Numbers of electrons and densities of whole shells, deepest first, without the last."""
    shells: dict[tuple[int, int], list[tuple[float, float, NDArray[np.floating]]]] = {}
    for channel in atom.channels:
        for n, occupation in enumerate(channel.f_n):
            if occupation > 0:
                density = occupation * channel.calculate_density(n)
                one = (occupation, float(channel.e_n[n]), density)
                shells.setdefault((channel.l, n), []).append(one)
    ordered = sorted(shells.values(), key=lambda parts: min(part[1] for part in parts))
    found = []
    electrons, density = 0.0, np.zeros_like(atom.rgd.r_g)
    for parts in ordered[:-1]:
        electrons += sum(part[0] for part in parts)
        density = density + np.sum([part[2] for part in parts], axis=0)
        found.append((float(round(electrons)), density))
    return found


def write_tables(path: Path) -> None:
    """Calculate all elements GPAW knows, and write the tables."""
    from gpaw.atom.configurations import configurations

    symbols = [s for s in chemical_symbols[1:] if s in configurations]
    rows: dict[str, list[Any]] = {"number": [], "electrons": [], "core": [], "logarithms": []}

    def add(number: int, electrons: float, core: bool, values: NDArray[np.float32]) -> None:
        for key, value in zip(rows, (number, electrons, core, values), strict=True):
            rows[key].append(value)

    with progress_bar("free atoms", len(symbols)) as advance:
        for symbol in symbols:
            number = chemical_symbols.index(symbol)
            for charge in CHARGES:
                ion = solve(symbol, charge)
                if ion is None:
                    continue
                add(number, number - charge, False, on_radii(ion, ion.n_sg.sum(axis=0)))
                if charge == 0:
                    for electrons, density in cores(ion):
                        if electrons >= number - VALENCE:
                            add(number, electrons, True, on_radii(ion, density))
            _write(path, rows)  # after every element: the whole table takes some minutes
            advance(1)


def _write(path: Path, rows: dict[str, list[Any]]) -> None:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = "eac-free-atoms"
        file.attrs["functional"] = "PBE"
        file["radii"] = RADII
        for key, values in rows.items():
            kind = {"number": "u1", "electrons": "f4", "core": "?", "logarithms": "f4"}[key]
            file.create_dataset(key, data=np.array(values, kind), compression=9, shuffle=True)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
