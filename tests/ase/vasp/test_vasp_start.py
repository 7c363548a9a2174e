"""From a prepared run to its CHGCAR: what is written, what is refused, what is said."""

import dataclasses
import re

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import InputError

from eac_ase import DensityGrid, EACDensity
from eac_ase.adapters.vasp import prepare_vasp_start
from eac_ase.adapters.vasp_run import VaspRun
from eac_model.errors import ConfigurationError, GridError, UnknownElementError

SCAN = "METAGGA = SCAN\nENCUT = 200\n"
PBE = "ENCUT = 200\n"


def other_card(calculator: EACDensity, **changes: object) -> EACDensity:
    """The calculator with another provenance on its card."""
    card = calculator.card
    provenance = dataclasses.replace(card.provenance, **changes)
    calculator.card = dataclasses.replace(card, provenance=provenance)
    return calculator


@pytest.fixture
def complete_pbe(complete) -> EACDensity:
    return other_card(complete, functional="PBE")


@pytest.fixture
def magnetic_pbe(magnetic) -> EACDensity:
    return other_card(magnetic, functional="PBE")


# -- what is written ---------------------------------------------------------------------------


def test_chgcar_is_the_prediction_on_vasps_grid_with_the_right_number_of_electrons(
    make_run, ice, complete
):
    folder = make_run(ice)
    start = prepare_vasp_start(folder, complete)
    grid = DensityGrid.read(folder / "CHGCAR")
    assert start.chgcar == folder / "CHGCAR"
    assert grid.shape == start.shape == VaspRun.read(folder).grids().fine
    assert grid.integrate() == pytest.approx(16, rel=1e-9)
    assert start.electrons == pytest.approx(16, rel=1e-9)
    expected = complete.get_density_grid(ice, shape=start.shape)
    factor = 16 / expected.integrate()
    assert abs(factor - 1) > 1e-5
    assert start.electrons_predicted == pytest.approx(expected.integrate())
    assert np.allclose(grid.values, factor * expected.values, rtol=1e-9, atol=1e-9)


def test_occupancies_are_those_of_the_model_and_not_scaled(make_run, ice, complete):
    folder = make_run(ice)
    start = prepare_vasp_start(folder, complete)
    written = DensityGrid.read(folder / "CHGCAR").onsite
    expected = complete.get_augmentation(ice)
    assert start.occupancies
    assert [len(block) for block in written] == [15, 15, 33, 33, 15, 15]
    for ours, theirs in zip(written, expected, strict=True):
        assert np.abs(theirs).max() > 1e-3
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_atoms_keep_the_order_and_the_species_of_poscar(make_run, ice, complete):
    folder = make_run(ice)
    prepare_vasp_start(folder, complete)
    poscar, chgcar = ((folder / name).read_text().splitlines() for name in ("POSCAR", "CHGCAR"))
    assert chgcar[5].split() == poscar[5].split() == ["H", "O", "H"]
    assert chgcar[6].split() == poscar[6].split() == ["2", "2", "2"]
    ours, theirs = (
        np.array([line.split() for line in text[8:14]], dtype=float) for text in (chgcar, poscar)
    )
    assert np.allclose(ours, theirs, atol=1e-14)


def test_two_species_of_one_element_stay_two(make_run, ice, complete, made_up_potcar):
    """As for an antiferromagnet with different U; VASP counts the entries."""
    folder = make_run(ice, potcar="".join(made_up_potcar(s) for s in ("H", "O", "O", "H")))
    text = (folder / "POSCAR").read_text().replace("H O H\n2 2 2", "H O O H\n2 1 1 2")
    (folder / "POSCAR").write_text(text)
    prepare_vasp_start(folder, complete)
    lines = (folder / "CHGCAR").read_text().splitlines()
    assert lines[5].split() == ["H", "O", "O", "H"]
    assert lines[6].split() == ["2", "1", "1", "2"]
    grid = DensityGrid.read(folder / "CHGCAR")
    assert grid.atoms.get_chemical_symbols() == ["H", "H", "O", "O", "H", "H"]
    assert len(grid.onsite) == 6


def test_poscars_of_vasp_4_take_their_elements_from_the_potcar(make_run, ice, complete):
    folder = make_run(ice)
    text = (folder / "POSCAR").read_text()
    (folder / "POSCAR").write_text(text.replace("H O H\n", ""))
    prepare_vasp_start(folder, complete)
    assert DensityGrid.read(folder / "CHGCAR").atoms.symbols.get_chemical_formula() == "H4O2"
    assert DensityGrid.read(folder / "CHGCAR").atoms.symbols[2] == "O"


