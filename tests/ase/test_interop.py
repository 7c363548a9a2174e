"""Densities from and to pymatgen and ASE; both libraries as judges of what we read and write."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.vasp import VaspChargeDensity

from eac_ase.adapters.ase import from_vasp_charge_density, to_vasp_charge_density
from eac_ase.adapters.pymatgen import from_pymatgen, to_pymatgen
from eac_ase.grid import DensityGrid
from eac_model.data import DensitySample, Magnetization, read_chgcar, write_chgcar
from eac_model.data.sample import Provenance
from eac_model.errors import DensityFileError, GridError, StructureError

outputs = pytest.importorskip("pymatgen.io.vasp.outputs")

CELL = [[4.0, 0.1, 0.0], [0.0, 5.0, -0.3], [0.7, 0.0, 3.5]]
SHAPE = (3, 4, 5)


def make_sample(spin=False, onsite=False, imaginary=False):
    rng = np.random.default_rng(0)
    atoms = Atoms("OHOH", scaled_positions=rng.random((4, 3)), cell=CELL, pbc=True)
    if spin and onsite:
        atoms.set_initial_magnetic_moments([1.0, -0.5, 0.0, 2.0])

    def occupancies():
        return tuple(rng.normal(size=size) for size in (33, 15, 33, 15))

    return DensitySample(
        atoms=atoms,
        density=rng.random(SHAPE) * 10.0 ** rng.integers(-8, 3, size=SHAPE),
        spin_density=rng.normal(size=SHAPE) if spin else None,
        onsite=occupancies() if onsite else None,
        onsite_spin=occupancies() if onsite and spin else None,
        onsite_imaginary=tuple(occupancies() for _ in range(1 + spin)) if imaginary else None,
    )


def make_non_collinear():
    rng = np.random.default_rng(5)
    sample = make_sample(onsite=True)
    onsite = tuple(tuple(rng.normal(size=one.size) for one in sample.onsite) for _ in range(3))
    return replace(sample, magnetization=Magnetization(rng.normal(size=(3, *SHAPE)), onsite))


def assert_same(a, b, rtol=1e-12, occupancy_rtol=1e-12):
    assert a.atoms.get_chemical_symbols() == b.atoms.get_chemical_symbols()
    np.testing.assert_allclose(a.atoms.cell, b.atoms.cell, atol=1e-12)
    difference = a.atoms.get_scaled_positions() - b.atoms.get_scaled_positions()
    np.testing.assert_allclose(difference - difference.round(), 0, atol=1e-12)
    np.testing.assert_allclose(
        a.atoms.get_initial_magnetic_moments(), b.atoms.get_initial_magnetic_moments(), rtol=1e-11
    )
    np.testing.assert_allclose(a.density, b.density, rtol=rtol)
    for one, other in ((a.spin_density, b.spin_density), (a.magnetization, b.magnetization)):
        assert (one is None) == (other is None)
    if a.spin_density is not None:
        np.testing.assert_allclose(a.spin_density, b.spin_density, rtol=rtol)
    if a.magnetization is not None:
        np.testing.assert_allclose(a.magnetization.density, b.magnetization.density, rtol=rtol)
    for one, other in zip(all_occupancies(a), all_occupancies(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=occupancy_rtol)


def all_occupancies(sample):
    sets = [sample.onsite, sample.onsite_spin, *(sample.onsite_imaginary or ())]
    sets += (sample.magnetization.onsite or ()) if sample.magnetization else ()
    return [values for one in sets if one is not None for values in one]


COLLINEAR = [
    {"spin": False, "onsite": False},
    {"spin": True, "onsite": False},
    {"spin": False, "onsite": True},
    {"spin": True, "onsite": True},
    {"spin": True, "onsite": True, "imaginary": True},
]


@pytest.mark.parametrize("options", COLLINEAR, ids=str)
@pytest.mark.parametrize(
    ("give", "take"),
    [(to_pymatgen, from_pymatgen), (to_vasp_charge_density, from_vasp_charge_density)],
    ids=["pymatgen", "ase"],
)
def test_a_density_survives_the_way_there_and_back(options, give, take):
    sample = make_sample(**options)
    assert_same(take(give(sample)), sample, occupancy_rtol=1e-6)


def test_densities_of_other_kinds_are_taken_back_as_what_they_are():
    grid = DensityGrid.from_sample(make_sample())
    grid = replace(grid, kind="pseudo", provenance=Provenance("GPAW", "PBE", "pseudo"))
    for give, take in (
        (to_pymatgen, from_pymatgen),
        (to_vasp_charge_density, from_vasp_charge_density),
    ):
        assert take(give(grid)).provenance.density_kind == "valence"
        taken = take(give(grid), density_kind="pseudo").provenance
        assert (taken.density_kind, taken.code) == ("pseudo", "unknown")


@pytest.mark.parametrize("options", COLLINEAR, ids=str)
def test_the_object_made_by_pymatgen_from_our_file_is_the_one_we_make(tmp_path, options):
    sample = make_sample(**options)
    write_chgcar(tmp_path / "CHGCAR", sample)
    theirs, ours = outputs.Chgcar.from_file(str(tmp_path / "CHGCAR")), to_pymatgen(sample)
    assert theirs.data.keys() == ours.data.keys()
    for name in ours.data:
        np.testing.assert_allclose(theirs.data[name], ours.data[name], rtol=1e-10)
    np.testing.assert_allclose(theirs.structure.frac_coords, ours.structure.frac_coords, atol=1e-9)
    taken, read = from_pymatgen(theirs), read_chgcar(tmp_path / "CHGCAR")
    if isinstance((theirs.data_aug or {}).get("total"), dict):
        # as arrays, pymatgen keeps the occupancies without the moments between them
        taken.atoms.set_initial_magnetic_moments(read.atoms.get_initial_magnetic_moments())
    assert_same(taken, read, rtol=1e-12)


@pytest.mark.parametrize("options", COLLINEAR, ids=str)
def test_the_object_made_by_ase_from_our_file_is_the_one_we_make(tmp_path, options):
    sample = make_sample(**options)
    write_chgcar(tmp_path / "CHGCAR", sample)
    theirs, ours = VaspChargeDensity(str(tmp_path / "CHGCAR")), to_vasp_charge_density(sample)
    np.testing.assert_allclose(theirs.chg[0], ours.chg[0], rtol=1e-9)
    assert len(theirs.chgdiff) == len(ours.chgdiff) == int(options["spin"])
    assert (theirs.aug, theirs.augdiff) == (ours.aug, ours.augdiff)
    read = read_chgcar(tmp_path / "CHGCAR")
    taken = from_vasp_charge_density(theirs)
    assert_same(taken, read, rtol=1e-12)


@pytest.mark.parametrize("options", COLLINEAR, ids=str)
def test_files_written_by_both_from_our_objects_are_read_back(tmp_path, options):
    sample = make_sample(**options)
    to_vasp_charge_density(sample).write(str(tmp_path / "CHGCAR_ase"), format="chgcar")
    assert_same(read_chgcar(tmp_path / "CHGCAR_ase"), sample, rtol=1e-9, occupancy_rtol=1e-6)

    to_pymatgen(sample).write_file(str(tmp_path / "CHGCAR_pymatgen"))
    read = read_chgcar(tmp_path / "CHGCAR_pymatgen")
    scale = sample.atoms.get_volume() / read.atoms.get_volume()  # six digits of the cell
    np.testing.assert_allclose(read.density, sample.density * scale, rtol=1e-9)
    for one, other in zip(all_occupancies(read), all_occupancies(sample), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_non_collinear_files_written_by_pymatgen_are_read(tmp_path):
    sample = make_non_collinear()
    chgcar = to_pymatgen(sample)
    assert chgcar.is_soc
    assert_same(from_pymatgen(chgcar), sample, occupancy_rtol=1e-6)
    chgcar.write_file(str(tmp_path / "CHGCAR"))
    read = read_chgcar(tmp_path / "CHGCAR")
    scale = sample.atoms.get_volume() / read.atoms.get_volume()
    np.testing.assert_allclose(
        read.magnetization.density, sample.magnetization.density * scale, rtol=1e-9
    )
    for one, other in zip(all_occupancies(read), all_occupancies(sample), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    theirs = outputs.Chgcar.from_file(str(tmp_path / "CHGCAR"))
    assert_same(from_pymatgen(theirs), read)
    with pytest.raises(GridError, match="non-collinear"):
        to_vasp_charge_density(sample)


def test_occupancies_that_pymatgen_keeps_as_arrays_are_taken():
    sample = make_sample(spin=True, onsite=True, imaginary=True)
    chgcar = to_pymatgen(replace(sample, onsite=None, onsite_spin=None, onsite_imaginary=None))
    sets = zip((sample.onsite, sample.onsite_spin), sample.onsite_imaginary, strict=True)
    chgcar.data_aug = {
        name: {i + 1: re + 1j * im for i, (re, im) in enumerate(zip(*parts, strict=True))}
        for name, parts in zip(("total", "diff"), sets, strict=True)
    }
    taken = from_pymatgen(chgcar)
    for one, other in zip(all_occupancies(taken), all_occupancies(sample), strict=True):
        np.testing.assert_array_equal(one, other)
    del chgcar.data_aug["diff"][4]
    with pytest.raises(DensityFileError, match=r"data_aug\['diff'\] has occupancies of 3 of 4"):
        from_pymatgen(chgcar)


def test_a_grid_with_an_origin_is_given_with_shifted_atoms():
    sample = make_sample(spin=True)
    origin = np.array([0.3, 0.2, 0.1])
    grid = replace(DensityGrid.from_sample(sample), origin=origin)
    expected = sample.atoms.copy()
    expected.positions -= origin
    for density in (
        from_pymatgen(to_pymatgen(grid)),
        from_vasp_charge_density(to_vasp_charge_density(grid)),
    ):
        difference = density.atoms.get_scaled_positions() - expected.get_scaled_positions()
        np.testing.assert_allclose(difference - difference.round(), 0, atol=1e-12)
        np.testing.assert_allclose(density.spin_density, sample.spin_density, rtol=1e-12)


def test_images_of_a_chg_file_are_taken_one_by_one(tmp_path):
    first, second = make_sample(), replace(make_sample(), density=np.full(SHAPE, 0.5))
    both = to_vasp_charge_density(first)
    both.atoms.append(second.atoms)
    both.chg.append(second.density)
    both.write(str(tmp_path / "CHG"), format="chg")
    charge = VaspChargeDensity(str(tmp_path / "CHG"))
    assert len(charge.chg) == 2
    taken = from_vasp_charge_density(charge, 0)
    np.testing.assert_allclose(taken.density, first.density, rtol=1e-4)
    np.testing.assert_allclose(from_vasp_charge_density(charge).density, 0.5, rtol=1e-4)
    with pytest.raises(GridError, match="no image 2 among 2"):
        from_vasp_charge_density(charge, 2)
    with pytest.raises(DensityFileError, match="several structures are not read"):
        read_chgcar(tmp_path / "CHG")


def test_damaged_augmentation_texts_are_refused():
    charge = to_vasp_charge_density(make_sample(onsite=True))
    charge.aug = charge.aug[: len(charge.aug) // 2].rpartition("\n")[0] + "\n"
    with pytest.raises(DensityFileError, match=r"VaspChargeDensity\.aug, line"):
        from_vasp_charge_density(charge)
    chgcar = to_pymatgen(make_sample(onsite=True))
    chgcar.data_aug["total"].append("something else\n")
    with pytest.raises(DensityFileError, match="unexpected 'something else'"):
        from_pymatgen(chgcar)


def test_partly_occupied_structures_are_refused():
    chgcar = to_pymatgen(make_sample())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chgcar.structure[0] = {"O": 0.5}
    with pytest.raises(StructureError, match="partly occupied"):
        from_pymatgen(chgcar)


def test_matrices_of_other_codes_are_not_given():
    sample = replace(make_sample(), onsite=tuple(np.eye(3) for _ in range(4)))
    assert not to_pymatgen(sample).data_aug
    assert to_vasp_charge_density(sample).aug == ""
