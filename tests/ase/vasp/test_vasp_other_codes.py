"""The ways ASE and pymatgen prepare VASP runs; a small program stands in for VASP."""

import dataclasses
import shutil
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.vasp import Vasp

from eac_ase import DensityGrid
from eac_ase.adapters.vasp import prepare_vasp_start, start_from_density

pytestmark = pytest.mark.filterwarnings("ignore:Loaded VASP_PP_PATH")

# Keeps what VASP would have read, and fails, as there are no results.
STAND_IN = "mkdir seen && cp CHGCAR INCAR POSCAR POTCAR seen && exit 3"


@pytest.fixture
def make_vasp(tmp_path: Path, monkeypatch, made_up_potcar):
    """ASE's calculator in a folder of its own, with made-up potentials."""
    for symbol in ("H", "O"):
        folder = tmp_path / "potentials" / "potpaw_PBE" / symbol
        folder.mkdir(parents=True)
        (folder / "POTCAR").write_text(made_up_potcar(symbol))
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path / "potentials"))
    (tmp_path / "run").mkdir()

    def make(**parameters) -> Vasp:
        settings = {"metagga": "SCAN", "pp": "PBE", "encut": 200, **parameters}
        return Vasp(directory=str(tmp_path / "run"), command=STAND_IN, **settings)

    return make


def run(atoms: Atoms, vasp: Vasp):
    """Run the stand-in through ASE; the CHGCAR, INCAR and POSCAR it saw, as pymatgen reads them."""
    vasp_io = pytest.importorskip("pymatgen.io.vasp")
    seen = Path(vasp.directory) / "seen"
    shutil.rmtree(seen, ignore_errors=True)
    atoms.calc = vasp
    with pytest.raises(CalculationFailed, match="returned an error: 3"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            vasp_io.Chgcar.from_file(seen / "CHGCAR"),
            vasp_io.Incar.from_file(seen / "INCAR"),
            vasp_io.Poscar.from_file(seen / "POSCAR").structure,
        )


def symbols(structure) -> list[str]:
    return [site.specie.symbol for site in structure]


def mean(chgcar, name: str) -> float:
    """Electrons or moment."""
    return chgcar.data[name].sum() / chgcar.data[name].size


def test_vasp_of_ase_finds_the_density_in_its_own_order(tmp_path, ice, complete, make_vasp):
    ice = ice[[2, 0, 3, 1, 4, 5]]  # O H O H H H: ASE sorts to O O H H H H
    vasp = start_from_density(make_vasp(), complete)
    chgcar, incar, structure = run(ice, vasp)
    assert incar["ICHARG"] == 1
    assert symbols(chgcar.structure) == symbols(structure) == list("OOHHHH")
    assert np.abs(chgcar.structure.frac_coords - structure.frac_coords).max() < 1e-12
    assert mean(chgcar, "total") == pytest.approx(16, rel=1e-8)
    sorting = np.loadtxt(tmp_path / "run" / "ase-sort.dat", dtype=int)[:, 0]
    assert list(sorting) == [0, 2, 1, 3, 4, 5] == vasp.sort
    blocks = complete.get_augmentation(ice)
    written = DensityGrid.read(tmp_path / "run" / "CHGCAR").onsite
    assert [len(block) for block in written] == [33, 33, 15, 15, 15, 15]
    for index, block in zip(sorting, written, strict=True):
        assert np.allclose(block, blocks[index], rtol=1e-5, atol=1e-10)


def test_ase_warns_of_what_the_command_would_say(ice, complete, make_vasp):
    with pytest.warns(UserWarning, match="PAW occupancies are missing on CHGCAR"):
        run(ice, start_from_density(make_vasp(), complete, occupancies=False))


