import json

import pytest

from models.errors import ManifestError
from utils.evaluation import detection_files
from utils.evaluation.detection_files import Event, Heard, event, forward, json_members, read_detections

RECORD = {"file_path": "a.wav", "predicted_class": "owl", "confidence": 0.8, "above_threshold": True,
          "segment_start_ms": 500, "segment_end_ms": 1500}
HEARD = {"file_path": "a.wav", "status": "ok", "duration_seconds": 60.0}
CONTENT = {"model": {"class_names": ["owl", "fox"]}, "settings": {"segment_mode": True}, "predictions": [RECORD],
           "errors": [], "recordings": [HEARD]}
CSV_HEAD = "file_path,predicted_class,confidence,above_threshold,segment_start_ms,segment_end_ms,status\n"
RECORDINGS = "file_path,status,duration_seconds\na.wav,ok,60\n"
BIRDNET_HEAD = "Start (s),End (s),Scientific name,Common name,Confidence,File\n"


def write(folder, name, text, *, recordings=RECORDINGS):
    if recordings:
        (folder / "run.recordings.csv").write_text(recordings, encoding="utf-8")
    (folder / name).write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return folder / name


def test_results_tell_what_was_heard_and_what_reached_its_threshold(tmp_path):
    below = {**RECORD, "above_threshold": False, "predicted_class": "unknown"}
    silent = {"file_path": "b.wav", "status": "ok", "duration_seconds": 5.0}
    broken = {"file_path": "c.wav", "status": "corrupt", "duration_seconds": 0.0}
    found = read_detections(write(tmp_path, "run.json", CONTENT | {
        "predictions": [below, RECORD], "recordings": [HEARD, silent, broken]}, recordings=""))
    assert found.class_names == ("owl", "fox")
    assert found.recordings == {"a.wav": Heard("ok", 60.0), "b.wav": Heard("ok", 5.0), "c.wav": Heard("corrupt", 0.0)}
    assert found.detections == {"a.wav": [Event(500, 1500, "owl", 0.8)]}


def test_paths_of_windows_have_forward_slashes_and_escaped_bytes_stay():
    assert forward(r"C:\night\owl\xe9.wav") == r"C:/night/owl\xe9.wav"
    assert forward("night/owl.wav") == "night/owl.wav"


def test_an_event_lasts_a_millisecond_at_least():
    assert event(1.0004, 1.0004001, "owl") == Event(1000, 1001, "owl")


@pytest.mark.parametrize(("start", "end"), [(0, 1e300), (-1, 2), (float("nan"), 2)])
def test_times_that_no_recording_has_are_refused(start, end):
    with pytest.raises(ManifestError, match=r"a time must be in 0..1e\+09 s, got .* of 'owl': correct it"):
        event(start, end, "owl")


