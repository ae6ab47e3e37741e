import functools
import os
import signal
import struct
import subprocess
import time
import tracemalloc

import numpy as np
import pytest

from models.errors import AudioError
from tests.utils.audio.sounds import RATE, needs_ffmpeg, tone, write
from utils.audio import streams as audio_io
from utils.audio.ffmpeg import FfmpegStream
from utils.audio.recordings import RecordingReader, load_audio

LEVEL = 0.03  # relative: AAC at its usual bit rate keeps the level of a tone
SOON = 3.0  # seconds of silence that stand for the minute that ffmpeg is really given
LONG_BYTES = 600 * 8000 * 4  # ten minutes as float32 at 8 kHz
needs_scripts = pytest.mark.skipif(os.name == "nt", reason="the programs that stand for ffmpeg are shell scripts")


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """Return a function that puts a script in ffmpeg's place; ``sound.au`` is what it may give."""
    sound = struct.pack(">4s5I", b".snd", 28, 0xffffffff, 6, RATE, 2) + b"note"
    sound += np.arange(4000, dtype=">f4").tobytes()
    (tmp_path / "sound.au").write_bytes(sound)
    (tmp_path / "clip.m4a").write_bytes(b"not read by the script")

    def put(script):
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncd '{tmp_path}'\necho $$ >> started\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(audio_io, "FfmpegStream", functools.partial(FfmpegStream, silence_seconds=SOON))
        return tmp_path / "clip.m4a"

    return put


def running(pids_file):
    """Return those of the processes that a script has told which still run."""
    def runs(pid):
        status = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
        return bool(status.strip()) and not status.startswith("Z")  # a zombie has ended
    return [pid for pid in pids_file.read_text().split() if runs(pid)]


def encode(*arguments):
    subprocess.run(["ffmpeg", "-v", "error", *arguments], check=True, stdin=subprocess.DEVNULL)


# what the real one gives

