"""Millions of numbers in Fortran's E format, at array speed.

Both directions work on the bytes themselves: the digits of a number are eight bytes of one
64-bit integer, which a few multiplications turn into its value and back. Reading is correctly
rounded: a mantissa of up to 15 digits and a power of ten up to 10²² are exact in double precision,
and the rare number outside that range is left to Python's own conversion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eac_model.errors import GridError

_LARGEST = 9.9e98
_SMALLEST = 1e-98
_BLOCK = 2**14
"""Numbers worked on at a time, so that the arrays of a block stay in the cache."""

_TOKEN = re.compile(rb"(\s*)([-+]?\d?)\.(\d+)([eEdD])([-+])(\d{2,3})")
_MAX_DIGITS = 14
_EXACT_POWER = 22
_POWERS = np.array([float(f"1e{n}") for n in range(_EXACT_POWER + 1)])
_SPACE, _PLUS, _MINUS, _DOT, _RETURN, _NEWLINE, _ZERO = (ord(c) for c in " +-.\r\n0")

# Decimal exponents: for a binary exponent b, 10**_LEAST[b] ≤ 2**b < 10**(_LEAST[b] + 1).
_LEAST = np.array([len(str(2**b)) - 1 if b >= 0 else -len(str(2**-b)) for b in range(-1022, 1024)])
_TEN_TO = np.array([float(f"1e{n}") for n in range(-120, 121)])


@dataclass(frozen=True)
class Columns:
    """Where the numbers of a line stand: all of one width, points and exponents aligned."""

    per_line: int
    """Numbers on a line."""
    width: int
    """Characters of a number, blanks before it included."""
    digits: int
    """Digits after the point."""
    letter: int
    """Code of the letter before the exponent."""
    exponent: int
    """Digits of the exponent, 2 or 3."""
    line: int
    """Characters of a line, its end included."""

    @classmethod
    def of(cls, line: bytes) -> Columns | None:
        """The columns of a line, its end included; None if it is not laid out like that."""
        numbers = line.rstrip(b"\r\n")
        first = _TOKEN.match(numbers)
        if first is None or not line.endswith(b"\n"):
            return None
        width = first.end()
        per_line = len(numbers) // width
        digits, exponent = len(first.group(3)), len(first.group(6))
        if len(numbers) != per_line * width or not 1 <= digits <= _MAX_DIGITS:
            return None
        point = width - exponent - 2 - digits - 1
        for start in range(0, len(numbers), width):
            token = numbers[start : start + width]
            if not _TOKEN.fullmatch(token) or token[point] != _DOT:
                return None
        return cls(per_line, width, digits, first.group(4)[0], exponent, len(line))


def parse_lines(
    text: NDArray[np.uint8], columns: Columns
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Read whole lines whose numbers stand in columns.

    Parameters
    ----------
    text : shape (lines * columns.line,)
        Bytes of the lines.
    columns
        Their layout.

    Returns
    -------
    values : shape (lines, columns.per_line)
        Correctly rounded numbers.
    odd : shape (lines,)
        Lines that deviate from the layout in any way; their values mean nothing.
    """
    lines = text.reshape(-1, columns.line)
    values = np.empty((len(lines), columns.per_line))
    odd = np.empty(len(lines), dtype=bool)
    step = max(_BLOCK // columns.per_line, 1)
    for start in range(0, len(lines), step):
        part = slice(start, start + step)
        values[part], odd[part] = _parse_block(lines[part], columns)
    return values, odd


def _parse_block(
    lines: NDArray[np.uint8], columns: Columns
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    n = len(lines)
    used = columns.per_line * columns.width
    odd = lines[:, -1] != _NEWLINE
    if columns.line - used == 2:
        odd |= lines[:, -2] != _RETURN
    # columns of characters, one a row: strided access happens once
    text = lines[:, :used].reshape(-1, columns.width)
    letter = columns.width - columns.exponent - 2
    point = letter - columns.digits - 1

    wrong = text[:, point] != _DOT
    wrong |= text[:, letter] != columns.letter
    sign = text[:, letter + 1]
    negative_power = sign == _MINUS
    wrong |= ~negative_power & (sign != _PLUS)
    power = np.zeros(len(text), dtype=np.int16)
    for column in range(letter + 2, columns.width):
        digit = text[:, column] - np.uint8(_ZERO)
        wrong |= digit > 9
        power = power * np.int16(10) + digit
    power = np.where(negative_power, -power, power) - np.int16(columns.digits)

    # before the point: blanks, then a sign, a digit, both or neither
    negative = np.zeros(len(text), dtype=bool)
    lead = np.zeros(len(text), dtype=np.uint8)
    if point:
        last = text[:, point - 1]
        lead = last - np.uint8(_ZERO)
        is_digit = lead <= 9
        lead = np.where(is_digit, lead, 0)
        negative = last == _MINUS
        wrong |= ~(is_digit | negative | (last == _SPACE) | (last == _PLUS))
        if point > 1:
            before = text[:, point - 2]
            signed = before == _MINUS
            wrong |= (before != _SPACE) & ~(is_digit & (signed | (before == _PLUS)))
            negative |= signed
        for column in range(point - 2):
            wrong |= text[:, column] != _SPACE

    padded = np.full((len(text), 16), _ZERO, dtype=np.uint8)
    padded[:, 16 - columns.digits :] = text[:, point + 1 : letter]
    halves, no_digits = _eight_digits(padded.view("<u8"))
    wrong |= no_digits[:, 0] | no_digits[:, 1]
    mantissa = (halves[:, 0] * np.uint64(10**8) + halves[:, 1]).astype(np.float64)
    mantissa += lead * 10.0**columns.digits

    values = mantissa * np.take(_POWERS, np.maximum(power, 0), mode="clip")
    values /= np.take(_POWERS, np.maximum(-power, 0), mode="clip")
    values *= 1.0 - 2.0 * negative
    inexact = (np.abs(power) > _EXACT_POWER) & (mantissa != 0) & ~wrong
    if inexact.any():
        tokens = np.ascontiguousarray(text[inexact])
        tokens[:, letter] = ord("E")
        values[inexact] = tokens.view(f"S{columns.width}")[:, 0].astype(np.float64)
        wrong |= ~np.isfinite(values)
    if wrong.any():
        odd |= wrong.reshape(n, columns.per_line).any(axis=1)
    return values.reshape(n, columns.per_line), odd


def _eight_digits(text: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Values of eight ASCII digits each, and where there is something else among them."""
    high = np.uint64(0xF0F0F0F0F0F0F0F0)
    above_nine = text + np.uint64(0x0606060606060606)
    wrong = ((text & high) | ((above_nine & high) >> np.uint64(4))) != np.uint64(0x3333333333333333)
    # pairs of digits, then of pairs, then of fours: the lower byte is the higher digit
    value = ((text & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(10 * 2**8 + 1)) >> np.uint64(8)
    value = (value & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(100 * 2**16 + 1) >> np.uint64(16)
    value = (value & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(10000 * 2**32 + 1) >> np.uint64(32)
    return value, wrong


def format_rows(values: NDArray[np.floating], *, per_line: int, digits: int, width: int) -> bytes:
    """Text of a table of numbers, every row starting on a new line.

    Parameters
    ----------
    values : shape (rows, columns)
        Finite numbers below 1e99; those below 1e-98 in size are written as zero.
    per_line
        Numbers on a line; longer rows go on in the next line.
    digits
        Digits of the mantissa 0.ddd, at most 16.
    width
        Characters a number takes, at least ``digits + 7``. At that minimum a negative number
        loses its leading zero (``-.123E+01``), as Fortran does it.

    Returns
    -------
    bytes
        ASCII lines, the last one ended too.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    n_rows, n_columns = table.shape
    n_lines = -(-n_columns // per_line)
    length = n_columns * width + n_lines
    text = np.full((n_rows, length), _NEWLINE, dtype=np.uint8)
    full = n_columns // per_line
    size = per_line * width + 1
    if full:
        lines = text[:, : full * size].reshape(n_rows, full, size)
        places = lines[:, :, :-1].reshape(n_rows, full, per_line, width)
        numbers = table[:, : full * per_line].reshape(n_rows, full, per_line)
        _format_in_blocks(numbers.reshape(-1, per_line), places, digits)
    if n_columns % per_line:
        rest = n_columns - full * per_line
        places = text[:, full * size : -1].reshape(n_rows, 1, rest, width)
        _format_in_blocks(table[:, full * per_line :], places, digits)
    return text.tobytes()


def _format_in_blocks(numbers: NDArray[np.float64], places: NDArray[np.uint8], digits: int) -> None:
    """Fill the places, shape (rows, lines, per line, width), with rows of numbers."""
    n_rows, n_lines, per_line, _ = places.shape
    step = max(_BLOCK // per_line, 1)
    for row in range(n_rows):
        for start in range(0, n_lines, step):
            stop = min(start + step, n_lines)
            here = numbers[row * n_lines + start : row * n_lines + stop]
            _format(here, places[row, start:stop], digits)


def _format(values: NDArray[np.float64], places: NDArray[np.uint8], digits: int) -> None:
    """Write numbers of shape (…) into places of shape (…, width)."""
    size = np.abs(values)
    if not (size <= _LARGEST).all():
        raise GridError("Cannot write NaN, infinite or huge (1e99) values to a text file.")
    filled = size >= _SMALLEST
    if not filled.all():
        size = np.where(filled, size, 0.0)

    binary = (size.view(np.int64) >> 52) - 1
    exponent = _LEAST[np.maximum(binary, 0)] + 1
    exponent += size >= _TEN_TO[np.clip(exponent, -120, 120) + 120]
    exponent = np.where(filled, exponent, 0)
    mantissa = np.rint(size * _TEN_TO[digits - exponent + 120])
    carried = mantissa >= 10.0**digits
    if carried.any():
        exponent += carried
        mantissa = np.where(carried, 10.0 ** (digits - 1), mantissa)

    end = places.shape[-1] - 4
    start = end - digits
    places[..., : start - 1] = _SPACE
    number = mantissa.astype(np.uint64)
    low = number % np.uint64(10**8) if digits > 8 else number
    n_low = min(digits, 8)
    places[..., end - n_low : end] = _as_characters(low)[..., 8 - n_low :]
    if digits > 8:
        high = _as_characters(number // np.uint64(10**8))
        places[..., start : end - 8] = high[..., 16 - digits :]
    places[..., start - 1] = _DOT
    places[..., start - 2] = _ZERO
    places[..., end] = ord("E")
    places[..., end + 1] = np.where(exponent < 0, _MINUS, _PLUS)
    tens, ones = np.divmod(np.abs(exponent).astype(np.uint8), np.uint8(10))
    places[..., end + 2] = tens + np.uint8(_ZERO)
    places[..., end + 3] = ones + np.uint8(_ZERO)
    sign = start - 3 if start >= 3 and places.shape[-1] > digits + 7 else start - 2
    places[..., sign][values < 0] = _MINUS


def _as_characters(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Eight ASCII digits of numbers below 10⁸, shape (…, 8); inverse of :func:`_eight_digits`."""
    tens_of_thousands = numbers // np.uint64(10**4)
    value = tens_of_thousands | (numbers - tens_of_thousands * np.uint64(10**4)) << np.uint64(32)
    hundreds = (value * np.uint64(10486)) >> np.uint64(20) & np.uint64(0x0000007F0000007F)
    value = hundreds | (value - hundreds * np.uint64(100)) << np.uint64(16)
    tens = (value * np.uint64(103)) >> np.uint64(10) & np.uint64(0x000F000F000F000F)
    value = tens | (value - tens * np.uint64(10)) << np.uint64(8)
    value |= np.uint64(0x3030303030303030)
    return np.ascontiguousarray(value.astype("<u8")).view(np.uint8).reshape(*numbers.shape, 8)
