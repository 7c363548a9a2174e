from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import ulm
from ase.io.trajectory import write_atoms
from ase.units import Bohr
from hypothesis import given
from hypothesis import strategies as st

from eac_model.data import read_gpw
from eac_model.errors import DensityFileError

ROUGH = {"density": 1e-1, "energy": 1.0, "eigenstates": 1e-1}


def run_gpaw(atoms, path, **settings):
    gpaw = pytest.importorskip("gpaw")
    atoms.calc = gpaw.GPAW(txt=None, convergence=ROUGH, **settings)
    atoms.get_potential_energy()
    atoms.calc.write(str(path))
    return atoms.calc


@pytest.fixture(scope="module")
def lithium(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpw") / "li.gpw"
    settings = {"mode": {"name": "pw", "ecut": 200}, "kpts": (2, 2, 2), "xc": "PBE"}
    return run_gpaw(bulk("Li"), path, **settings), path


@pytest.fixture(scope="module")
def spin_molecule(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpw") / "oh.gpw"
    atoms = molecule("OH", vacuum=2.0)
    atoms.set_initial_magnetic_moments([1.0, 0.25])
    return run_gpaw(atoms, path, mode="fd", h=0.25), path


def pseudo_densities_of(calculator):
    """Without compensation charges, which get_pseudo_density of GPAW 26.7 adds; e/Å³."""
    return calculator.dft.densities().pseudo_densities(add_compensation_charges=False).data


def matrices_of(calculator):
    return [np.array(D_sii) for D_sii in calculator.dft.density.D_asii.values()]


def test_a_crystal_has_gpaw_s_density_and_matrices(lithium):
    calculator, path = lithium
    sample = read_gpw(path)
    np.testing.assert_allclose(sample.density, pseudo_densities_of(calculator)[0], rtol=1e-12)
    assert sample.spin_density is None
    assert sample.atoms.pbc.all()
    np.testing.assert_allclose(sample.atoms.cell, calculator.atoms.cell)
    (ours,), (theirs,) = sample.onsite, matrices_of(calculator)
    assert sample.onsite_spin is None
    np.testing.assert_allclose(ours, theirs[0], atol=1e-12)
    assert np.abs(theirs - np.diag(np.diag(theirs[0]))).max() > 1e-3  # off-diagonals are tested


def test_a_molecule_has_both_spins_and_an_empty_boundary(spin_molecule):
    calculator, path = spin_molecule
    sample = read_gpw(path)
    up, down = pseudo_densities_of(calculator)
    np.testing.assert_allclose(sample.density, up + down, atol=1e-12)
    np.testing.assert_allclose(sample.spin_density, up - down, atol=1e-12)
    assert not sample.density[0].any()
    assert sample.density[1].any()
    assert not sample.atoms.pbc.any()
    assert sample.atoms.get_initial_magnetic_moments().tolist() == [1.0, 0.25]
    rows = zip(sample.onsite, sample.onsite_spin, matrices_of(calculator), strict=True)
    for total, difference, (alpha, beta) in rows:
        np.testing.assert_allclose(total, alpha + beta, atol=1e-12)
        np.testing.assert_allclose(difference, alpha - beta, atol=1e-12)


@pytest.mark.parametrize("code", [{}, {"legacy_gpaw": True}], ids=["new", "classic"])
@pytest.mark.parametrize("mode", [{"mode": "fd", "h": 0.3}, {"mode": {"name": "pw", "ecut": 200}}])
def test_open_directions_have_an_empty_layer_where_gpaw_leaves_one_out(tmp_path, code, mode):
    atoms = molecule("H2", vacuum=1.8)
    atoms.pbc = (True, False, False)
    calculator = run_gpaw(atoms, tmp_path / "h2.gpw", xc="PBE", **mode, **code)
    sample = read_gpw(tmp_path / "h2.gpw")
    if code:
        expected = calculator.get_pseudo_density(pad=True)
        unpack_density = pytest.importorskip("gpaw.utilities").unpack_density
        matrices = [unpack_density(D_sp[0]) for D_sp in calculator.density.D_asp.values()]
    else:
        density = calculator.dft.density.nt_sR
        expected = density.to_pbc_grid().data[0] / Bohr**3
        matrices = [D_sii[0] for D_sii in matrices_of(calculator)]
    np.testing.assert_allclose(sample.density, expected, atol=1e-9)
    assert sample.density[:, 0].any() == (mode["mode"] != "fd")
    np.testing.assert_allclose(sample.onsite, matrices, atol=1e-12)


def test_data_sets_that_were_asked_for_are_recorded_by_name(tmp_path):
    atoms = molecule("HF", vacuum=1.8)
    run_gpaw(atoms, tmp_path / "hf.gpw", xc="PBE", mode="fd", h=0.3, setups={"F": "v2"})
    assert read_gpw(tmp_path / "hf.gpw").provenance.paw_datasets == ("F.v2.PBE", "H.PBE")


def test_matrices_that_could_be_of_two_choices_of_data_sets_are_refused(tmp_path):
    # Na and Mg have 13 projectors, or 5 without their semicore states.
    path = write_gpw(tmp_path / "x.gpw", matrices=np.zeros((1, 91 + 15)), symbols="NaMg")
    with pytest.raises(DensityFileError, match="fit more than one choice for MgNa"):
        read_gpw(path)
    assert read_gpw(path, onsite=False).onsite is None
    path = write_gpw(tmp_path / "y.gpw", matrices=np.zeros((1, 91 + 91)), symbols="NaMg")
    assert [len(matrix) for matrix in read_gpw(path).onsite] == [13, 13]


def test_the_source_is_recorded(lithium):
    provenance = read_gpw(lithium[1]).provenance
    assert provenance.code.startswith("GPAW 2")
    assert provenance.functional == "PBE"
    assert provenance.density_kind == "pseudo"
    assert provenance.paw_datasets == ("Li.PBE",)
    assert provenance.source == "li.gpw"


def test_projectors_are_known_for_every_data_set_of_gpaw():
    setups = pytest.importorskip("gpaw.setup_data")
    from eac_model.data.gpw import _choices

    for symbol in ("H", "Li", "C", "Na", "Si", "Ti", "Fe", "Ag", "Sn", "Te", "Ba", "W", "Pb"):
        data = setups.SetupData(symbol, "PBE")
        assert sum(2 * l + 1 for l in data.l_j) == _choices(symbol)[0], symbol


def write_gpw(path, *, version=3, matrices, density=None, tag="gpaw", symbols="H2"):
    atoms = Atoms(symbols, [(0, 0, 0), (0, 0, 1.5)])
    atoms.set_cell([3, 3, 3])
    atoms.pbc = True
    with ulm.Writer(path, tag=tag) as writer:
        writer.write(version=version, gpaw_version="1.0", bohr=0.5, ha=27.0)
        write_atoms(writer.child("atoms"), atoms)
        writer.child("parameters").write(xc="LDA")
        writer.child("density").write(
            density=np.ones((1, 2, 2, 2)) if density is None else density,
            atomic_density_matrices=matrices,
        )
    return path


def test_classic_files_store_the_upper_triangle_with_doubled_off_diagonals(tmp_path):
    packed = np.arange(30.0)[None]
    first, second = read_gpw(write_gpw(tmp_path / "x.gpw", matrices=packed)).onsite
    np.testing.assert_array_equal(first[0], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(first[1], [0.5, 5, 3, 3.5, 4])
    np.testing.assert_array_equal(np.diag(second), [15, 20, 24, 27, 29])
    np.testing.assert_array_equal(second, second.T)


def test_unknown_data_sets_are_refused_but_their_density_is_read(tmp_path):
    path = write_gpw(tmp_path / "x.gpw", matrices=np.zeros((1, 29)))
    with pytest.raises(DensityFileError, match=r"29 numbers a spin .*onsite=False"):
        read_gpw(path)
    assert read_gpw(path, onsite=False).onsite is None


def test_foreign_and_non_collinear_files_are_refused(tmp_path):
    path = tmp_path / "x.gpw"
    with pytest.raises(DensityFileError, match="no such file"):
        read_gpw(path)
    with pytest.raises(DensityFileError, match="not a GPAW file but 'other'"):
        read_gpw(write_gpw(path, tag="other", matrices=np.zeros((1, 30))))
    with pytest.raises(DensityFileError, match="Non-collinear"):
        read_gpw(write_gpw(path, matrices=np.zeros((4, 30)), density=np.ones((4, 2, 2, 2))))
    path.write_text("nothing of the kind")
    with pytest.raises(DensityFileError, match=r"not a \.gpw file"):
        read_gpw(path)


@given(st.data())
def test_cut_and_damaged_files_are_refused_or_read(tmp_path, data):
    path = write_gpw(tmp_path / "x.gpw", matrices=np.arange(30.0)[None])
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DensityFileError):
        assert np.isfinite(read_gpw(path).density).all()
