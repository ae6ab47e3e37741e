from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.preparation.assignment import assign_sides

RATIOS = (0.7, 0.15, 0.15)
SHARE_TOLERANCE = 0.03  # of a hundred equal recordings of a class, three may lie elsewhere


def sides_of(seconds, *, together=None, ratios=RATIOS, random_state=42, earlier=None):
    return assign_sides(seconds, together or {name: name for name in seconds}, ratios=ratios,
                        random_state=random_state, earlier=earlier or {})


def equal(n, *classes, start=0):
    return {f"{name}{number:05}": {name: 10.0} for name in classes for number in range(start, start + n)}


def counts(sides, name):
    return Counter(side for recording, side in sides.items() if recording.startswith(name))


@pytest.mark.parametrize("ratios", [(0.7, 0.15, 0.15), (0.9, 0.05, 0.05), (0.92, 0.04, 0.04), (0.5, 0.25, 0.25),
                                    (0.8, 0.2, 0.0)])
def test_shares_are_what_was_asked_for_in_every_class(ratios):
    sides = sides_of(equal(100, "owl", "frog"), ratios=ratios)
    for name in ("owl", "frog"):
        found = counts(sides, name)
        for side, ratio in zip(("train", "val", "test"), ratios, strict=True):
            assert found[side] / 100 == pytest.approx(ratio, abs=SHARE_TOLERANCE)
            assert found[side] > 0 or ratio == 0


@pytest.mark.parametrize(("n", "expected"), [(1, ["train"]), (2, ["test", "train"]), (3, ["test", "train", "val"])])
def test_a_small_class_is_first_of_all_in_train_then_in_test(n, expected):
    assert sorted(sides_of(equal(n, "owl") | equal(20, "frog"))[f"owl{number:05}"] for number in range(n)) == expected


def test_seconds_count_and_not_recordings():
    # one recording holds half of the class: it belongs into train
    seconds = equal(30, "owl") | {"owl_day": {"owl": 300.0}}
    assert sides_of(seconds)["owl_day"] == "train"


def test_a_group_is_whole_and_its_name_decides():
    seconds = equal(40, "owl")
    together = {name: f"site{number % 8}" for number, name in enumerate(sorted(seconds))}
    sides = sides_of(seconds, together=together)
    assert all(len({sides[name] for name in seconds if together[name] == f"site{number}"}) == 1 for number in range(8))
    assert len(set(sides.values())) == 3


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 30), seed=st.integers(0, 5))
def test_every_class_is_in_train_and_no_group_on_two_sides(data, n, seed):
    classes = st.dictionaries(st.sampled_from(["owl", "frog", "1", "2", "train"]), st.integers(1, 60).map(float),
                              min_size=1, max_size=3)
    seconds = {f"r{number}": data.draw(classes) for number in range(n)}
    together = {name: f"g{data.draw(st.integers(0, 12))}" for name in seconds}
    sides = sides_of(seconds, together=together, random_state=seed)
    assert set(sides) == set(seconds) and set(sides.values()) <= {"train", "val", "test"}
    for group in set(together.values()):
        assert len({sides[name] for name in seconds if together[name] == group}) == 1
    learnt = {name for recording, side in sides.items() if side == "train" for name in seconds[recording]}
    assert learnt == {name for own in seconds.values() for name in own}


def test_the_seed_decides_and_the_order_of_recordings_does_not():
    seconds = equal(30, "owl", "frog")
    backwards = dict(reversed(seconds.items()))
    assert sides_of(seconds) == sides_of(backwards)
    assert sides_of(seconds) != sides_of(seconds, random_state=43)


@settings(max_examples=40)
@given(data=st.data(), n=st.integers(1, 25), more=st.integers(0, 25), seed=st.integers(0, 5))
def test_recordings_that_are_added_move_no_other(data, n, more, seed):
    names = [f"r{number}" for number in range(n + more)]
    seconds = {name: {data.draw(st.sampled_from(["owl", "frog", "1"])): float(data.draw(st.integers(1, 60)))}
               for name in names}
    first = sides_of({name: seconds[name] for name in names[:n]}, random_state=seed)
    second = sides_of(seconds, random_state=seed, earlier=first)
    assert {name: second[name] for name in names[:n]} == first
    assert set(second) == set(names)


def test_what_is_added_fills_what_is_missing():
    first = sides_of(equal(100, "owl"))
    second = sides_of(equal(200, "owl"), earlier=first)
    for side, ratio in zip(("train", "val", "test"), RATIOS, strict=True):
        assert counts(second, "owl")[side] / 200 == pytest.approx(ratio, abs=SHARE_TOLERANCE)


def test_a_newcomer_follows_what_it_resembles():
    first = sides_of(equal(30, "owl"))
    new = {"new": {"owl": 10.0}}
    for name, side in first.items():
        together = {other: other for other in first} | {"new": "pair", name: "pair"}
        assert sides_of(equal(30, "owl") | new, together=together, earlier=first)["new"] == side


def test_a_newcomer_between_two_sides_has_none_and_moves_nobody():
    first = sides_of(equal(30, "owl"))
    train, test = (next(name for name, side in first.items() if side == wanted) for wanted in ("train", "test"))
    together = {name: name for name in first} | {"new": "torn", train: "torn", test: "torn"}
    second = sides_of(equal(30, "owl") | {"new": {"owl": 10.0}}, together=together, earlier=first)
    assert "new" not in second and second == first


def test_a_hundred_thousand_recordings_are_all_placed_near_the_ratios():
    rng = np.random.default_rng(1)
    seconds = {f"r{number}": {f"c{rng.integers(200)}": float(rng.integers(5, 60))} for number in range(100_000)}
    sides = sides_of(seconds)
    shares = Counter(sides.values())
    assert len(sides) == 100_000
    assert shares["test"] / 100_000 == pytest.approx(0.15, abs=SHARE_TOLERANCE)
