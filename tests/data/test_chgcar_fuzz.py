"""A short run of benchmarks/fuzz_chgcar.py, and whether it would notice anything."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymatgen.io.vasp.outputs")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_chgcar.py"
if not SCRIPT.exists():
    pytest.skip("no benchmarks beside these tests", allow_module_level=True)


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_chgcar", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(fuzz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    found = {}
    for name, content in fuzz.originals(folder).items():
        (folder / "CHGCAR").write_bytes(content)
        found[name] = content, fuzz.first_reading(fuzz.read_chgcar(folder / "CHGCAR"))
    return found


def test_both_readers_agree_on_undamaged_files_of_all_kinds(fuzz, files):
    for content, numbers in files.values():
        assert fuzz.same(numbers, fuzz.second_reading(content))
    assert len(files) == 11


@pytest.mark.parametrize("seed", range(3))
def test_no_damage_is_silent(fuzz, files, tmp_path, seed):
    rng = random.Random(seed)
    outcomes = set()
    for _ in range(100):
        content, numbers = files[rng.choice(list(files))]
        _, damaged = fuzz.damage(content, rng)
        outcome = fuzz.judge(tmp_path / "CHGCAR", damaged, numbers)
        outcomes.add(outcome)
        assert outcome in ("error", "identical", "as written"), damaged
    assert outcomes == {"error", "identical", "as written"}


def test_wrong_numbers_and_other_exceptions_are_noticed(fuzz, files, tmp_path, monkeypatch):
    content, numbers = files["paired"]
    path = tmp_path / "CHGCAR"
    read = fuzz.read_chgcar

    def shifted(path):
        sample = read(path)
        return replace(sample, density=np.roll(sample.density, 1, axis=0))

    def broken(path):
        raise ZeroDivisionError

    monkeypatch.setattr(fuzz, "read_chgcar", shifted)
    assert fuzz.judge(path, content, numbers) == "silent"
    monkeypatch.setattr(fuzz, "read_chgcar", broken)
    assert fuzz.judge(path, content, numbers).startswith("other exception: ZeroDivisionError")
    monkeypatch.setattr(fuzz, "read_chgcar", read)
    assert fuzz.judge(path, content, numbers) == "identical"
    assert fuzz.judge(path, content.replace(b"E+0", b"E+1", 1), numbers) == "as written"
