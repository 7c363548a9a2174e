"""EACDensity: the electron density as an ASE calculator."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
)
from numpy.typing import ArrayLike, NDArray

from eac_ase.charge import plain_atoms, stated_charge
from eac_ase.error_estimate import ErrorEstimate, estimate_error
from eac_ase.formats import density_format
from eac_ase.grid import DensityGrid
from eac_ase.progress import progress_bar
from eac_model.checkpoint import ModelCard, load_model
from eac_model.engine import (
    EncodedAtoms,
    Streamed,
    encode,
    evaluate_band_limited,
    evaluate_grid,
    evaluate_onsite,
    evaluate_points,
    integrate_density,
    stream_grid,
    total_and_spin,
)
from eac_model.engine.kernels import fingerprint
from eac_model.engine.onsite import Rows
from eac_model.engine.streaming import MEMORY
from eac_model.errors import (
    GridError,
    StructureError,
    UnfamiliarStructureWarning,
    UnknownElementError,
)
from eac_model.lattice import Shape, box_around, checked_shape, grid_shape
from eac_model.neighbors import check_structure
from eac_model.network import DensityNetwork, EACNet
from eac_model.registry import default_model, find_model, models_knowing

if TYPE_CHECKING:
    from eac_ase.analysis.partition import Partition, Scheme

SPACING = 0.1
"""Default distance of grid points, Å. VASP's fine grid at 500 eV is about as dense."""

INTEGRATION_SPACING = 0.15
"""Distance of the points on which charges, moments and dipoles are summed, Å, where they have
no closed form."""

CLEARANCE = 3.0
"""A cell vector along an open direction bounds grids if all atoms keep this distance (Å) from its
two faces; otherwise a box is fitted around the atoms. At 1 Å up to 7 % of a molecule's electrons
lie beyond a face."""

SAME_CELL = 1e-4
"""How far the edges of two cells may differ and they are the same one, in parts of an edge."""