def test_packed_inputs_and_windows_line_ends_do(make_run, ice, complete):
    import gzip

    folder = make_run(ice)
    poscar = (folder / "POSCAR").read_text().replace("\n", "\r\n")
    (folder / "POSCAR").write_bytes(poscar.encode())
    (folder / "POTCAR.gz").write_bytes(gzip.compress((folder / "POTCAR").read_bytes()))
    (folder / "POTCAR").unlink()
    assert prepare_vasp_start(folder, complete).electrons == pytest.approx(16)


def test_selective_dynamics_and_cartesian_positions_are_read(make_run, ice, complete):
    folder = make_run(ice)
    lines = (folder / "POSCAR").read_text().splitlines()
    rows = [" ".join(f"{x:.16f}" for x in row) + " T F T" for row in ice.positions]
    text = "\n".join([*lines[:7], "Selective dynamics", "Cartesian", *rows]) + "\n"
    (folder / "POSCAR").write_text(text)
    prepare_vasp_start(folder, complete)
    assert np.allclose(DensityGrid.read(folder / "CHGCAR").atoms.positions, ice.positions)


def test_nelect_of_a_charged_run_is_the_number_of_electrons(make_run, ice, complete):
    folder = make_run(ice, SCAN + "NELECT = 15.5\n")
    start = prepare_vasp_start(folder, complete)
    assert DensityGrid.read(folder / "CHGCAR").integrate() == pytest.approx(15.5, rel=1e-9)
    assert any("NELECT = 15.5 is -0.5 electrons" in note for note in start.notes)


def test_normalisation_can_be_left_out(make_run, ice, complete):
    folder = make_run(ice)
    start = prepare_vasp_start(folder, complete, normalize=False)
    assert start.electrons == start.electrons_predicted != pytest.approx(16, rel=1e-5)
    assert any("not normalised" in note for note in start.notes)


def test_an_existing_chgcar_is_kept_unless_forced(make_run, ice, complete):
    folder = make_run(ice)
    (folder / "CHGCAR").write_text("precious")
    with pytest.raises(GridError, match="force"):
        prepare_vasp_start(folder, complete)
    assert (folder / "CHGCAR").read_text() == "precious"
    prepare_vasp_start(folder, complete, force=True)
    assert DensityGrid.read(folder / "CHGCAR").integrate() == pytest.approx(16)


# -- grids -------------------------------------------------------------------------------------


def test_the_grid_follows_encut_prec_and_explicit_sizes(make_run, ice, complete):
    shapes = {
        incar: prepare_vasp_start(make_run(ice, incar, name=str(i)), complete).shape
        for i, incar in enumerate(
            [
                SCAN,
                SCAN + "PREC = Accurate\n",
                SCAN + "PREC = Accurate\nNGXF = 40\n",
                "METAGGA = SCAN\nPREC = Low\n",
            ]
        )
    }
    normal, accurate, explicit, low = shapes.values()
    assert all(n < m for n, m in zip(normal, accurate, strict=True))
    assert explicit == (40, *accurate[1:])
    assert low == VaspRun.read(make_run(ice, "METAGGA=SCAN\nPREC=Low\nENCUT=300\n")).grids().fine


def test_without_encut_the_largest_enmax_counts(make_run, ice, made_up_potcar):
    potcar = made_up_potcar("H", enmax=250) + made_up_potcar("O", enmax=310)
    folder = make_run(ice, "METAGGA = SCAN\n", potcar + made_up_potcar("H", enmax=250))
    with_encut = make_run(ice, "METAGGA = SCAN\nENCUT = 310\n", name="explicit")
    assert VaspRun.read(folder).grids() == VaspRun.read(with_encut).grids()


def test_another_grid_is_written_into_incar(make_run, ice, complete):
    start = prepare_vasp_start(make_run(ice), complete, shape=(20, 24, 30))
    assert start.shape == (20, 24, 30)
    assert start.incar_changes == {"ICHARG": "1", "NGXF": "20", "NGYF": "24", "NGZF": "30"}


