from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import Bohr, Ha

from eac_ase.reference.gpaw import (
    CalculationError,
    calculate,
    check_sample,
    gpaw_parameters,
    kpoint_mesh,
)
from eac_ase.reference.recipe import Settings
from eac_model.data import DensityStore

SILICON = Settings(cutoff=200, kpoint_density=0.9)
OXYGEN = Settings(cutoff=250, kpoint_density=None, smearing=0.0)


@pytest.fixture(scope="module")
def silicon():
    pytest.importorskip("gpaw.dft")
    atoms = bulk("Si")
    atoms.rattle(0.1, seed=1)
    return calculate(atoms, SILICON, "silicon/0")


@pytest.fixture(scope="module")
def oxygen():
    pytest.importorskip("gpaw.dft")
    return calculate(molecule("O2", vacuum=2.0), OXYGEN, "oxygen/0")


def default_start(sample, settings):
    """GPAW's calculation before its first iteration."""
    from gpaw.dft import Parameters
    from gpaw.new.calculation import DFT

    parameters = Parameters(**gpaw_parameters(sample.atoms, settings))
    return DFT(sample.atoms, mode="", txt=None, converge=False, _parameters=parameters)


def deltas_of(dft):
    return [(setup.Delta_iiL[:, :, 0], setup.Delta0) for setup in dft.setups]


def test_meshes_follow_the_reciprocal_cell():
    # |b| of a cube of edge 4 Å is 1.571 / Å
    cube = bulk("Po", "sc", a=4.0)
    assert kpoint_mesh(cube, 2.2) == (4, 4, 4)
    assert kpoint_mesh(cube.repeat((2, 1, 4)), 2.2) == (2, 4, 1)
    assert kpoint_mesh(bulk("Si", a=5.43), 2.2) == (5, 5, 5)
    assert kpoint_mesh(cube, None) == (1, 1, 1)
    cube.pbc = (True, True, False)
    assert kpoint_mesh(cube, 2.2) == (4, 4, 1)


def test_a_mesh_does_not_hang_on_the_last_digit():
    for shift in (-1e-9, 0, 1e-9):
        assert kpoint_mesh(bulk("Po", "sc", a=np.pi + shift), 2.0) == (4, 4, 4)


