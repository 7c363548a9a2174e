"""Does a model fit a VASP run? Refusals, and what a user should know before starting VASP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eac_ase.adapters.vasp_run import VaspRun
from eac_model.errors import ConfigurationError
from eac_model.neighbors import check_structure
from eac_model.onsite import OnsiteLayout

if TYPE_CHECKING:
    from eac_ase.calculator import EACDensity
    from eac_ase.grid import DensityGrid
    from eac_model.checkpoint import ModelCard

# The electrons a prediction misses are a few parts in a thousand for a model that fits.
_SUSPICIOUS = 0.02


def check_fit(
    run: VaspRun,
    calculator: EACDensity,
    *,
    bands: bool = False,
    occupancies: bool = True,
    any_functional: bool = False,
) -> None:
    """Refuse a model that does not fit a run.

    Parameters
    ----------
    bands
        For ICHARG = 11, where VASP does not correct the density.
    occupancies
        Whether the model's occupancies are going to be used.
    any_functional
        Accept another functional (self-consistent runs only).

    Raises
    ------
    ConfigurationError
        Names what differs, on both sides.
    ase.calculators.calculator.InputError
        MAGMOM does not fit the atoms.
    UnknownElementError
        The model was not built for an element.
    """
    card, config = calculator.card, calculator.network.config
    check_structure(run.atoms, config.elements, spin=config.spin)
    if run.spin:
        run.moments()
    _check_kind_of_run(run, calculator, bands)
    _check_card(run, card)
    _check_functional(run, card, any_functional, bands)
    if config.onsite is not None and occupancies:
        _check_channels(run, config.onsite, card.name)


def check_blocks(run: VaspRun, grid: DensityGrid) -> None:
    """Refuse occupancies of another length than VASP reads: full blocks, whatever LMAXMIX.

    Raises
    ------
    ConfigurationError
        Names element, both lengths and the data set.
    """
    if grid.onsite is None:
        return
    for dataset, block in zip(run.dataset_of_atoms, grid.onsite, strict=True):
        symbol = dataset.symbol
        full = OnsiteLayout(code="VASP", channels={symbol: dataset.channels}).size(symbol)
        if len(block) != full:
            raise ConfigurationError(
                f"The model has {len(block)} occupancies for {symbol}, VASP reads {full} for the "
                f"projectors l = {_list(dataset.channels)} of {dataset.title!r}."
            )


def notes(
    run: VaspRun,
    calculator: EACDensity,
    grid: DensityGrid,
    predicted: float,
    normalize: bool,
    bands: bool,
) -> Iterator[str]:
    """What to know before VASP is started, in sentences, most important first."""
    card, name = calculator.card, repr(calculator.card.name)
    if grid.onsite is None:
        reason = "was asked to write" if calculator.network.config.onsite else "predicts"
        yield (
            f"No augmentation occupancies: the model {name} {reason} none. VASP will print "
            "'WARNING: PAW occupancies are missing on CHGCAR' and, as its users report, gain "
            "little or nothing from the density"
            + (", and makes bands with ICHARG = 11 wrong." if bands else ".")
        )
    yield from _notes_on_electrons(run, card, predicted, normalize)
    yield from _notes_on_model(run, calculator, grid)
    yield from _notes_on_spin(run, calculator)
    yield from _notes_on_lmaxmix(run, calculator, grid, bands)
    if run.is_metagga and not bands:
        stale = " Remove the TAUCAR that is there: it belongs to another density." * (
            (run.directory / "TAUCAR").exists()
        )
        yield (
            f"{run.functional} also depends on the kinetic-energy density, which is not in CHGCAR "
            "and which no model predicts; VASP has to begin without." + stale
        )
    if (run.directory / "WAVECAR").exists() and run.incar.integer("ISTART") != 0:
        yield (
            "There is a WAVECAR: VASP will start from its orbitals (ISTART = 1). Remove it if it "
            "is of another structure."
        )


# -- refusals ----------------------------------------------------------------------------------


def _check_kind_of_run(run: VaspRun, calculator: EACDensity, bands: bool) -> None:
    name = calculator.card.name
    for tag in ("LNONCOLLINEAR", "LSORBIT"):
        if run.incar.boolean(tag):
            raise ConfigurationError(
                f"{run.incar.name} sets {tag}: the run is non-collinear and reads a density with "
                f"three components of the magnetisation; the model {name!r} has "
                f"{'one' if calculator.network.config.spin else 'none'}. Start without CHGCAR, or "
                "make the run collinear."
            )
    if not bands:
        return
    if run.is_metagga or run.incar.boolean("LHFCALC"):
        raise ConfigurationError(
            f"ICHARG = 11 with {run.functional}: beside the density VASP would need the "
            "kinetic-energy density or the orbitals, which no model predicts. Take ICHARG = 1 with "
            "a regular k mesh and the path as points of weight zero (https://vasp.at/wiki/"
            "Band-structure_calculation_using_meta-GGA_functionals)."
        )
    if run.spin and not calculator.network.config.spin:
        raise ConfigurationError(
            f"ICHARG = 11 with ISPIN = 2: the magnetisation would stay what MAGMOM says, since the "
            f"model {name!r} predicts none. Take a spin model, ISPIN = 1, or ICHARG = 1."
        )


def _check_card(run: VaspRun, card: ModelCard) -> None:
    """Density kind, PAW, electrons of every species."""
    origin = card.provenance
    if origin.density_kind not in ("valence", "unknown") or origin.code.startswith("GPAW"):
        raise ConfigurationError(
            f"The model {card.name!r} predicts {origin.density_kind} densities ({origin.code}); a "
            "CHGCAR holds VASP's valence density."
        )
    for dataset in run.datasets:
        if not dataset.is_paw:
            raise ConfigurationError(
                f"POTCAR: {dataset.title!r} is no PAW data set (LPAW = F), so its density differs "
                f"from those of the model {card.name!r}."
            )
        expected = card.valence_electrons.get(dataset.symbol)
        if expected is not None and abs(expected - dataset.valence) > 1e-6:
            raise ConfigurationError(
                f"Valence electrons of {dataset.symbol}: {dataset.valence:g} in POTCAR "
                f"({dataset.title!r}), {expected:g} in the densities of the model {card.name!r}. "
                "Take the data set the model was trained with, or another model."
            )


def _check_functional(run: VaspRun, card: ModelCard, accept_any: bool, bands: bool) -> None:
    expected = card.provenance.functional
    if _plain(expected) in ("unknown", _plain(run.functional)) or (accept_any and not bands):
        return
    remedy = (
        "Change INCAR or take another model; as a mere start of a self-consistent run the density "
        "will do, with --any-functional (any_functional=True)."
    )
    if bands:
        remedy = "With ICHARG = 11 the density stays, so the functionals have to be the same."
    raise ConfigurationError(
        f"Functional: the run is {run.functional} (from {_origin_of_functional(run)}), the model "
        f"{card.name!r} predicts {expected} densities. {remedy}"
    )


def _origin_of_functional(run: VaspRun) -> str:
    tags = ("XC", "METAGGA", "GGA", "LHFCALC", "LUSE_VDW", "LDAU")
    found = [f"{tag} = {run.incar.word(tag)}" for tag in tags if tag in run.incar]
    if not {"XC", "METAGGA", "GGA"} & set(run.incar.statements):
        found.insert(0, f"LEXCH = {run.datasets[0].functional} in POTCAR")
    return ", ".join(found)


def _plain(functional: str) -> str:
    """Spellings of one functional alike."""
    plain = re.sub(r"[\s_-]", "", functional).lower()
    return {"pz": "lda", "ca": "lda", "pw92": "lda", "pe": "pbe", "ps": "pbesol"}.get(plain, plain)


def _check_channels(run: VaspRun, layout: OnsiteLayout, name: str) -> None:
    hint = "Take the data set the model was trained with, or write no occupancies "
    hint += "(--no-occupancies, occupancies=False)."
    if layout.code != "VASP":
        raise ConfigurationError(
            f"The model {name!r} predicts on-site data of {layout.code}, not VASP's occupancies. "
            "Leave them out (--no-occupancies, occupancies=False)."
        )
    for dataset in run.datasets:
        expected = layout.channels_of(dataset.symbol)
        if tuple(expected) != dataset.channels:
            raise ConfigurationError(
                f"Projectors of {dataset.symbol}: l = {_list(dataset.channels)} in POTCAR "
                f"({dataset.title!r}), {_list(expected)} in the occupancies of the model {name!r}. "
                f"{hint}"
            )


def _list(channels: Sequence[int]) -> str:
    return " ".join(map(str, channels))


# -- notes -------------------------------------------------------------------------------------


def _notes_on_electrons(
    run: VaspRun, card: ModelCard, predicted: float, normalize: bool
) -> Iterator[str]:
    wanted, neutral = run.electrons, run.neutral_electrons
    if abs(predicted / neutral - 1) > _SUSPICIOUS:
        yield (
            f"{predicted:.3f} electrons were predicted where the atoms have {neutral:g}: the "
            f"structure is unlike those of the model {card.name!r}."
        )
    if abs(wanted - neutral) > 1e-6:
        yield (
            f"NELECT = {wanted:g} is {wanted - neutral:+g} electrons from neutral. The model knows "
            "neutral structures; the difference was spread in proportion to the density."
            if normalize
            else f"NELECT = {wanted:g}, and the file holds {predicted:.4f} electrons."
        )
    elif not normalize and abs(predicted - wanted) > 1e-3:
        yield f"The file holds {predicted:.4f} electrons, not {wanted:g}: it was not normalised."


def _notes_on_model(run: VaspRun, calculator: EACDensity, grid: DensityGrid) -> Iterator[str]:
    card = calculator.card
    layout = calculator.network.config.onsite
    titles = dict(layout.datasets) if layout is not None and grid.onsite is not None else {}
    for dataset in run.datasets:
        title = titles.get(dataset.symbol)
        if title is not None and title.split() != dataset.title.split():
            yield (
                f"POTCAR has {dataset.title!r} for {dataset.symbol}, the occupancies of the model "
                f"{card.name!r} are for {title!r}. Electrons and projectors agree; whether the "
                "numbers mean the same is not known."
            )
    if grid.onsite is not None:
        unsaid = [d for d in run.datasets if d.symbol not in titles]
        if unsaid:
            yield (
                f"The model {card.name!r} does not say which data sets its occupancies of "
                f"{', '.join(d.symbol for d in unsaid)} are for. POTCAR has "
                f"{', '.join(repr(d.title) for d in unsaid)}: soft, hard or LDA ones would mean "
                "something else by the same numbers."
            )
    if _plain(card.provenance.functional) not in ("unknown", _plain(run.functional)):
        yield (
            f"The density is that of {card.provenance.functional}, the run is {run.functional}, as "
            "you wished."
        )
    unknown = sorted({symbol for symbol, _ in run.species} - set(card.valence_electrons))
    missing = ["functional"] * (card.provenance.functional == "unknown")
    missing += [f"number of electrons of {symbol}" for symbol in unknown]
    if missing:
        yield (
            f"The card of the model {card.name!r} does not say its {', '.join(missing)}: check "
            "yourself that it fits."
        )


def _notes_on_spin(run: VaspRun, calculator: EACDensity) -> Iterator[str]:
    knows_spin = calculator.network.config.spin
    if run.spin and not knows_spin:
        default = f"its default, MAGMOM = {run.default_moment:g} an atom,"
        given = "MAGMOM" if "MAGMOM" in run.incar else default
        yield (
            f"ISPIN = 2, and the model {calculator.card.name!r} predicts no magnetisation: VASP "
            f"starts that from {given} and everything else from CHGCAR."
        )
    elif run.spin and "MAGMOM" not in run.incar:
        yield (
            "ISPIN = 2 without MAGMOM: the magnetisation was predicted from VASP's default, "
            f"{run.default_moment:g} μ_B on every atom. Once CHGCAR has a magnetisation, VASP "
            "ignores MAGMOM (except for symmetry)."
        )
    elif knows_spin and not run.spin and run.incar.numbers("MAGMOM"):
        yield "ISPIN = 1: MAGMOM has no effect, and only the total density was written."


def _notes_on_lmaxmix(
    run: VaspRun, calculator: EACDensity, grid: DensityGrid, bands: bool
) -> Iterator[str]:
    """Occupancies of high L: VASP neither writes nor reads those above LMAXMIX."""
    needed = max(2, *(2 * max(dataset.channels, default=0) for dataset in run.datasets))
    given = run.incar.integer("LMAXMIX")
    mixed = 2 if given is None else given
    matters = bands or run.incar.boolean("LDAU")
    if grid.onsite is None or not matters:
        return
    if mixed < needed:
        yield (
            f"LMAXMIX = {mixed}{'' if given is not None else ' (default)'}: VASP takes occupancies "
            f"up to L = {mixed} from CHGCAR. With projectors up to l = {needed // 2} set LMAXMIX = "
            f"{needed}; LDA+U and ICHARG = 11 need it."
        )
    reached = _highest_l(run, grid)
    if reached < min(mixed, needed):
        yield (
            f"The model {calculator.card.name!r} predicts occupancies up to L = {reached} only, "
            f"the run uses them up to {min(mixed, needed)}: it was trained with a smaller LMAXMIX."
        )


def _highest_l(run: VaspRun, grid: DensityGrid) -> int:
    """Highest L of which any atom has an occupancy that is not zero."""
    highest = 0
    for dataset, values in zip(run.dataset_of_atoms, grid.onsite or (), strict=True):
        layout = OnsiteLayout(code="VASP", channels={dataset.symbol: dataset.channels})
        for block in layout.blocks(dataset.symbol):
            if np.any(values[block.columns]):
                highest = max(highest, block.irrep.l)
    return highest
