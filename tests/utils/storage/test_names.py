import os
import sys
from collections import Counter

import pytest

from models.errors import ManifestError
from utils.preparation.sources import Region, Source
from utils.storage.files import atomic_path
from utils.storage.names import (check_inside, clip_id, distinct_clip_ids, folder_name, name_to_text, safe_name,
                                 text_to_name)

LONGEST = 255  # bytes of a file name on ext4, NTFS and APFS
names_are_bytes = pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux only")


# names that are no text

@names_are_bytes
@pytest.mark.parametrize(("name", "text"), [
    (b"owl.wav", "owl.wav"), ("Käuzchen/梟.wav".encode(), "Käuzchen/梟.wav"), (b"owl\xe9.wav", r"owl\xe9.wav"),
    (rb"owl\xe9.wav", r"owl\x5cxe9.wav"), (rb"a\x5cb", r"a\x5cx5cb"), (rb"a\b", r"a\b"), (b"\\\xff", r"\\xff"),
])
def test_a_name_is_written_so_that_it_can_be_read(name, text):
    assert name_to_text(os.fsdecode(name)) == text
    assert text_to_name(text) == os.fsdecode(name)


@names_are_bytes
def test_every_name_survives_as_text(rng):
    parts = [b"\\", b"x", b"5c", b"e9", b"\\x", b"\\xe9", b"\\x5c", b"\xe9", b"\xc3", b"\xed\xa0\x80", "é".encode(),
             "梟".encode(), b".", b"41", b"F"]
    names = [b"".join(parts[part] for part in rng.integers(len(parts), size=rng.integers(1, 12)))
             for _ in range(3000)]
    names += [bytes(rng.integers(1, 256, size=8, dtype="uint8")) for _ in range(3000)]
    texts = {}
    for name in names:
        text = name_to_text(os.fsdecode(name))
        text.encode()  # what no table could hold would raise
        assert os.fsencode(text_to_name(text)) == name
        assert texts.setdefault(text, name) == name


@names_are_bytes
@pytest.mark.parametrize("name", [b"owl\xe9.wav", rb"owl\xe9.wav"])
def test_a_file_is_found_by_the_text_of_its_name(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.touch()
    assert check_inside(tmp_path, name_to_text(path.name), where="here") == path.resolve()


# inside a folder

def test_a_link_that_leads_outside_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "inside/link").symlink_to(tmp_path / "secret")
    with pytest.raises(ManifestError, match="'link/x.npy' is outside"):
        check_inside(tmp_path / "inside", "link/x.npy", where="here")
    assert check_inside(tmp_path / "inside", "a/../b.npy", where="here") == (tmp_path / "inside/b.npy").resolve()


def test_a_link_is_followed_in_a_folder_that_the_user_named(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "inside/link").symlink_to(tmp_path / "elsewhere")
    found = check_inside(tmp_path / "inside", "link/x.wav", where="here", through_links=True)
    assert found == tmp_path.resolve() / "inside/link/x.wav"
    with pytest.raises(ManifestError, match="here: path 'link/../../x.wav' is outside"):
        check_inside(tmp_path / "inside", "link/../../x.wav", where="here", through_links=True)


# ids of recordings

def test_names_are_safe_and_kept_apart():
    assert safe_name("a b/c:ü?.wav") == "a_b_c_ü_.wav"
    assert safe_name("../..") == safe_name("") == "unnamed"
    assert clip_id("fox/clip.wav") != clip_id("owl/clip.wav")
    assert clip_id("fox/clip.wav").startswith("clip-")
    assert len(clip_id("x" * 500 + ".wav")) <= 70


def test_the_ids_of_earlier_versions_stay():
    assert clip_id("a/b.wav") == "b-3549c512"
    assert clip_id("fox/Rufus & Co.flac") == "Rufus_Co-40d0f9d9"


def test_equal_stems_whose_hashes_begin_alike_are_told_apart():
    paths = [f"night{number}/clip.wav" for number in range(150_000)]  # two are alike with a probability of 0.93
    plain = Counter(map(clip_id, paths))
    alike = [path for path in paths if plain[clip_id(path)] > 1]
    assert alike
    ids = distinct_clip_ids(paths)
    assert len(set(ids.values())) == len(paths)
    assert [path for path in paths if ids[path] != clip_id(path)] == alike


# file and folder names

def source(path, *, group=None):
    own = distinct_clip_ids([path])[path]
    return Source(path, group or own, (Region("owl"),), "", own)


@pytest.mark.parametrize("letter", ["x", "ü", "梟", "𩿪"])
@pytest.mark.parametrize("grouped", [False, True])
def test_no_file_name_is_too_long_however_long_its_source_is(tmp_path, letter, grouped):
    path = f"nights/{letter * 80}.wav"
    stem = source(path, group=f"nights/{letter * 80}" if grouped else None).file_stem
    target = tmp_path / f"{stem}_{24 * 3600 * 1000}_aug99.npy"
    with atomic_path(target) as temporary:
        temporary.touch()
        assert len(os.fsencode(temporary.name)) <= LONGEST
    assert len(os.fsencode(target.name)) <= LONGEST
    assert target.exists()


def test_long_stems_of_one_group_are_told_apart():
    stems = {source(f"nights/{'梟' * 80}{number}.wav", group="梟" * 80).file_stem for number in range(20)}
    assert len(stems) == 20


def test_a_class_has_a_folder_of_its_own():
    assert folder_name("bird_song") == "bird_song"
    names = ["a b", "a_b", "a/b", "a:b", "..", "", "梟" * 100, "梟" * 101, "x" * 300]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert safe_name(folder) == folder
        assert len(folder.encode()) <= LONGEST
