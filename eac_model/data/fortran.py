"""Millions of numbers in Fortran's E format, at array speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eac_model.errors import GridError

_FOUR_DIGITS = np.array([list(b"%04d" % i) for i in range(10_000)], dtype=np.uint8)
_LARGEST = 9.9e98
_SMALLEST = 1e-98


def format_rows(values: NDArray[np.floating], *, per_line: int, digits: int, width: int) -> bytes:
    """Text of a table of numbers, every row starting on a new line.

    Parameters
    ----------
    values : shape (rows, columns)
        Finite numbers below 1e99; those below 1e-98 in size are written as zero.
    per_line
        Numbers on a line; longer rows go on in the next line.
    digits
        Digits of the mantissa 0.ddd.
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
    characters = _format(table.reshape(-1), digits, width).reshape(n_rows, n_columns * width)
    full = n_columns // per_line
    length = per_line * width
    parts = []
    if full:
        lines = np.full((n_rows, full, length + 1), ord("\n"), dtype=np.uint8)
        lines[:, :, :length] = characters[:, : full * length].reshape(n_rows, full, length)
        parts.append(lines.reshape(n_rows, -1))
    if n_columns % per_line:
        parts.append(characters[:, full * length :])
        parts.append(np.full((n_rows, 1), ord("\n"), dtype=np.uint8))
    return np.concatenate(parts, axis=1).tobytes() if parts else b""


def _format(values: NDArray[np.float64], digits: int, width: int) -> NDArray[np.uint8]:
    """ASCII codes of the numbers, shape (n, width)."""
    size = np.abs(values)
    if not (size <= _LARGEST).all():
        raise GridError("Cannot write NaN, infinite or huge (1e99) values to a text file.")
    filled = size >= _SMALLEST
    size = np.where(filled, size, 0.0)

    exponent = np.zeros(len(values), dtype=np.int64)
    exponent[filled] = np.floor(np.log10(size[filled])).astype(np.int64) + 1
    mantissa = np.rint(size * 10.0 ** (digits - exponent)).astype(np.int64)
    # log10 may be one off next to a power of ten, and rounding may carry into a further digit
    wrong = (mantissa >= 10**digits) | ((mantissa < 10 ** (digits - 1)) & filled)
    if wrong.any():
        exponent[wrong] += np.where(mantissa[wrong] >= 10**digits, 1, -1)
        mantissa[wrong] = np.rint(size[wrong] * 10.0 ** (digits - exponent[wrong]))

    out = np.full((len(values), width), ord(" "), dtype=np.uint8)
    end = width - 4
    out[:, end] = ord("E")
    out[:, end + 1] = np.where(exponent < 0, ord("-"), ord("+"))
    out[:, end + 2 :] = _FOUR_DIGITS[np.abs(exponent), 2:]
    start = end - digits
    while end > start:
        n = min(4, end - start)
        mantissa, low = np.divmod(mantissa, 10_000)
        out[:, end - n : end] = _FOUR_DIGITS[low, 4 - n :]
        end -= n
    out[:, start - 1] = ord(".")
    out[:, start - 2] = ord("0")
    sign = start - 3 if width > digits + 7 else start - 2
    out[values < 0, sign] = ord("-")
    return out
