"""Damaged CHGCAR files: the reader says so, or gives exactly what is written.

    python benchmarks/fuzz_chgcar.py                    # 20000 files; about three minutes
    python benchmarks/fuzz_chgcar.py --files 2000 --seed 7

Small files of all kinds (spin-paired, collinear, non-collinear; with and without occupancies and
their imaginary parts; 24 or 1100 values a grid; CHG format; CRLF; gzip) are damaged in one to three
places: bytes changed, removed or put in, cut at any byte, numbers exchanged, repeated, removed or
replaced by stars, NaN and the like, lines removed, doubled or exchanged, several images, files cut
and joined. Every result is one of

error
    a DensityFileError.
identical
    the damage is harmless (in the comment, a blank): every number is that of the undamaged file.
as written
    a well-formed file of other numbers or a shorter one. A second reader, which is written for
    this purpose alone and works token by token, finds the same numbers, all of them.
silent
    numbers that are not those of the file, or of a file the second reader finds malformed.
other exception
    anything but a DensityFileError.

The last two must not occur; the script then ends with status 1 and shows them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from eac_ase.adapters.ase import to_vasp_charge_density
from eac_ase.adapters.pymatgen import to_pymatgen
from eac_ase.progress import progress_bar
from eac_model.data import DensitySample, Magnetization, read_chgcar, write_chgcar
from eac_model.errors import DensityFileError
from eac_model.files import write_bytes

RESULTS = Path(__file__).resolve().parent / "results" / "fuzz_chgcar.json"
OUTCOMES = ("error", "identical", "as written", "silent", "other exception")

Numbers = dict[str, list[float]]
"""Everything a file says: cell, positions, each grid, occupancies, imaginary parts, moments."""


class Malformed(Exception):
    """What the second reader finds wrong."""


# -- the second reader --------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eEdD][-+]?\d+)?")
_LOST = re.compile(r"([-+]?\d*\.\d+)([-+]\d{3})")
_WHOLE = re.compile(r"[-+]?\d{1,9}")
_TITLE = re.compile(r"\s*augmentation occupancies\s*(\(imaginary part\))?(.*)")


def number(token: str) -> float:
    """One number in any of Fortran's formats."""
    lost = _LOST.fullmatch(token)
    if lost:
        token = f"{lost[1]}E{lost[2]}"
    elif not _NUMBER.fullmatch(token):
        raise Malformed(token)
    value = float(token.replace("D", "E").replace("d", "e"))
    if not np.isfinite(value):
        raise Malformed(token)
    return value


def whole(line: str) -> list[int]:
    """Integers of a line, empty if there is anything else on it."""
    tokens = line.split()
    return [int(t) for t in tokens] if all(map(_WHOLE.fullmatch, tokens)) else []


