import base64
import html
import io
import math
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import soundfile

from models.errors import AudioError, ManifestError
from tests.utils.preparation.test_audit import file_row, label_row
from utils.audio.recordings import RecordingReader
from utils.examples import read_example
from utils.pages import SCRIPT
from utils.preparation import audit_page
from utils.preparation.audit import audit
from utils.preparation.audit_page import write_audit_page
from utils.preparation.confounds import COLUMNS, measure_confounds
from utils.preparation.findings import Finding

RATE = 16_000
HOSTILE = "<script>alert(\"x\")</script>'"
STEP_SECONDS = 0.01  # in which the loudest place is searched
LOSSY_SECONDS = 0.1  # that MP3 adds at the ends
NO_CONFOUNDS = pd.DataFrame(columns=list(COLUMNS))


def write_wav(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def tone(seconds, *, hertz=1000, rate=RATE, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def recordings(tmp_path):
    for name in ("bird/a.wav", "frog/b.wav"):
        write_wav(tmp_path / "audio" / name, tone(2.0))
    (tmp_path / "audio" / "frog" / "broken.wav").write_bytes(b"no sound")
    return tmp_path / "audio"


@pytest.fixture
def tables():
    facts = {"sample_rate": RATE, "duration_seconds": 90.0}
    files = [file_row("bird/a.wav", **facts), file_row("frog/b.wav", rms_dbfs=-20.0, **facts),
             file_row("frog/broken.wav", status="corrupt", reason=f"{HOSTILE} is no WAV", duration_seconds=None)]
    labels = [label_row("bird/a.wav", "bird", 0.5), label_row("frog/b.wav", HOSTILE), label_row("frog/broken.wav")]
    return pd.DataFrame(files), pd.DataFrame(labels)


def write_page(tmp_path, recordings, tables, findings, *, confounds=NO_CONFOUNDS, examples=12):
    path = tmp_path / "audit.html"
    write_audit_page(path, findings=findings, files=tables[0], labels=tables[1], confounds=confounds,
                     input_dir=recordings, examples=examples)
    return path.read_text(encoding="utf-8")


def visible_text(page):
    body = page.split("</style>")[1].partition("<script")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def finding(*paths, severity="warning", message="something in them"):
    return Finding(code="near_duplicate_within", severity=severity, message=message, paths=paths, value=1.0)


def test_page_tells_summary_classes_findings_and_reasons(tmp_path, recordings, tables):
    text = visible_text(write_page(tmp_path, recordings, tables, [
        finding("bird/a.wav", "frog/b.wav", severity="error"), finding(message="less, so lower --f_max"), finding()]))
    assert "3 recordings, 3.0 minutes, 2 classes: 1 error and 2 warnings." in text
    assert "1 recording cannot be used; the reasons are below. Begin with this error: something in them." in text
    # class, recordings, labelled minutes, groups, kHz, dBFS
    assert "bird 1 1.5 1 16 -30.0 " in text and f"{HOSTILE} 1 1.5 1 16 -20.0 " in text
    assert "error near duplicate within Something in them. 2 of 2 recordings" in text
    assert "warning near duplicate within Less, so lower --f_max ." in text
    assert f"frog/broken.wav corrupt {HOSTILE} is no WAV" in text


def test_examples_can_be_seen_and_heard(tmp_path, recordings, tables):
    page = write_page(tmp_path, recordings, tables, [finding("bird/a.wav", "frog/b.wav")])
    assert 'alt="Spectrogram of bird/a.wav"' in page and 'aria-label="Sound of bird/a.wav"' in page
    assert "bird/a.wav (bird), 1.5 s from 0.5 s" in visible_text(page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    sounds = re.findall(r'<audio controls [^>]*src="data:audio/mpeg;base64,([^"]+)"', page)
    assert len(pictures) == len(sounds) == 2
    assert matplotlib.image.imread(io.BytesIO(base64.b64decode(pictures[0]))).shape[:2] == (150, 320)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert len(samples) / rate == pytest.approx(1.5, abs=LOSSY_SECONDS)
    assert np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples) == pytest.approx(1000, abs=2)


def test_page_stands_alone_and_trusts_no_text(tmp_path, recordings, tables):
    odd = f"bird/{HOSTILE.replace('/', '')}.wav"
    confounds = pd.DataFrame([{"property": "site", "balanced_accuracy": 1.0, "chance": 0.5, "null_limit": 0.6,
                               "predictive": True, "example": HOSTILE, "advice": HOSTILE}])
    page = write_page(tmp_path, recordings, tables, [finding("bird/a.wav", odd, message=HOSTILE)],
                      confounds=confounds)
    assert page.count("<script") == 1 and SCRIPT in page and page.count(html.escape(HOSTILE)) >= 5
    assert not re.search(r"(https?:)?//[a-z]|<link|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    for tag in ("table", "tr", "td", "th", "div", "p", "section", "details", "figure", "figcaption", "svg", "audio"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>") > 0, tag


def test_what_cannot_be_read_is_told_in_words(tmp_path, recordings, tables):
    page = write_page(tmp_path, recordings, tables, [finding("frog/broken.wav", "../outside.wav", "bird/gone.wav")])
    text = visible_text(page)
    assert "frog/broken.wav (frog): " in text and "broken.wav holds no audio" in text
    assert "'../outside.wav' is outside" in text and "gone.wav cannot be opened" in text
    assert "<audio" not in page


def test_examples_are_as_many_as_asked_for(tmp_path, recordings, tables):
    page = write_page(tmp_path, recordings, tables, [finding("bird/a.wav", "frog/b.wav")], examples=1)
    assert page.count("<audio") == 1 and "1 of 2 recordings" in visible_text(page)
    assert "<audio" not in write_page(tmp_path, recordings, tables, [finding("bird/a.wav")], examples=0)


@pytest.mark.parametrize("bound", ["_MOST_BYTES", "_MOST_EXAMPLES"])
def test_a_page_that_is_full_says_so(tmp_path, recordings, tables, bound, monkeypatch):
    monkeypatch.setattr(audit_page, bound, 1)
    page = write_page(tmp_path, recordings, tables, [finding("bird/a.wav", "frog/b.wav")])
    assert page.count("<audio") == 1 and "not shown, the page is full" in page


def test_errors_are_unfolded_and_the_rest_folded(tmp_path, recordings, tables):
    page = write_page(tmp_path, recordings, tables, [finding("bird/a.wav", severity="error"), finding("bird/a.wav")])
    assert page.count("<details open>") == 1 and page.count("<details>") == 1


def test_confounds_are_drawn_to_scale(tmp_path, recordings, tables):
    rows = [{"property": "duration", "balanced_accuracy": 0.75, "chance": 0.5, "null_limit": 0.6, "predictive": True,
             "example": "most birds are short", "advice": "cut"},
            {"property": "level", "balanced_accuracy": 0.5, "chance": 0.5, "null_limit": 0.6, "predictive": False,
             "example": "as many", "advice": "raise"}]
    page = write_page(tmp_path, recordings, tables, [], confounds=pd.DataFrame(rows))
    assert "duration 75% 50% 60% most birds are short level 50% 50% 60% as many" in visible_text(page)
    assert 'class="told" y="3" width="90.0"' in page and 'class="untold" y="3" width="60.0"' in page
    assert page.count('d="M60.0 0V16"') == 2 and page.count('d="M72.0 0V16"') == 2  # of 120
    assert 'aria-label="75%, more than chance explains"' in page


def test_a_page_of_nothing_says_so(tmp_path, recordings, tables):
    text = visible_text(write_page(tmp_path, recordings, [table.iloc[:0] for table in tables], []))
    assert "0 recordings, 0.0 minutes, 0 classes: nothing was found." in text
    assert "Nothing could be measured" in text and "left out" not in text


def test_a_long_list_of_reasons_is_cut_and_counted(tmp_path, recordings):
    files = pd.DataFrame([file_row(f"{number:03}.wav", status="empty") for number in range(201)])
    text = visible_text(write_page(tmp_path, recordings, (files, pd.DataFrame([label_row("000.wav", "bird")])), []))
    assert "199.wav empty" in text and "200.wav" not in text
    assert "The first 200 of 201 recordings; files.csv" in text


def test_an_example_is_the_loudest_of_what_follows_its_label(tmp_path):
    quiet, loud = tone(40.0, peak=0.01), tone(6.0)
    quiet[12 * RATE:18 * RATE] = loud
    write_wav(tmp_path / "night.wav", quiet)
    example = read_example(tmp_path, "night.wav", sample_rate=RATE, start_seconds=2.0)
    assert example.start_seconds == pytest.approx(12.0, abs=STEP_SECONDS) and example.seconds == 6.0
    later = read_example(tmp_path, "night.wav", sample_rate=RATE, start_seconds=37.0)
    assert (later.start_seconds, later.seconds) == (37.0, 3.0)


def test_only_the_seconds_that_are_searched_are_decoded(tmp_path, monkeypatch):
    write_wav(tmp_path / "night.wav", tone(120.0))
    decoded = []

    def counting(*arguments, **named):
        reader = RecordingReader(*arguments, **named)
        reader.examine = lambda block: decoded.append(len(block))
        return reader

    monkeypatch.setattr("utils.examples.RecordingReader", counting)
    read_example(tmp_path, "night.wav", sample_rate=RATE, start_seconds=60.0)
    assert 30 <= sum(decoded) / RATE < 35  # a block more at most


@pytest.mark.parametrize(("rate", "seconds"), [(500, 5.0), (8000, 0.06), (384_000, 0.5), (44_100, 0.2)])
def test_examples_of_any_rate_and_length_are_drawn(tmp_path, rate, seconds):
    write_wav(tmp_path / "clip.wav", tone(seconds, hertz=rate / 8, rate=rate), rate)
    for known in (rate, math.nan):
        example = read_example(tmp_path, "clip.wav", sample_rate=known, start_seconds=0.0)
        assert example.png.startswith(b"\x89PNG") and example.mp3
        assert example.seconds == pytest.approx(seconds, abs=STEP_SECONDS)


def test_example_errors_name_the_file(tmp_path):
    write_wav(tmp_path / "silent.wav", np.zeros(RATE, dtype=np.float32))
    with pytest.raises(AudioError, match="silent.wav never exceeds"):
        read_example(tmp_path, "silent.wav", sample_rate=RATE, start_seconds=0.0)
    with pytest.raises(ManifestError, match="outside"):
        read_example(tmp_path, "../x.wav", sample_rate=RATE, start_seconds=0.0)


@pytest.mark.data
def test_page_of_real_recordings_is_whole_and_small(tmp_path, real_data):
    root = real_data / "wildlife"
    metadata = pd.read_csv(root / "metadata.csv").iloc[::20]
    files = pd.DataFrame([
        file_row(path, duration_seconds=info.duration, declared_seconds=info.duration, sample_rate=info.samplerate,
                 dc_offset=0.1) for path in metadata["path"] for info in [soundfile.info(root / path)]])
    labels = pd.DataFrame([label_row(row.path, row.label, group=row.group) for row in metadata.itertuples()])
    confounds = measure_confounds(files, labels)
    page = write_page(tmp_path, root, (files, labels), audit(files, labels, similar=[], confounds=confounds),
                      confounds=confounds, examples=5)
    assert page.count("<audio") >= 10 and len(page) < 100_000 * page.count("<audio")
