from collections import Counter

from eac_model.training.draws import left_out, point_generator, structures_of_step


def test_draws_depend_on_seed_step_and_rank_only():
    def points(*key):
        return point_generator(*key).random(4).tolist()

    assert points(1, 10, 0) == points(1, 10, 0)
    assert (
        len({tuple(points(*key)) for key in [(1, 10, 0), (2, 10, 0), (1, 11, 0), (1, 10, 1)]}) == 4
    )
    late = structures_of_step(3, 17, n_structures=5, per_rank=2)
    early = [structures_of_step(3, step, n_structures=5, per_rank=2) for step in range(18)]
    assert early[17] == late


def test_every_structure_is_seen_equally_often_by_all_ranks_together():
    seen = Counter()
    for step in range(5):
        for rank in range(3):
            seen.update(structures_of_step(0, step, 10, per_rank=2, rank=rank, world_size=3))
    assert set(seen.values()) == {3}
    assert len(seen) == 10


def test_the_order_of_structures_changes_from_epoch_to_epoch():
    epochs = [
        tuple(structures_of_step(0, step, 8, per_rank=1)[0] for step in range(8 * e, 8 * e + 8))
        for e in range(3)
    ]
    assert len(set(epochs)) == 3


def test_left_out_structures_are_chosen_by_the_seed():
    water = [{"H", "O"}] * 100
    assert left_out(0, water, 5) == left_out(0, water, 5) != left_out(1, water, 5)
    assert len(set(left_out(0, water, 5))) == 5


def test_of_every_element_a_structure_is_not_left_out():
    elements = [{"H", "O"}, {"H"}, {"O"}, {"H", "Cl"}, {"O"}]
    for seed in range(10):
        out = left_out(seed, elements, 4)
        assert 3 not in out
        assert len(out) == 3
        rest = set().union(*(e for i, e in enumerate(elements) if i not in out))
        assert rest == {"H", "O", "Cl"}
