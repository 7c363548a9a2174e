"""A data set in ECD's layout from stores that `eac data gpaw` has filled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eac_ase.ecd.layout import GAPS, SetName, Split, missing, read_gaps, write_set
from eac_ase.progress import progress_bar
from eac_model.data import DensitySample, DensityStore
from eac_model.errors import ConfigurationError

FUNCTIONALS: dict[str, SetName] = {"PBE": "pbe", "HSE06": "hse"}


@dataclass(frozen=True)
class Sizes:
    """Materials left out of the training; the rest is trained on."""

    pbe_validation: int = 8
    pbe_test: int = 24
    hse_validation: int = 2
    hse_test: int = 6


def export_stores(
    stores: Sequence[str | Path],
    root: str | Path,
    *,
    sizes: Sizes | None = None,
    gaps: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, dict[str, int]]:
    """Write the folders ``pbe``, ``hse`` and ``gnome``; what is there already is not written again.

    Materials are named ``MgO-rocksalt-0.chgcar`` after member and number in the recipe, the same in
    both functionals. Splits are drawn: first those of HSE; the PBE densities of materials left out
    there are left out here, too, so that nothing of a tested material has been seen. (In the
    published lists 975 of the 1,000 HSE test materials are trained on in PBE.)

    Parameters
    ----------
    stores
        Stores of ``eac data gpaw``, whose functional decides the folder. Those beside them for
        testing (``…-test.store``) go to ``gnome``, out of the distribution.
    root
        Folder of the data set.
    sizes
        Sizes of the splits.
    gaps
        Measured band gaps, copied to ``exp/band_gaps.csv``.
    seed
        Of the splits.
    progress
        Progress bar: True, False, or None for only on a terminal.

    Returns
    -------
    dict
        Numbers of materials by folder and split.

    Raises
    ------
    ConfigurationError
        A functional is neither PBE nor HSE06, two samples would have one name, or there are too few
        materials for the splits.
    """
    sizes = sizes or Sizes()
    root = Path(root)
    found: dict[SetName, dict[str, tuple[DensityStore, int]]] = {"pbe": {}, "hse": {}, "gnome": {}}
    for path in map(Path, stores):
        tests = path.with_name(f"{path.stem}-test{path.suffix}")
        _collect(DensityStore.open(path), found, None)
        if tests.is_dir():
            _collect(DensityStore.open(tests), found, "gnome")
    splits = draw_splits(list(found["pbe"]), list(found["hse"]), sizes, seed)
    counts: dict[str, dict[str, int]] = {}
    for name, members in found.items():
        folder, names = root / name, sorted(members)
        todo = missing(folder, names, states=True)
        with progress_bar(f"writing {name}", len(todo), progress) as advance:

            def samples(
                todo: list[str] = todo,
                members: dict[str, tuple[DensityStore, int]] = members,
            ) -> Iterator[tuple[str, DensitySample]]:
                for one in todo:
                    store, index = members[one]
                    yield one, store.read(index)
                    advance(1)

            write_set(folder, samples(), names, splits.get(name, {}), states=True)
        parts = splits.get(name) or {"test": names}
        counts[name] = {split: len(chosen) for split, chosen in parts.items()}
    if gaps is not None:
        (root / GAPS).parent.mkdir(exist_ok=True)
        shutil.copyfile(gaps, root / GAPS)
        counts["exp"] = {"test": len(read_gaps(root))}
    return counts


def draw_splits(
    pbe: Sequence[str], hse: Sequence[str], sizes: Sizes, seed: int
) -> dict[SetName, dict[Split, list[str]]]:
    """Splits of both functionals; see :func:`export_stores`.

    Raises
    ------
    ConfigurationError
        There are too few materials.
    """
    if (
        len(hse) <= sizes.hse_test + sizes.hse_validation
        or len(pbe) <= sizes.pbe_test + sizes.pbe_validation
        or sizes.hse_test > sizes.pbe_test
        or sizes.hse_validation > sizes.pbe_validation
    ):
        raise ConfigurationError(
            f"{len(pbe)} PBE and {len(hse)} HSE densities are too few to leave out {sizes}."
        )
    rng = np.random.default_rng(seed)
    of_hse = _split([], [], _shuffled(sorted(hse), rng), sizes.hse_test, sizes.hse_validation)
    twins = set(pbe)
    of_pbe = _split(
        [name for name in of_hse["test"] if name in twins],
        [name for name in of_hse["validation"] if name in twins],
        _shuffled(sorted(pbe), rng),
        sizes.pbe_test,
        sizes.pbe_validation,
    )
    return {"pbe": of_pbe, "hse": of_hse}


def _shuffled(names: list[str], rng: np.random.Generator) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))]


def _split(
    test: list[str], validation: list[str], names: list[str], n_test: int, n_validation: int
) -> dict[Split, list[str]]:
    rest = [name for name in names if name not in {*test, *validation}]
    more_test, more_validation = n_test - len(test), n_validation - len(validation)
    return {
        "train": rest[more_test + more_validation :],
        "validation": validation + rest[more_test : more_test + more_validation],
        "test": test + rest[:more_test],
    }


def _collect(
    store: DensityStore,
    found: dict[SetName, dict[str, tuple[DensityStore, int]]],
    folder: SetName | None,
) -> None:
    for index, entry in enumerate(store.entries):
        functional = _functional(store, index)
        if folder is None and functional not in FUNCTIONALS:
            raise ConfigurationError(
                f"{store.path}: {entry.key} was calculated in {functional}; ECD has PBE and HSE06."
            )
        place = folder or FUNCTIONALS[functional]
        name = material_name(entry.key)
        if name in found[place]:
            raise ConfigurationError(f"{store.path}: two samples have the name {name}.")
        found[place][name] = store, index


def material_name(key: str) -> str:
    """``MgO-rocksalt-0.chgcar`` from the key of a recipe's sample."""
    parts = key.split()[0].split("/") if key else []
    if len(parts) != 3 or not parts[2].isdigit():
        raise ConfigurationError(f"{key!r} is no key of a sample that `eac data gpaw` made.")
    return f"{parts[1]}-{int(parts[2])}.chgcar"


def _functional(store: DensityStore, index: int) -> str:
    return store.read_points(index, np.empty(0, dtype=np.int64)).provenance.functional