def test_a_grid_that_depends_on_the_version_is_written_into_incar(make_run, ice, complete):
    start = prepare_vasp_start(make_run(ice, SCAN + "PREC = Single\n"), complete)
    n1, n2, n3 = start.shape
    assert start.incar_changes == {
        "ICHARG": "1", "NGXF": str(n1), "NGYF": str(n2), "NGZF": str(n3)
    }  # fmt: skip


def test_the_grid_of_an_earlier_run_is_taken(make_run, ice, complete):
    first = make_run(ice, name="first")
    prepare_vasp_start(first, complete, shape=(20, 24, 30))
    start = prepare_vasp_start(make_run(ice), complete, like=first / "CHGCAR")
    assert start.shape == (20, 24, 30)


def test_a_grid_vasp_cannot_transform_is_refused(make_run, ice, complete):
    with pytest.raises(InputError, match="38 is no size"):
        prepare_vasp_start(make_run(ice), complete, shape=(38, 40, 40))


def test_a_density_goes_from_one_vasp_grid_to_another(make_run, ice, complete):
    """Fourier resampling keeps electrons and occupancies."""
    folder = make_run(ice, SCAN + "PREC = Accurate\n")
    prepare_vasp_start(folder, complete)
    grid = DensityGrid.read(folder / "CHGCAR")
    other = grid.resample(VaspRun.read(make_run(ice, name="coarse")).grids().fine)
    other.write(folder / "CHGCAR_coarse")
    again = DensityGrid.read(folder / "CHGCAR_coarse")
    assert again.shape < grid.shape
    assert again.integrate() == pytest.approx(16, rel=1e-9)
    assert np.allclose(np.concatenate(again.onsite), np.concatenate(grid.onsite))


# -- spin --------------------------------------------------------------------------------------


def test_a_spin_run_gets_a_second_grid_from_the_moments_of_incar(make_run, ice, magnetic):
    folder = make_run(ice, SCAN + "ISPIN = 2\nMAGMOM = 2*0.1 1.5 -0.5 2*0\n")
    start = prepare_vasp_start(folder, magnetic)
    ice.set_initial_magnetic_moments([0.1, 0.1, 1.5, -0.5, 0, 0])
    grid = DensityGrid.read(folder / "CHGCAR")
    expected = magnetic.get_density_grid(ice, shape=start.shape)
    assert np.abs(expected.spin).max() > 1e-4
    assert np.allclose(grid.spin, expected.spin, rtol=1e-8, atol=1e-9)
    assert start.magnetic_moment == pytest.approx(expected.integrate_spin())
    assert grid.integrate() == pytest.approx(16, rel=1e-9)
    _, spin = magnetic.get_augmentation(ice)
    assert np.abs(np.concatenate(spin)).max() > 1e-4
    assert np.allclose(np.concatenate(grid.onsite_spin), np.concatenate(spin), rtol=1e-6)
    assert np.allclose(grid.atoms.get_initial_magnetic_moments(), [0.1, 0.1, 1.5, -0.5, 0, 0])


@pytest.mark.parametrize(("nupdown", "moment"), [("", 1), ("NUPDOWN = 3\n", 0.5)])
def test_without_magmom_a_spin_run_has_vasps_default_moments(
    make_run, ice, magnetic, nupdown, moment
):
    folder = make_run(ice, SCAN + "ISPIN = 2\n" + nupdown)
    start = prepare_vasp_start(folder, magnetic)
    moments = DensityGrid.read(folder / "CHGCAR").atoms.get_initial_magnetic_moments()
    assert np.allclose(moments, moment)
    assert any(f"{moment} μ_B on every atom" in note for note in start.notes)


def test_moments_are_counted_for_models_without_spin_too(make_run, ice, complete):
    folder = make_run(ice, SCAN + "ISPIN = 2\nMAGMOM = 2*0.5\n")
    with pytest.raises(InputError, match="MAGMOM has 2 moments"):
        prepare_vasp_start(folder, complete)
    assert not (folder / "CHGCAR").exists()


def test_left_handed_cells_are_refused_as_vasp_does(make_run, ice, complete):
    folder = make_run(ice)
    lines = (folder / "POSCAR").read_text().splitlines()
    lines[2:4] = lines[3], lines[2]
    (folder / "POSCAR").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="left-handed"):
        prepare_vasp_start(folder, complete)


