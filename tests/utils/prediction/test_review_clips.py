import base64
import io
import json

import numpy as np
import pytest
import soundfile

from tests.conftest import TINY_RATE
from utils.prediction.review_clips import FINE, SMALL, ClipJob, ClipMaker, picture

RATE = 22050
MAKER = ClipMaker(FINE, RATE, 50.0, RATE / 2)
MP3_PADDING_SECONDS = 0.2  # frames are whole, and an encoder begins with silence
PAGE_BYTES = 60e6
SHELL_BYTES = 0.1e6  # of a page without its clips
ITEM_BYTES = 500  # what a page is told of a detection besides its clip


def tone(hertz, seconds, *, rate=RATE, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, samples, *, rate=RATE):
    soundfile.write(path, samples, rate)
    return str(path)


def clips_of(path, *spans, maker=MAKER):
    """Return the clips of spans of a recording, each a dict, in the order of the spans."""
    found = dict(maker(ClipJob(path, tuple(range(7, 7 + len(spans))), spans)))
    assert sorted(found) == list(range(7, 7 + len(spans)))
    return [found[number] for number in sorted(found)]


def content(url, kind):
    assert url.startswith(f"data:{kind};base64,")
    return base64.b64decode(url.partition(",")[2], validate=True)


def sound_of(clip):
    samples, rate = soundfile.read(io.BytesIO(content(clip["sound"], "audio/mpeg")))
    return samples, rate


def loudest_hertz(clip):
    samples, rate = sound_of(clip)
    return np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)


