import os

import pytest

from tests.utils.preparation.conftest import ODD_NAME, ODD_TEXT, any_bytes_are_names
from utils.audio.matching import Match, RecordingIndex


def index(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return RecordingIndex.below(folder)


def located(index, *entries):
    return [match.source_path if match.is_found else None for match in index.locate(entries).values()]


@pytest.mark.parametrize(("entry", "expected"), [
    ("a/one.wav", "a/one.wav"), ("./a//one.wav", "a/one.wav"), ("a/../b/one.wav", "b/one.wav"),
    ("a\\one.wav", "a/one.wav"), ("/mnt/disk/b/one.wav", "b/one.wav"), ("C:\\data\\b\\one.wav", "b/one.wav"),
    ("C:/b/one.wav", "b/one.wav"), ("\\\\server\\share\\a\\one.wav", "a/one.wav"), ("old/deep/a/one.wav", "a/one.wav"),
    ("two.wav", "a/deep/two.wav"), ("/elsewhere/two.wav", "a/deep/two.wav"), ("../two.wav", "a/deep/two.wav"),
    ("b/notes.raw", "b/notes.raw"),  # no known extension, but there as it stands
    ("three.wav", None), ("a", None), ("one.WAV", None),
])
def test_a_path_means_the_recording_that_ends_like_it(tmp_path, entry, expected):
    assert located(index(tmp_path, "a/one.wav", "b/one.wav", "a/deep/two.wav", "b/notes.raw"), entry) == [expected]


def test_an_absolute_path_into_the_folder_is_taken_as_it_stands(tmp_path):
    found = index(tmp_path, "one.wav", "a/one.wav")
    assert located(found, str(tmp_path / "one.wav"), str(tmp_path / "a" / "one.wav")) == ["one.wav", "a/one.wav"]


@pytest.mark.parametrize("entry", ["one.wav", "/mnt/c/one.wav", "..\\one.wav"])
def test_a_path_that_may_be_several_recordings_names_them(tmp_path, entry):
    match, = index(tmp_path, "a/one.wav", "b/one.wav").locate([entry]).values()
    assert not match.is_found
    assert match.problem == (f"{entry!r} may be any of 2 recordings (a/one.wav, b/one.wav): give more of its path")


@pytest.mark.parametrize("entry", ["/etc/gone.wav", "../gone.wav", "a/../../gone.wav", "C:\\x\\gone.wav", "D:gone.wav",
                                   "/", "..", "", "C:", "x" * 5000 + ".wav", "a\0b.wav"])
def test_what_is_not_there_never_leads_out_of_the_folder(tmp_path, entry):
    match, = index(tmp_path / "in", "one.wav").locate([entry]).values()
    assert not match.is_found
    assert os.path.normpath(tmp_path / "in" / match.source_path).startswith(str(tmp_path / "in"))
    assert bool(match.problem) == (match.source_path == "")


def test_a_file_beside_the_folder_is_not_in_it(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.raw").touch()
    assert located(index(tmp_path / "in", "one.wav"), "../inner/x.raw", str(tmp_path / "inner" / "x.raw")) == [None] * 2


def test_a_recording_in_a_folder_of_another_name_is_taken_and_told(tmp_path, caplog):
    """It may have been moved, or be another recorder's of the same minute."""
    found = index(tmp_path, "siteB/20240501.WAV", "siteC/one.wav", "two.wav")
    assert located(found, "/d/siteA/20240501.WAV", "d\\siteC\\one.wav", "/d/siteA/two.wav", "one.wav") == [
        "siteB/20240501.WAV", "siteC/one.wav", "two.wav", "siteC/one.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        "1 recordings lie in folders of other names than the labels say and are taken by their file names"
        " (/d/siteA/20240501.WAV as siteB/20240501.WAV): check that they are the same"]


def test_two_paths_never_mean_one_recording(tmp_path):
    """Recorders give equal names to recordings of different places: only one of these sites has been copied."""
    found = index(tmp_path, "siteB/20240501.WAV").locate(["/d/siteA/20240501.WAV", "/d/siteB/20240501.WAV"])
    assert found == {"/d/siteA/20240501.WAV": Match("d/siteA/20240501.WAV", False),
                     "/d/siteB/20240501.WAV": Match("siteB/20240501.WAV", True)}


def test_two_paths_that_fit_a_recording_equally_are_a_problem(tmp_path):
    found = index(tmp_path, "copied/x.wav").locate(["/d/a/x.wav", "/d/b/x.wav"])
    assert found["/d/a/x.wav"].is_found
    assert found["/d/b/x.wav"].problem == ("'/d/b/x.wav' and '/d/a/x.wav' both may be copied/x.wav: give more of its"
                                           " path")


def test_spellings_of_one_path_mean_one_recording(tmp_path):
    entries = ["/d/a/x.wav", "a/x.wav", "a\\x.wav", "x.wav", "./a/x.wav"]
    assert located(index(tmp_path, "a/x.wav"), *entries) == ["a/x.wav"] * 5


@any_bytes_are_names
@pytest.mark.parametrize("entry", [ODD_TEXT, f"deep/{ODD_TEXT}", f"/mnt/deep/{ODD_TEXT}"])
def test_a_name_that_is_no_text_is_found_by_its_text(tmp_path, entry):
    assert located(index(tmp_path, f"deep/{ODD_NAME}"), entry) == [f"deep/{ODD_TEXT}"]


# tables that are called after a recording

@pytest.mark.parametrize(("folder", "stem", "expected"), [
    ("", "two", "a/deep/two.wav"), ("anywhere", "two", "a/deep/two.wav"), ("a", "one", "a/one.wav"),
    ("b", "one", "b/one.wav"), ("labels/b", "one", "b/one.wav"), ("b", "one.wav", "b/one.wav"),
    ("c", "three", None), ("c", "three.flac", "c/three.flac"), ("c", "three.wav", "c/three.wav"), ("", "four", None),
])
def test_a_table_is_about_the_recording_it_is_called_after(tmp_path, folder, stem, expected):
    match = index(tmp_path, "a/one.wav", "b/one.wav", "a/deep/two.wav", "c/three.wav", "c/three.flac").of_table(
        folder, stem)
    assert (match.source_path if match.is_found else None) == expected


def test_a_recording_in_the_same_folder_counts_before_one_that_only_ends_like_it(tmp_path):
    assert index(tmp_path, "x/a.wav", "z/x/a.wav").of_table("x", "a") == Match("x/a.wav", True)


def test_a_table_that_may_be_about_several_recordings_names_them(tmp_path):
    match = index(tmp_path, "a/one.wav", "b/one.wav").of_table("", "one")
    assert match.problem == "'one' may be any of 2 recordings (a/one.wav, b/one.wav): give more of its path"


def test_paths_alone_are_found_without_looking_at_the_disk(tmp_path, monkeypatch):
    (tmp_path / "here.wav").touch()
    monkeypatch.chdir(tmp_path)
    found = RecordingIndex(["/disk/a/one.wav", "../b/one.wav", "two.wav"], place="among them")
    assert located(found, "a/one.wav", "../b/one.wav", "x/two.wav", "here.wav") == [
        "/disk/a/one.wav", "../b/one.wav", "two.wav", None]
    assert found.of_table("a", "one") == Match("/disk/a/one.wav", True)