def test_comments_in_any_encoding_survive_a_change_of_incar(make_run, ice, complete):
    folder = make_run(ice)
    comment = b"# \xc5ngstr\xf6m, in Latin-1\n"
    (folder / "INCAR").write_bytes(comment + SCAN.encode())
    prepare_vasp_start(folder, complete, write_incar=True)
    assert (folder / "INCAR").read_bytes() == comment + SCAN.encode() + b"ICHARG = 1\n"


def test_occupancies_of_unnamed_data_sets_are_said_to_be_so(make_run, ice, complete):
    notes = prepare_vasp_start(make_run(ice), complete).notes
    said = [note for note in notes if "does not say which data sets" in note]
    named = bool(complete.network.config.onsite.datasets)
    assert len(said) == (0 if named else 1)
    none = prepare_vasp_start(make_run(ice, name="none"), complete, occupancies=False).notes
    assert not any("which data sets" in note for note in none)


def test_a_spin_paired_run_gets_the_total_density_of_a_spin_model(make_run, ice, magnetic):
    folder = make_run(ice, SCAN + "MAGMOM = 6*3\n")
    start = prepare_vasp_start(folder, magnetic)
    grid = DensityGrid.read(folder / "CHGCAR")
    assert grid.spin is None
    assert grid.onsite_spin is None
    assert start.magnetic_moment is None
    expected = magnetic.get_density_grid(ice, shape=start.shape)
    assert np.allclose(grid.values, expected.values * 16 / expected.integrate(), atol=1e-9)


def test_a_spin_run_of_a_model_without_spin_is_explained(make_run, ice, complete):
    folder = make_run(ice, SCAN + "ISPIN = 2\nMAGMOM = 6*0.5\n")
    start = prepare_vasp_start(folder, complete)
    assert DensityGrid.read(folder / "CHGCAR").spin is None
    assert any("VASP starts that from MAGMOM" in note for note in start.notes)


@pytest.mark.parametrize(("magmom", "count"), [("5*1", 5), ("3*0.6 2*1 7*0", 12)])
def test_moments_that_do_not_fit_the_atoms_are_refused(make_run, ice, magnetic, magmom, count):
    folder = make_run(ice, SCAN + f"ISPIN = 2\nMAGMOM = {magmom}\n")
    with pytest.raises(InputError, match=f"MAGMOM has {count} moments, POSCAR 6 atoms"):
        prepare_vasp_start(folder, magnetic)


@pytest.mark.parametrize("tag", ["LNONCOLLINEAR", "LSORBIT"])
def test_non_collinear_runs_are_refused(make_run, ice, magnetic, tag):
    with pytest.raises(ConfigurationError, match=f"{tag}: the run is non-collinear"):
        prepare_vasp_start(make_run(ice, SCAN + f"{tag} = .TRUE.\n"), magnetic)


# -- INCAR -------------------------------------------------------------------------------------


def test_incar_is_left_alone_and_what_it_needs_is_said(make_run, ice, complete):
    folder = make_run(ice)
    start = prepare_vasp_start(folder, complete)
    assert start.icharg == 1
    assert start.incar_changes == {"ICHARG": "1"}
    assert not start.incar_written
    assert (folder / "INCAR").read_text() == SCAN


def test_incar_is_edited_on_demand_and_nothing_else_in_it(make_run, ice, complete):
    incar = "# my run\nMETAGGA = SCAN ! the best\nENCUT=200; ICHARG = 2  # atoms\n"
    folder = make_run(ice, incar)
    start = prepare_vasp_start(folder, complete, write_incar=True)
    assert start.incar_written
    assert start.incar_changes == {}
    assert (folder / "INCAR").read_text() == incar.replace("ICHARG = 2", "ICHARG = 1")


def test_an_incar_that_is_ready_stays_as_it_is(make_run, ice, complete):
    folder = make_run(ice, SCAN + "ICHARG = 1\n")
    before = (folder / "INCAR").stat().st_mtime_ns
    start = prepare_vasp_start(folder, complete, write_incar=True)
    assert start.incar_changes == {}
    assert not start.incar_written
    assert (folder / "INCAR").stat().st_mtime_ns == before


