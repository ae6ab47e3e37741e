"""Functions for worker processes: importable by name under every start method, quick to import."""

import os
import time

CRASHING = 5
FAILING = 7


def square(number):
    return number * number


def square_or_crash(number):
    if number == CRASHING:
        os._exit(1)
    return number * number


def square_or_fail(number):
    if number == FAILING:
        raise ValueError(f"{number} is not wanted")
    return number * number


def process_of(number):
    time.sleep(0.02)
    return os.getpid()