@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2])
def test_ffmpeg_reads_what_libsndfile_cannot(tmp_path, channels):
    samples = np.stack([tone(1000, seconds=2)] * channels, axis=1)
    source, target = write(tmp_path / "clip.wav", samples), tmp_path / "clip.m4a"
    encode("-i", source, target)
    with RecordingReader(target, sample_rate=RATE) as reader:
        found = np.concatenate(list(reader.blocks()))
        assert (reader.channels, reader.native_sample_rate) == (channels, RATE)
    inner = found[RATE // 2:RATE // 2 + RATE]  # one second: the spectrum's bins are 1 Hz apart
    spectrum = np.abs(np.fft.rfft(inner)) / (RATE / 2)
    assert spectrum.argmax() == 1000
    assert spectrum[1000] == pytest.approx(0.5, rel=LEVEL)


@needs_ffmpeg
def test_a_long_recording_is_decoded_while_it_is_read(tmp_path):
    encode("-f", "lavfi", "-i", "sine=frequency=500:sample_rate=8000:duration=600", tmp_path / "long.m4a")
    encode("-i", tmp_path / "long.m4a", "-c:a", "pcm_f32le", tmp_path / "long.wav")
    expected = load_audio(tmp_path / "long.wav", sample_rate=8000)
    assert expected.nbytes >= LONG_BYTES
    position = 0
    with RecordingReader(tmp_path / "long.m4a", sample_rate=8000) as reader:
        tracemalloc.start()
        for block in reader.blocks():
            assert np.array_equal(block, expected[position:position + len(block)])
            position += len(block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert position == len(expected)
    assert peak < LONG_BYTES / 4


@needs_ffmpeg
@pytest.mark.parametrize("text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n",
                                  "ffconcat version 1.0\nfile {other}\n"])
@pytest.mark.parametrize("extension", ["m4a", "mp3", "wav"])
def test_a_playlist_gives_no_sound_of_other_files(tmp_path, text, extension):
    write(tmp_path / "other.wav", tone(440))
    path = tmp_path / f"list.{extension}"
    path.write_text(text.format(other="other.wav"), encoding="utf-8")
    with pytest.raises(AudioError, match="holds no audio that libsndfile or ffmpeg can decode") as caught:
        load_audio(path, sample_rate=RATE)
    assert caught.value.status == "corrupt"


# whether it is started

@needs_scripts
@pytest.mark.parametrize(("name", "started"), [("clip.xyz", False), ("clip.raw", False), ("clip", False),
                                               ("clip.m4a", True)])
def test_ffmpeg_is_started_only_for_a_format_it_is_told(tmp_path, fake_ffmpeg, name, started):
    fake_ffmpeg("exit 1")
    (tmp_path / name).write_text("what is it?", encoding="utf-8")
    with pytest.raises(AudioError, match="is not readable by libsndfile|holds no audio") as caught:
        load_audio(tmp_path / name, sample_rate=RATE)
    assert caught.value.status == ("corrupt" if started else "unsupported")
    assert (tmp_path / "started").exists() == started


# how it behaves

@needs_scripts
@pytest.mark.parametrize("script", [
    "cat sound.au",
    "head -c 10 sound.au; sleep 0.1; tail -c +11 sound.au | head -c 30; sleep 0.1; tail -c +41 sound.au",
    "head -c 300000 /dev/zero | tr '\\0' x >&2; cat sound.au",
], ids=["all at once", "in odd pieces", "with many words"])
def test_the_pipe_gives_every_frame_however_it_flows(fake_ffmpeg, script):
    with RecordingReader(fake_ffmpeg(script), sample_rate=RATE) as reader:
        assert (reader.native_sample_rate, reader.channels) == (RATE, 2)
        found = np.concatenate(list(reader.blocks()))
        assert reader.damage == ""
    assert found.tolist() == [2 * frame + 0.5 for frame in range(2000)]  # the mean of its two samples


@needs_scripts
@pytest.mark.parametrize("script", ["exec sleep 1000", "cat sound.au; exec sleep 1000"],
                         ids=["at once", "after some sound"])
def test_a_decoder_that_hangs_is_stopped(tmp_path, fake_ffmpeg, script):
    with pytest.raises(AudioError, match=r"clip\.m4a made ffmpeg hang.*convert the file to WAV") as caught:
        load_audio(fake_ffmpeg(script), sample_rate=RATE)
    assert caught.value.status == "timeout"
    assert running(tmp_path / "started") == []


@needs_scripts
def test_a_program_that_the_decoder_started_is_not_waited_for(tmp_path, fake_ffmpeg):
    with pytest.raises(AudioError, match=r"clip\.m4a made ffmpeg hang") as caught:
        load_audio(fake_ffmpeg("sleep 1000 & echo $! > child; wait"), sample_rate=RATE)
    assert caught.value.status == "timeout"
    assert running(tmp_path / "started") == []
    assert len(running(tmp_path / "child")) == 1  # it holds the pipes, and still the test came to here
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@needs_scripts
def test_a_reader_that_is_left_early_stops_ffmpeg(tmp_path, fake_ffmpeg):
    with RecordingReader(fake_ffmpeg("cat sound.au; exec cat /dev/zero"), sample_rate=RATE) as reader:
        next(reader.blocks())
        assert len(running(tmp_path / "started")) == 1
    assert running(tmp_path / "started") == []


@needs_scripts
def test_ffmpeg_waits_for_a_slow_reader(fake_ffmpeg):
    with RecordingReader(fake_ffmpeg("cat sound.au; exec cat /dev/zero"), sample_rate=RATE) as reader:
        tracemalloc.start()
        next(reader.blocks())
        time.sleep(SOON)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < LONG_BYTES / 4


@needs_scripts
def test_a_decoder_that_fails_after_some_sound_is_damage(fake_ffmpeg):
    path = fake_ffmpeg("cat sound.au; echo 'the card is torn' >&2; exit 1")
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert sum(map(len, reader.blocks())) == 2000
        assert "clip.m4a breaks off after 0.1 s (cannot be decoded further: the card is torn)" in reader.damage


@needs_scripts
@pytest.mark.parametrize("script", ["echo 'the card is torn' >&2; exit 1",
                                    "echo 'the card is torn' >&2; echo not the header of a sound file"])
def test_a_decoder_that_finds_no_sound_is_quoted(tmp_path, fake_ffmpeg, script):
    with pytest.raises(AudioError, match=r"clip\.m4a holds no audio .*; the card is torn\)") as caught:
        load_audio(fake_ffmpeg(script), sample_rate=RATE)
    assert caught.value.status == "corrupt"
    assert running(tmp_path / "started") == []
