"""Populations, charges and moments of atoms: five schemes, one result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from numpy.typing import NDArray

from eac_ase.analysis.bader import VACUUM, bader
from eac_ase.analysis.free_atoms import core_density
from eac_ase.analysis.hirshfeld import hirshfeld, iterative_hirshfeld
from eac_ase.analysis.moments import Moments, charge_of, check_inside, sphere, valences_of
from eac_ase.analysis.paw import all_electron_valence, sphere_moments
from eac_ase.analysis.voronoi import voronoi
from eac_ase.charge import plain_atoms, stated_charge
from eac_ase.grid import DensityGrid
from eac_model.engine import EncodedAtoms
from eac_model.errors import AnalysisError
from eac_model.files import replacing
from eac_model.lattice import grid_shape

if TYPE_CHECKING:
    from eac_ase.calculator import EACDensity

Scheme = Literal["eac", "bader", "hirshfeld", "iterative-hirshfeld", "voronoi"]
"""How electrons are divided; the page *Partitions* says when to use which."""

SPACING = 0.08
"""Å. Grid on which models are evaluated for the schemes that need one."""

PSEUDO_SPACING = 0.12
"""Å. The same for pseudo densities, which are smooth; they are interpolated to the next one."""

BASIN_SPACING, SHARE_SPACING = 0.06, 0.1
"""Å. Grids of the valence densities that are made of ñ and D, for ``bader`` and for the others."""

Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Partition:
    """What a scheme gives to the atoms of a structure.

    The populations and the vacuum's electrons add up to all electrons; the net charges, minus the
    vacuum's electrons, add up to the charge of the cell.

    Examples
    --------
    >>> result = atoms.calc.partition("bader")                          # doctest: +SKIP
    >>> print(result.table())                                           # doctest: +SKIP
    >>> result.write("charges.json")                                    # doctest: +SKIP
    """

    scheme: Scheme
    """How electrons were divided."""
    structure: Atoms
    """The atoms."""
    populations: Array
    """Electrons of every atom, shape (n,)."""
    charges: Array | None
    """Net charges, valence − population, e, shape (n,); None where the electrons that the density
    counts of each neutral atom are not known."""
    moments: Array | None
    """Magnetic moments, ∫(ρ↑ − ρ↓) over the atom, μ_B, shape (n,); None without spin."""
    dipoles: Array
    """Dipoles −∫ρ_i (r − R_i) dr of the atoms' electrons, e·Å, shape (n, 3): they point from
    negative to positive charge."""
    quadrupoles: Array
    """Traceless quadrupoles −½∫ρ_i (3 r r − r²) dr about the nuclei (Buckingham's), e·Å², shape
    (n, 3, 3)."""
    volumes: Array | None
    """Volumes of the atoms, ∫w_i dr, Å³, shape (n,); None for ``eac``, whose contributions overlap
    without dividing space."""
    vacuum_charge: float
    """Electrons in points that belong to no atom."""
    vacuum_moment: float
    """Their magnetic moment, μ_B."""
    vacuum_volume: float
    """Å³."""
    factor: float
    """The density was multiplied with this number, one for all of it and for both spins."""
    normalization: str
    """Why."""
    density: str
    """The density that was divided, and the one that decided how."""
    error: float
    """Error of the populations that comes from their integration, electrons, as far as it is known:
    0 for closed forms; the last change as its grid was refined, for `eac` without one; NaN for the
    other schemes."""
    remarks: tuple[str, ...] = ()
    """What should be known beside."""

    @property
    def electrons(self) -> float:
        """All electrons, those of the vacuum included."""
        return float(self.populations.sum()) + self.vacuum_charge

    @property
    def charge(self) -> float:
        """Charge of the cell, e; NaN if net charges are not known."""
        return float("nan") if self.charges is None else self.charges.sum() - self.vacuum_charge

    @property
    def moment(self) -> float:
        """Magnetic moment of the cell, μ_B; 0 without spin."""
        return 0.0 if self.moments is None else float(self.moments.sum()) + self.vacuum_moment

    @property
    def atoms(self) -> Atoms:
        """A copy of the atoms with net charges and moments attached.

        The charges are initial charges as well, which ASE's GUI shows; a calculator holds both.
        """
        atoms = self.structure.copy()
        results: dict[str, Any] = {}
        if self.charges is not None:
            atoms.set_initial_charges(self.charges)
            results["charges"] = self.charges.copy()
        if self.moments is not None:
            results["magmoms"] = self.moments.copy()
            results["magmom"] = self.moment
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    def get_dipole_moment(self) -> Array:
        """Dipole moment of an isolated molecule, Σ q_i R_i + Σ μ_i, e·Å, shape (3,).

        About the centre of mass, which matters for charged molecules only.

        Raises
        ------
        AnalysisError
            The structure is periodic (:func:`~eac_ase.analysis.dipole_moment` knows slabs), net
            charges are missing, or the vacuum has electrons.
        """
        if self.structure.pbc.any():
            raise AnalysisError(
                "A sum of atomic dipoles depends on the choice of the atoms' images in a periodic "
                "structure. For molecules and slabs in a cell with vacuum: "
                "eac_ase.analysis.dipole_moment(grid)."
            )
        if self.charges is None or abs(self.vacuum_charge) > 1e-3:
            raise AnalysisError(
                "The dipole moment needs net charges, and all electrons with the atoms; here "
                f"{self.vacuum_charge:.3f} are in the vacuum. Take "
                "eac_ase.analysis.dipole_moment(grid)."
            )
        arms = self.structure.positions - self.structure.get_center_of_mass()
        total: Array = self.charges @ arms + self.dipoles.sum(axis=0)
        return total

    def table(self) -> str:
        """Everything but the quadrupoles, for people."""
        columns: list[tuple[str, Sequence[str]]] = [
            ("atom", [f"{a} {s}" for a, s in enumerate(self.structure.symbols)]),
            ("electrons", [f"{x:.4f}" for x in self.populations]),
        ]
        if self.charges is not None:
            columns.append(("charge / e", [f"{x:+.4f}" for x in self.charges]))
        if self.moments is not None:
            columns.append(("moment / μ_B", [f"{x:+.4f}" for x in self.moments]))
        columns.append(
            ("dipole / e Å", ["{:+.3f} {:+.3f} {:+.3f}".format(*d) for d in self.dipoles])
        )
        if self.volumes is not None:
            columns.append(("volume / Å³", [f"{x:.3f}" for x in self.volumes]))
        widths = [max(len(head), *map(len, cells)) for head, cells in columns]
        rows = zip(*(cells for _, cells in columns), strict=True)
        lines = ["  ".join(h.rjust(w) for (h, _), w in zip(columns, widths, strict=True))]
        lines += ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join([*lines, "", *(f"{k}: {v}" for k, v in self.summary().items())])

    def summary(self) -> dict[str, str]:
        """Sums, and what they are sums of."""
        facts = {"scheme": str(self.scheme), "density": self.density}
        facts["electrons"] = f"{self.electrons:.6f}, {self.vacuum_charge:.6f} of them in the vacuum"
        if self.charges is not None:
            facts["charge of the cell"] = f"{round(self.charge, 6) + 0.0:+.6f} e"
        if self.moments is not None:
            facts["moment of the cell"] = f"{self.moment:+.6f} μ_B"
        facts["normalisation"] = f"{self.normalization} (× {self.factor:.8f})"
        if not np.isnan(self.error):
            facts["integration error"] = f"{self.error:.1e} electrons" if self.error else "none"
        return facts | {f"note {i + 1}": remark for i, remark in enumerate(self.remarks)}

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and texts."""

        def plain(values: Array | None) -> Any:
            return None if values is None else values.tolist()

        return {
            "scheme": self.scheme,
            "symbols": list(self.structure.symbols),
            "populations": plain(self.populations),
            "charges": plain(self.charges),
            "moments": plain(self.moments),
            "dipoles": plain(self.dipoles),
            "quadrupoles": plain(self.quadrupoles),
            "volumes": plain(self.volumes),
            "electrons": self.electrons,
            "charge": None if self.charges is None else self.charge,
            "moment": None if self.moments is None else self.moment,
            "vacuum_charge": self.vacuum_charge,
            "vacuum_moment": self.vacuum_moment,
            "vacuum_volume": self.vacuum_volume,
            "factor": self.factor,
            "normalization": self.normalization,
            "density": self.density,
            "error": None if np.isnan(self.error) else self.error,
            "remarks": list(self.remarks),
            "units": {
                "charges": "e",
                "moments": "mu_B",
                "dipoles": "e Å",
                "quadrupoles": "e Å²",
                "volumes": "Å³",
            },
        }

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def write(self, path: str | Path) -> None:
        """Write ``*.json``, or the atoms with charges and moments in any format of ASE.

        ``*.xyz`` (extended XYZ) and ``*.traj`` keep both; the file appears whole or not at all.
        """
        path = Path(path)
        with replacing(path) as temporary:
            if path.suffix.lower() == ".json":
                temporary.write_text(self.to_json() + "\n", encoding="utf-8")
            else:
                kind = "extxyz" if path.suffix in (".xyz", ".extxyz") else None
                write(temporary, self.atoms, format=kind)


def partition(
    density: DensityGrid | str | Path,
    scheme: Scheme,
    *,
    reference: DensityGrid | None = None,
    valence_electrons: Mapping[str, float] | None = None,
    charge: float | None = None,
    normalize: bool = True,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> Partition:
    """Divide a density on a grid among its atoms.

    Parameters
    ----------
    density
        A grid, or a file that :meth:`DensityGrid.read` reads. GPAW's pseudo densities need their
        matrices D (``onsite``): the valence density is made of both, on a grid fine enough.
    scheme
        ``bader``, ``hirshfeld``, ``iterative-hirshfeld`` or ``voronoi``; ``eac`` is a model's.
    reference
        For ``bader``: the density whose basins are taken, on the same points, with core electrons
        (of VASP AECCAR0 + AECCAR2). By default an all-electron density itself, or the valence
        density plus the cores of free atoms.
    valence_electrons
        Electrons of each neutral atom that the density counts, by symbol. Known by themselves for
        all-electron densities and for GPAW's.
    charge
        Charge of the cell, e; by default ``atoms.info["charge"]``, or 0.
    normalize
        Scale the density to its exact number of electrons, if that is known.
    device
        Where Hirshfeld's sums are done.
    progress
        Progress bar on stderr: True, False, or None for only on a terminal.

    Raises
    ------
    AnalysisError
        The density does not suit the scheme; the message says what is missing.
    """
    if scheme not in get_args(Scheme):
        raise AnalysisError(f"No scheme {scheme!r}; there are {', '.join(get_args(Scheme))}.")
    if scheme == "eac":
        raise AnalysisError(
            "The scheme eac divides a density into the contributions a model makes it of; a grid "
            "does not have them. Use EACDensity.partition, or another scheme."
        )
    grid = density if isinstance(density, DensityGrid) else DensityGrid.read(density)
    _check_reference(reference, scheme)
    check_inside(grid)
    spacing = BASIN_SPACING if scheme == "bader" else SHARE_SPACING
    ready = _prepare(grid, valence_electrons, spacing)
    moments, text, remarks = _divide(ready, scheme, reference, device, progress)
    return _finish(scheme, ready, moments, charge, normalize, text, float("nan"), remarks)


def partition_of_model(
    calculator: EACDensity,
    encoded: EncodedAtoms,
    atoms: Atoms,
    scheme: Scheme,
    *,
    spacing: float | None,
    reference: DensityGrid | None,
    normalize: bool,
    scale: float,
    progress: bool | None,
    onsite: DensityGrid,
) -> Partition:
    """What :meth:`EACDensity.partition` returns.

    `scale` is the calculator's own factor; `onsite` an empty grid with the on-site data and what
    they belong to.
    """
    _check_reference(reference, scheme)
    if scheme == "eac":
        return _learned_partition(calculator, encoded, onsite, normalize, scale, progress)
    pseudo = calculator.card.provenance.density_kind == "pseudo"
    default = PSEUDO_SPACING if pseudo else SPACING
    like: dict[str, Any] = {"spacing": default if spacing is None else spacing}
    if reference is not None:
        like = {"like": reference}
    return partition(
        calculator.get_density_grid(atoms, progress=progress, **like),
        scheme,
        reference=reference,
        valence_electrons=calculator.card.valence_electrons or None,
        charge=stated_charge(atoms) or 0.0,
        normalize=normalize,
        device=calculator.network.device,
        progress=progress,
    )


def absolute_moment(grid: DensityGrid) -> float:
    """∫|ρ↑ − ρ↓| dr over the cell, μ_B; 0 for a spin-paired density."""
    if grid.spin is None:
        return 0.0
    return float(np.abs(grid.spin).sum(dtype=float)) * grid.volume / grid.values.size


# -- behind the scenes -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """A density that counts electrons."""

    grid: DensityGrid
    nuclear: Array
    """Electrons that belong to the nuclei beside the grid's, (n,)."""
    nuclear_spin: Array | None
    """Their spin."""
    valences: Array | None
    """Electrons of the neutral atoms, (n,)."""
    text: str


def _learned_partition(
    calculator: EACDensity,
    encoded: EncodedAtoms,
    grid: DensityGrid,
    normalize: bool,
    scale: float,
    progress: bool | None,
) -> Partition:
    """The scheme ``eac``: contributions, and what lies inside the PAW spheres."""
    from eac_ase.analysis.learned import learned_moments
    from eac_model.network import EACNet

    assert isinstance(calculator.network, EACNet)  # the calculator has refused others
    valences = calculator.card.valence_electrons or None
    charge = stated_charge(grid.atoms) or 0.0
    learned = learned_moments(calculator.network, encoded, progress=progress)
    total = scale * learned.populations.sum(axis=0)
    moments = Moments(
        populations=total,
        spins=scale * (learned.populations[0] - learned.populations[1])
        if len(learned.populations) == 2
        else None,
        firsts=scale * learned.firsts.sum(axis=0),
        seconds=scale * learned.seconds.sum(axis=0),
        volumes=None,
    )
    ready = _Ready(
        grid, np.zeros(len(grid.atoms)), None, None, f"contributions of {calculator.card.name}"
    )
    if grid.kind == "pseudo":
        spheres = sphere_moments(grid)
        moments = _with_spheres(moments, spheres.electrons, spheres.spins)
        moments = replace(
            moments,
            firsts=moments.firsts + spheres.firsts,
            seconds=moments.seconds + spheres.seconds,
        )
        ready = replace(
            ready, valences=spheres.valences, text=ready.text + ", with those of the PAW spheres"
        )
    else:
        ready = replace(ready, valences=valences_of(grid, valences))
    return _finish("eac", ready, moments, charge, normalize, ready.text, learned.error, ())


def _prepare(
    grid: DensityGrid, valence_electrons: Mapping[str, float] | None, spacing: float
) -> _Ready:
    nothing = np.zeros(len(grid.atoms))
    if grid.kind != "pseudo":
        valences = valences_of(grid, valence_electrons)
        return _Ready(grid, nothing, None, valences, f"{grid.kind} density")

    valences = sphere_moments(grid).valences  # first of all: it refuses grids without D
    wanted = grid_shape(grid.cell, spacing)
    n1, n2, n3 = (max(pair) for pair in zip(grid.shape, wanted, strict=True))
    fine, missing, missing_spin = all_electron_valence(grid.resample((n1, n2, n3)))
    return _Ready(fine, missing, missing_spin, valences, "valence density made of ñ and D")


def _check_reference(reference: DensityGrid | None, scheme: Scheme) -> None:
    if reference is not None and scheme != "bader":
        raise AnalysisError(f"A reference density decides the basins of bader, not of {scheme}.")


def _divide(
    ready: _Ready,
    scheme: Scheme,
    reference: DensityGrid | None,
    device: torch.device | str,
    progress: bool | None,
) -> tuple[Moments, str, tuple[str, ...]]:
    grid, text = ready.grid, ready.text
    remarks: tuple[str, ...] = ()
    match scheme:
        case "voronoi":
            moments = voronoi(grid, progress=progress)
        case "hirshfeld":
            moments = hirshfeld(grid, device=device, progress=progress)
            text += "; free atoms of the tables (PBE)"
        case "iterative-hirshfeld":
            if ready.valences is None:
                raise AnalysisError(
                    "iterative-hirshfeld needs to know how many electrons of each element the "
                    "density counts: give valence_electrons."
                )
            hidden = grid.atoms.numbers - ready.valences
            moments, iterations = iterative_hirshfeld(
                grid, hidden, ready.nuclear, device=device, progress=progress
            )
            text += "; free ions of the tables (PBE)"
            remarks = (f"self-consistent after {iterations} iterations",)
        case _:
            values, name = _reference(ready, reference)
            basins = bader(grid, values)
            moments = basins.moments
            text += f"; basins of {name}; vacuum below {VACUUM:g} e/Å³"
            if basins.attractors:
                remarks = (
                    f"{basins.attractors} maxima are farther than 1 Å from every atom; their "
                    f"{basins.attractor_electrons:.3f} electrons went to the nearest atoms",
                )
    return _with_spheres(moments, ready.nuclear, ready.nuclear_spin), text, remarks


def _with_spheres(moments: Moments, electrons: Array, spins: Array | None) -> Moments:
    total = moments.spins
    if total is not None and spins is not None:
        total = total + spins
    return replace(moments, populations=moments.populations + electrons, spins=total)


def _reference(ready: _Ready, given: DensityGrid | None) -> tuple[Array, str]:
    """The density whose basins are taken, and its name."""
    grid = ready.grid
    if given is not None:
        if given.shape != grid.shape or not np.allclose(given.cell, grid.cell, atol=1e-4):
            raise AnalysisError(
                f"The reference density has {given.shape} points in its cell, the {ready.text} "
                f"{grid.shape} in its own: they have to be the same. Resample one to the other's "
                "points."
            )
        return given.values, "the reference density"
    if grid.kind == "all-electron":
        return grid.values, "the same"
    if ready.valences is None:
        raise AnalysisError(
            "Basins of a density without its core electrons are wrong near the nuclei. Give a "
            "reference density with them (AECCAR0 + AECCAR2), or valence_electrons, so that cores "
            "of free atoms can be added; or set the grid's kind to 'all-electron' if it is one."
        )
    values = torch.from_numpy(np.array(grid.values, dtype=float, order="C").reshape(-1))
    cores = grid.atoms.numbers - ready.valences
    for number, electrons, place in zip(
        grid.atoms.numbers, cores, grid.atoms.positions, strict=True
    ):
        core = core_density(int(number), float(electrons))
        for part in sphere(grid, place, core.radius):
            values.index_add_(0, part.point, core.at(part.distance))
    return values.numpy().reshape(grid.shape), "the same with cores of free atoms"


def _finish(
    scheme: Scheme,
    ready: _Ready,
    moments: Moments,
    charge: float | None,
    normalize: bool,
    text: str,
    error: float,
    remarks: tuple[str, ...],
) -> Partition:
    atoms = ready.grid.atoms
    factor, why = 1.0, "none asked for"
    if normalize and ready.valences is None:
        why = "none: the number of electrons of the neutral atoms is not known"
    elif normalize and ready.valences is not None:
        found, neutral = moments.electrons, float(ready.valences.sum())
        wanted = neutral - charge_of(atoms, charge, found, neutral)
        if not found > 0:
            raise AnalysisError(f"The density holds {found:.3g} electrons: nothing to divide.")
        factor = wanted / found
        why = f"{found:.6f} electrons scaled to {wanted:g}"
    populations = factor * moments.populations
    seconds = factor * moments.seconds
    trace = np.trace(seconds, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    result = Partition(
        scheme=scheme,
        structure=plain_atoms(atoms),
        populations=populations,
        charges=None if ready.valences is None else ready.valences - populations,
        moments=None if moments.spins is None else factor * moments.spins,
        dipoles=-factor * moments.firsts,
        quadrupoles=-(3 * seconds - trace) / 2,
        volumes=moments.volumes,
        vacuum_charge=factor * moments.vacuum,
        vacuum_moment=factor * moments.vacuum_spin,
        vacuum_volume=moments.vacuum_volume,
        factor=factor,
        normalization=why,
        density=text,
        error=error,
        remarks=remarks,
    )
    # Calculators keep it and give it away several times.
    for values in (*vars(result).values(), *result.structure.arrays.values()):
        if isinstance(values, np.ndarray):
            values.setflags(write=False)
    return result
