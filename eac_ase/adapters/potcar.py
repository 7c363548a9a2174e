"""What a POTCAR says of its PAW data sets, as far as a density has to fit to it.

POTCAR files are VASP's and may not be passed on: this module reads the user's own and keeps names
and a few numbers of the header. The layout is that of https://vasp.at/wiki/POTCAR.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ase.calculators.calculator import InputError
from ase.data import atomic_numbers

from eac_model.data.textfile import read_bytes

_END = "End of Dataset"
_FIELD = re.compile(r"([A-Z][A-Z0-9]*)\s*=\s*([^;\n]*)")
_NONLOCAL = re.compile(r"^\s*Non local Part[^\n]*\n\s*(\d+)\s+(\d+)\b", re.MULTILINE)
_PROJECTOR = re.compile(r"^\s*Reciprocal Space Part", re.MULTILINE)


@dataclass(frozen=True)
class PotcarDataset:
    """Header of one data set of a POTCAR."""

    title: str
    """TITEL, for instance ``PAW_PBE O 08Apr2002``."""
    symbol: str
    """Element."""
    functional: str
    """LEXCH, upper case: ``PE`` (PBE), ``CA`` (LDA), ``91`` …"""
    valence: float
    """ZVAL: electrons of the neutral atom that are not in the core."""
    enmax: float
    """ENMAX, eV."""
    enmin: float
    """ENMIN, eV."""
    eaug: float | None
    """EAUG, eV; None in data sets that have none."""
    mass: float
    """POMASS, u."""
    channels: tuple[int, ...]
    """l of every projector, in the order of the file, which is that of CHGCAR's occupancies."""
    is_paw: bool
    """LPAW; else norm-conserving or ultrasoft."""


def read_potcar(path: str | Path) -> tuple[PotcarDataset, ...]:
    """Read the headers of all data sets of a POTCAR, plain or gzipped.

    Parameters
    ----------
    path
        One data set, or several one after the other as VASP wants them.

    Returns
    -------
    tuple of PotcarDataset
        In the order of the file, which has to be that of the species in POSCAR.

    Raises
    ------
    ase.calculators.calculator.InputError
        The file is missing, truncated, or something else; names file, data set and what is
        missing.
    DensityFileError
        Its compressed data are damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"There is no file {path}. VASP needs the POTCAR of every species, one after the "
            "other in the order of POSCAR (cat O/POTCAR H/POTCAR > POTCAR)."
        )
    text = read_bytes(path).decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    *parts, rest = text.split(_END)
    if rest.strip():
        what = "is truncated" if parts or "parameters from PSCTR" in rest else "is no POTCAR"
        raise InputError(
            f"{path} {what}: data set {len(parts) + 1} does not end with {_END!r}. Concatenate "
            "it anew from the original files."
        )
    if not parts:
        raise InputError(f"{path} is empty.")
    return tuple(
        _parse(part, f"{path}, data set {index}") for index, part in enumerate(parts, start=1)
    )


def _parse(text: str, where: str) -> PotcarDataset:
    header, found, body = text.partition("END of PSCTR")
    if not found:
        raise InputError(
            f"{where}: the header does not end with 'END of PSCTR-controll parameters'. The file "
            "is damaged."
        )
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(header):
        fields.setdefault(name, value.strip())
    if "EMMIN" in fields:  # as some data sets spell it
        fields.setdefault("ENMIN", fields["EMMIN"])
    # Old data sets have no TITEL; the first line is the same.
    first_line = text.strip().splitlines()[0].strip()
    title = " ".join(fields.get("TITEL", first_line).split())
    return PotcarDataset(
        title=title,
        symbol=_element(title, fields.get("VRHFIN", ""), where),
        functional=_text(fields, "LEXCH", where).upper(),
        valence=_number(fields, "ZVAL", where),
        enmax=_number(fields, "ENMAX", where),
        enmin=_number(fields, "ENMIN", where),
        eaug=_number(fields, "EAUG", where) if "EAUG" in fields else None,
        mass=_number(fields, "POMASS", where),
        channels=_channels(body, where),
        is_paw=fields.get("LPAW", "F").lstrip(".").upper().startswith("T"),
    )


def _channels(body: str, where: str) -> tuple[int, ...]:
    """l of each projector; the table in the header also lists the local potential."""
    starts = list(_NONLOCAL.finditer(body))
    if not starts:
        raise InputError(
            f"{where}: holds a header, and no projectors after it ('Non local Part'). VASP needs "
            "the whole file."
        )
    ends = [*(match.start() for match in starts[1:]), len(body)]
    channels: list[int] = []
    for match, end in zip(starts, ends, strict=True):
        l, count = int(match[1]), int(match[2])
        stored = len(_PROJECTOR.findall(body, match.end(), end))
        if stored != count or l > 4:
            raise InputError(
                f"{where}: announces {count} projectors with l = {l}, and {stored} follow. The "
                "file is damaged."
            )
        channels += [l] * count
    return tuple(channels)


def _element(title: str, vrhfin: str, where: str) -> str:
    # VRHFIN of some data sets is wrong (X for Xe, r for Zr), so the title comes first.
    words = title.split()
    for word in [*words[1:2], *words[:1], vrhfin.split(":")[0].strip()]:
        match = re.match(r"[A-Z][a-z]?", word)
        if match and not word.startswith(("PAW", "US", "NC")) and match[0] in atomic_numbers:
            return match[0]
    raise InputError(f"{where}: neither TITEL {title!r} nor VRHFIN names an element.")


def _text(fields: dict[str, str], name: str, where: str) -> str:
    value = fields.get(name, "").split()
    if not value:
        raise InputError(f"{where}: the header has no {name}.")
    return value[0]


def _number(fields: dict[str, str], name: str, where: str) -> float:
    value = _text(fields, name, where)
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{where}: {name} = {value!r} is no number.") from None