def test_bands_take_icharg_11_by_wish_or_from_incar(make_run, ice, complete_pbe):
    start = prepare_vasp_start(make_run(ice, PBE), complete_pbe, bands=True)
    assert start.incar_changes == {"ICHARG": "11"}
    folder = make_run(ice, PBE + "ICHARG = 11\n", name="bands")
    start = prepare_vasp_start(folder, complete_pbe)
    assert start.icharg == 11
    assert start.incar_changes == {}


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("incar", "functional"),
    [
        ("", "PBE (from LEXCH = PE in POTCAR)"),
        ("GGA = PS\n", "PBEsol (from GGA = PS)"),
        ("METAGGA = R2SCAN\n", "r2SCAN (from METAGGA = R2SCAN)"),
        ("LHFCALC = T ; HFSCREEN = 0.2\n", "HSE06 (from LEXCH = PE in POTCAR, LHFCALC = T)"),
        ("LHFCALC = .TRUE.\n", "PBE0 (from"),
        ("LHFCALC = T ; AEXX = 0.3\n", "PBE hybrid (AEXX = 0.3, HFSCREEN = 0)"),
        ("METAGGA = SCAN ; LUSE_VDW = T\n", "SCAN+rVV10 (from METAGGA = SCAN, LUSE_VDW = T)"),
        ("METAGGA = SCAN\nLDAU = T\n", "SCAN+U (from METAGGA = SCAN, LDAU = T)"),
        ("XC = PE\n", "PBE (from XC = PE)"),
    ],
)
def test_another_functional_is_refused_by_name(make_run, ice, complete, incar, functional):
    folder = make_run(ice, "ENCUT = 200\n" + incar)
    message = re.escape(f"the run is {functional}")
    with pytest.raises(ConfigurationError, match=message) as caught:
        prepare_vasp_start(folder, complete)
    assert "the model 'complete' predicts SCAN densities" in str(caught.value)
    assert not (folder / "CHGCAR").exists()


def test_another_functional_may_serve_as_a_start_but_not_for_bands(make_run, ice, complete):
    start = prepare_vasp_start(make_run(ice, PBE), complete, any_functional=True)
    assert start.functional == "PBE"
    assert any("The density is that of SCAN, the run is PBE" in note for note in start.notes)
    with pytest.raises(ConfigurationError, match="have to be the same"):
        prepare_vasp_start(make_run(ice, PBE, name="b"), complete, any_functional=True, bands=True)


@pytest.mark.parametrize("spelling", ["SCAN", "scan", "Scan "])
def test_spellings_of_a_functional_agree(make_run, ice, complete, spelling):
    prepare_vasp_start(make_run(ice), other_card(complete, functional=spelling))


def test_data_sets_of_different_functionals_are_refused(make_run, ice, complete, made_up_potcar):
    potcar = made_up_potcar("H") + made_up_potcar("O", functional="CA") + made_up_potcar("H")
    with pytest.raises(InputError, match="LEXCH = CA, PE"):
        prepare_vasp_start(make_run(ice, PBE, potcar), complete)


@pytest.mark.parametrize("tag", ["METAGGA = SCAN", "LHFCALC = T ; HFSCREEN = 0.2"])
def test_bands_that_need_more_than_a_density_are_refused(make_run, ice, complete, tag):
    calculator = other_card(complete, functional="SCAN" if "SCAN" in tag else "HSE06")
    with pytest.raises(ConfigurationError, match="points of weight zero"):
        prepare_vasp_start(make_run(ice, f"ENCUT = 200\n{tag}\n"), calculator, bands=True)


def test_spin_polarised_bands_need_a_spin_model(make_run, ice, complete_pbe, magnetic_pbe):
    folder = make_run(ice, PBE + "ISPIN = 2\nMAGMOM = 6*1\n")
    with pytest.raises(ConfigurationError, match="ICHARG = 11 with ISPIN = 2"):
        prepare_vasp_start(folder, complete_pbe, bands=True)
    assert prepare_vasp_start(folder, magnetic_pbe, bands=True).icharg == 11


def test_other_valences_are_refused_with_both_numbers(make_run, ice, complete, made_up_potcar):
    odd = made_up_potcar("O", valence=8.0, title="PAW_PBE O_GW 01Jan2000")
    potcar = made_up_potcar("H") + odd + made_up_potcar("H")
    message = r"Valence electrons of O: 8 in POTCAR \('PAW_PBE O_GW 01Jan2000'\), 6 in"
    with pytest.raises(ConfigurationError, match=message):
        prepare_vasp_start(make_run(ice, SCAN, potcar), complete)


