import pytest

from utils.storage.journal import Journal, settings_key

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


def test_a_fresh_journal_forgets(path):
    written(path, "a")
    with Journal(path, fresh=True) as journal:
        assert journal.find("recording", "a", KEY) is None
    assert find(path, "a") is None


@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_earlier_runs_that_are_no_longer_wanted_go(path, fresh):
    written(path, "a", "b")
    folder = path.parent
    for name in ("a.npy", "b.npy", "foreign.npy"):
        (folder / name).touch()
    with Journal(path, fresh=fresh) as journal:
        journal.remove_stale(folder, ["a.npy"])
    assert sorted(p.name for p in folder.glob("*.npy")) == ["a.npy", "foreign.npy"]


def test_nothing_outside_the_folder_and_nothing_but_spectrograms_is_removed(path):
    written(path, "../outside", "manifest")
    (path.parent / "manifest.csv").touch()
    (path.parent.parent / "outside.npy").touch()
    with Journal(path, fresh=False) as journal:
        journal.add("recording", "x", KEY, {"segments": [{"path": "manifest.csv"}]})
    with Journal(path, fresh=False) as journal:
        journal.remove_stale(path.parent, [])
    assert (path.parent / "manifest.csv").exists()
    assert (path.parent.parent / "outside.npy").exists()


def test_a_key_depends_on_the_values_and_not_on_the_order_of_names():
    assert settings_key({"a": 1, "b": (2, 3)}) == settings_key({"b": [2, 3], "a": 1})
    keys = {settings_key(*parts) for parts in ([1], [2], [1, 2], ["1"], [[1]], [None], [{"a": 1}])}
    assert len(keys) == 7
