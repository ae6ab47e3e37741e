"""Work for worker processes: importable by name under every start method, quick to import."""

import os
import signal
import threading
import time

from utils.running.parallel import Further, report_alive

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
    for _ in range(100):
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
            time.sleep(1)  # what was put before has been sent
            os._exit(1)
        yield number, part


def many_large_parts(made):
    for _ in range(1000):
        with open(made, "ab") as stream:  # a byte for each
            stream.write(b".")
        yield bytes(LARGE)


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")
        self.lock = threading.Lock()


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


# work that hands out more work

def halves(item):
    """Give the numbers of a range, each from an item of its own: ranges are halved and handed out."""
    first, end = item
    yield "begun", item
    if end - first > 1:
        middle = (first + end) // 2
        yield Further(((first, middle), (middle, end)))
    else:
        yield "number", first
    yield "over", item


def spans(item):
    """Hand out the parts of a number, then go on with the number itself."""
    if isinstance(item, int):
        yield item, "first"
        yield Further(tuple((item, part) for part in range(N_PARTS)))
        yield item, "last"
    else:
        time.sleep(0.02)  # so that no worker does all of them
        yield item, os.getpid()


def spans_or_crash(item):
    """Like ``spans``, but one number ends its worker after its parts were handed out."""
    for part in spans(item):
        yield part
        if item == BAD and isinstance(part, Further):
            time.sleep(1)  # what was put before has been sent
            os._exit(1)


def large_spans_or_crash(item):
    """Hand out first, then give parts that fill the pipe; a later number ends the worker."""
    if item == BAD:
        os._exit(1)
    if isinstance(item, int):
        yield Further(((item, "further"),))
        for part in range(N_PARTS):
            yield item, part, bytes(LARGE)
    else:
        yield item


def nothing_further(number):
    yield Further(())
    yield number
    yield Further(())


def part_and_hang(number):
    yield number
    time.sleep(1000)