def test_other_projectors_are_refused_or_the_occupancies_left_out(
    make_run, ice, complete, made_up_potcar
):
    odd = made_up_potcar("O", channels=(0, 0, 1, 1, 2))
    folder = make_run(ice, SCAN, made_up_potcar("H") + odd + made_up_potcar("H"))
    message = "Projectors of O: l = 0 0 1 1 2 in POTCAR .*, 0 0 1 1 in the occupancies"
    with pytest.raises(ConfigurationError, match=message):
        prepare_vasp_start(folder, complete)
    start = prepare_vasp_start(folder, complete, occupancies=False)
    assert not start.occupancies
    assert DensityGrid.read(folder / "CHGCAR").onsite is None


def test_the_order_of_projectors_counts(make_run, ice, complete, made_up_potcar):
    odd = made_up_potcar("O", channels=(1, 1, 0, 0))
    folder = make_run(ice, SCAN, made_up_potcar("H") + odd + made_up_potcar("H"))
    with pytest.raises(ConfigurationError, match="l = 1 1 0 0 in POTCAR"):
        prepare_vasp_start(folder, complete)


def test_another_data_set_of_the_same_shape_is_pointed_out(make_run, ice, complete, made_up_potcar):
    odd = made_up_potcar("O", title="PAW_PBE O_h 06Feb2004")
    folder = make_run(ice, SCAN, made_up_potcar("H") + odd + made_up_potcar("H"))
    notes = prepare_vasp_start(folder, complete).notes
    assert any("'PAW_PBE O_h 06Feb2004'" in n and "'PAW_PBE O 01Jan2000'" in n for n in notes)


def test_gpaw_models_and_pseudopotentials_that_are_no_paw_are_refused(
    make_run, ice, complete, made_up_potcar
):
    soft = "".join(made_up_potcar(s, paw=False) for s in "HOH")
    with pytest.raises(ConfigurationError, match="no PAW data set"):
        prepare_vasp_start(make_run(ice, SCAN, soft), complete)
    gpaw = other_card(complete, code="GPAW 26.7", density_kind="pseudo")
    with pytest.raises(ConfigurationError, match="predicts pseudo densities"):
        prepare_vasp_start(make_run(ice, name="g"), gpaw)


def test_elements_the_model_does_not_know_are_refused(make_run, complete):
    iron = Atoms("Fe", cell=[2.9] * 3, pbc=True)
    with pytest.raises(UnknownElementError, match="Fe"):
        prepare_vasp_start(make_run(iron), complete)


def test_a_potcar_in_another_order_is_refused(make_run, ice, complete, made_up_potcar):
    potcar = "".join(made_up_potcar(s) for s in "OHH")
    with pytest.raises(InputError, match="POSCAR lists H O H, POTCAR O H H"):
        prepare_vasp_start(make_run(ice, SCAN, potcar), complete)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("POSCAR", "water\n", "expected the elements in line 6"),
        ("POSCAR", "x\n1\n3 0 0\n0 3 0\n0 0 3\nQq\n1\nDirect\n0 0 0\n", "'Qq' is no element"),
        ("POSCAR", "x\n1\n3 0 0\n0 3 0\n0 0 3\nH O H\n2 2\nDirect\n0 0 0\n", "line 7"),
        ("POSCAR", "x\n1\n3 0 0\n0 3 0\n0 0 3\nH O H\n2 2 2\nDirect\n0 0\n", "cannot be read"),
        ("INCAR", "ENCUT = high\n", "expected a number"),
        ("POTCAR", "no\n", "is no POTCAR"),
    ],
)
def test_damaged_inputs_are_refused_by_name(make_run, ice, complete, name, text, message):
    folder = make_run(ice)
    (folder / name).write_text(text)
    with pytest.raises((InputError, ConfigurationError), match=message):
        prepare_vasp_start(folder, complete, any_functional=True)


@pytest.mark.parametrize("name", ["POSCAR", "INCAR", "POTCAR"])
def test_missing_inputs_are_named(make_run, ice, complete, name, tmp_path):
    folder = make_run(ice)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"no file .*{name}"):
        prepare_vasp_start(folder, complete)
    with pytest.raises(InputError, match="no folder"):
        prepare_vasp_start(tmp_path / "nowhere", complete)


# -- what is said ------------------------------------------------------------------------------


def test_a_model_without_occupancies_says_what_vasp_will_do(make_run, ice, model_file):
    start = prepare_vasp_start(make_run(ice), EACDensity(model_file, device="cpu"))
    assert not start.occupancies
    assert "PAW occupancies are missing on CHGCAR" in start.notes[0]
    assert "gain little or nothing" in start.notes[0]


