import itertools

import numpy as np
import pytest

from tests.utils.test_metrics import CLASS_NAMES
from utils.evaluation.permutation import PermutationTest, permutation_test
from utils.evaluation.recordings import recording_groups
from utils.metrics import ScoredSegments, evaluate_segments

DRAWING_ERROR = 0.02  # four standard errors of a p near 1/2 from 9999 swaps


def models_of(labels, *answers):
    return [ScoredSegments(np.eye(4)[answer], labels, CLASS_NAMES) for answer in answers]


def draw_models(rng, n_recordings, *, n_segments=40):
    ids = np.sort(np.concatenate([np.arange(n_recordings),
                                  rng.integers(0, n_recordings, size=n_segments - n_recordings)]))
    labels = (ids % 4).astype(int)
    answers = [np.where(rng.random(n_segments) < rate, labels, rng.integers(0, 4, size=n_segments))
               for rate in (0.8, 0.5)]
    return models_of(labels, *answers), recording_groups(ids)[1]


def test_the_exact_test_is_that_of_all_swaps_written_out():
    (a, b), groups = draw_models(np.random.default_rng(4), 7)
    found = abs(evaluate_segments(a)["macro_f1"] - evaluate_segments(b)["macro_f1"])
    n_extreme = 0
    for swapped in itertools.product([False, True], repeat=7):
        rows = np.array(swapped)[groups.index, None]
        swapped_models = (ScoredSegments(np.where(rows, *pair), a.labels, CLASS_NAMES) for pair in (
            (b.probabilities, a.probabilities), (a.probabilities, b.probabilities)))
        first, second = (evaluate_segments(model)["macro_f1"] for model in swapped_models)
        n_extreme += abs(first - second) >= found - 1e-9
    test = permutation_test(a, b, groups, seed=0)
    assert test.exact and test.p == pytest.approx(n_extreme / 2 ** 7)


def test_drawn_swaps_come_near_the_exact_test():
    (a, b), groups = draw_models(np.random.default_rng(8), 12)
    exact = permutation_test(a, b, groups, seed=0)
    n_all = 2 ** exact.n_differing
    assert exact.exact and exact.n_swaps == n_all == permutation_test(a, b, groups, seed=0, n_swaps=n_all - 1).n_swaps
    drawn = permutation_test(a, b, groups, seed=0, n_swaps=n_all - 2)
    assert (drawn.exact, drawn.n_swaps) == (False, n_all - 2)
    assert drawn.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p / n_all))  # four standard errors


def test_a_clear_difference_gives_the_smallest_p_that_drawn_swaps_can_give():
    labels = np.arange(200) % 4
    a, b = models_of(labels, labels, (labels + 1) % 4)
    assert permutation_test(a, b, recording_groups(np.arange(200))[1], seed=0, n_swaps=999) == PermutationTest(
        p=1 / 1000, n_swaps=999, exact=False, n_differing=200)


def test_recordings_on_which_the_models_count_alike_are_not_swapped():
    labels = np.array([0, 0, 1, 1, 2, 3])
    answers = [np.array([0, 1, 1, 1, 2, 3]), np.array([1, 0, 1, 1, 2, 2])]  # the first two change places
    test = permutation_test(*models_of(labels, *answers), recording_groups([0, 0, 1, 1, 2, 3])[1], seed=0)
    assert test == PermutationTest(p=1.0, n_swaps=2, exact=True, n_differing=1)


def test_errors_of_different_kinds_are_swapped_too():
    labels = np.array([0, 1, 2, 0])
    answers = [np.array([0, 1, 2, 1]), np.array([0, 1, 2, 3])]  # a false 1 costs precision, class 3 does not occur
    test = permutation_test(*models_of(labels, *answers), recording_groups(np.arange(4))[1], seed=0)
    assert test == PermutationTest(p=1.0, n_swaps=2, exact=True, n_differing=1)


def test_equal_models_are_a_tie():
    labels = np.arange(40) % 4
    test = permutation_test(*models_of(labels, labels, labels), recording_groups(labels)[1], seed=0)
    assert test == PermutationTest(p=1.0, n_swaps=1, exact=True, n_differing=0)


def test_the_order_of_rows_does_not_matter_and_the_seed_repeats():
    (a, b), groups = draw_models(np.random.default_rng(2), 30, n_segments=90)
    order = np.random.default_rng(0).permutation(90)
    shuffled = [ScoredSegments(model.probabilities[order], model.labels[order], CLASS_NAMES) for model in (a, b)]
    first = permutation_test(a, b, groups, seed=5)
    assert not first.exact
    assert permutation_test(*shuffled, recording_groups(groups.index[order])[1], seed=5) == first
    assert permutation_test(a, b, groups, seed=6).p == pytest.approx(first.p, abs=DRAWING_ERROR)
    assert permutation_test(b, a, groups, seed=5).p == pytest.approx(first.p, abs=DRAWING_ERROR)