def pixels_of(png):
    """Return a picture's brightness ``(height, width)``, as another library reads it."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("L"), dtype=float)


# pictures

@pytest.mark.parametrize("width", [1, 2, 33, 480])
def test_a_picture_is_bright_where_it_is_loud_and_black_below_its_median(width, rng):
    log_mel = rng.uniform(-80, -60, (16, width)).astype(np.float32)
    log_mel[2] = -10.0
    pixels = pixels_of(picture(log_mel))
    assert pixels.shape == log_mel.shape
    assert pixels[-3].min() > 200 > np.delete(pixels, -3, axis=0).max()  # low frequencies at the bottom
    assert pixels[::-1][log_mel < np.median(log_mel)].max() < 10


def test_louder_is_brighter():
    levels = np.linspace(-60, 0, 64, dtype=np.float32)
    row = pixels_of(picture(np.stack([levels, *np.full((2, 64), -60, np.float32)])))[-1]
    assert (np.diff(row) >= 0).all() and len(np.unique(row)) == 16


def test_silence_is_a_black_picture():
    assert pixels_of(picture(np.full((4, 5), -100, np.float32))).max() < 10


# clips

def test_a_clip_is_the_detection_it_is_of(tmp_path):
    path = write(tmp_path / "a.wav", np.concatenate([tone(1000, 5), tone(3000, 5), tone(500, 5)]))
    first, second = clips_of(path, (5.0, 10.0), (10.0, 15.0))
    assert (first["start"], first["seconds"]) == (5.0, 5.0) and (second["start"], second["seconds"]) == (10.0, 5.0)
    assert [loudest_hertz(clip) for clip in (first, second)] == pytest.approx([3000, 500], abs=2)
    samples, _ = sound_of(first)
    assert len(samples) / RATE == pytest.approx(5.0, abs=MP3_PADDING_SECONDS)
    assert pixels_of(content(first["picture"], "image/png")).shape == (FINE.n_mels, pytest.approx(300, abs=1))


@pytest.mark.parametrize("maker", [MAKER, ClipMaker(SMALL, RATE, 50.0, RATE / 2)])
def test_of_a_long_detection_the_liveliest_seconds_are_shown(tmp_path, rng, maker):
    samples = 0.1 * rng.standard_normal(40 * RATE).astype(np.float32)
    samples += tone(6000, 40)  # louder than the call, but there all the time
    samples[15 * RATE:16 * RATE] += tone(2000, 1, level=0.2)
    samples[36 * RATE:] += tone(1000, 4, level=0.4)  # beyond what is searched
    clip, = clips_of(write(tmp_path / "a.wav", samples), (0.0, 40.0), maker=maker)
    assert clip["seconds"] == maker.seconds
    assert clip["start"] <= 15.1 and clip["start"] + clip["seconds"] >= 15.9


def test_a_short_detection_is_shown_with_what_surrounds_it(tmp_path):
    path = write(tmp_path / "a.wav", tone(1000, 10))
    middle, first, last = clips_of(path, (5.0, 6.0), (0.0, 1.0), (9.5, 10.0))
    assert (middle["start"], middle["seconds"]) == (4.0, 3.0)
    assert (first["start"], first["seconds"]) == (0.0, 2.0)
    assert last["start"] == 8.25 and last["start"] + last["seconds"] == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("extension", ["wav", "mp3"])
def test_a_clip_of_a_format_that_cannot_be_sought_in_is_the_same(tmp_path, extension):
    path = write(tmp_path / f"a.{extension}", np.concatenate([tone(1000, 5), tone(3000, 5), tone(500, 5)]))
    clips = clips_of(path, (10.0, 15.0), (5.0, 10.0), (0.0, 5.0))
    assert [loudest_hertz(clip) for clip in clips] == pytest.approx([500, 3000, 1000], abs=20)


def test_quiet_and_loud_recordings_are_made_equally_loud(tmp_path):
    path = write(tmp_path / "a.wav", np.concatenate([tone(1000, 5, level=0.01), tone(1000, 5, level=0.9)]))
    peaks = [np.abs(sound_of(clip)[0]).max() for clip in clips_of(path, (0.0, 4.9), (5.1, 10.0))]
    assert peaks == pytest.approx([0.7, 0.7], abs=0.1)


def test_silence_stays_silent(tmp_path):
    clip, = clips_of(write(tmp_path / "a.wav", np.zeros(4 * RATE)), (0.0, 4.0))
    assert np.abs(sound_of(clip)[0]).max() < 1e-4


def test_what_bats_call_is_slowed_down_to_be_heard(tmp_path):
    rate = 192_000
    path = write(tmp_path / "bat.wav", tone(40_000, 2, rate=rate), rate=rate)
    maker = ClipMaker(FINE, rate, 10_000.0, rate / 2)
    clip, = clips_of(path, (0.5, 1.5), maker=maker)
    assert maker.slowed == 10 and clip["seconds"] == pytest.approx(0.8)
    samples, _ = sound_of(clip)
    assert loudest_hertz(clip) == pytest.approx(4000, abs=5)
    assert len(samples) / RATE == pytest.approx(8.0, abs=MP3_PADDING_SECONDS)
    assert ClipMaker(FINE, 48_000, 50.0, 24_000.0).slowed == 1


def test_ticks_stand_at_round_frequencies_with_room_between_them():
    for rate, low in ((TINY_RATE, 50.0), (RATE, 50.0), (384_000, 10_000.0)):
        ticks = ClipMaker(FINE, rate, low, rate / 2).ticks
        places = [place for place, _ in ticks]
        assert len(ticks) >= 2 and places[0] > 0.05 and places[-1] < 1 and min(np.diff(places)) > 0.05
        assert all(low < 1000 * float(text) < rate / 2 for _, text in ticks)
    place_of = {text: place for place, text in MAKER.ticks}
    # Slaney's scale is linear up to 1 kHz, 15 mel, and 27 steps of ln(6.4) above
    top = 15 + 27 * np.log(11.025) / np.log(6.4)
    assert place_of["1"] == pytest.approx((15 - 0.75) / (top - 0.75), abs=1e-3)


# what cannot be shown

def test_a_recording_that_is_gone_is_a_problem_of_each_of_its_clips(tmp_path):
    clips = clips_of(str(tmp_path / "gone.wav"), (0.0, 1.0), (1.0, 2.0))
    assert [list(clip) for clip in clips] == [["problem"], ["problem"]]
    assert all("gone.wav cannot be opened" in clip["problem"] for clip in clips)


def test_a_detection_behind_the_end_costs_no_other(tmp_path):
    clips = clips_of(write(tmp_path / "a.wav", tone(1000, 5)), (20.0, 21.0), (0.0, 5.0))
    assert clips[0] == {"problem": "the recording ends before it"} and clips[1]["seconds"] == 5.0


def test_clips_of_the_noisiest_recordings_fit_into_a_page(tmp_path, rng):
    path = write(tmp_path / "noise.wav", 0.3 * rng.standard_normal(30 * RATE))
    for size, n_clips in ((FINE, 600), (SMALL, 2000)):
        clip, = clips_of(path, (0.0, 30.0), maker=ClipMaker(size, RATE, 50.0, RATE / 2))
        assert clip["seconds"] == size.seconds
        assert SHELL_BYTES + n_clips * (ITEM_BYTES + len(json.dumps(clip))) < PAGE_BYTES