class EACDensity(BaseCalculator):
    """Electron densities, charges and moments from a trained network.

    Parameters
    ----------
    model
        Name of a bundled model (``eac models`` lists them), path of a model file, or a network.
        None takes :func:`~eac_model.registry.default_model`: ``eac-pbe`` where it is bundled,
        else ``water-scan``.
    device
        ``"cpu"`` or ``"cuda"``; None takes the GPU if there is one (a network stays where it is).
        Several, ``["cuda:0", "cuda:1"]``, share the points of a grid; descriptors are computed on
        the first.
    dtype
        Floating-point type of the evaluation; None keeps that of the model.
    normalize
        Scale the density of every structure to its exact number of electrons: the sum of the
        valence electrons in the model's card, minus ``atoms.info["charge"]`` if it is set. One
        factor a structure, the same for points, grids, charges and moments; grids of fully
        periodic structures are scaled once more, so that their own sum is exact. Pseudo densities
        do not integrate to a number of electrons and cannot be scaled.

    Notes
    -----
    Descriptors are computed when they are first needed and kept until numbers, positions, cell,
    pbc or, for spin models, initial magnetic moments change; atoms changed in place are noticed.
    Methods called without ``atoms`` use the atoms the calculator was last attached to
    (``atoms.calc = …``), or else those it was last used for.

    The ASE properties ``charges`` (net charges, e), ``dipole`` (e·Å), ``magmoms`` and ``magmom``
    (μ_B) come from the contributions ρ_i of the atoms, the partition the model has learned. They
    have closed forms for linear decoders; otherwise they are summed on a grid with
    :data:`INTEGRATION_SPACING`. Dipoles are taken about the centre of
    mass, which matters for charged molecules only. Those of pseudo densities include the PAW
    spheres, for which the model has to predict the matrices D, and GPAW to be installed. Networks
    that predict the density as a whole (every architecture but EAC-Net) have no contributions: of
    the properties they have ``dipole`` and, unless that is a pseudo density, ``magmom``.

    Along open directions grids cover the cell if there is one and all atoms are :data:`CLEARANCE`
    or more inside of it; otherwise a box that ends where the outermost atoms' contributions end
    (``network.config.point_cutoff``), with ``origin`` at its corner.

    Threads may share a calculator for densities. ASE's properties are kept in ``results``, as ASE's
    calculators do: there every thread needs one of its own (they can share a network).

    Raises
    ------
    ModelFileError
        There is no such model, or the file is no model file.
    ase.calculators.calculator.CalculatorSetupError
        There is no such device, the type is no floating-point type, or the model cannot normalise.

    Examples
    --------
    >>> from ase.build import molecule
    >>> atoms = molecule("H2O")
    >>> atoms.calc = EACDensity("water-scan")                           # doctest: +SKIP
    >>> atoms.get_charges()                                             # doctest: +SKIP
    >>> atoms.calc.get_density_grid(spacing=0.08).write("CHGCAR")       # doctest: +SKIP
    """

    implemented_properties = ["charges", "dipole", "magmom", "magmoms"]  # noqa: RUF012  # as in ASE

    def __init__(
        self,
        model: str | Path | DensityNetwork | None = None,
        device: torch.device | str | Sequence[torch.device | str] | None = None,
        dtype: torch.dtype | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        devices = _devices(device)
        first = devices[0] if devices else None
        self._devices = devices if len(devices) > 1 else []
        if dtype not in (None, torch.float32, torch.float64):
            raise CalculatorSetupError(
                f"dtype={dtype!r}: torch.float32, torch.float64, or None for that of the model."
            )
        if isinstance(model, DensityNetwork):
            # Others may use it: only a copy goes to another place or type.
            if _is_elsewhere(model, first) or dtype not in (None, model.dtype):
                model = copy.deepcopy(model).to(device=first, dtype=dtype)
            self.network = model
            self.card = ModelCard(name="unnamed network")
        else:
            if first is None:
                first = "cuda" if torch.cuda.is_available() else "cpu"
            path = find_model(default_model() if model is None else model)
            self.network, self.card = load_model(path, first, dtype)
        self.normalize = normalize
        if normalize:
            self._check_normalizable()
        self._attached: Atoms | None = None
        self._known: _Known | None = None
        self._last = Atoms()
        """The structure of the last call, with what the density does not depend on."""
        self._settings_of_results: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        settings = ", normalize=True" if self.normalize else ""
        return f"EACDensity({self.card.name!r}, device={str(self.network.device)!r}{settings})"

    # -- ASE's interface -----------------------------------------------------------------------

    def set_atoms(self, atoms: Atoms) -> None:
        """Remember the atoms this calculator is attached to; ASE calls it."""
        self._attached = atoms

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What of ``atoms`` that the density depends on changed since the last calculation."""
        if self.atoms is None:
            return ["numbers", "positions", "cell", "pbc", "initial_magmoms"]
        changes = self._changes(self.atoms, atoms)
        if self.results and self._settings_of_results != self._settings():
            changes.append("settings")
        if self.normalize and self.atoms.info.get("charge") != atoms.info.get("charge"):
            changes.append("charge")
        # Dipoles are about the centre of mass.
        if "dipole" in self.results and not np.array_equal(
            self.atoms.get_masses(), atoms.get_masses()
        ):
            changes.append("masses")
        return changes

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """One of the ``implemented_properties``; calculated if necessary.

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
            Any other property: energies and forces, for instance.
        """
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(
                f"EACDensity knows no {name}: it predicts densities, and of ASE's properties "
                f"{', '.join(self.implemented_properties)}. For the energy of a predicted density "
                "see eac_ase.adapters.gpaw.fixed_density, for energies and forces "
                "start_from_density."
            )
        return super().get_property(name, self._structure(atoms), allow_calculation)

    def calculate(
        self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]
    ) -> None:
        """Fill ``results`` with every property that means something for these atoms."""
        reasons = {name: self._why_not(name, atoms) for name in self.implemented_properties}
        for name in properties:
            if reasons.get(name):
                raise PropertyNotImplementedError(reasons[name])
        found = self._results_with_spheres if self._pseudo else self._results
        self.results = found(atoms, reasons)
        self._settings_of_results = self._settings()

    def _results_with_spheres(self, atoms: Atoms, reasons: dict[str, str | None]) -> dict[str, Any]:
        """Properties of pseudo densities: much of a charge may lie inside the PAW spheres."""
        results: dict[str, Any] = {}
        whole = self.partition("eac", atoms, normalize=False)
        if reasons["charges"] is None:
            results["charges"] = whole.charges
        if reasons["dipole"] is None:
            results["dipole"] = whole.get_dipole_moment()
        if reasons["magmoms"] is None:
            results["magmoms"], results["magmom"] = whole.moments, whole.moment
        return results

    def _results(self, atoms: Atoms, reasons: dict[str, str | None]) -> dict[str, Any]:
        """Properties of densities that hold all electrons they count."""
        results: dict[str, Any] = {}
        populations, dipoles = self._integrate(atoms)
        if reasons["charges"] is None:
            results["charges"] = self._valences(atoms) - populations.sum(axis=0)
        if reasons["dipole"] is None:
            # Electrons are gathered in atoms, or, where there are no contributions, in one place.
            places = self._places(atoms) - atoms.get_center_of_mass()
            arms = atoms.positions - atoms.get_center_of_mass()
            electrons = populations.sum(axis=0) @ places + dipoles.sum(axis=(0, 1))
            results["dipole"] = self._valences(atoms) @ arms - electrons
        if reasons["magmom"] is None:
            moments = populations[0] - populations[1]
            results["magmom"] = float(moments.sum())
            if reasons["magmoms"] is None:
                results["magmoms"] = moments
        return results

    def todict(self) -> dict[str, Any]:
        """Name of the model and settings, for ASE's databases and trajectories."""
        return {"model": self.card.name, "normalize": self.normalize}

    # -- densities -----------------------------------------------------------------------------

    def evaluate(
        self, points: ArrayLike, atoms: Atoms | None = None, contributions: bool = False
    ) -> NDArray[np.floating]:
        """Total density at any points.

        Parameters
        ----------
        points
            Cartesian positions, Å, shape (n, 3) or (…, 3); periodic directions wrap.
        contributions
            Return the contribution of every atom, all its periodic images together.

        Returns
        -------
        numpy.ndarray
            e/Å³, shape (…), or (…, n_atoms) for ``contributions``. Exactly 0 where no atom is
            within the model's cutoff.

        Raises
        ------
        GridError
            Points of another shape, or that are not finite.
        UnknownElementError
            The model has not learned an element.
        ase.calculators.calculator.PropertyNotImplementedError
            ``contributions`` of a network that has none.
        ase.calculators.calculator.CalculatorSetupError
            No structure is known yet.
        """
        return self._at(points, atoms, contributions).sum(axis=0)

    def get_density_grid(
        self,
        atoms: Atoms | None = None,
        shape: Shape | None = None,
        spacing: float | None = None,
        like: DensityGrid | None = None,
        progress: bool | None = None,
        resample_from: float | None = None,
        band_limited: bool = False,
    ) -> DensityGrid:
        """Density on a regular grid.

        At most one of ``shape``, ``spacing`` and ``like`` is given.

        Parameters
        ----------
        shape
            Number of points along the three cell vectors.
        spacing
            Largest distance of neighbouring points, Å; default :data:`SPACING`. The numbers of
            points are rounded up to products of 2, 3 and 5.
        like
            Use the points of this grid: its cell, origin and shape. Where both repeat, its cell
            is one of the structure's.
        progress
            Progress bar on stderr: True, False, or None for only on a terminal.
        resample_from
            Å. Evaluate the density of a crystal on a grid of this (larger) spacing, and take the
            other points from its Fourier series. Faster for fine grids, and approximate:
            components beyond the coarse grid's Nyquist frequency are lost (documentation, page
            Performance).
        band_limited
            Of a crystal and a model with the linear decoder: keep the plane waves that the grid
            can hold and drop the others, instead of taking the density at the points. The sum is
            then the exact integral, wherever atoms sit between points, and small cells are
            faster; but plane-wave codes take their densities at points, too, and models follow
            them there (documentation, page Performance).

        Returns
        -------
        DensityGrid
            With the spin density if the model knows spin, and with on-site data if it predicts
            them.

        Raises
        ------
        GridError
            More than one of ``shape``, ``spacing`` and ``like``, or one that makes no grid;
            ``like`` repeats otherwise than the structure;
            ``resample_from`` or ``band_limited`` for a grid that is not that of a crystal's cell.
        UnknownElementError
            The model has not learned an element.
        ConfigurationError
            ``band_limited`` for a model with another decoder.
        """
        atoms = self._structure(atoms)
        encoded = self._encode(atoms)
        cell, origin, shape = self._lattice(atoms, shape, spacing, like)
        self._factor(atoms)  # refused before anything is evaluated
        coarse = shape
        whole = np.allclose(cell, np.asarray(atoms.cell))
        if band_limited and atoms.pbc.all() and not whole:
            raise GridError(
                "A band-limited density fills the structure's own cell, and this grid spans "
                "another one. Leave band_limited out, or like."
            )
        if resample_from is not None:
            if not (atoms.pbc.all() and whole and not np.any(origin)):
                raise GridError(
                    "resample_from needs a density that is periodic on the grid: the cell of a "
                    "structure that is periodic in three directions. Leave it out."
                )
            proposed = grid_shape(cell, resample_from)
            coarse = (
                min(shape[0], proposed[0]),
                min(shape[1], proposed[1]),
                min(shape[2], proposed[2]),
            )
        with progress_bar("density", int(np.prod(coarse)), progress) as advance:
            if band_limited:
                channels = evaluate_band_limited(
                    self.network, encoded, coarse, origin=origin, progress=advance
                )
            else:
                channels = evaluate_grid(
                    self.network,
                    encoded,
                    coarse,
                    cell=cell,
                    origin=origin,
                    devices=self._devices,
                    progress=advance,
                )
        grid = self._with_onsite(self._grid(atoms, channels, cell, origin, like), atoms)
        if coarse != shape:
            grid = grid.resample(shape)
        if self.normalize and atoms.pbc.all() and whole:
            found, wanted = grid.integrate(), self._electrons(atoms)
            if not found > 0:
                raise GridError(
                    f"The prediction holds {found:.3g} electrons on this grid and cannot be "
                    f"normalised to {wanted:g}: take a finer grid, or a model that fits."
                )
            grid = grid * (wanted / found)
        return grid

    def get_grid_shape(
        self, atoms: Atoms | None = None, shape: Shape | None = None, spacing: float | None = None
    ) -> Shape:
        """Shape of the grid that :meth:`get_density_grid` would evaluate."""
        return self._lattice(self._structure(atoms), shape, spacing, None)[2]

    def write_density(
        self,
        path: str | Path | Sequence[str | Path],
        atoms: Atoms | None = None,
        shape: Shape | None = None,
        spacing: float | None = None,
        memory: int = MEMORY,
        progress: bool | None = None,
    ) -> Streamed:
        """Write the density to a file slab by slab, whatever the size of the grid.

        For grids that do not fit into memory; :meth:`get_density_grid` is more convenient for
        others. Called again after a break it goes on where it stopped.

        Parameters
        ----------
        path
            ``*.h5``, ``*.cube``, or for a CHGCAR ``CHGCAR*``, ``*.chgcar``, ``*.vasp``, also with
            ``.gz``. On-site data are written as :meth:`DensityGrid.write` does. Several are written
            from one evaluation.
        shape, spacing, progress
            As in :meth:`get_density_grid`.
        memory
            Bytes of values held at once.

        Returns
        -------
        eac_model.engine.Streamed
            Electrons and magnetic moment of what was written.

        Raises
        ------
        GridError
            The name or the shape will not do, the disk has not enough room, or there are no
            electrons to scale.

        Notes
        -----
        The structure in the file is that of :meth:`DensityGrid.to_sample`: where the grid needs a
        box of its own, that is its cell, with its corner at the origin.

        Where the calculator normalises, the density of a fully periodic structure is scaled when
        all of it is known, and its on-site data with it, so that the sum of the file is exact, as
        :meth:`get_density_grid` does.
        """
        if not isinstance(path, (str, Path)) and not path:
            raise GridError("No path is given: where shall the density be written to?")
        for one in [path] if isinstance(path, (str, Path)) else path:
            if density_format(Path(one)) == "xsf":
                raise GridError(
                    f"{one}: XSF is not written piece by piece. Take *.cube, *.h5 or a CHGCAR, or "
                    "get_density_grid(...).write(path)."
                )
        given = atoms = self._structure(atoms)
        cell, origin, shape = self._lattice(atoms, shape, spacing, None)
        if origin.any() or not np.array_equal(cell, atoms.cell.array):
            atoms = atoms.copy()
            atoms.positions -= origin
            atoms.set_cell(cell)
        encoded = self._encode(atoms)
        factor, electrons = self._factor(atoms), None
        self._last = given.copy()
        if self.normalize and atoms.pbc.all():
            electrons = self._electrons(atoms)
        with progress_bar("density", int(np.prod(shape)), progress) as advance:
            return stream_grid(
                self.network,
                encoded,
                shape,
                path,
                memory=memory,
                provenance=self.card.provenance,
                factor=factor,
                electrons=electrons,
                devices=self._devices,
                progress=advance,
            )

    def get_pseudo_density(
        self,
        spin: int | None = None,
        gridrefinement: int = 1,
        pad: bool = True,
        broadcast: bool = True,
    ) -> NDArray[np.floating]:
        """Density of the attached atoms as an array, with GPAW's signature.

        Parameters
        ----------
        spin
            None for ρ, 0 for ρ↑, 1 for ρ↓ (each ρ/2 for models without spin).
        gridrefinement
            Multiplies the default number of points along every axis.
        pad, broadcast
            Accepted as GPAW accepts them, without effect: the first layer of open directions is
            always there, and every process holds the whole array.

        Returns
        -------
        numpy.ndarray
            e/Å³, shape (n1, n2, n3), on the points of :meth:`get_density_grid`. Which electrons
            it counts, the model's card says.

        Raises
        ------
        GridError
            There is no such spin or refinement.
        """
        if spin not in (None, 0, 1):
            raise GridError(f"spin is None, 0 (up) or 1 (down), not {spin!r}.")
        if gridrefinement < 1 or int(gridrefinement) != gridrefinement:
            raise GridError(f"gridrefinement is 1, 2, …, not {gridrefinement!r}.")
        shape = self._lattice(self._structure(None), None, None, None)[2]
        refined = tuple(n * int(gridrefinement) for n in shape)
        grid = self.get_density_grid(shape=refined)  # type: ignore[arg-type]
        if spin is None:
            return grid.values
        return grid.up if spin == 0 else grid.down

    def get_spin_density(
        self,
        atoms: Atoms | None = None,
        points: ArrayLike | None = None,
        shape: Shape | None = None,
        spacing: float | None = None,
    ) -> NDArray[np.floating]:
        """Spin density ρ↑ − ρ↓.

        Parameters
        ----------
        points
            Cartesian positions, Å, shape (…, 3).
        shape, spacing
            Of a grid, as for :meth:`get_density_grid`, where there are no points.

        Returns
        -------
        numpy.ndarray
            e/Å³, which is μ_B/Å³: shape (…) for points, else (n1, n2, n3).

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
            The model knows no spin.
        """
        if reason := self._why_not("magmom", None):
            raise PropertyNotImplementedError(reason)
        if points is not None:
            up, down = self._at(points, atoms, contributions=False)
            return up - down
        spin = self.get_density_grid(atoms, shape=shape, spacing=spacing).spin
        assert spin is not None
        return spin

    def get_atomic_density(
        self,
        indices: int | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_],
        atoms: Atoms | None = None,
        shape: Shape | None = None,
        spacing: float | None = None,
        like: DensityGrid | None = None,
        progress: bool | None = None,
    ) -> DensityGrid:
        """Sum of the contributions ρ_i of some atoms, on a grid.

        Parameters
        ----------
        indices
            Atoms: an index, several, or a mask.
        shape, spacing, like, progress
            As in :meth:`get_density_grid`.

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
            The network has no contributions of atoms.
        StructureError
            There are no such atoms.
        """
        if reason := self._why_no_contributions():
            raise PropertyNotImplementedError(reason)
        atoms = self._structure(atoms)
        encoded = self._encode(atoms)
        chosen = np.zeros(len(atoms), dtype=bool)
        try:
            chosen[indices] = True
        except IndexError:
            raise StructureError(
                f"indices={indices!r}: this structure has the atoms 0 … {len(atoms) - 1}."
            ) from None
        cell, origin, shape = self._lattice(atoms, shape, spacing, like)
        with progress_bar("atomic density", int(np.prod(shape)), progress) as advance:
            channels = evaluate_grid(
                self.network,
                encoded,
                shape,
                cell=cell,
                origin=origin,
                of_atoms=chosen,
                devices=self._devices,
                progress=advance,
            )
        return self._grid(atoms, channels, cell, origin, like)

    def get_number_of_electrons(self, atoms: Atoms | None = None) -> float:
        """∫ρ dr of the predicted density over the cell (or all space).

        Of pseudo densities this is ∫ñ, and not a number of electrons: take
        ``partition().electrons``.
        """
        return float(self._integrate(self._structure(atoms))[0].sum())

    def partition(
        self,
        scheme: Scheme = "eac",
        atoms: Atoms | None = None,
        *,
        spacing: float | None = None,
        reference: DensityGrid | None = None,
        normalize: bool = True,
        progress: bool | None = None,
    ) -> Partition:
        """Divide the density among the atoms: populations, charges, moments, dipoles.

        Kept until the structure changes, unless a reference is given.

        Parameters
        ----------
        scheme
            ``eac``, the contributions the model makes the density of; ``bader``; ``hirshfeld``;
            ``iterative-hirshfeld``; or ``voronoi``.
        spacing
            Largest distance of the grid's points, Å, for all schemes but ``eac``; default 0.08, and
            0.12 for pseudo densities, which are interpolated further.
        reference
            For ``bader``, see :func:`eac_ase.analysis.partition`; its points are taken.
        normalize
            Scale to the exact number of electrons, whatever the calculator does. Without it the
            charges of ``eac`` are those of ``get_charges()``.
        progress
            Progress bar on stderr: True, False, or None for only on a terminal.

        Raises
        ------
        AnalysisError
            The density does not suit the scheme, or what the scheme needs is not installed: GPAW
            for pseudo densities, baderkit for ``bader``. The message says what is missing.
        ase.calculators.calculator.PropertyNotImplementedError
            ``eac``, of a network without contributions.
        """
        from eac_ase.analysis.partition import partition_of_model

        if scheme == "eac" and (reason := self._why_no_contributions()):
            raise PropertyNotImplementedError(reason)
        atoms = self._structure(atoms)
        known = self._know(atoms)
        masses = atoms.get_masses().tobytes()
        key = (scheme, spacing, normalize, self.normalize, stated_charge(atoms), masses)
        found = known.partitions.get(key) if reference is None else None
        if found is None:
            nothing = np.zeros((self.network.n_spin, 1, 1, 1))
            empty = self._grid(atoms, nothing, atoms.cell.complete(), np.zeros(3), None)
            found = partition_of_model(
                self,
                known.encoded,
                atoms,
                scheme,
                spacing=spacing,
                reference=reference,
                normalize=normalize,
                scale=self._factor(atoms),
                progress=progress,
                onsite=self._with_onsite(empty, atoms),
            )
            if reference is None:
                known.partitions[key] = found
        return found

    def get_descriptors(self, atoms: Atoms | None = None) -> NDArray[np.floating]:
        """Descriptors of the atoms: of EAC-Net (n_atoms, (l_max+1)², channels), else (n_atoms, …).

        Components of angular momentum l are the rows l² … (l+1)² − 1, in e3nn's order. Spin models
        return the descriptors of the given (not the flipped) initial moments.
        """
        encoded = self._encode(self._structure(atoms))
        descriptors: NDArray[np.floating] = encoded.descriptors[0].cpu().numpy()
        return descriptors.copy()

    def get_augmentation(self, atoms: Atoms | None = None) -> Rows | tuple[Rows, Rows]:
        """Augmentation occupancies as VASP writes them to CHGCAR.

        Returns
        -------
        list of numpy.ndarray, or two such lists
            One flat array an atom, in the order of the atoms. Spin models return the occupancies
            of ρ and those of ρ↑ − ρ↓.

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
            The model does not predict them.
        """
        total, spin = total_and_spin(self._onsite(self._structure(atoms), "VASP"))
        return total if spin is None else (total, spin)

    def get_onsite_matrices(self, atoms: Atoms | None = None) -> dict[int, NDArray[np.floating]]:
        """PAW matrices D_a of all atoms as GPAW holds them.

        Returns
        -------
        dict
            Index of the atom → real symmetric matrices over the projectors of its setup, shape
            (s, i, i): s = 1 with all electrons, or, of spin models, s = 2 with up and down.

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
            The model does not predict them.
        """
        spins = self._onsite(self._structure(atoms), "GPAW")
        return {a: np.stack(matrices) for a, matrices in enumerate(zip(*spins, strict=True))}

    def get_error_estimate(self, atoms: Atoms | None = None) -> ErrorEstimate:
        """How far the density may be expected to be off, for the structure and for every atom.

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
            The model knows nothing of its errors: no structures were left out of its training, or
            its network has no descriptors of atoms.
        """
        estimate = self._know(self._structure(atoms)).estimate
        if estimate is None:
            raise PropertyNotImplementedError(
                f"{self.card.name} has no error estimate. Train with `data.validation`; networks "
                "other than EAC-Net have none."
            )
        return estimate

    # -- behind the scenes ---------------------------------------------------------------------

    def _structure(self, atoms: Atoms | None) -> Atoms:
        if atoms is not None:
            if not isinstance(atoms, Atoms):
                raise TypeError(f"A structure is an ase.Atoms object, not {type(atoms).__name__}.")
            return atoms
        if self._attached is not None:
            return self._attached
        if self._known is not None:
            return self._last
        raise CalculatorSetupError(
            "No structure: attach the calculator (atoms.calc = …) or pass atoms."
        )

    def _changes(self, old: Atoms, new: Atoms) -> list[str]:
        """Differences that the density depends on."""
        pairs = {
            "numbers": (old.numbers, new.numbers),
            "positions": (old.positions, new.positions),
            "cell": (np.asarray(old.cell), np.asarray(new.cell)),
            "pbc": (old.pbc, new.pbc),
        }
        if self.network.config.spin:
            pairs["initial_magmoms"] = (
                old.get_initial_magnetic_moments(),
                new.get_initial_magnetic_moments(),
            )
        return [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]

    @property
    def _pseudo(self) -> bool:
        """Whether densities are GPAW's ñ, which is complete with the matrices D only."""
        return self.card.provenance.density_kind == "pseudo"

    def _settings(self) -> tuple[Any, ...]:
        """What results depend on beside the structure."""
        return (self.normalize, fingerprint(self.network))

    def _encode(self, atoms: Atoms) -> EncodedAtoms:
        return self._know(atoms).encoded

    def _know(self, atoms: Atoms) -> _Known:
        # Callers go on with what is returned: another thread may replace what is kept.
        known, weights = self._known, fingerprint(self.network)
        if known is None or known.weights != weights or self._changes(known.encoded.atoms, atoms):
            # Frees the memory, and stays empty if the structure is refused.
            self._known = known = None
            with _naming_models_for(atoms):
                encoded = encode(self.network, atoms)
            estimate = estimate_error(self.network, encoded)
            known = self._known = _Known(encoded, weights, estimate)
            if estimate is not None and len(estimate.unfamiliar):
                warnings.warn(
                    f"{self.card.name} knows no surroundings like those of "
                    f"{estimate.describe_unfamiliar(atoms)}: its error there is unknown "
                    "(get_error_estimate).",
                    UnfamiliarStructureWarning,
                    stacklevel=3,
                )
            # A fine-tuned model keeps the elements of the one it began as.
            unseen = sorted(set(atoms.symbols) - set(self.card.elements or atoms.symbols))
            if unseen:
                warnings.warn(
                    f"{self.card.name} was not trained on {', '.join(unseen)}, which it knows from "
                    "the model it began as: its error there is unknown.",
                    UnfamiliarStructureWarning,
                    stacklevel=3,
                )
        self._last = atoms.copy()
        return known

    def _at(
        self, points: ArrayLike, atoms: Atoms | None, contributions: bool
    ) -> NDArray[np.floating]:
        """Values of both spins, (n_spin, …), at points (…, 3)."""
        if contributions and (reason := self._why_no_contributions()):
            raise PropertyNotImplementedError(reason)
        points = np.asarray(points, dtype=float)
        if points.shape[-1:] != (3,) or not np.isfinite(points).all():
            raise GridError(
                f"Points have the shape (n, 3) and are finite numbers (Å); got {points.shape}."
            )
        atoms = self._structure(atoms)
        encoded = self._encode(atoms)
        flat = evaluate_points(
            self.network,
            encoded,
            points.reshape(-1, 3),
            contributions=contributions,
            devices=self._devices,
        )
        flat *= self._factor(atoms)
        return flat.reshape(len(flat), *points.shape[:-1], *flat.shape[2:])

    def _onsite(self, atoms: Atoms, code: str | None = None) -> list[Rows]:
        """On-site data by spin and atom, normalised as the density is."""
        layout = self.network.config.onsite
        if layout is None or code not in (None, layout.code):
            what = "no on-site data" if layout is None else f"on-site data of {layout.code} only"
            raise PropertyNotImplementedError(f"The model {self.card.name!r} predicts {what}.")
        factor = self._factor(atoms)
        spins = evaluate_onsite(self.network, self._encode(atoms))
        return [[factor * row for row in spin] for spin in spins]

    def _with_onsite(self, grid: DensityGrid, atoms: Atoms) -> DensityGrid:
        layout = self.network.config.onsite
        if layout is None or not layout.covers(atoms.symbols):
            return grid
        total, spin = total_and_spin(self._onsite(atoms))
        return replace(grid, onsite=tuple(total), onsite_spin=None if spin is None else tuple(spin))

    def _raw_integrals(self, atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from eac_ase.analysis.learned import has_closed_form, learned_moments

        known = self._know(atoms)
        if known.integrals is None and has_closed_form(self.network):
            moments = learned_moments(self.network, known.encoded)
            known.integrals = moments.populations, moments.firsts
        if known.integrals is None:
            everything = [axis for axis in range(3) if not atoms.pbc[axis]]
            cell, origin = box_around(atoms, self.network.config.point_cutoff, everything)
            shape = grid_shape(cell, INTEGRATION_SPACING)
            with progress_bar("charges", int(np.prod(shape))) as advance:
                found = integrate_density(
                    self.network,
                    known.encoded,
                    shape,
                    by_atom=isinstance(self.network, EACNet),
                    cell=cell,
                    origin=origin,
                    devices=self._devices,
                    progress=advance,
                )
            known.integrals = found.populations, found.dipoles
        return known.integrals

    def _places(self, atoms: Atoms) -> NDArray[np.float64]:
        """What the dipoles of :meth:`_integrate` are taken about, (n_atoms or 1, 3), Å."""
        return atoms.positions if isinstance(self.network, EACNet) else np.zeros((1, 3))

    def _integrate(self, atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Populations (n_spin, n_atoms) and their dipoles (n_spin, n_atoms, 3), normalised.

        Networks without contributions of atoms put all electrons into one place, the origin.
        """
        populations, dipoles = self._raw_integrals(atoms)
        factor = self._factor(atoms)
        return populations * factor, dipoles * factor

    def _factor(self, atoms: Atoms) -> float:
        if not self.normalize:
            return 1.0
        wanted = self._electrons(atoms)
        found = float(self._raw_integrals(atoms)[0].sum())
        if not found > 0:
            raise CalculatorSetupError(
                f"The predicted density holds {found:.3g} electrons and cannot be normalised to "
                f"{wanted:g}: the model does not fit this structure."
            )
        return wanted / found

    def _electrons(self, atoms: Atoms) -> float:
        """The exact number of electrons of a structure."""
        self._check_normalizable()
        if missing := self._without_valence(atoms):
            raise CalculatorSetupError(
                f"normalize=True needs to know how many electrons of {', '.join(missing)} the "
                f"density counts; the card of {self.card.name!r} does not say."
            )
        valence, charge = float(self._valences(atoms).sum()), stated_charge(atoms) or 0.0
        if not valence > charge:
            raise StructureError(
                f'atoms.info["charge"] = {charge:g}: the density counts {valence:g} electrons of '
                "these atoms, and none would be left. The charge is in units of |e|."
            )
        return valence - charge

    def _check_normalizable(self) -> None:
        if self._pseudo:
            raise CalculatorSetupError(
                f"{self.card.name} predicts pseudo densities, which hold their electrons together "
                "with the matrices D: GPAW normalises both (start_from_density), and so does "
                "partition(). Leave normalize out."
            )

    def _valences(self, atoms: Atoms) -> NDArray[np.float64]:
        return np.array([self.card.valence_electrons[symbol] for symbol in atoms.symbols])

    def _without_valence(self, atoms: Atoms) -> list[str]:
        return sorted(set(atoms.symbols) - set(self.card.valence_electrons))

    def _why_not(self, name: str, atoms: Atoms | None) -> str | None:
        """Why a property means nothing here; None if it does."""
        if name in ("magmom", "magmoms"):
            if not self.network.config.spin:
                return f"The model {self.card.name!r} knows no spin: it has no magnetic moments."
            return self._why_no_contributions() if self._pseudo or name == "magmoms" else None
        assert atoms is not None
        with _naming_models_for(atoms):
            self._check(atoms)
        missing = self._without_valence(atoms)
        layout = self.network.config.onsite
        if self._pseudo and layout is not None:
            missing = []  # GPAW's data sets tell
        if missing:
            return (
                f"Net charges need the number of electrons of {', '.join(missing)} that the "
                f"density counts; the card of {self.card.name!r} does not say "
                "(card.valence_electrons). Populations: evaluate(..., contributions=True)."
            )
        if name == "charges":
            return self._why_no_contributions()
        if name == "dipole" and atoms.pbc.any():
            return (
                "The dipole moment of a periodic structure depends on where the cell is cut and "
                "means nothing by itself. For an isolated molecule set atoms.pbc = False."
            )
        return None

    def _check(self, atoms: Atoms) -> None:
        config = self.network.config
        check_structure(atoms, config.elements, spin=config.spin)

    def _why_no_contributions(self) -> str | None:
        """Why there are no contributions of atoms; None if there are."""
        if isinstance(self.network, EACNet):
            return None
        return (
            f"The model {self.card.name!r} ({self.network.config.architecture}) predicts the "
            "density as a whole, without contributions of atoms. Take get_density_grid() and "
            "divide the grid among the atoms, or an EAC-Net model."
        )

    def _lattice(
        self,
        atoms: Atoms,
        shape: Shape | None,
        spacing: float | None,
        like: DensityGrid | None,
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], Shape]:
        """Cell, origin and shape of the grid to evaluate."""
        if sum(choice is not None for choice in (shape, spacing, like)) > 1:
            raise GridError("Give one of shape, spacing and like, not several.")
        if like is not None:
            _check_repeats(atoms, like)
            return like.cell, like.origin, like.shape
        with _naming_models_for(atoms):
            self._check(atoms)
        cutoff = self.network.config.point_cutoff
        cell, origin = box_around(atoms, cutoff, _axes_without_box(atoms))
        if shape is None:
            return cell, origin, grid_shape(cell, SPACING if spacing is None else spacing)
        return cell, origin, checked_shape(shape)

    def _grid(
        self,
        atoms: Atoms,
        channels: NDArray[np.floating],
        cell: NDArray[np.floating],
        origin: NDArray[np.floating],
        like: DensityGrid | None,
    ) -> DensityGrid:
        channels *= self._factor(atoms)
        plain = plain_atoms(atoms)
        if self.network.config.spin and atoms.has("initial_magmoms"):
            plain.set_initial_magnetic_moments(atoms.get_initial_magnetic_moments())
        # A box in a crystal is open, whatever the crystal is.
        repeats = atoms.pbc if like is None else atoms.pbc & np.asarray(like.pbc)
        return DensityGrid(
            values=channels.sum(axis=0),
            spin=channels[0] - channels[1] if len(channels) == 2 else None,
            atoms=plain,
            cell=cell,
            origin=origin,
            pbc=tuple(repeats),
            kind=self.card.provenance.density_kind,
            provenance=self.card.provenance,
        )


def _check_repeats(atoms: Atoms, like: DensityGrid) -> None:
    """A grid that repeats has to repeat as the structure does."""
    axes = np.flatnonzero(atoms.pbc & np.asarray(like.pbc))
    if not len(axes):
        return
    steps = like.cell[axes] @ np.linalg.inv(atoms.cell.complete())
    whole = np.rint(steps)
    off = np.abs(steps - np.where(atoms.pbc, whole, 0)).max()
    if off > SAME_CELL or abs(np.linalg.det(whole[:, axes])) != 1:
        raise GridError(
            f"The grid's cell {np.round(like.cell, 4).tolist()} is another one than the "
            f"structure's, {np.round(atoms.cell.array, 4).tolist()}. Give the structure the grid's "
            "cell, repeat it if need be, or evaluate its own grid; for a box in a crystal take "
            "dataclasses.replace(grid, pbc=(False, False, False))."
        )


@dataclass(eq=False)
class _Known:
    """What was found out of one structure."""

    encoded: EncodedAtoms
    weights: int
    """Fingerprint of the network at the time."""
    estimate: ErrorEstimate | None
    integrals: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    partitions: dict[tuple[Any, ...], Partition] = field(default_factory=dict)


@contextmanager
def _naming_models_for(atoms: Atoms) -> Iterator[None]:
    """Say which bundled models know the elements of a structure that a model does not know."""
    try:
        yield
    except UnknownElementError as error:
        able = ", ".join(models_knowing(atoms.symbols)) or "none"
        raise UnknownElementError(
            f"{error} Bundled models that know all elements of this structure: {able}."
        ) from None


def _is_elsewhere(network: DensityNetwork, device: torch.device | str | None) -> bool:
    """Whether a network lies on another device than the wanted one."""
    if device is None:
        return False
    wanted, own = torch.device(device), network.device
    return wanted.type != own.type or wanted.index not in (None, own.index)


def _devices(
    device: torch.device | str | Sequence[torch.device | str] | None,
) -> list[torch.device | str]:
    """One device or several as a list, empty for None; GPUs have to be there."""
    if device is None:
        return []
    devices = [device] if isinstance(device, (str, torch.device)) else list(device)
    for wanted in devices:
        try:
            kind = torch.device(wanted).type
        except (RuntimeError, TypeError):
            kind = "none"
        if kind not in ("cpu", "cuda"):
            raise CalculatorSetupError(f"device={str(wanted)!r}: 'cpu', 'cuda' or 'cuda:1'.")
        if kind == "cuda" and not torch.cuda.is_available():
            raise CalculatorSetupError(
                f"device={str(wanted)!r}: torch finds no GPU here. Leave the device out, or "
                "install a torch build for your GPU."
            )
    return devices


def _axes_without_box(atoms: Atoms) -> list[int]:
    """Open directions whose cell vector is missing, or does not enclose the atoms."""
    inverse = np.linalg.inv(atoms.cell.complete())
    fractions = atoms.positions @ inverse
    border = CLEARANCE * np.linalg.norm(inverse, axis=0)
    border -= 1e-6  # vacuum=3 is enough, whatever its last digits
    inside = ((fractions >= border) & (fractions <= 1 - border)).all(axis=0)
    usable = inside & (atoms.cell.lengths() > 1e-6)
    return [axis for axis in range(3) if not atoms.pbc[axis] and not usable[axis]]
