"""Tests with drawn examples depend neither on chance nor on how busy the machine is; ``conftest`` sees to it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LONGER_SECONDS = 0.3  # than Hypothesis lets an example take by itself


@given(st.just(LONGER_SECONDS))
def test_an_example_may_take_its_time(seconds):
    time.sleep(seconds)


@pytest.mark.skipif(settings.get_current_profile_name() != "project", reason="another profile was asked for")
def test_the_same_examples_are_drawn_every_time():
    def drawn():
        found = []

        @given(st.integers())
        def keep(number):
            found.append(number)

        keep()
        return found
    assert drawn() == drawn() and len(set(drawn())) > 10
