"""Text files of many numbers: read fast, and complain with file, line number and cause."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from eac_model.data.fortran import Columns, parse_lines
from eac_model.errors import DensityFileError

_COMPLETE = re.compile(rb"[-+]?\d*\.(\d+)[eE][-+]\d{2,3}$")
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:[eEdD]([-+]?\d+))?")
# Fortran drops the E of exponents of three digits: 0.123-101
_LOST_E = re.compile(r"([-+]?\d*\.\d+)([-+]\d{3})")

_MANY = 1000
"""From so many numbers on, looking for their columns pays."""
_LINES = 2**13
"""Lines read at a time where the numbers do not stand in columns."""


class NumberedText:
    """The lines of a text file, plain or gzipped, with their numbers.

    Parameters
    ----------
    path
        File to read; gzip is recognised by content. LF and CRLF line ends are accepted.
    data
        The text itself, if it does not come from a file; `path` is then its name in messages.

    Raises
    ------
    DensityFileError
        If there is no such file, its compressed data are damaged, or its last line stops in the
        middle, which is how truncated files show.
    """

    def __init__(self, path: str | Path, data: bytes | None = None) -> None:
        self.path = Path(path)
        self._data = read_bytes(path) if data is None else data
        buffer = np.frombuffer(self._data, dtype=np.uint8)
        ends = np.flatnonzero(buffer == ord("\n"))
        if len(self._data) and (not len(ends) or ends[-1] != len(self._data) - 1):
            ends = np.append(ends, len(self._data))
        self._ends = ends
        self._check_last_number()

    def __len__(self) -> int:
        return len(self._ends)

    def line(self, index: int) -> str:
        """Line of this index (0 is the first), without its end; fails past the last line."""
        if index >= len(self):
            self.fail(max(len(self) - 1, 0), "the file ends here, too early. Is it truncated?")
        return self._data[self._start(index) : self._ends[index]].decode("latin-1").rstrip("\r")

    def fail(self, index: int, message: str) -> NoReturn:
        """Raise a DensityFileError that names the file and the line of this index."""
        raise DensityFileError(f"{self.path}, line {index + 1}: {message}")

    def numbers(
        self, first: int, count: int, what: str, *, to_end: bool = False
    ) -> tuple[NDArray[np.float64], int]:
        """Read `count` numbers that start on a line of their own.

        Parameters
        ----------
        first
            Index of the line the numbers start on.
        count
            How many there must be.
        what
            Their name in error messages.
        to_end
            The numbers fill the rest of the file.

        Returns
        -------
        numbers : shape (count,)
        next : int
            Index of the line after them.
        """
        if 2 * count > len(self._data) + 1:
            self.fail(first, f"{count} {what} cannot fit into a file of {len(self._data)} bytes.")
        if count == 0:
            return np.empty(0), first
        per_line = max(len(self.line(first).split()), 1)
        expected_end = len(self) if to_end else first - (-count // per_line)
        values = np.empty(count)
        done, index = 0, first
        if count >= _MANY:
            n_lines = min(count // per_line, len(self) - first)
            table = self._in_columns(first, n_lines, count, what)
            if table is not None:
                done, index = table.size, first + len(table)
                values[:done] = table.reshape(-1)
        while done < count or (to_end and index < len(self)):
            if index >= len(self):
                self.fail(
                    len(self) - 1,
                    f"the file ends after {done} of {count} {what}. Is it truncated?",
                )
            stop = min(index + _LINES, max(expected_end, index + 1), len(self))
            found = self._blank_separated(index, stop)
            if found is not None and done + len(found) <= count:
                values[done : done + len(found)] = found
                done, index = done + len(found), stop
            else:
                done, index = self._token_by_token(values, done, index, stop, what, to_end)
        return values, index

    def _in_columns(
        self, first: int, n_lines: int, count: int, what: str
    ) -> NDArray[np.float64] | None:
        """Numbers of lines that all look like the first one, a row each; None if they do not."""
        start = self._start(first)
        columns = Columns.of(self._data[start : self._start(first + 1)])
        if columns is None:
            return None
        size = columns.line
        # the last line of a file may lack its end
        n_lines = min(n_lines, (len(self._data) - start) // size)
        if n_lines == 0:
            return None
        ends = self._ends[first : first + n_lines]
        if ends[-1] - start != n_lines * size - 1 or not (np.diff(ends) == size).all():
            return None
        text = np.frombuffer(self._data, np.uint8, count=n_lines * size, offset=start)
        table, odd = parse_lines(text, columns)
        for index in np.flatnonzero(odd):
            # an unusual number, such as 0.12-101, among others
            tokens = self.line(first + int(index)).split()
            if len(tokens) != columns.per_line:
                return None
            done = int(index) * columns.per_line
            table[index] = [
                self._number(first + int(index), token, f"{done + i} of {count} {what} read")
                for i, token in enumerate(tokens)
            ]
        return table

    def _blank_separated(self, first: int, last: int) -> NDArray[np.float64] | None:
        """Finite numbers of some lines in any layout; None if there is anything else."""
        block = self._data[self._start(first) : self._ends[last - 1]]
        text = np.frombuffer(block, np.uint8)
        blank = np.ones(len(text) + 1, dtype=bool)
        blank[1:] = (text == ord(" ")) | ((text >= ord("\t")) & (text <= ord("\r")))
        n_tokens = np.count_nonzero(blank[:-1] & ~blank[1:])
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            try:
                values = np.fromstring(block, dtype=np.float64, sep=" ")
            except (ValueError, DeprecationWarning):
                return None
        # 0.12-101 would be taken for two numbers
        return values if len(values) == n_tokens and np.isfinite(values).all() else None

    def _token_by_token(
        self,
        values: NDArray[np.float64],
        done: int,
        index: int,
        stop: int,
        what: str,
        to_end: bool,
    ) -> tuple[int, int]:
        """Slow way through some lines, for unusual numbers and for finding the fault."""
        while index < stop and (done < len(values) or to_end):
            for token in self.line(index).split():
                number = self._number(index, token, f"{done} of {len(values)} {what} read")
                if done == len(values):
                    self.fail(index, f"more than the {done} {what} that were announced.")
                values[done] = number
                done += 1
            index += 1
        return done, index

    def floats(self, index: int, count: int, what: str) -> list[float]:
        """First `count` numbers on a line; anything may follow them."""
        tokens = self.line(index).split()
        if len(tokens) < count:
            self.fail(index, f"expected {count} numbers ({what}), found {len(tokens)}.")
        return [self._number(index, token, what) for token in tokens[:count]]

    def _number(self, index: int, token: str, context: str) -> float:
        if "*" in token:
            self.fail(index, f"{token!r} is a number that did not fit its columns ({context}).")
        match = _NUMBER.fullmatch(token) or _LOST_E.fullmatch(token)
        if match is not None:
            value = float(f"{match[1]}E{match[2] or 0}")
        elif token.lower().strip("+-") in ("nan", "inf", "infinity"):
            value = np.nan
        else:
            self.fail(index, f"{token[:40]!r} is not a number ({context}).")
        if not np.isfinite(value):
            self.fail(index, f"{token[:40]!r} is not a finite number ({context}).")
        return value

    def _start(self, index: int) -> int:
        return int(self._ends[index - 1]) + 1 if index else 0

    def _check_last_number(self) -> None:
        """Refuse a last line that stops inside a number, which would parse but be wrong."""
        if not self._data or self._data[-1:].isspace():
            return
        tokens = self._data[-200:].split()[-2:]
        decimals = [len(m.group(1)) if (m := _COMPLETE.match(token)) else 0 for token in tokens]
        if len(decimals) < 2 or decimals[1] == 0 or decimals[0] != decimals[1]:
            self.fail(len(self) - 1, "the file stops in the middle of a line. Is it truncated?")


def read_bytes(path: str | Path) -> bytes:
    """Content of a file, unpacked if it is gzipped.

    Raises
    ------
    DensityFileError
        If the file cannot be read or its compressed data are damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DensityFileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DensityFileError(f"{path}: the gzip data are damaged or cut off ({error}).") from None
