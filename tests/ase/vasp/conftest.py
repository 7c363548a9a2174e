"""Prepared VASP runs. The POTCARs are made up: VASP's layout, invented numbers."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
import torch
from ase import Atoms

from eac_ase import EACDensity
from eac_model.checkpoint import ModelCard, save_model
from eac_model.data.sample import Provenance
from eac_model.network import EACNet, NetworkConfig
from eac_model.onsite import OnsiteLayout

from ..conftest import gaussian_water

CHANNELS = {"H": (0, 0, 1), "O": (0, 0, 1, 1), "Fe": (2, 2, 0, 0, 1, 1)}
VALENCES = {"H": 1.0, "O": 6.0, "Fe": 8.0}
TITLES = {symbol: f"PAW_PBE {symbol} 01Jan2000" for symbol in CHANNELS}


def made_up_potcar(
    symbol: str,
    *,
    valence: float | None = None,
    channels: tuple[int, ...] | None = None,
    title: str | None = None,
    functional: str = "PE",
    enmax: float = 400.0,
    eaug: float | None = 600.0,
    paw: bool = True,
) -> str:
    """One data set, with tables far shorter than real ones."""
    valence = VALENCES[symbol] if valence is None else valence
    channels = CHANNELS[symbol] if channels is None else channels
    title = TITLES.get(symbol, f"PAW_PBE {symbol} 01Jan2000") if title is None else title
    numbers = "  0.100000000000E+01  0.200000000000E+01  0.300000000000E+01\n"
    lines = [
        f"  {title}                    ",
        f"   {valence:.14f}     ",
        " parameters from PSCTR are:",
        f"   VRHFIN ={symbol}: made up",
        f"   LEXCH  = {functional}",
        "   EATOM  =    11.1111 eV,    0.8166 Ry",
        "",
        f"   TITEL  = {title}",
        "   LULTRA =        F    use ultrasoft PP ?",
        "   IUNSCR =        0    unscreen: 0-lin 1-nonlin 2-no",
        f"   POMASS =   11.000; ZVAL   = {valence:8.3f}    mass and valenz",
        f"   ENMAX  =  {enmax:.3f}; ENMIN  =  {0.75 * enmax:.3f} eV",
        f"   LPAW   =        {'T' if paw else 'F'}    paw PP",
        *([f"   EAUG   =  {eaug:.3f}"] if eaug else []),
        "   RMAX   =    1.111    core radius for proj-oper",
        "",
        "   Atomic configuration",
        "    1 entries",
        "     n  l   j            E        occ.",
        f"     1  0  0.50       -11.1111   {valence:.4f}",
        "   Description",
        "     l     E      TYP  RCUT    TYP  RCUT",
        *(f"     {l}   .000     23  1.200" for l in channels),
        "     3   .000      7  1.500",
        "   Error from kinetic energy argument (eV)",
        "   NDATA  =      100",
        "   STEP   =   20.000   1.050",
        "END of PSCTR-controll parameters",
        " local part",
        "   100.00000000000     ",
    ]
    text = "\n".join(lines) + "\n" + numbers
    for l in dict.fromkeys(channels):
        count = channels.count(l)
        text += f" Non local Part\n           {l}           {count}   1.111111111111111     \n"
        text += "  0.1E+02" * count**2 + "\n"
        text += f" Reciprocal Space Part\n{numbers} Real Space Part\n{numbers}" * count
    text += f" PAW radial sets\n          10   1.0\n (5E20.12)\n grid\n{numbers}"
    return text + " End of Dataset\n"


RunMaker = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """A function that writes POSCAR, INCAR and POTCAR of some atoms."""

    def make(
        atoms: Atoms,
        incar: str = "METAGGA = SCAN\nENCUT = 200\n",
        potcar: str | None = None,
        name: str = "run",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        runs: list[list] = []
        for symbol in atoms.symbols:
            if runs and runs[-1][0] == symbol:
                runs[-1][1] += 1
            else:
                runs.append([symbol, 1])
        header = ["made up", "1.0", *(" ".join(f"{x:.16f}" for x in row) for row in atoms.cell)]
        header += [" ".join(s for s, _ in runs), " ".join(str(n) for _, n in runs), "Direct"]
        scaled = atoms.get_scaled_positions(wrap=False)
        rows = [" ".join(f"{x:.16f}" for x in row) for row in scaled]
        (folder / "POSCAR").write_text("\n".join([*header, *rows]) + "\n")
        (folder / "INCAR").write_text(incar)
        if potcar is None:
            potcar = "".join(made_up_potcar(symbol) for symbol, _ in runs)
        (folder / "POTCAR").write_text(potcar)
        return folder

    return make


@pytest.fixture
def ice() -> Atoms:
    """Two molecules in a small skewed cell, hydrogen first and oxygen in the middle."""
    atoms = Atoms(
        "HHOOHH",
        scaled_positions=[
            (0.05, 0.1, 0.1),
            (0.3, 0.05, 0.2),
            (0.2, 0.2, 0.15),
            (0.7, 0.65, 0.6),
            (0.8, 0.8, 0.5),
            (0.6, 0.75, 0.75),
        ],
        cell=[[3.6, 0, 0], [0.4, 3.8, 0], [0.3, -0.5, 3.9]],
        pbc=True,
    )
    return atoms


def vasp_network(*, spin: bool = False, oxygen: tuple[int, ...] = CHANNELS["O"]) -> EACNet:
    layout = OnsiteLayout(
        code="VASP",
        channels={"H": CHANNELS["H"], "O": oxygen},
        datasets={symbol: TITLES[symbol] for symbol in ("H", "O")},
    )
    config = NetworkConfig(
        elements=(1, 8),
        l_max=2,
        channels=4,
        interactions=1,
        atom_radial_hidden=(8,),
        atom_cutoff=3.0,
        point_cutoff=2.5,
        superposition=True,
        spin=spin,
        onsite=layout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = EACNet(config).double()
    network.fit_superposition([gaussian_water()])
    return network


def save(folder: Path, name: str, network: EACNet) -> Path:
    card = ModelCard(
        name=name,
        elements=("H", "O"),
        provenance=Provenance(code="VASP", functional="SCAN", density_kind="valence"),
        valence_electrons={"H": 1.0, "O": 6.0},
    )
    path = folder / f"{name}.safetensors"
    save_model(network, card, path)
    return path


@pytest.fixture(scope="session")
def complete_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With occupancies, without spin."""
    return save(tmp_path_factory.mktemp("models"), "complete", vasp_network())


@pytest.fixture(scope="session")
def calculators(complete_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """All of them with occupancies; ``with-d`` has projectors d, s, p on oxygen."""
    folder = tmp_path_factory.mktemp("models")
    files = [
        complete_model,
        save(folder, "magnetic", vasp_network(spin=True)),
        save(folder, "with-d", vasp_network(oxygen=(2, 0, 1))),
    ]
    return {path.stem: EACDensity(path, device="cpu") for path in files}


# Copies, as tests change the card; the network is shared.


@pytest.fixture
def complete(calculators) -> EACDensity:
    return copy(calculators["complete"])


@pytest.fixture
def magnetic(calculators) -> EACDensity:
    return copy(calculators["magnetic"])


@pytest.fixture
def with_d(calculators) -> EACDensity:
    return copy(calculators["with-d"])


@pytest.fixture(name="made_up_potcar", scope="session")
def made_up_potcar_fixture() -> Callable[..., str]:
    """The function, as tests cannot import from here."""
    return made_up_potcar
