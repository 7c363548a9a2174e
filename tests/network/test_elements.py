import numpy as np
import pytest

from eac_model.elements import SUBSHELLS, occupations, shell_filling


@pytest.mark.parametrize("number", range(1, 119))
def test_occupations_sum_to_the_atomic_number(number):
    assert sum(occupations(number).values()) == number


def test_occupations_agree_with_pymatgen_for_the_elements_it_tabulates():
    pymatgen = pytest.importorskip("pymatgen.core")
    compared = 0
    for number in range(1, 104):
        structure = pymatgen.Element.from_Z(number).full_electronic_structure
        reference = dict.fromkeys(SUBSHELLS, 0)
        for n, shell, electrons in structure:
            reference[f"{n}{shell}"] = electrons
        assert occupations(number) == reference, number
        compared += 1
    assert compared == 103


def test_shell_filling_lies_between_zero_and_one_and_tells_elements_apart():
    table = shell_filling(tuple(range(1, 119)))
    assert table.shape == (118, 19)
    assert table.min() == 0
    assert table.max() == 1
    assert len(np.unique(table, axis=0)) == 118


def test_an_impossible_element_is_refused():
    with pytest.raises(ValueError, match="119"):
        occupations(119)
