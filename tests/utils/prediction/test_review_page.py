import base64
import hashlib
import json
import logging
import re
import tracemalloc
from html.parser import HTMLParser

import numpy as np
import pytest

from models.efficientnet_config import BACKGROUND_CLASS
from scripts import predict_efficientnet
from tests.conftest import TINY_RATE, tiny_sound, write_audio
from tests.utils.prediction.conftest import predictor_of
from tests.utils.prediction.test_outputs import CLASSES, RECORDER, SEGMENTS, failed, feed, head_of, scored
from utils.audio.annotations import DECISION_COLUMNS
from utils.prediction import review_choice
from utils.prediction.review_choice import ReviewItem
from utils.prediction.review_page import review_page
from utils.prediction.run import OutputSettings, find_inputs, predict_to_files
from utils.running.cli import EXIT_USAGE
from utils.running.parallel import Done, Lost, ThisProcess

HOSTILE = "</script><script>alert('run')</script>"
HEAD = {"format_version": 1, "model": {"sha256": "0" * 64}, "summary": {}}


class OneClip:
    """An executor that makes the first clip and gives it for all others, so that many cost no time."""

    def __init__(self, clip=None):
        self.clip = clip

    def stream(self, work, items, *, in_order):
        for job in items:
            if self.clip is None:
                _, self.clip = next(iter(work(job)))
            for number in job.numbers:
                yield job, (number, self.clip)
            yield job, Done()


class Page(HTMLParser):
    """What stands in a page: its elements, the text that is seen, and the script and the data."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.data, self.scripts, self.text, self._block = [], {}, [], [], None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.clips = {int(name[5:]): clip for name, clip in self.data.items() if name.startswith("clip-")}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._block = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._block = None

    def handle_data(self, data):
        tag, attributes = self._block or ("", {})
        if tag == "script" and "type" in attributes:
            self.data[attributes["id"]] = json.loads(data)
        elif tag == "script":
            self.scripts.append(data)
        elif not tag:
            self.text.append(data)


def write_review(path, recordings, *, executor=None, suggested=(), settings=SEGMENTS, class_names=CLASSES):
    head = head_of(settings, content=HEAD)
    with review_page(path, head, executor=executor or ThisProcess(), suggested=suggested) as writer:
        feed(writer, recordings, settings)
    return path


def night(folder, name, *owl, recorder=RECORDER, seed=1):
    """Write a recording of noise and return its scores: of each second, the probability of an owl."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal(len(owl) * TINY_RATE)
    return scored(write_audio(folder / name, noise), *owl, recorder=recorder)


def test_the_page_holds_each_detection_its_picture_and_its_sound(tmp_path):
    recordings = [night(tmp_path, "a.wav", 0.9, 0.5, 0.2), failed(tmp_path / "b.wav"), night(tmp_path, "c.wav", 0.75)]
    page = Page(write_review(tmp_path / "night.html", recordings))
    facts = page.data["review"]
    assert [(item["file"], item["start"], item["end"], item["name"], item["reason"]) for item in facts["items"]] == [
        (str(tmp_path / "a.wav"), 0.0, 1.0, "owl", ""), (str(tmp_path / "c.wav"), 0.0, 1.0, "owl", ""),
        (str(tmp_path / "a.wav"), 2.0, 3.0, "fox", "")]
    assert [item["time"] for item in facts["items"]] == [
        "2024-05-01T20:00:00+02:00", "2024-05-01T20:00:00+02:00", "2024-05-01T20:00:02+02:00"]
    assert (tuple(facts["columns"]), facts["classes"], facts["background"], facts["saved_as"]) == (
        DECISION_COLUMNS, list(CLASSES), BACKGROUND_CLASS, "night.decisions.csv")
    assert sorted(page.clips) == [0, 1, 2]
    for clip in page.clips.values():
        assert set(clip) == {"start", "seconds", "picture", "sound"}
    assert "3 detections in 2 recordings, 2024-05-01." in " ".join(page.text)


def test_a_browser_may_run_one_script_and_load_nothing(tmp_path):
    page = Page(write_review(tmp_path / "review.html", [night(tmp_path, "a.wav", 0.9)]))
    script, = page.scripts
    policy, = (attributes["content"] for tag, attributes in page.tags
               if attributes.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy
    assert not [attributes for _, attributes in page.tags if attributes.get("src") or attributes.get("href")]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.source)


