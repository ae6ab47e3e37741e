"""Work for worker processes: importable by name under every start method, quick to import."""

import os
import signal
import time

from utils.running.parallel import report_alive

BAD = 5
N_PARTS = 3
LARGE = 300_000


def square(number):
    return number * number


def square_or_crash(number):
    if number == BAD:
        os._exit(1)
    return number * number


def square_or_hang(number):
    if number == BAD:
        time.sleep(1000)
    return number * number


def slow_but_alive(number):
    for _ in range(40):
        time.sleep(0.1)
        report_alive()
    return number


def square_or_fail(number):
    if number == BAD:
        raise ValueError(f"{number} is not wanted")
    return number * number


def process_of(number):
    time.sleep(0.02)
    return os.getpid()


def parts(number):
    for part in range(N_PARTS):
        yield number, part


def parts_or_crash(number):
    for part in range(N_PARTS):
        if (number, part) == (BAD, 1):
            time.sleep(0.2)  # what was put before has been sent
            os._exit(1)
        yield number, part


def many_large_parts(number):
    for _ in range(1000):
        yield time.time(), bytes(LARGE)


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail_unpicklably(number):
    raise UnpicklableError("cannot be", "sent")


def large_parts_or_crash(number):
    if number == BAD:
        os._exit(1)
    for part in range(N_PARTS):
        yield number, part, bytes(LARGE)


def large_parts_or_stop(number):
    if number == BAD:
        os.kill(os.getpid(), signal.SIGSTOP)
    yield from large_parts_or_crash(-number)


def exit_at_once(*arguments):
    os._exit(1)