def test_free_atoms_are_gpaw_s_default_start(silicon, oxygen):
    for sample, settings in ((silicon, SILICON), (oxygen, OXYGEN)):
        density = default_start(sample, settings).density
        up_down = density.nt_sR.data / Bohr**3
        np.testing.assert_allclose(sample.free_atoms.density, up_down.sum(axis=0), atol=1e-12)
        for ours, theirs in zip(sample.free_atoms.onsite, density.D_asii.values(), strict=True):
            np.testing.assert_allclose(ours, theirs.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(oxygen.free_atoms.spin_density, up_down[0] - up_down[1], atol=1e-12)
    for ours, theirs in zip(oxygen.free_atoms.onsite_spin, density.D_asii.values(), strict=True):
        np.testing.assert_allclose(ours, theirs[0] - theirs[1], atol=1e-12)
        assert np.abs(ours).max() > 0.1


def test_what_a_store_keeps_is_gpaw_s_whole_state(silicon, oxygen, tmp_path, monkeypatch):
    """Started from it, GPAW finds the energy at once, and little to change in the density."""
    from gpaw.new.builder import DFTComponentsBuilder

    superposition = DFTComponentsBuilder.density_from_superposition
    for name, sample, settings in (("si", silicon, SILICON), ("o", oxygen, OXYGEN)):
        store = DensityStore.create(tmp_path / name)
        store.append(sample)
        kept = store.read(0)

        def from_store(builder, basis, kept=kept):
            density = superposition(builder, basis)
            spins = len(density.nt_sR.data)
            density.nt_sR.data[:] = spin_channels(kept.density, kept.spin_density) * Bohr**3
            for a, d_sii in density.D_asii.items():
                spin = None if spins == 1 else kept.onsite_spin[a]
                d_sii[:] = spin_channels(kept.onsite[a], spin)
            return density

        with monkeypatch.context() as patch:
            patch.setattr(DFTComponentsBuilder, "density_from_superposition", from_store)
            dft = default_start(kept, settings)
        energy, change = first_iterations(dft)
        by_default, change_by_default = first_iterations(default_start(kept, settings))
        converged = kept.calculation.energy
        assert abs(energy - converged) < 0.01
        assert abs(energy - converged) < 0.1 * abs(by_default - converged)
        assert change < 0.05 * change_by_default


def first_iterations(dft):
    """Energy of the third iteration / eV, and change of the density after the first / electrons."""
    steps = dft.iconverge()
    next(steps)
    change = next(steps).dens.error
    return next(steps).energies.total_extrapolated * Ha, change


def spin_channels(total, spin):
    return np.array([total] if spin is None else [(total + spin) / 2, (total - spin) / 2])


def test_pseudo_densities_are_those_without_compensation_charges(silicon):
    dft = default_start(silicon, SILICON)
    dft.converge()
    theirs = dft.densities().pseudo_densities(add_compensation_charges=False).data[0]
    np.testing.assert_allclose(silicon.density, theirs, atol=1e-6)
    np.testing.assert_allclose(silicon.onsite[1], dft.density.D_asii[1][0], atol=1e-6)


def test_energies_bands_and_data_sets_are_recorded(silicon, oxygen):
    known = silicon.calculation
    assert known.energy > known.free_energy
    assert known.forces.shape == (2, 3)
    assert np.abs(known.forces).max() > 0.5
    assert known.weights.sum() == pytest.approx(1)
    assert known.eigenvalues.shape == known.occupations.shape
    assert known.eigenvalues.shape[1] == len(known.kpoints) == len(known.weights)
    assert np.einsum("k,skn->", known.weights, known.occupations) == pytest.approx(8)
    assert 3 < known.fermi_level < 9
    data_set = known.datasets["Si"]
    assert (data_set.name, data_set.channels, data_set.electrons) == ("Si.PBE", (0, 1, 0, 1, 2), 4)
    assert len(data_set.fingerprint) == 32
    assert known.settings["kpts"] == {"size": [2, 2, 2], "gamma": True}
    assert known.moments is None
    assert silicon.provenance.density_kind == "pseudo"
    assert oxygen.calculation.moment == pytest.approx(2, abs=1e-4)
    assert oxygen.calculation.moments.min() > 0.5
    assert oxygen.calculation.eigenvalues.shape[0] == 2


def test_lost_electrons_moments_and_nan_are_noticed(silicon, oxygen):
    deltas = deltas_of(default_start(silicon, SILICON))
    check_sample(silicon, deltas)
    with pytest.raises(CalculationError, match="electrons too many"):
        check_sample(replace(silicon, density=1.01 * silicon.density), deltas)
    with pytest.raises(CalculationError, match="electrons too many"):
        check_sample(replace(silicon, onsite=silicon.free_atoms.onsite), deltas)
    spoilt = np.where(silicon.density > 0.5, np.nan, silicon.density)
    with pytest.raises(CalculationError, match="NaN"):
        check_sample(replace(silicon, density=spoilt), deltas)
    with pytest.raises(CalculationError, match="lacks"):
        check_sample(replace(silicon, onsite=None), deltas)
    flipped = replace(oxygen, spin_density=-oxygen.spin_density)
    with pytest.raises(CalculationError, match=r"have the moment .* GPAW reports 2\.0000"):
        check_sample(flipped, deltas_of(default_start(oxygen, OXYGEN)))


def test_a_calculation_that_does_not_converge_says_so():
    pytest.importorskip("gpaw.dft")
    with pytest.raises(CalculationError, match="after 2 iterations"):
        calculate(bulk("Si"), SILICON.model_copy(update={"max_iterations": 2}))