def test_moments_of_ase_reach_the_spin_density(ice, magnetic, make_vasp):
    ice = ice[[2, 0, 3, 1, 4, 5]]
    ice.set_initial_magnetic_moments([1.0, 0.1, -0.4, 0.2, 0.3, 0.0])
    chgcar, incar, _ = run(ice, start_from_density(make_vasp(), magnetic))
    assert incar["ISPIN"] == 2
    assert incar["MAGMOM"] == [1.0, -0.4, 0.1, 0.2, 0.3, 0.0]
    expected = magnetic.get_density_grid(ice, shape=chgcar.dim).integrate_spin()
    assert abs(expected) > 1e-4
    assert mean(chgcar, "diff") == pytest.approx(expected, abs=1e-7)


def test_every_run_of_ase_has_a_fresh_density(ice, complete, make_vasp):
    vasp = start_from_density(make_vasp(), complete)
    first = run(ice, vasp)[0]
    ice.rattle(0.1, seed=1)
    second, _, structure = run(ice, vasp)
    assert np.abs(second.structure.frac_coords - structure.frac_coords).max() < 1e-12
    assert not np.allclose(second.data["total"], first.data["total"])


def test_bands_and_other_grids_reach_ases_incar(ice, complete, make_vasp):
    provenance = dataclasses.replace(complete.card.provenance, functional="PBE")
    complete.card = dataclasses.replace(complete.card, provenance=provenance)
    vasp = make_vasp(metagga=None, xc="PBE", icharg=11)
    chgcar, incar, _ = run(ice, start_from_density(vasp, complete, shape=(24, 30, 32)))
    assert incar["ICHARG"] == 11
    assert tuple(chgcar.dim) == (24, 30, 32)
    assert [incar[tag] for tag in ("NGXF", "NGYF", "NGZF")] == [24, 30, 32]


def test_a_model_that_does_not_fit_stops_the_run(tmp_path, ice, complete, make_vasp):
    ice.calc = start_from_density(make_vasp(metagga=None, xc="PBE"), complete)
    with pytest.raises(ValueError, match="the run is PBE"):
        ice.get_potential_energy()
    assert not (tmp_path / "run" / "seen").exists()


def test_input_sets_of_pymatgen_are_ordinary_runs(tmp_path, ice, complete, made_up_potcar):
    inputs = pytest.importorskip("pymatgen.io.vasp.inputs")
    adaptor = pytest.importorskip("pymatgen.io.ase").AseAtomsAdaptor
    outputs = pytest.importorskip("pymatgen.io.vasp.outputs")
    structure = adaptor.get_structure(ice)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        potcar = inputs.Potcar()
        potcar.extend(inputs.PotcarSingle(made_up_potcar(symbol)) for symbol in "HOH")
        vasp_input = inputs.VaspInput(
            incar=inputs.Incar({"METAGGA": "SCAN", "ENCUT": 200, "PREC": "Accurate"}),
            kpoints=inputs.Kpoints(),
            poscar=inputs.Poscar(structure),
            potcar=potcar,
        )
        vasp_input.write_input(tmp_path / "run")
        start = prepare_vasp_start(tmp_path / "run", complete, write_incar=True)
        read = outputs.Chgcar.from_file(tmp_path / "run" / "CHGCAR")
    assert inputs.Incar.from_file(tmp_path / "run" / "INCAR")["ICHARG"] == 1
    assert tuple(read.dim) == start.shape
    assert read.data["total"].sum() / read.data["total"].size == pytest.approx(16, rel=1e-8)
    assert [site.specie.symbol for site in read.structure] == list("HHOOHH")
    assert len(read.data_aug["total"]) > 6


def test_a_copy_of_the_calculator_writes_its_own_files(tmp_path, ice, complete, make_vasp):
    """As for the images of a path."""
    vasp = start_from_density(make_vasp(), complete)
    copy = deepcopy(vasp)
    copy.directory = str(tmp_path / "image")
    copy.set(encut=333)
    moved = ice.copy()
    moved.positions[0, 0] += 0.2
    chgcar, incar, structure = run(moved, copy)
    assert incar["ENCUT"] == 333
    np.testing.assert_allclose(structure.cart_coords, moved.positions[copy.sort], atol=1e-9)
    np.testing.assert_allclose(chgcar.structure.cart_coords, structure.cart_coords, atol=1e-9)
    assert not (tmp_path / "run" / "CHGCAR").exists()
