"""Whence the densities a model learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from eac_model.data.sample import Provenance
from eac_model.errors import ConfigurationError
from eac_model.training.config import ProvenanceSection
from eac_model.training.data import Source


def join_provenance(sources: Sequence[Source], overrides: ProvenanceSection) -> Provenance:
    """The common origin of all structures.

    Raises
    ------
    ConfigurationError
        The structures come from different codes, functionals, kinds of density or PAW data sets,
        and no override says that this is meant.
    """
    found = [source.provenance for source in sources]
    return Provenance(
        code=_common("code", {p.code for p in found}, overrides.code),
        functional=_common("functional", {p.functional for p in found}, overrides.functional),
        density_kind=_common(
            "density_kind", {p.density_kind for p in found}, overrides.density_kind
        ),
        paw_datasets=_join_datasets(sources, overrides),
    )


T = TypeVar("T")


def _common(key: str, found: set[T], override: T | None) -> T:
    if override is not None:
        return override
    if len(found) > 1:
        raise _mixed(key, [str(value) for value in found])
    return next(iter(found))


def _join_datasets(sources: Sequence[Source], overrides: ProvenanceSection) -> tuple[str, ...]:
    """One data set an element, sorted by symbol; samples name theirs in that order."""
    if overrides.paw_datasets is not None:
        return overrides.paw_datasets
    by_element: dict[str, str] = {}
    for source in sources:
        names = source.provenance.paw_datasets
        symbols = sorted(set(source.atoms.symbols))
        if len(names) != len(symbols):
            continue
        for symbol, name in zip(symbols, names, strict=True):
            if by_element.setdefault(symbol, name) != name:
                raise _mixed("paw_datasets", [by_element[symbol], name])
    return tuple(by_element[symbol] for symbol in sorted(by_element))


def _mixed(key: str, values: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"The training data differ in {key}: {', '.join(sorted(values))}. Train on data of one "
        f"kind, or say with card.provenance.{key} what the model file should state."
    )
