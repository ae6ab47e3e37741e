import dataclasses
import json
import warnings

import numpy as np
import pytest
from scipy import stats

from tests.benchmarks.evaluating import false_verdict
from tests.utils.evaluation.test_resampling import resamples
from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils.evaluation import comparison
from utils.evaluation.comparison import Difference, McNemar, fewest_recordings, paired_comparison
from utils.evaluation.permutation import PermutationTest
from utils.metrics import ScoredSegments

FALSE_VERDICTS = 0.054  # 5 % and two standard errors of 10 000 simulations
SHORT_FALSE_VERDICTS = 0.10  # 5 % and four standard errors of 300


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def compare(a, b, labels, recording_ids, **changes):
    return paired_comparison(ScoredSegments(a, labels, CLASS_NAMES), ScoredSegments(b, labels, CLASS_NAMES),
                             resamples(recording_ids, **changes))


def test_inputs_are_not_changed_and_nothing_warns(rng):
    probabilities, labels = draw(rng, absent=(1,))
    before = probabilities.copy(), labels.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(probabilities, probabilities[:, ::-1], labels, labels)
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_mcnemar_by_hand():
    labels = np.zeros(15, dtype=int)
    right, wrong = np.eye(4)[0], np.eye(4)[1]
    a = np.array([right] * 1 + [wrong] * 9 + [right] * 5)
    b = np.array([wrong] * 1 + [right] * 9 + [right] * 5)
    result = compare(a, b, labels, np.arange(15))
    # 2 (1 + 10) / 2^10: at most one of ten discordant segments on the rarer side
    assert result.mcnemar == McNemar(only_a_correct=1, only_b_correct=9, p=pytest.approx(22 / 1024))
    assert result.differences["accuracy"].difference == pytest.approx(-8 / 15)
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_mcnemar_agrees_with_scipy(rng):
    (a, labels), (b, _) = draw(rng), draw(rng)
    found = compare(a, b, labels, np.arange(len(labels))).mcnemar
    discordant = found.only_a_correct + found.only_b_correct
    assert found.p == pytest.approx(min(1, 2 * stats.binom.cdf(min(found.only_a_correct, found.only_b_correct),
                                                               discordant, 0.5)))


def test_comparison_says_better_and_worse_by_the_stated_metric(rng):
    weak, labels = draw(rng)
    strong, recording_ids = np.eye(4)[labels], np.arange(len(labels))
    better, worse = compare(strong, weak, labels, recording_ids), compare(weak, strong, labels, recording_ids)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert (better.verdict_metric, better.confidence) == ("macro_f1", 0.95)
    assert better.n_recordings == len(labels)
    low, high = better.differences["macro_f1"].interval
    assert 0 < low < better.differences["macro_f1"].difference < high
    assert worse.differences["macro_f1"].difference == pytest.approx(-better.differences["macro_f1"].difference)
    assert better.permutation.p == pytest.approx(1 / 10_000) and not better.permutation.exact
    assert better.reason.startswith(f"swapping the models on the {better.permutation.n_differing} of 120 recordings")
    assert better.reason.endswith(", in 9,999 ways drawn at random, gives p = 0.0001, and the interval of the"
                                  " difference excludes 0")


def test_a_model_ties_with_itself_but_not_with_certainty(rng):
    probabilities, labels = draw(rng)
    result = compare(probabilities, probabilities, labels, np.arange(len(labels)))
    assert result.verdict == "no significant difference"
    assert result.reason == "a tie: the models' answers count alike on each of the 120 recordings"
    assert result.mcnemar.p == result.permutation.p == 1.0
    low, high = result.differences["macro_f1"].interval
    assert result.differences["macro_f1"].difference == 0 and -0.1 < low < 0 < high < 0.1


def test_two_recordings_are_too_few_for_a_verdict():
    labels = np.repeat([0, 1], 10)
    result = compare(np.eye(4)[labels], np.eye(4)[1 - labels], labels, labels)
    assert result.verdict == "too few recordings to tell"
    assert result.reason == ("2 recordings are too few: even if one model were better on each of them, p would be 0.5,"
                             " and 0.05 or less is asked for, which takes 6 recordings")
    assert result.differences["macro_f1"].difference == 1
    low, high = result.differences["macro_f1"].interval
    assert high - low > 0.02


def test_a_single_recording_gives_a_difference_but_no_interval(rng):
    probabilities, labels = draw(rng)
    result = compare(np.eye(4)[labels], probabilities, labels, ["only one"] * len(labels))
    assert result.verdict == "too few recordings to tell"
    assert result.differences["macro_f1"].difference > 0 and result.differences["macro_f1"].interval is None


@pytest.mark.parametrize(("confidence", "n_recordings"), [(0.95, 6), (0.9, 5), (0.99, 8), (0.5, 2), (0.75, 3)])
def test_the_fewest_recordings_are_those_that_can_be_significant(confidence, n_recordings):
    assert fewest_recordings(confidence) == n_recordings
    assert 2.0 ** (1 - n_recordings) <= 1 - confidence + EXACT < 2.0 ** (2 - n_recordings)


@pytest.mark.parametrize(("n_recordings", "verdict"), [(6, "better"), (5, "too few recordings to tell")])
def test_the_fewest_recordings_suffice_where_one_model_is_better_on_each(n_recordings, verdict):
    labels = np.arange(n_recordings).repeat(4) % 2
    wrong = np.eye(4)[2 + labels]
    assert compare(np.eye(4)[labels], wrong, labels, np.arange(n_recordings).repeat(4)).verdict == verdict


def test_a_difference_on_few_of_many_recordings_is_not_significant():
    labels = np.arange(40) % 4
    answers = np.where(np.arange(40) < 5, (labels + 1) % 4, labels)
    result = compare(np.eye(4)[labels], np.eye(4)[answers], labels, np.arange(40))
    assert (result.verdict, result.permutation.n_differing) == ("no significant difference", 5)
    assert result.reason.endswith(", in all 32 ways, gives p = 0.0625, more than the 0.05 that is asked for")


def test_test_and_interval_must_agree_on_a_verdict():
    test = PermutationTest(p=0.01, n_swaps=999, exact=False, n_differing=30)
    verdicts = {interval: comparison._verdict(Difference(0.1, interval), test, resamples(np.arange(40)))
                for interval in ((-0.01, 0.3), (0.01, 0.3), None)}
    assert [verdict for verdict, _ in verdicts.values()] == [
        "no significant difference", "better", "no significant difference"]
    assert verdicts[-0.01, 0.3][1] == ("swapping the models on the 30 of 40 recordings on which their answers differ,"
                                       " in 999 ways drawn at random, gives p = 0.01, but the interval of the"
                                       " difference includes 0")


def test_equal_models_are_seldom_told_apart():
    found = np.mean([false_verdict("varied", 4, seed) for seed in range(300)], axis=0)
    assert (found <= SHORT_FALSE_VERDICTS).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_recordings", [2, 4, 10])
def test_equal_models_are_told_apart_as_seldom_as_promised(n_recordings):
    found = np.mean([false_verdict("varied", n_recordings, seed) for seed in range(10_000)], axis=0)
    assert found[1] <= found[0] <= FALSE_VERDICTS