@pytest.mark.parametrize(("changes", "message"), [
    ({"settings": {"segment_mode": False}}, "has one result per file, which tells not when anything was heard: predict"
                                            " with --segment_mode"),
    ({"recordings": []}, "lacks recordings: it is no whole results.json"),
    ({"settings": []}, "lacks settings"),
    ({"predictions": [{"file_path": "a.wav"}]}, r"value 2 \(predictions\): not as .*KeyError\('above_threshold'\)"),
    ({"predictions": ["text"]}, r"value 2 \(predictions\): not as .*TypeError"),
    ({"predictions": [{**RECORD, "confidence": float("nan")}]}, "a confidence must be in 0..1, got nan of 'owl'"),
    ({"predictions": [{**RECORD, "file_path": "z.wav"}]}, "detections in z.wav, which its recordings lack"),
])
def test_a_results_file_that_cannot_be_judged_is_refused(tmp_path, changes, message):
    with pytest.raises(ManifestError, match=message):
        read_detections(write(tmp_path, "run.json", CONTENT | changes))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1', '{"a" 1}', '{"a": [1 2]}', '{"a": [1,', "{'a': 1}", "\xff"])
def test_what_is_no_whole_json_object_is_refused(tmp_path, text):
    with pytest.raises(ManifestError, match="run.json cannot be read as JSON: "):
        list(json_members(write(tmp_path, "run.json", text)))


def test_deep_or_undecodable_json_is_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ManifestError, match="cannot be read as JSON: .*utf-8"):
        list(json_members(tmp_path / "run.json"))
    with pytest.raises(ManifestError, match="cannot be read as JSON: "):
        list(json_members(write(tmp_path, "run.json", '{"a": [[' + "[" * 200_000)))


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 18])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_read_in_blocks_of_any_size_and_any_layout(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(detection_files, "_READ_CHARACTERS", block)
    value = {"n": 12345, "x": -1.5e3, "list": [1, 23, {"a": [4, "]"]}], "none": [], "text": 'q"}é', "object": {"b": {}}}
    path = write(tmp_path, "run.json", json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    assert list(json_members(path)) == [("n", 12345), ("x", -1500.0), ("list", 1), ("list", 23),
                                        ("list", {"a": [4, "]"]}), ("text", 'q"}é'), ("object", {"b": {}})]
    assert list(json_members(write(tmp_path, "run.json", "{ }"))) == []


def test_a_value_without_end_is_not_held_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(detection_files, "_READ_CHARACTERS", 10)
    monkeypatch.setattr(detection_files, "_MOST_CHARACTERS", 100)
    path = write(tmp_path, "run.json", '{"a": "' + 10_000 * "x")
    with open(path, encoding="utf-8") as stream:
        with pytest.raises(ValueError, match="Unterminated string"):
            list(detection_files._JsonReader(stream).members())
        assert stream.read()


def test_a_table_takes_what_was_heard_from_the_one_beside_it(tmp_path):
    rows = "a.wav,owl,0.8,True,500,1500,ok\na.wav,unknown,0,False,1500,2500,ok\nz.wav,,,,,,corrupt\n"
    found = read_detections(write(tmp_path, "run.csv", CSV_HEAD + rows))
    assert found.recordings == {"a.wav": Heard("ok", 60.0)}
    assert found.detections == {"a.wav": [Event(500, 1500, "owl", 0.8)]}


@pytest.mark.parametrize("name", ["run.selections.txt", "run.birdnet.csv"])
def test_an_empty_table_of_all_recordings_holds_no_detection(tmp_path, name):
    heads = {"run.birdnet.csv": BIRDNET_HEAD, "run.selections.txt": "Selection\tBegin Time (s)\tEnd Time (s)\n"}
    found = read_detections(write(tmp_path, name, heads[name]))
    assert (found.recordings, found.detections) == ({"a.wav": Heard("ok", 60.0)}, {})


@pytest.mark.parametrize(("name", "text", "recordings", "message"), [
    ("run.csv", CSV_HEAD, "", "run.recordings.csv is not beside .*run.csv: without it"),
    ("run.csv", CSV_HEAD + "a.wav,owl,high,True,500,1500,ok\n", RECORDINGS, "run.csv line 2: not as .*'high'"),
    ("run.csv", "file_path,predicted_class,status\na.wav,owl,ok\n", RECORDINGS, "predict with --segment_mode"),
    ("run.csv", CSV_HEAD, "file_path,status\na.wav,ok\n", "run.recordings.csv line 2: not as .*duration_seconds"),
    ("run.birdnet.csv", BIRDNET_HEAD + "0,1,owl,owl,0.9,a.wav\n", "file_path,status,duration_seconds\nx/a.wav,ok,1\n"
     "y/a.wav,ok,1\n", "'a.wav' may be any of 2 recordings .*results.json tells it for sure"),
    ("run.birdnet.csv", BIRDNET_HEAD + "0,1,owl,owl,7,a.wav\n", RECORDINGS, "a confidence must be in 0..1, got 7.0"),
    ("run.txt", "what is this\n", "", "run.txt.recordings.csv is not beside"),
])
def test_a_table_that_cannot_be_judged_is_refused(tmp_path, name, text, recordings, message):
    with pytest.raises(ManifestError, match=message):
        read_detections(write(tmp_path, name, text, recordings=recordings))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="--predictions .*none.json does not exist"):
        read_detections(tmp_path / "none.json")
