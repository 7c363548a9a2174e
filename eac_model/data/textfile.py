"""Text files of many numbers: read fast, and complain with file, line number and cause."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from eac_model.errors import DensityFileError

_COMPLETE = re.compile(rb"[-+]?\d*\.(\d+)[eE][-+]\d{2,3}$")
_LOST_E = re.compile(r"(?<=\d)(?=[-+]\d+$)")


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
        if count > len(self._data):
            self.fail(first, f"{count} {what} cannot fit into a file of {len(self._data)} bytes.")
        if count == 0:
            return np.empty(0), first
        per_line = max(len(self.line(first).split()), 1)
        last = len(self) if to_end else first - (-count // per_line)
        if last <= len(self):
            block = self._data[self._start(first) : self._ends[last - 1]]
            try:
                values = np.fromstring(block, dtype=np.float64, sep=" ")
            except (ValueError, DeprecationWarning):
                values = np.empty(0)
            if len(values) == count and np.isfinite(values).all():
                return values, last
        return self._numbers_line_by_line(first, count, what, to_end)

    def _numbers_line_by_line(
        self, first: int, count: int, what: str, to_end: bool
    ) -> tuple[NDArray[np.float64], int]:
        """Slow way, for unusual layouts and for finding the fault."""
        values = np.empty(count)
        done = 0
        index = first
        while done < count or (to_end and index < len(self)):
            if index >= len(self):
                self.fail(
                    len(self) - 1,
                    f"the file ends after {done} of {count} {what}. Is it truncated?",
                )
            for token in self.line(index).split():
                number = self._number(index, token, f"{done} of {count} {what} read")
                if done == count:
                    self.fail(index, f"more than the {count} {what} that were announced.")
                values[done] = number
                done += 1
            index += 1
        return values, index

    def floats(self, index: int, count: int, what: str) -> list[float]:
        """First `count` numbers on a line; anything may follow them."""
        tokens = self.line(index).split()
        if len(tokens) < count:
            self.fail(index, f"expected {count} numbers ({what}), found {len(tokens)}.")
        return [self._number(index, token, what) for token in tokens[:count]]

    def _number(self, index: int, token: str, context: str) -> float:
        if "*" in token:
            self.fail(index, f"{token!r} is a number that did not fit its columns ({context}).")
        try:
            # Fortran drops the E of three-digit exponents: 0.123-101
            value = float(token) if "_" not in token else np.nan
        except ValueError:
            try:
                value = float(_LOST_E.sub("E", token, count=1))
            except ValueError:
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
