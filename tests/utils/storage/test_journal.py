import errno
import json
import os
import subprocess
import sys
import tracemalloc

import pytest

from models.errors import ConfigError
from tests.conftest import PROJECT
from utils.storage.journal import Entry, Journal, settings_key

KEY = settings_key("settings", 1)


def written(path, *names, key=KEY):
    with Journal(path, fresh=False) as journal:
        for name in names:
            journal.add("recording", name, key, {"segments": [{"path": f"{name}.npy"}], "duration": 1.5})
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "journal.jsonl"


def find(path, name, *, key=KEY, kind="recording"):
    with Journal(path, fresh=False) as journal:
        return journal.find(kind, name, key)


def test_finished_work_is_found_again(path):
    written(path, "a", "b c/ü")
    assert find(path, "b c/ü") == {"segments": [{"path": "b c/ü.npy"}], "duration": 1.5}


def test_only_the_same_kind_name_and_key_are_found(path):
    written(path, "a")
    assert find(path, "a", key=settings_key("settings", 2)) is None
    assert find(path, "b") is None
    assert find(path, "a", kind="augmentation") is None


def test_a_result_is_on_disk_before_the_journal_is_closed(path):
    with Journal(path, fresh=False) as journal:
        journal.add("recording", "a", KEY, {"segments": []})
        assert find(path, "a") == {"segments": []}


def test_the_last_result_of_a_name_counts(path):
    written(path, "a", key="old")
    written(path, "a")
    assert find(path, "a", key="old") is None
    assert find(path, "a") is not None


@pytest.mark.parametrize("n_missing", [1, 2, 10, 60])
def test_a_line_cut_off_by_a_kill_costs_one_result(path, n_missing):
    written(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-n_missing])
    assert find(path, "a") is not None
    assert (find(path, "b") is None) == (n_missing > 1)  # without its line end alone, the line is whole
    written(path, "c")  # must not be glued to the stump
    assert find(path, "a") is not None
    assert find(path, "c") is not None


@pytest.mark.parametrize("line", ["[1, 2]", "7", '{"kind": "recording"}', "no json", '{"result": [1]}'])
def test_lines_that_are_no_entries_are_passed_over(path, line):
    written(path, "a")
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    written(path, "b")
    assert find(path, "a") is not None
    assert find(path, "b") is not None


def test_what_a_stranger_wrote_is_passed_over(path):
    written(path, "a")
    with open(path, "ab") as stream:
        for line in (b'{"result": {}}', b'{"kind": [], "name": "c", "key": "k", "result": {}}',
                     b'{"kind": "recording", "name": {}, "key": "k", "result": {}}',
                     b'{"kind": "recording", "name": "c", "key": 1, "result": {}}', b'{"a": ' * 100_000,
                     b'{"kind": "recording", "name": "a", "key": ' + b"7" * 5000 + b"}", b"\xff\xfe\x00", b""):
            stream.write(line + b"\n")
    written(path, "b")
    assert find(path, "a") is not None
    assert find(path, "b") is not None
    assert names(path) == ["a", "b"]


# the format