def test_names_of_strangers_stay_text(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.utils.prediction.test_outputs.CLASSES", (HOSTILE, "fox"))
    recording = night(tmp_path, "a.wav", 0.9, 0.1)
    suggested = [ReviewItem(recording=HOSTILE, start_seconds=0.0, end_seconds=1.0, model_class=HOSTILE, confidence=0.5,
                            reason=HOSTILE)]
    page = Page(write_review(tmp_path / "review.html", [recording], suggested=suggested))
    assert len(page.scripts) == 1 and HOSTILE not in page.source
    items = page.data["review"]["items"]
    assert [(item["file"], item["name"], item["reason"]) for item in items[:1]] == [(HOSTILE, HOSTILE, HOSTILE)]
    assert [item["name"] for item in items[1:]] == [HOSTILE, "fox"]
    assert HOSTILE in page.clips[0]["problem"]


def test_pages_of_one_model_share_what_a_browser_keeps_of_them(tmp_path):
    recordings = [night(tmp_path, "a.wav", 0.9)]
    one, other = (Page(write_review(tmp_path / name, recordings)) for name in ("one.html", "other.html"))
    assert one.data["review"]["store"] == other.data["review"]["store"]
    HEAD["model"]["sha256"], before = "1" * 64, HEAD["model"]["sha256"]
    try:
        changed = Page(write_review(tmp_path / "changed.html", recordings))
    finally:
        HEAD["model"]["sha256"] = before
    assert changed.data["review"]["store"] != one.data["review"]["store"]


def test_nothing_found_is_said(tmp_path):
    page = Page(write_review(tmp_path / "review.html", [night(tmp_path, "a.wav", 0.5), failed("b.wav")]))
    assert "Nothing was found that could be reviewed." in " ".join(page.text)
    assert page.data == {} and page.scripts == []


def test_what_is_left_out_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(review_choice, "MOST_SHOWN", 4)
    monkeypatch.setattr(review_choice.ReviewChoice.__init__, "__kwdefaults__", {"suggested": (), "most": 4})
    caplog.set_level(logging.INFO, "utils.prediction.review_page")
    page = Page(write_review(tmp_path / "review.html", [night(tmp_path, "a.wav", *[0.9] * 9, 0.1)]))
    text = " ".join(" ".join(page.text).split())
    assert "6 of 10 detections are not on this page." in text
    assert "owl 9 3 fox 1 1" in text
    assert [item["name"] for item in page.data["review"]["items"]] == ["owl", "owl", "owl", "fox"]
    assert "shows 4 of 10 detections" in caplog.text


def test_a_detection_whose_worker_is_lost_is_there_without_its_sound(tmp_path):
    class Dying(OneClip):
        def stream(self, work, items, *, in_order):
            job, other = items
            yield job, next(iter(work(job)))
            yield job, Lost(hung=False, reason="the worker died")
            yield other, Lost(hung=True, reason="no block was read for 120 s")

    recordings = [night(tmp_path, "a.wav", 0.9, 0.9), night(tmp_path, "b.wav", 0.9)]
    page = Page(write_review(tmp_path / "review.html", recordings, executor=Dying()))
    assert len(page.data["review"]["items"]) == len(page.clips) == 3
    assert "sound" in page.clips[0]
    assert "b.wav could not be read: no block was read" in page.clips[1]["problem"]
    assert "a.wav could not be read: the worker died" in page.clips[2]["problem"]


def test_a_page_that_fails_half_way_leaves_the_old_one(tmp_path):
    class Failing(OneClip):
        def stream(self, work, items, *, in_order):
            yield items[0], next(iter(work(items[0])))
            raise KeyboardInterrupt

    path = tmp_path / "review.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt, match="^$"):
        write_review(path, [night(tmp_path, "a.wav", 0.9, 0.9)], executor=Failing())
    assert path.read_text(encoding="utf-8") == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.wav", "review.html"]


def test_clips_are_written_as_they_come(tmp_path):
    recordings, executor = [night(tmp_path, "a.wav", *[0.9] * 700)], OneClip()
    write_review(tmp_path / "review.html", recordings[:1], executor=executor)  # what is made once and kept
    tracemalloc.start()
    try:
        path = write_review(tmp_path / "review.html", recordings, executor=executor)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 8e6 > 2 * peak


def test_the_page_needs_results_beside_it(tmp_path, capsys):
    arguments = ["--model_path", "m.pth", "--input", str(tmp_path), "--review", str(tmp_path / "review.html")]
    assert predict_efficientnet.main(arguments) == EXIT_USAGE
    assert "give --output for" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_predicting_writes_the_page_and_suggestions_come_first(tmp_path, tiny_model, rng):
    for name in ("bird_song", "mammal_call"):
        write_audio(tmp_path / "audio" / f"{name}.wav", tiny_sound(name, seconds=3.0, rng=rng))
    predictor = predictor_of(tiny_model.best, segment_mode=True, use_thresholds=False, with_embeddings=True)
    settings = OutputSettings(output=tmp_path / "results.json", n_suggested=2,
                              review=tmp_path / "pages" / "review.html")
    result = predict_to_files(predictor, find_inputs([tmp_path / "audio"]), settings, executor=ThisProcess())
    assert result.written[-1] == settings.review
    page = Page(settings.review)
    items = page.data["review"]["items"]
    assert [bool(item["reason"]) for item in items] == [True] * 2 + [False] * 4
    assert len({(item["file"], item["start"]) for item in items}) == 6 and len(page.clips) == 6
    assert "2 suggested segments and 4 detections in 2 recordings." in " ".join(page.text)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["predictions"]
    told = {(record["file_path"], record["segment_start_ms"] / 1000): (record["predicted_class"], record["confidence"])
            for record in results}
    assert {(item["file"], item["start"]): (item["name"], item["confidence"]) for item in items} == told