def second_reading(content: bytes) -> Numbers:
    """The numbers of a CHGCAR file, token by token."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise Malformed(repr(error)) from error
    if content and not content[-1:].isspace():
        # a number may have been cut: it must have as many digits as the one before it
        ends = [re.fullmatch(rb"[-+]?\d*\.(\d+)[eE][-+]\d\d\d?", t) for t in content.split()[-2:]]
        if len(ends) < 2 or any(e is None for e in ends) or len({len(e[1]) for e in ends if e}) > 1:
            raise Malformed("the last number is not complete")
    lines = [line.removesuffix("\r") for line in content.decode("latin-1").split("\n")]
    if lines and lines[-1] == "":
        lines.pop()
    try:
        return _second_reading(lines)
    except (IndexError, ValueError) as error:
        raise Malformed(repr(error)) from error


def _second_reading(lines: list[str]) -> Numbers:
    scales = [number(t) for t in lines[1].split()[:3]]
    scales = scales if len(lines[1].split()) >= 3 else scales[:1]
    cell = np.array([[number(t) for t in lines[i].split()[:3]] for i in (2, 3, 4)])
    if cell.shape != (3, 3) or not scales:
        raise Malformed("cell")
    volume = abs(np.linalg.det(cell))
    if len(scales) == 1 and scales[0] < 0 and volume > 0:
        scales = [(-scales[0] / volume) ** (1 / 3)]
    cell = cell * np.array(scales)
    if min(scales) <= 0 or not 1e-6 < abs(np.linalg.det(cell)) < 1e12:
        raise Malformed("cell")
    at = 5
    names: list[str] = []
    while not whole(lines[at]):
        if not lines[at].split():
            raise Malformed("elements")
        names += lines[at].split()
        at += 1
    counts: list[int] = []
    while at < len(lines) and whole(lines[at]):
        counts += whole(lines[at])
        at += 1
    if not names:
        names = lines[0].split()
        if not all(name in atomic_numbers for name in names):
            raise Malformed("elements")
    symbols = []
    for name in names:
        match = re.match(r"[A-Z][a-z]?(?![a-z])", name)
        if not match or match[0] not in atomic_numbers:
            raise Malformed("elements")
        symbols.append(match[0])
    if len(counts) != len(symbols) or min(counts) < 0 or not 0 < sum(counts) <= 10**6:
        raise Malformed("counts")
    n = sum(counts)
    if lines[at].strip()[:1] in ("S", "s"):
        at += 1
    mode = lines[at].strip()[:1].lower()
    if mode not in ("d", "c", "k") or not mode:
        raise Malformed("mode")
    at += 1
    rows = np.array([[number(t) for t in lines[at + i].split()[:3]] for i in range(n)])
    if rows.shape != (n, 3):
        raise Malformed("positions")
    at += n
    positions = rows @ cell if mode == "d" else rows * np.array(scales)
    kinds = [
        atomic_numbers[s] for s, count in zip(symbols, counts, strict=True) for _ in "x" * count
    ]
    found: Numbers = {
        "cell": cell.ravel().tolist(),
        "positions": positions.ravel().tolist(),
        "numbers": [float(kind) for kind in kinds],
    }

    def blank(at: int) -> int:
        while at < len(lines) and not lines[at].strip():
            at += 1
        return at

    def take(at: int, count: int) -> tuple[list[float], int]:
        values: list[float] = []
        while len(values) < count:
            values += [number(t) for t in lines[at].split()]
            at += 1
        if len(values) != count:
            raise Malformed("numbers")
        return values, at

    at = blank(at)
    shape = whole(lines[at])
    if len(shape) != 3 or min(shape) < 1 or np.prod(shape, dtype=float) > 1e6:
        raise Malformed("dimensions")
    found["shape"] = [float(size) for size in shape]
    sizes: list[list[list[int]]] = []
    moments_of: list[list[float]] = []
    grid = 0
    while True:
        at += 1
        grid += 1
        values, at = take(at, int(np.prod(shape)))
        found[f"grid {grid}"] = (np.array(values) / abs(np.linalg.det(cell))).tolist()
        at = blank(at)
        here = []
        for part in ("", "(imaginary part)"):
            blocks = 0
            announced = []
            while at < len(lines):
                title = re.match(
                    r"\s*augmentation occupancies\s*(\(imaginary part\))?(.*)", lines[at]
                )
                if title is None or (title[1] or "") != part:
                    break
                head = whole(title[2])
                if len(head) != 2 or head[0] != blocks + 1 or head[1] < 0 or head[0] > n:
                    raise Malformed("occupancies")
                values, at = take(at + 1, head[1])
                found[f"occupancies {part} {grid} {head[0]}"] = values
                announced.append(head[1])
                blocks += 1
                at = blank(at)
            if blocks not in (0, n):
                raise Malformed("occupancies")
            here.append(announced)
        if here[1] and here[0] != here[1]:
            raise Malformed("imaginary parts")
        sizes.append(here)
        if sizes[-1] != sizes[0]:
            raise Malformed("occupancies differ")
        moments: list[float] = []
        while at < len(lines) and re.match(r"\s*[-+]?\d*\.\d", lines[at]):
            moments += [number(t) for t in lines[at].split()]
            at += 1
        if moments and (len(moments) not in (n, 3 * n) or not here[0]):
            raise Malformed("moments")
        at = blank(at)
        if at < len(lines) and whole(lines[at]) == shape and grid < 4:
            moments_of.append(moments)
            continue
        if at < len(lines) or moments or grid == 3:
            raise Malformed("end")
        break
    # the numbers per atom behind the first grid are moments: of the collinear, or as vectors
    first = moments_of[0] if moments_of else []
    found["moments"] = first if len(first) == 3 * n or (len(first) == n and grid == 2) else []
    return found


# -- what our reader found ----------------------------------------------------------------------


def first_reading(sample: DensitySample) -> Numbers:
    """The same numbers from a sample."""
    atoms = sample.atoms
    grids = [sample.density]
    onsite = [sample.onsite]
    if sample.spin_density is not None:
        grids.append(sample.spin_density)
        onsite.append(sample.onsite_spin)
    if sample.magnetization is not None:
        grids += list(sample.magnetization.density)
        onsite += sample.magnetization.onsite or (None,) * 3
    found: Numbers = {
        "cell": atoms.cell.array.ravel().tolist(),
        "positions": atoms.positions.ravel().tolist(),
        "numbers": atoms.numbers.astype(float).tolist(),
        "shape": [float(size) for size in sample.density.shape],
        "moments": [],
    }
    if atoms.has("initial_magmoms"):
        found["moments"] = atoms.get_initial_magnetic_moments().ravel().tolist()
    for index, grid in enumerate(grids):
        found[f"grid {index + 1}"] = grid.ravel(order="F").tolist()
    for part, sets in (("", onsite), ("(imaginary part)", sample.onsite_imaginary or ())):
        for index, blocks in enumerate(sets):
            for atom, values in enumerate(blocks or ()):
                found[f"occupancies {part} {index + 1} {atom + 1}"] = np.asarray(values).tolist()
    return found


def same(one: Numbers, other: Numbers) -> bool:
    """Equal to the last bits of the arithmetic that both do in their own order."""
    if one.keys() != other.keys():
        return False
    for key, values in one.items():
        atol = 1e-13 if key in ("cell", "positions") else 0.0
        if len(values) != len(other[key]):
            return False
        if not np.allclose(values, other[key], rtol=1e-12, atol=atol):
            return False
    return True


# -- files and damages --------------------------------------------------------------------------


def originals(folder: Path) -> dict[str, bytes]:
    """Undamaged files of all kinds."""
    rng = np.random.default_rng(0)
    shape = (3, 4, 2)
    many = (11, 10, 10)
    cell = [[4.0, 0.1, 0.0], [0.0, 5.0, -0.3], [0.7, 0.0, 3.5]]
    atoms = Atoms("OHH", scaled_positions=rng.random((3, 3)), cell=cell, pbc=True)

    def occupancies() -> tuple[np.ndarray, ...]:
        return tuple(rng.normal(size=size) for size in (7, 4, 4))

    def grid(shape: tuple[int, int, int] = shape) -> np.ndarray:
        return rng.normal(size=shape) * 10.0 ** rng.integers(-30, 3, size=shape)

    plain = DensitySample(atoms=atoms, density=grid())
    paired = replace(plain, onsite=occupancies())
    magnetic = atoms.copy()
    magnetic.set_initial_magnetic_moments([1.0, -0.5, 2.0])
    spin = replace(paired, atoms=magnetic, spin_density=grid(), onsite_spin=occupancies())
    complex_spin = replace(spin, onsite_imaginary=(occupancies(), occupancies()))
    large = replace(spin, density=grid(many), spin_density=grid(many))
    vectors = Magnetization(
        np.stack([grid() for _ in range(3)]), tuple(occupancies() for _ in range(3))
    )
    files: dict[str, bytes] = {}
    samples = {"plain": plain, "paired": paired, "spin": spin, "imaginary": complex_spin}
    path = folder / "CHGCAR"
    for name, sample in samples.items():
        write_chgcar(path, sample)
        files[name] = path.read_bytes()
    to_pymatgen(replace(paired, magnetization=vectors)).write_file(str(path))
    files["non-collinear"] = path.read_bytes()
    to_vasp_charge_density(spin).write(str(path), format="chg")
    files["CHG"] = path.read_bytes()
    # grids of a thousand values and more are read in columns
    write_chgcar(path, large)
    files["large"] = path.read_bytes()
    to_vasp_charge_density(large).write(str(path), format="chgcar")
    files["large, C format"] = path.read_bytes()
    files["large, CRLF"] = files["large"].replace(b"\n", b"\r\n")
    files["CRLF"] = files["spin"].replace(b"\n", b"\r\n")
    files["gzip"] = gzip.compress(files["spin"], mtime=0)
    return files


TOKENS = (
    b"******", b"NaN", b"Infinity", b"0.1234-101", b"-0.5E+400", b"1.0", b"7", b"0", b"-3", b"x",
    b"0.1E+00-0.2E+00", b"1_0", b"0x1A", b"1,5", b".", b"-", b"E+00", b"99999", b"augmentation",
)  # fmt: skip


def damage(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Name of the damage and the damaged file."""
    kind = rng.choice(list(DAMAGES))
    return kind, DAMAGES[kind](content, rng)