def test_the_first_line_tells_the_format(path):
    written(path, "a")
    written(path, "b")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("format_version") for line in lines] == [2, None, None]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_later_format_is_refused(path, fresh):
    path.parent.mkdir()
    later = path.with_name(path.name + ".new") if fresh else path
    later.write_text('{"journal": "NightScan", "format_version": 3}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{later.name} has format_version 3, this NightScan reads 1 and 2"):
        Journal(path, fresh=fresh)
    assert len(later.read_text(encoding="utf-8").splitlines()) == 1


def test_a_journal_of_version_1_is_read_and_goes_on(path):
    path.parent.mkdir()
    line = json.dumps({"kind": "recording", "name": "a", "key": KEY, "result": {"status": "ok"}}) + "\n"
    path.write_text(line, encoding="utf-8")
    written(path, "b")
    assert find(path, "a") == {"status": "ok"}
    assert find(path, "b") is not None
    assert path.read_text(encoding="utf-8").startswith(line)


def test_a_large_journal_is_not_held_in_memory(path):
    written(path)
    with open(path, "a", encoding="utf-8") as stream:
        for number in range(20_000):
            stream.write(json.dumps({"kind": "recording", "name": f"{number}", "key": KEY,
                                     "result": {"text": f"{number}" + 2000 * "x"}}) + "\n")
    tracemalloc.start()
    with Journal(path, fresh=False) as journal:
        for number in (0, 777, 19_999):
            assert journal.find("recording", f"{number}", KEY) == {"text": f"{number}" + 2000 * "x"}
        assert sum(entry.key == KEY for entry in journal.entries()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 8  # places alone: some 150 bytes an entry


# a full disk

FILL = """
import json, resource, signal, sys
from pathlib import Path
from utils.storage.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as it does on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
added = 0
with Journal(Path(sys.argv[1]), fresh=sys.argv[3] == "fresh") as journal:
    try:
        while True:
            journal.add("recording", f"{added}", "key", {"text": 700 * "x"})
            added += 1
    except OSError as error:
        failed = [type(error).__name__, error.errno, error.filename]
    held = [journal.find("recording", f"{number}", "key") is not None for number in range(added + 1)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # there is room again
    journal.add("recording", "later", "key", {})
print(json.dumps({"added": added, "failed": failed, "held": held}))
"""


def on_a_full_disk(path, *, n_bytes, fresh=False):
    """Add entries in a process whose files may be no larger; return what it has seen."""
    pytest.importorskip("resource", reason="this system limits no file sizes")
    process = subprocess.run([sys.executable, "-c", FILL, path, str(n_bytes), "fresh" if fresh else "usual"],
                             capture_output=True, text=True, timeout=60, cwd=PROJECT)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_full_disk_names_the_file_and_costs_no_entry_before_it(path, fresh):
    written(path, "before")
    file = path.with_name(path.name + ".new") if fresh else path
    seen = on_a_full_disk(path, n_bytes=10_000, fresh=fresh)
    assert seen["failed"] == ["OSError", errno.EFBIG, str(file)]
    assert 10 <= seen["added"] <= 13  # entries of 760 bytes
    assert seen["held"] == seen["added"] * [True] + [False]
    found = [str(number) for number in range(seen["added"])] + ["later"]
    assert names(path) == ["before"] + found
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(found) + (not fresh)  # no stump of the entry that failed
    assert all(line.endswith(b"\n") and json.loads(line) for line in lines)


@pytest.mark.parametrize("n_bytes", range(9_300, 10_060, 95))
def test_wherever_in_an_entry_the_disk_is_full_a_later_run_goes_on(path, n_bytes):
    seen = on_a_full_disk(path, n_bytes=n_bytes)
    assert names(path) == [str(number) for number in range(seen["added"])] + ["later"]
    written(path, "another")
    assert find(path, "another") is not None
    assert find(path, f"{seen['added'] - 1}", key="key") == {"text": 700 * "x"}
    assert find(path, f"{seen['added']}", key="key") is None


class FullDisk:
    """A file that takes only some more bytes."""

    def __init__(self, stream, room):
        self._stream, self.room = stream, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n_written = self._stream.write(data[:self.room])
        self.room -= n_written
        return n_written

    def __getattr__(self, name):
        return getattr(self._stream, name)


@pytest.mark.parametrize("room", [0, 1, 40, 80])
def test_an_entry_that_found_no_room_leaves_the_one_before_it(path, room):
    with Journal(path, fresh=False) as journal:
        journal.add("recording", "a", KEY, {"first": 1})
        size = journal.path_size
        journal._appending = disk = FullDisk(journal._appending, room)
        with pytest.raises(OSError, match="No space left on device: .*journal.jsonl") as caught:
            journal.add("recording", "a", KEY, {"second": 100 * "x"})
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert journal.path_size == size
        assert journal.find("recording", "a", KEY) == {"first": 1}
        disk.room = 1 << 20
        journal.add("recording", "b", KEY, {})
    assert names(path) == ["a", "b"]
    assert find(path, "a") == {"first": 1}


@pytest.mark.parametrize("at_once", [1, 7])
def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(path, at_once):
    class Slow(FullDisk):
        def write(self, data):
            return self._stream.write(data[:at_once])

    with Journal(path, fresh=False) as journal:
        journal._appending = Slow(journal._appending, 0)
        journal.add("recording", "a", KEY, {"text": 50 * "ü"})
    assert find(path, "a") == {"text": 50 * "ü"}


def test_a_journal_tells_its_size_and_whether_anything_is_done(path):
    with Journal(path, fresh=False) as journal:
        assert journal.is_empty
        journal.add("recording", "a", KEY, {})
        assert not journal.is_empty
        assert journal.path_size == path.stat().st_size


# doing everything again

def names(path):
    with Journal(path, fresh=False) as journal:
        return [entry.name for entry in journal.entries()]


def add(path, name, result, *, finished):
    """Do one piece of work of a run that does everything again."""
    with Journal(path, fresh=True) as journal:
        journal.add("recording", name, KEY, result)
        if finished:
            journal.finish()


def test_a_fresh_journal_does_everything_again(path):
    written(path, "a", "b")
    with Journal(path, fresh=True) as journal:
        assert journal.find("recording", "a", KEY) is None
        assert [entry.name for entry in journal.entries()] == ["a", "b"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_fresh_run_that_was_stopped_goes_on_and_forgets_nothing(path, fresh):
    written(path, "a", "b")
    add(path, "a", {"again": 1}, finished=False)
    with Journal(path, fresh=fresh) as journal:
        assert journal.find("recording", "a", KEY) == {"again": 1}
        assert journal.find("recording", "b", KEY) is None  # its turn is still to come
        assert [entry.name for entry in journal.entries()] == ["a", "b", "a"]
        journal.add("recording", "b", KEY, {"again": 2})
        journal.finish()
    assert names(path) == ["a", "b"]
    assert (find(path, "a"), find(path, "b")) == ({"again": 1}, {"again": 2})
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_finished_fresh_run_replaces_what_was(path):
    written(path, "a", "b")
    add(path, "c", {}, finished=True)
    assert names(path) == ["c"]
    assert find(path, "a") is None


def test_finishing_an_ordinary_run_keeps_it(path):
    written(path, "a")
    with Journal(path, fresh=False) as journal:
        journal.add("recording", "b", KEY, {})
        journal.finish()
    assert names(path) == ["a", "b"]


def test_a_key_depends_on_the_values_and_not_on_the_order_of_names():
    assert settings_key({"a": 1, "b": (2, 3)}) == settings_key({"b": [2, 3], "a": 1})
    keys = {settings_key(*parts) for parts in ([1], [2], [1, 2], ["1"], [[1]], [None], [{"a": 1}])}
    assert len(keys) == 7


# what was written last, and what counts no more

def test_the_latest_entry_is_found_under_whatever_key(path):
    written(path, "a", key="old")
    with Journal(path, fresh=False) as journal:
        assert journal.latest("recording", "a") == Entry(
            "recording", "a", "old", {"segments": [{"path": "a.npy"}], "duration": 1.5})
        journal.add("recording", "a", "new", {"segments": []})
        assert journal.latest("recording", "a") == Entry("recording", "a", "new", {"segments": []})
        assert journal.latest("recording", "b") is None
        assert journal.latest("augmentation", "a") is None


def test_what_is_forgotten_counts_under_no_key_and_still_stands_there(path):
    written(path, "a", "b")
    with Journal(path, fresh=False) as journal:
        journal.forget("recording", "a")
        assert journal.find("recording", "a", KEY) is None
        assert journal.latest("recording", "a").result == {}
        assert journal.find("recording", "b", KEY) is not None
    assert find(path, "a") is None  # after a kill too
    assert find(path, "b") is not None
    assert names(path) == ["a", "b", "a"]


def test_what_is_done_again_after_it_was_forgotten_counts(path):
    written(path, "a", key="old")
    with Journal(path, fresh=False) as journal:
        journal.forget("recording", "a")
        journal.add("recording", "a", KEY, {"again": 1})
    assert find(path, "a") == {"again": 1}
    assert find(path, "a", key="old") is None


def test_forgetting_what_nobody_did_writes_nothing(path):
    written(path, "a")
    before = path.read_bytes()
    with Journal(path, fresh=False) as journal:
        journal.forget("recording", "b")
        journal.forget("augmentation", "a")
    assert path.read_bytes() == before


def test_a_run_that_does_everything_again_has_nothing_to_forget(path):
    written(path, "a")
    with Journal(path, fresh=True) as journal:
        assert journal.latest("recording", "a") is None
        journal.forget("recording", "a")
    with Journal(path, fresh=True) as journal:
        assert journal.is_empty