def test_bands_of_a_model_without_occupancies_are_called_wrong(make_run, ice, model_file):
    calculator = other_card(EACDensity(model_file, device="cpu"), functional="PBE")
    start = prepare_vasp_start(make_run(ice, PBE), calculator, bands=True)
    assert "makes bands with ICHARG = 11 wrong" in start.notes[0]


@pytest.mark.parametrize(
    ("incar", "bands", "asked"),
    [
        ("", True, True),
        ("LMAXMIX = 4\n", True, False),
        ("LMAXMIX = 6\n", True, False),
        ("", False, False),
        ("LDAU = T\n", False, True),
    ],
)
def test_lmaxmix_is_asked_for_where_d_projectors_need_it(
    make_run, ice, with_d, made_up_potcar, incar, bands, asked
):
    potcar = [made_up_potcar("H"), made_up_potcar("O", channels=(2, 0, 1)), made_up_potcar("H")]
    functional = "PBE+U" if "LDAU" in incar else "PBE"
    calculator = other_card(with_d, functional=functional)
    folder = make_run(ice, PBE + incar, "".join(potcar))
    notes = prepare_vasp_start(folder, calculator, bands=bands).notes
    assert any("set LMAXMIX = 4" in note for note in notes) == asked


def test_occupancies_that_end_below_lmaxmix_are_pointed_out(
    make_run, ice, with_d, made_up_potcar, monkeypatch
):
    """As of a model trained on files of runs with VASP's default, whose entries for L > 2 are 0."""
    calculator = other_card(with_d, functional="PBE")
    potcar = [made_up_potcar("H"), made_up_potcar("O", channels=(2, 0, 1)), made_up_potcar("H")]
    folder = make_run(ice, PBE + "LMAXMIX = 4\n", "".join(potcar))
    notes = prepare_vasp_start(folder, calculator, bands=True).notes
    assert not any("up to L" in note for note in notes)
    honest = calculator.get_density_grid

    def without_high_l(*arguments, **options):
        grid = honest(*arguments, **options)
        blocks = [block.copy() for block in grid.onsite]
        for block in blocks:
            if len(block) > 15:  # oxygen: d1d1 has L = 0, 2, 4, then d1p1 L = 1, 3
                block[6:15] = 0
                block[15 + 5 + 3 : 15 + 5 + 3 + 7] = 0
        return dataclasses.replace(grid, onsite=tuple(blocks))

    monkeypatch.setattr(calculator, "get_density_grid", without_high_l)
    notes = prepare_vasp_start(folder, calculator, bands=True, force=True).notes
    assert any("up to L = 2 only, the run uses them up to 4" in note for note in notes)


def test_a_structure_unlike_the_training_data_is_pointed_out(make_run, ice, complete, monkeypatch):
    honest = complete.get_density_grid
    monkeypatch.setattr(complete, "get_density_grid", lambda *a, **k: honest(*a, **k) * 1.05)
    start = prepare_vasp_start(make_run(ice), complete)
    assert start.electrons == pytest.approx(16)
    assert any("electrons were predicted where the atoms have 16" in n for n in start.notes)


def test_files_of_an_earlier_run_are_pointed_out(make_run, ice, complete):
    folder = make_run(ice)
    for name in ("WAVECAR", "TAUCAR"):
        (folder / name).write_text("old")
    notes = " ".join(prepare_vasp_start(folder, complete).notes)
    assert "Remove the TAUCAR" in notes
    assert "There is a WAVECAR" in notes


def test_a_silent_card_is_pointed_out(make_run, ice, complete):
    card = complete.card
    complete.card = dataclasses.replace(
        card,
        valence_electrons={},
        provenance=dataclasses.replace(card.provenance, functional="unknown"),
    )
    notes = prepare_vasp_start(make_run(ice, PBE), complete).notes
    assert any("does not say its functional, number of electrons of H" in note for note in notes)


def test_what_would_be_done_twice_is_refused(make_run, ice, complete):
    folder = make_run(ice)
    with pytest.raises(ConfigurationError, match="not both"):
        prepare_vasp_start(folder, complete, shape=(20, 20, 20), like="OUTCAR")
    complete.normalize = True
    with pytest.raises(ConfigurationError, match="normalises"):
        prepare_vasp_start(folder, complete)
    assert not (folder / "CHGCAR").exists()
