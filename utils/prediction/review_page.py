"""The review: one HTML page on which a person hears detections and says what they are, and that hands back labels."""

import contextlib
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from models.efficientnet_config import BACKGROUND_CLASS
from utils.audio.annotations import DECISION_COLUMNS
from utils.pages import DARK_CSS, Markup, data_block, element, streamed_document, table
from utils.prediction.outputs import ResultsHead
from utils.prediction.review_choice import ReviewChoice, ReviewItem
from utils.prediction.review_clips import FINE, SMALL, ClipJob, ClipMaker
from utils.running.parallel import Done, Executor, Lost
from utils.running.progress import progress
from utils.storage.files import atomic_path
from utils.storage.names import name_to_text

logger = logging.getLogger(__name__)

_MOST_FINE = 600  # clips: with more of them they are smaller, so that a page stays below 60 MB
_CSS, _SCRIPT = (Path(__file__).with_suffix(ending).read_text(encoding="utf-8") for ending in (".css", ".js"))
_BODY = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")


@contextlib.contextmanager
def review_page(path: Path, head: ResultsHead, *, executor: Executor, suggested: Iterable[ReviewItem] = ()
                ) -> Iterator[ReviewChoice]:
    """Give a writer of results; when the block succeeds, the page is written piece by piece, so that none holds it.

    Parameters
    ----------
    path : Path
        HTML file to write, below 60 MB.
    head : ResultsHead
        What is known of the run.
    executor : Executor
        Where clips are made.
    suggested : iterable of ReviewItem
        What comes first, with its reason.

    Yields
    ------
    ReviewChoice
        To be fed.
    """
    choice = ReviewChoice(head, suggested=suggested)
    yield choice
    items = choice.shown()
    maker = ClipMaker(FINE if len(items) <= _MOST_FINE else SMALL, head.sample_rate, head.low_hertz, head.high_hertz)
    n_found = choice.n_found.total()
    n_left_out = n_found - sum(not item.reason for item in items)
    if n_left_out:
        logger.info("%s shows %d of %d detections: of each class, site and day the most confident ones", path,
                    n_found - n_left_out, n_found)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
        parts = _parts(path, items, choice, maker, executor, n_left_out=n_left_out)
        stream.writelines(streamed_document("NightScan review", parts, css=DARK_CSS + _CSS,
                                            script=_SCRIPT if items else ""))


def _parts(path: Path, items: Sequence[ReviewItem], choice: ReviewChoice, maker: ClipMaker, executor: Executor, *,
           n_left_out: int) -> Iterator[str]:
    yield element("p", _summary(items))
    if n_left_out:
        yield from _left_out(items, choice.n_found, n_left_out)
    if not items:
        return
    yield Markup(_BODY)
    yield element("p", _clips_note(maker), kind="note")
    yield data_block("review", _facts(path, items, choice.head, maker))
    for number, clip in progress(_clips(items, maker, executor), total=len(items), description="preparing the review",
                                 unit="detection"):
        yield data_block(f"clip-{number}", clip)


def _summary(items: Sequence[ReviewItem]) -> str:
    if not items:
        return "Nothing was found that could be reviewed."
    n_suggested = sum(bool(item.reason) for item in items)
    days = sorted({item.recorded_at[:10] for item in items} - {""})
    what = [_counted(number, name) for number, name in ((n_suggested, "suggested segment"),
                                                        (len(items) - n_suggested, "detection")) if number]
    when = f", {days[0]} to {days[-1]}" if len(days) > 1 else f", {days[0]}" if days else ""
    return (f"{' and '.join(what)} in {_counted(len({item.recording for item in items}), 'recording')}{when}. Confirm,"
            f" reject or relabel each: the decisions that you download are labels for preprocess_enhanced.py"
            f" --annotations.")


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _left_out(items: Sequence[ReviewItem], n_found: Counter[str], n_left_out: int) -> Iterator[Markup]:
    n_shown = Counter(item.model_class for item in items if not item.reason)
    yield element("p", f"{n_left_out:,} of {n_found.total():,} detections are not on this page. Classes take turns,"
                       f" and in a class its sites and days, the most confident detection of each first.", kind="note")
    rows = [[name, f"{number:,}", f"{n_shown[name]:,}"] for name, number in n_found.most_common()]
    yield Markup(f"<details>{element('summary', 'How many of each class')}"
                 f"{table(['Class', 'Found', 'On this page'], rows)}</details>")


def _clips_note(maker: ClipMaker) -> str:
    slowed = f" Sounds are played {maker.slowed} times slower." if maker.slowed > 1 else ""
    return (f"Pictures: kHz upwards, seconds to the right, the brighter the louder; the frame marks a detection that is"
            f" shown with what surrounds it. Of one that is longer than {maker.seconds:g} seconds you see and hear the"
            f" liveliest {maker.seconds:g} of its first half minute. Sounds are compressed and made equally loud."
            f"{slowed}")


def _facts(path: Path, items: Sequence[ReviewItem], head: ResultsHead, maker: ClipMaker) -> dict[str, Any]:
    """Return what the page's script is told of the detections, but for their clips."""
    model = head.content.get("model", {}).get("sha256", "")
    return {"store": hashlib.sha256(model.encode()).hexdigest()[:16], "saved_as": f"{path.stem}.decisions.csv",
            "columns": DECISION_COLUMNS, "classes": head.class_names, "background": BACKGROUND_CLASS,
            "ticks": maker.ticks,
            "items": [{"file": name_to_text(item.recording), "start": item.start_seconds, "end": item.end_seconds,
                       "name": item.model_class, "confidence": item.confidence, "time": item.recorded_at,
                       "reason": item.reason} for item in items]}


def _clips(items: Sequence[ReviewItem], maker: ClipMaker, executor: Executor) -> Iterator[tuple[int, dict]]:
    """Yield the number of each item and its clip, recording by recording."""
    waiting: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        waiting[item.recording].append(number)
    jobs = [ClipJob(name, tuple(numbers), tuple((items[number].start_seconds, items[number].end_seconds)
                                                for number in numbers)) for name, numbers in waiting.items()]
    for job, part in executor.stream(maker, jobs, in_order=True):
        if isinstance(part, Lost):
            for number in waiting[job.path]:
                yield number, {"problem": part.told_of(name_to_text(job.path))}
        elif not isinstance(part, Done):
            waiting[job.path].remove(part[0])
            yield part