def _byte(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    choice = rng.choice([*b"\n\r \t*-+.E0123456789aNi\x00\xff", rng.randrange(256)])
    return content[:place] + bytes([choice]) + content[place + 1 :]


def _bit(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _removed(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.choice([1, 1, 2, 18, 91]) :]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.choice([b" ", b"\n", b"-", b"7", b".", b"\x00"]) + content[place:]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _tokens(content: bytes, rng: random.Random) -> bytes:
    pieces = re.split(rb"(\s+)", content)
    one, other = (2 * rng.randrange(len(pieces) // 2) for _ in range(2))
    what = rng.randrange(4)
    if what == 0:
        pieces[one], pieces[other] = pieces[other], pieces[one]
    elif what == 1:
        pieces[one] = rng.choice(TOKENS)
    elif what == 2:
        pieces[one] = b""
    else:
        pieces[one] += b" " + pieces[one]
    return b"".join(pieces)


def _same_width(content: bytes, rng: random.Random) -> bytes:
    """A token replaced without moving anything else on its line."""
    places = [match.span() for match in re.finditer(rb"\S+", content)]
    if not places:
        return content
    start, stop = rng.choice(places)
    token = rng.choice(TOKENS)[: stop - start]
    return content[:start] + token.rjust(stop - start) + content[stop:]


def _lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(4)
    if what == 0:
        del lines[one : one + rng.choice([1, 1, 2, 5])]
    elif what == 1:
        lines[one:one] = [lines[one]] * rng.choice([1, 2])
    elif what == 2:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines[one] = lines[one].rstrip() + rng.choice([b"", b" ", b"\n\n", b"  \n"])
    return b"".join(lines)


def _joined(content: bytes, rng: random.Random) -> bytes:
    """Several images, or the end of the file once more."""
    return (
        content + rng.choice([b"", b"\n"]) + content[rng.choice([0, rng.randrange(len(content))]) :]
    )


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "byte": _byte,
    "bit": _bit,
    "removed": _removed,
    "inserted": _inserted,
    "cut": _cut,
    "token": _tokens,
    "token, same width": _same_width,
    "line": _lines,
    "joined": _joined,
}


def judge(path: Path, content: bytes, original: Numbers) -> str:
    """The outcome for one file."""
    path.write_bytes(content)
    try:
        found = first_reading(read_chgcar(path))
    except DensityFileError:
        return "error"
    except Exception as error:
        return f"other exception: {error!r}"
    if same(found, original):
        return "identical"
    try:
        return "as written" if same(found, second_reading(content)) else "silent"
    except Malformed:
        return "silent"


def main() -> None:
    options = _options()
    counts: dict[str, Counter[str]] = {}
    strict: Counter[str] = Counter()
    failures: list[tuple[str, str, str, bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = originals(folder)
        path = folder / "CHGCAR"
        known = {}
        for kind, content in files.items():
            path.write_bytes(content)
            known[kind] = first_reading(read_chgcar(path))
            if not same(known[kind], second_reading(content)):
                raise SystemExit(f"The two readers differ in the undamaged file {kind!r}.")
        with progress_bar("damaged files", options.files, None) as advance:
            for index in range(options.files):
                rng = random.Random(options.seed * 10**9 + index)
                kind = rng.choice(list(files))
                inner = gzip.decompress(files[kind]) if kind == "gzip" else files[kind]
                whole_file = kind == "gzip" and rng.random() < 0.5
                content = files[kind] if whole_file else inner
                damages = []
                for _ in range(rng.choice([1, 1, 1, 2, 3])):
                    label, content = damage(content or b" ", rng)
                    damages.append(label)
                if kind == "gzip" and not whole_file:
                    content = gzip.compress(content, mtime=0)
                outcome = judge(path, content, known[kind])
                label = damages[0] if len(damages) == 1 else "several"
                short = outcome.partition(":")[0]
                counts.setdefault(label, Counter())[short] += 1
                if short == "error" and _well_formed(content):
                    strict[label] += 1
                if short in ("silent", "other exception"):
                    failures.append((kind, " + ".join(damages), outcome, content))
                advance(1)
    print(table(counts, strict))
    for place, (kind, label, outcome, content) in enumerate(failures[:20]):
        print(f"{kind}, {label}: {outcome}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"CHGCAR_{place}").write_bytes(content)
    result = {
        "settings": {"files": options.files, "seed": options.seed},
        "counts": {label: {k: c[k] for k in OUTCOMES} for label, c in sorted(counts.items())},
        "refused_though_well_formed": dict(strict),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(options.output, json.dumps(result, indent=1).encode())
    write_bytes(options.output.with_suffix(".md"), table(counts, strict).encode())
    sys.exit(1 if failures else 0)


def _well_formed(content: bytes) -> bool:
    try:
        second_reading(content)
    except Malformed:
        return False
    return True


def table(counts: dict[str, Counter[str]], strict: Counter[str]) -> str:
    """Markdown table of the outcomes; the last column counts errors for well-formed files."""
    lines = [
        f"| damage | files | {' | '.join(OUTCOMES)} | refused though well-formed |",
        "| --- |" + " ---: |" * (len(OUTCOMES) + 2),
    ]
    total: Counter[str] = Counter()
    for label, found in [*sorted(counts.items()), ("all", total)]:
        if label != "all":
            total.update(found)
        cells = [sum(found.values()), *(found[outcome] for outcome in OUTCOMES)]
        refused = sum(strict.values()) if label == "all" else strict[label]
        lines.append(f"| {label} | " + " | ".join(map(str, [*cells, refused])) + " |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--files", type=int, default=20_000, help="damaged files")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=None, help="folder for files that failed")
    options.add_argument("--output", type=Path, default=RESULTS, help="results; .md beside it")
    return options.parse_args()


if __name__ == "__main__":
    main()
