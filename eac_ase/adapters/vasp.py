"""Starting VASP from a predicted density.

:func:`prepare_vasp_start` reads POSCAR, INCAR and POTCAR of a prepared run, checks that the model
fits it, and writes the CHGCAR. :func:`start_from_density` does so for every run of ASE's ``Vasp``
calculator. ``eac vasp`` is the same on the command line.

What VASP does with the file (https://vasp.at/wiki/ICHARG, /CHGCAR, /MAGMOM, /LMAXMIX; the
messages as users report them, pymatgen issue 709, charge3net issues 1 and 16):

- It reads CHGCAR for ICHARG = 1 (a self-consistent run that starts from it) and 11 (the density
  stays as it is: bands, density of states). Another grid than its own NGXF × NGYF × NGZF makes it
  go on without ("dimensions on CHGCAR file are different"), or stop for ICHARG = 11.
- The grid holds the pseudo-density with the compensation charges, so its integral is the number
  of valence electrons. The PAW spheres are described by the augmentation occupancies. Where they
  are missing it says ``WARNING: PAW occupancies are missing on CHGCAR``; what it goes on with is
  not documented (those of free atoms, as for any other start), and users report no gain.
- Every atom has a block of occupancies of full length; entries with L > LMAXMIX are written as
  zeros and not used when read.
- Magnetisation: for ISPIN = 2 it reads the second grid and its occupancies. Only where the file
  has none does it start from MAGMOM (1 μ_B an atom by default).
- Positions in the file that differ from POSCAR make it move atomic densities along.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from shutil import copyfileobj
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.calculators.calculator import InputError

from eac_ase.adapters.vasp_checks import check_blocks, check_fit, notes
from eac_ase.adapters.vasp_grid import check_shape, grid_of
from eac_ase.adapters.vasp_run import VaspRun
from eac_model.errors import ConfigurationError, GridError
from eac_model.files import replacing, write_bytes
from eac_model.lattice import Shape

if TYPE_CHECKING:
    from ase.calculators.vasp import Vasp

    from eac_ase.calculator import EACDensity
    from eac_ase.grid import DensityGrid

SCF, BANDS = 1, 11
"""ICHARG for the two uses of a CHGCAR."""


@dataclass(frozen=True)
class VaspStart:
    """What :func:`prepare_vasp_start` did, and what is left to do."""

    chgcar: Path
    """The file written."""
    shape: Shape
    """NGXF, NGYF, NGZF."""
    functional: str
    """Of the run."""
    electrons: float
    """In the file."""
    electrons_predicted: float
    """Before normalisation."""
    magnetic_moment: float | None
    """∫(ρ↑ − ρ↓), μ_B; None without a second grid."""
    occupancies: bool
    """Whether the file holds augmentation occupancies."""
    icharg: int
    """1: self-consistent, 11: the density is kept."""
    incar_changes: dict[str, str]
    """Tags INCAR needs (``ICHARG`` …) and does not have; empty once they are written."""
    incar_written: bool
    """Whether INCAR was edited."""
    notes: tuple[str, ...]
    """What to know before VASP is started."""
    seconds: float
    """Wall time of prediction and writing."""


def prepare_vasp_start(
    directory: str | Path,
    calculator: EACDensity,
    *,
    bands: bool = False,
    shape: Shape | None = None,
    like: str | Path | None = None,
    normalize: bool = True,
    occupancies: bool = True,
    any_functional: bool = False,
    write_incar: bool = False,
    force: bool = False,
    progress: bool | None = None,
) -> VaspStart:
    """Predict the density of a prepared VASP run and write it as the run's CHGCAR.

    Parameters
    ----------
    directory
        Holds POSCAR, INCAR and POTCAR (KPOINTS is not needed).
    calculator
        A model of VASP densities for the same functional and PAW data sets.
    bands
        For a run with the density kept (ICHARG = 11) instead of a self-consistent one (1). An
        INCAR that already has ICHARG = 11 says so itself.
    shape
        NGXF, NGYF, NGZF; by default what VASP will choose (:meth:`VaspRun.grids`).
    like
        Take the grid of this CHGCAR, OUTCAR or vasprun.xml instead.
    normalize
        Scale the density (not the occupancies, not the spin density) to the number of electrons
        of the run. Nothing documented says that VASP corrects the integral of what it reads, and
        with ICHARG = 11 nothing else would.
    occupancies
        Write augmentation occupancies if the model has them.
    any_functional
        Accept a density of another functional as a start; self-consistent runs only.
    write_incar
        Edit the tags of INCAR that have to change, and nothing else of it. By default they are
        only named (``incar_changes``).
    force
        Replace an existing CHGCAR.
    progress
        Progress bars on stderr: True, False, or None for only on a terminal.

    Returns
    -------
    VaspStart

    Raises
    ------
    ase.calculators.calculator.InputError
        The input files are damaged or contradict themselves.
    ConfigurationError
        The model does not fit the run: functional, valence electrons, projector channels, kind of
        calculation. The message names both sides. Or the calculator normalises by itself, or the
        grid is given twice.
    UnknownElementError
        The model was not built for an element.
    GridError
        There is a CHGCAR already.

    Notes
    -----
    Without a second grid, runs with ISPIN = 2 take their magnetisation from MAGMOM.
    """
    began = perf_counter()
    if shape is not None and like is not None:
        raise ConfigurationError("Give the grid by its shape or like that of a file, not both.")
    if calculator.normalize:
        raise ConfigurationError(
            "The calculator normalises its densities, occupancies with them: make it without "
            "normalize=True. What the run needs is scaled here (normalize)."
        )
    run = VaspRun.read(directory)
    target = run.directory / "CHGCAR"
    if target.exists() and not force:
        raise GridError(
            f"{target} exists already. Replace it with --force (force=True), or move it away."
        )
    incar_charge = run.incar.integer("ICHARG")
    bands = bands or (incar_charge is not None and incar_charge >= 10)
    if write_incar and run.incar.name.endswith(".gz"):
        raise InputError(f"{run.incar.name} is packed and VASP does not read it: unpack it first.")
    check_fit(run, calculator, bands=bands, occupancies=occupancies, any_functional=any_functional)
    rule = run.grids().fine
    if like is not None:
        shape = grid_of(like)
    elif shape is not None:
        shape = check_shape("the grid asked for", shape)
    shape = rule if shape is None else shape
    grid, predicted = _predict(run, calculator, shape, normalize, occupancies, progress)
    grid.write(target, progress=progress)
    if any(one == two for (one, _), (two, _) in pairwise(run.species)):
        _restore_species(target, run.species)

    changes: dict[str, str] = {}
    icharg = BANDS if bands else SCF
    if incar_charge != icharg:
        changes["ICHARG"] = str(icharg)
    # PREC = Single differs between versions; with NGXF in INCAR it does not.
    if shape != rule or shape != run.grids(vasp_version=5).fine:
        changes |= {f"NG{axis}F": str(n) for axis, n in zip("XYZ", shape, strict=True)}
    if write_incar and changes:
        # Bytes: line ends stay what they are.
        text = run.incar.changed(changes).text
        write_bytes(run.incar.name, text.encode(errors="surrogateescape"))
    return VaspStart(
        chgcar=target,
        shape=shape,
        functional=run.functional,
        electrons=grid.integrate(),
        electrons_predicted=predicted,
        magnetic_moment=None if grid.spin is None else grid.integrate_spin(),
        occupancies=grid.onsite is not None,
        icharg=icharg,
        incar_changes={} if write_incar else changes,
        incar_written=bool(write_incar and changes),
        notes=tuple(notes(run, calculator, grid, predicted, normalize, bands)),
        seconds=perf_counter() - began,
    )


def start_from_density(vasp: Vasp, calculator: EACDensity, **options: Any) -> Vasp:
    """Make an ASE ``Vasp`` calculator start every run from a predicted density.

    ICHARG is set to 1 unless it is 11 already; whenever the calculator writes its input files, the
    CHGCAR is predicted and written beside them, in the order in which ASE sorts the atoms.

    Parameters
    ----------
    vasp
        The calculator; it is changed, and returned.
    calculator
        The model.
    options
        As for :func:`prepare_vasp_start`: ``normalize``, ``occupancies``, ``any_functional`` …

    Warns
    -----
    UserWarning
        What :attr:`VaspStart.notes` says.

    Examples
    --------
    >>> from ase.calculators.vasp import Vasp
    >>> from eac_ase import EACDensity
    >>> vasp = Vasp(metagga="SCAN", pp="PBE", encut=680, prec="Accurate", kpts=(1, 1, 1))
    >>> atoms.calc = start_from_density(vasp, EACDensity("water-scan"))  # doctest: +SKIP
    >>> atoms.get_potential_energy()                                     # doctest: +SKIP
    """
    if vasp.int_params["icharg"] not in (SCF, BANDS):
        vasp.set(icharg=BANDS if options.get("bands") else SCF)
    vasp.write_input = _WithDensity(vasp, calculator, options)  # type: ignore[method-assign]
    return vasp


class _WithDensity:
    """``Vasp.write_input`` with a density beside the files; copies get a writer of their own."""

    def __init__(self, vasp: Vasp, calculator: EACDensity, options: dict[str, Any]) -> None:
        self._vasp, self._calculator, self._options = vasp, calculator, options

    def __call__(self, atoms: Atoms, *arguments: Any, **keywords: Any) -> None:
        vasp = self._vasp
        type(vasp).write_input(vasp, atoms, *arguments, **keywords)
        settings = {"write_incar": True, "progress": False, **self._options, "force": True}
        for note in prepare_vasp_start(vasp.directory, self._calculator, **settings).notes:
            warnings.warn(note, stacklevel=2)

    def __deepcopy__(self, memo: dict[int, Any]) -> _WithDensity:
        # They share the model.
        return _WithDensity(deepcopy(self._vasp, memo), self._calculator, dict(self._options))


# -- prediction --------------------------------------------------------------------------------


def _predict(
    run: VaspRun,
    calculator: EACDensity,
    shape: Shape,
    normalize: bool,
    occupancies: bool,
    progress: bool | None,
) -> tuple[DensityGrid, float]:
    """The density of a run, and the number of electrons that was predicted."""
    atoms = run.atoms.copy()
    if run.spin and calculator.network.config.spin:
        atoms.set_initial_magnetic_moments(run.moments())
    grid = calculator.get_density_grid(atoms, shape=shape, progress=progress)
    if not run.spin:
        grid = replace(grid, spin=None, onsite_spin=None)
    if not occupancies:
        grid = replace(grid, onsite=None, onsite_spin=None)
    check_blocks(run, grid)
    predicted = grid.integrate()
    if not normalize:
        return grid, predicted
    if not predicted > 0:
        raise ConfigurationError(
            f"The prediction holds {predicted:.3g} electrons: the model {calculator.card.name!r} "
            "does not fit this structure."
        )
    # The integral is the grid's alone (it includes the compensation charges).
    return replace(grid, values=grid.values * (run.electrons / predicted)), predicted


def _restore_species(path: Path, species: Sequence[tuple[str, int]]) -> None:
    """The species of POSCAR where the writer joined neighbours of one element (Fe Fe)."""
    header = ["  ".join(symbol for symbol, _ in species), "  ".join(str(n) for _, n in species)]
    with path.open("rb") as old, replacing(path) as temporary, temporary.open("wb") as new:
        lines = [old.readline() for _ in range(7)]
        new.writelines(lines[:5])
        new.writelines(f"  {line}\n".encode() for line in header)
        copyfileobj(old, new)
