"""VASP's INCAR: what it says, and changes that leave everything else as it is.

Format of https://vasp.at/wiki/INCAR: statements ``TAG = value``, several a line with ``;``,
continued with a backslash at the end of a line or in double quotes; ``#`` and ``!`` begin comments;
text that is no statement is ignored; tags may be grouped in braces (``GROUP { TAG = value }``,
here named ``GROUP/TAG``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ase.calculators.calculator import InputError

from eac_model.data.textfile import read_bytes

_TOKEN = re.compile(
    r"""(?P<comment>[#!][^\n]*)
      | (?P<open>[A-Za-z]\w*)[ \t\r\n]*\{
      | (?P<close>\})
      | (?P<name>[A-Za-z][\w/]*)[ \t]*=[ \t]*"""
    # A value: quoted text, or what stands before the next ; # ! } or end of line.
    r"""(?P<value>"[^"]*"|(?:\\[ \t\r]*\n|[^;\#!}\n])*)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Statement:
    """One ``TAG = value``."""

    value: str
    """As it stands in the file, with continuation lines joined."""
    line: int
    """Counted from 1."""
    start: int
    """Where the value begins in the text."""


@dataclass(frozen=True)
class Incar:
    """The statements of an INCAR, and the text they stand in.

    Examples
    --------
    >>> incar = Incar.parse("ENCUT = 400 eV ; ISPIN = 2  # magnetic")
    >>> incar.number("ENCUT"), incar.integer("ISPIN")
    (400.0, 2)
    >>> print(incar.changed({"ISPIN": "1"}).text)
    ENCUT = 400 eV ; ISPIN = 1  # magnetic
    """

    text: str
    statements: Mapping[str, tuple[Statement, ...]]
    """Upper-case tag → its statements, in order."""
    name: str = field(default="INCAR", compare=False)
    """For messages."""

    @classmethod
    def parse(cls, text: str, name: str = "INCAR") -> Incar:
        """Find the statements of a text.

        Raises
        ------
        ase.calculators.calculator.InputError
            Statements run into each other.
        """
        found: dict[str, list[Statement]] = {}
        groups: list[str] = []
        for match in _TOKEN.finditer(text):
            if match["open"]:
                groups.append(match["open"].upper())
            elif match["close"]:
                groups = groups[:-1]
            elif match["name"]:
                tag = "/".join([*groups, match["name"].upper()])
                value = re.sub(r"\\[ \t\r]*\n", " ", match["value"].strip('"')).strip()
                line = text.count("\n", 0, match.start()) + 1
                if "=" in value and tag != "SYSTEM" and not match["value"].startswith('"'):
                    raise InputError(
                        f"{name}, line {line}: {tag} = {value!r} looks like several statements; "
                        "put ; between them, or # before a comment."
                    )
                found.setdefault(tag, []).append(Statement(value, line, match.start("value")))
        return cls(text, {tag: tuple(all_of) for tag, all_of in found.items()}, name)

    @classmethod
    def read(cls, path: str | Path) -> Incar:
        """Read an INCAR, plain or gzipped.

        Raises
        ------
        ase.calculators.calculator.InputError
            There is no such file, or its statements run into each other.
        DensityFileError
            Its compressed data are damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
        text = read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
        return cls.parse(text, str(path))

    def __contains__(self, tag: str) -> bool:
        return tag in self.statements

    def words(self, tag: str) -> list[str]:
        """The words of a value; empty if INCAR does not set the tag.

        Raises
        ------
        ase.calculators.calculator.InputError
            The tag is set twice, differently.
        """
        statements = self.statements.get(tag, ())
        values = {statement.value for statement in statements}
        if len(values) > 1:
            lines = ", ".join(f"{one.value!r} in line {one.line}" for one in statements)
            raise InputError(f"{self.name} sets {tag} more than once: {lines}. Leave one of them.")
        return statements[0].value.split() if statements else []

    def word(self, tag: str, default: str = "") -> str:
        """First word of a value; what follows it is a comment."""
        return next(iter(self.words(tag)), default)

    def integer(self, tag: str) -> int | None:
        """A whole number, or None if INCAR does not set it."""
        word = self.word(tag)
        if not word:
            return None
        try:
            return int(word)
        except ValueError:
            raise self._wrong(tag, word, "a whole number") from None

    def number(self, tag: str) -> float | None:
        """A number, or None if INCAR does not set it."""
        word = self.word(tag)
        return self._number(tag, word) if word else None

    def numbers(self, tag: str) -> list[float]:
        """A list of numbers, ``3*0.6 2`` being 0.6 0.6 0.6 2; empty if INCAR does not set it."""
        numbers: list[float] = []
        # FORTRAN lists may have commas, and blanks around the star.
        text = re.sub(r"\s*\*\s*", "*", " ".join(self.words(tag)).replace(",", " "))
        for word in text.split():
            count, star, value = word.rpartition("*")
            if star and not re.fullmatch(r"[1-9]\d*", count):
                raise self._wrong(tag, word, "count*number")
            if not star and numbers and not re.match(r"[-+.\d]", word):
                break  # words after the numbers are a comment
            numbers += [self._number(tag, value)] * (int(count) if star else 1)
        return numbers

    def boolean(self, tag: str) -> bool:
        """A truth value: ``.TRUE.``, ``T``, ``True``, ``.F.`` and so on; false if it is missing."""
        word = self.word(tag)
        letter = word.lstrip(".").upper()[:1]
        if not word:
            return False
        if letter not in ("T", "F"):
            raise self._wrong(tag, word, ".TRUE. or .FALSE.")
        return letter == "T"

    def changed(self, values: Mapping[str, str]) -> Incar:
        """The INCAR with some tags set: in their place if they are there, else at the end.

        Only the first word of a value is replaced (that is all of it for the tags that hold one),
        so comments stay.
        """
        edits: list[tuple[int, int, str]] = []
        added: list[str] = []
        newline = "\r\n" if "\r\n" in self.text else "\n"
        for tag, value in values.items():
            for statement in self.statements.get(tag, ()):
                old = re.compile(r'"[^"]*"|[^\s;#!}]*').match(self.text, statement.start)
                assert old is not None
                edits.append((old.start(), old.end(), value))
            if tag not in self:
                added.append(f"{tag} = {value}{newline}")
        text = self.text
        for start, end, value in sorted(edits, reverse=True):
            text = text[:start] + value + text[end:]
        if added and text and not text.endswith("\n"):
            text += newline
        return Incar.parse(text + "".join(added), self.name)

    def _number(self, tag: str, word: str) -> float:
        try:
            return float(re.sub("[dD]", "e", word))
        except ValueError:
            raise self._wrong(tag, word, "a number") from None

    def _wrong(self, tag: str, word: str, expected: str) -> InputError:
        line = self.statements[tag][0].line
        return InputError(f"{self.name}, line {line}: {tag} = {word!r}, expected {expected}.")
