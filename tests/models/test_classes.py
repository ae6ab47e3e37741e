import numpy as np
import pytest

from models.classes import NO_ANSWER, ClassList, Decision, DecisionRules
from models.efficientnet_config import DEFAULT_CLASS_NAMES
from models.errors import ConfigError, ManifestError

RULES = DecisionRules({"owl": 0.7, "fox": 0.5, "other": 0.3}, reject_class="other")


# the order of classes

def test_default_classes_stand_in_readme_order_others_alphabetically():
    assert ClassList.from_labels(reversed(DEFAULT_CLASS_NAMES)).names == DEFAULT_CLASS_NAMES
    assert ClassList.from_labels(["insect_sound", "bird_song", "insect_sound"]).names == ("bird_song", "insect_sound")
    assert ClassList.from_labels(["mammal_call", "zebra", "bird_song"]).names == ("bird_song", "mammal_call", "zebra")


def test_class_list_finds_indices_and_refuses_nonsense():
    classes = ClassList(("owl", "fox"))
    assert (len(classes), classes.index("fox")) == (2, 1)
    with pytest.raises(ManifestError, match="unknown class 'wolf': the classes are owl, fox"):
        classes.index("wolf")
    with pytest.raises(ConfigError, match="class names must differ, got owl, owl"):
        ClassList(("owl", "owl"))
    with pytest.raises(ConfigError, match="must not be empty"):
        ClassList(("owl", " "))


# what a row of probabilities means

@pytest.mark.parametrize(("owl", "fox", "other", "expected"), [
    (0.75, 0.05, 0.2, Decision("owl", 0.75, True, "owl", 0.75)),
    (0.7, 0.1, 0.2, Decision("owl", 0.7, True, "owl", 0.7)),  # at its threshold
    (0.69, 0.11, 0.2, Decision("other", 0.2, False, "owl", 0.69)),
    (0.1, 0.55, 0.35, Decision("fox", 0.55, True, "fox", 0.55)),
    (0.48, 0.0, 0.52, Decision("other", 0.52, True, "other", 0.52)),
    (0.36, 0.35, 0.29, Decision("other", 0.29, False, "owl", 0.36)),
])
def test_the_top_class_counts_where_it_reaches_its_threshold(owl, fox, other, expected):
    assert RULES.decide({"owl": owl, "fox": fox, "other": other}) == expected


def test_the_second_class_is_not_taken_in_place_of_a_top_class_that_fails():
    decision = RULES.decide({"owl": 0.48, "fox": 0.5 - 0.01, "other": 0.03})
    assert (decision.top_class, decision.predicted_class) == ("fox", "other")
    decision = DecisionRules({"owl": 0.7, "fox": 0.2}, "other").decide({"owl": 0.6, "fox": 0.4})
    assert (decision.top_class, decision.predicted_class) == ("owl", "other")


def test_a_reject_class_that_the_model_lacks_has_no_probability():
    rules = DecisionRules({"owl": 0.7, "fox": 0.7}, reject_class="unknown_species")
    assert rules.decide({"owl": 0.6, "fox": 0.4}) == Decision("unknown_species", 0.0, False, "owl", 0.6)


@pytest.mark.parametrize("names", [("owl", "fox"), ("fox", "owl")])
def test_of_equal_classes_the_first_is_on_top(names):
    decision = DecisionRules({"owl": 0.5, "fox": 0.5}, "other").decide(dict.fromkeys(names, 0.5))
    assert decision == Decision(names[0], 0.5, True, names[0], 0.5)


def test_many_rows_are_decided_as_one_is(rng):
    names = ("fox", "other", "owl")
    probabilities = np.round(rng.dirichlet(np.ones(3), size=200), 1)  # rounded: some are equal, some at a threshold
    found = RULES.answers(probabilities, names)
    decided = [RULES.decide(dict(zip(names, row))).predicted_class for row in probabilities]
    assert [names[answer] if answer != NO_ANSWER else "other" for answer in found] == decided
    assert {NO_ANSWER, 0, 2} == set(found)
