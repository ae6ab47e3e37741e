"""Preparation that is killed at any moment, with other settings tried in between: not a byte differs in the end."""

import json
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest

from tests.conftest import TINY_RATE, tiny_sound, write_audio
from tests.scripts.processes import finish, killed, needs_proc, preprocess_command, run, start
from utils.storage.files import file_sha256, is_whole_array
from utils.storage.manifest import SPLITS

CLASSES = {"bird_song": "bird_song", "mammal_call": "mammal_call", "insect_sound": "insect_sound",
           "environmental_sound": "amphibian_call"}  # and what they sound like
N_OF_CLASS = 4
LONG_SECONDS = 12
AUGMENTED = ("--apply_augmentation", "--augmentation_factor", 2, "--balance_classes")
SPECTROGRAM, COPY, LONG = r".*_\d+\.npy", r".*_aug\d+\.npy", r"long-.*_\d+\.npy"
N_FRAMES = 1 + TINY_RATE // 256  # of windows of a second, with hops of 256 samples
N_KILLS_AT_RANDOM = 50
SHORTEST_KILLED_SECONDS = 0.5  # less than Python needs to begin

pytestmark = needs_proc


def make_recordings(folder, rng):
    """Write recordings and a table of their labels: whole ones, regions, a long one, a duplicate and a broken one."""
    rows = []
    for class_name, sound in CLASSES.items():
        for number in range(N_OF_CLASS if class_name != "insect_sound" else 2):
            path = f"{class_name}/r{number}.wav"
            write_audio(folder / path, tiny_sound(sound, seconds=1.5 + number % 3, rng=rng))
            rows.append(f"{path},{class_name},,")
    for number in range(3):
        halves = [tiny_sound(sound, seconds=2, rng=rng) for sound in ("bird_song", "mammal_call")]
        write_audio(folder / f"mixed{number}.wav", np.concatenate(halves))
        rows += [f"mixed{number}.wav,bird_song,0.2,1.9", f"mixed{number}.wav,mammal_call,2,3.7"]
    write_audio(folder / "long.wav", tiny_sound("bird_song", seconds=LONG_SECONDS, rng=rng))
    shutil.copy(folder / "bird_song" / "r0.wav", folder / "copy.wav")
    (folder / "broken.wav").write_bytes(b"no sound" * 100)
    rows += ["long.wav,bird_song,,", "copy.wav,bird_song,,", "broken.wav,bird_song,,"]
    write_labels(folder, rows)
    return folder


def write_labels(folder, rows):
    (folder / "labels.csv").write_text("\n".join(["path,label,start,end", *rows, ""]), encoding="utf-8")


def labels_of(folder):
    return (folder / "labels.csv").read_text(encoding="utf-8").splitlines()[1:]


def command(audio_dir, output_dir, *more, augmented=AUGMENTED):
    return preprocess_command(audio_dir, output_dir, "--labels_csv", audio_dir / "labels.csv", "--workers", 2,
                              *augmented, *more)


def outputs(output_dir):
    """Return the content of every file but the journal and the lock, temporary files that were left among them."""
    return {path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("*")
            if path.is_file() and not path.name.startswith((".nightscan", "journal.jsonl"))}


def differing(found, expected):
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def entries(output_dir, kind):
    lines = (output_dir / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, filter(None, lines)) if entry.get("kind") == kind]


def check_whole(output_dir, finished=()):
    """Check that ``dataset.json``, if it stands, stands beside its own tables and spectrograms alone.

    Parameters
    ----------
    output_dir : Path
        Nobody writes it.
    finished : iterable of dict of str to bytes
        Outputs of finished runs: where a data set is one of theirs, all its files must be.
    """
    if not (output_dir / "dataset.json").exists():
        return
    info = json.loads((output_dir / "dataset.json").read_text(encoding="utf-8"))
    assert info["sha256"] == {name: file_sha256(output_dir / name) for name in info["sha256"]}
    tables = [pd.read_csv(output_dir / f"{side}.csv", keep_default_na=False) for side in SPLITS]
    paths = [path for table in tables for path in table["path"]]
    shape = (info["frontend"]["n_mels"], N_FRAMES)
    assert [path for path in paths if not is_whole_array(output_dir / path, shape)] == []
    content = (output_dir / "dataset.json").read_bytes()
    for expected in finished:
        if expected["dataset.json"] == content:
            assert [path for path in paths if (output_dir / path).read_bytes() != expected[path]] == []


@pytest.fixture(scope="module")
def audio_dir(tmp_path_factory):
    return make_recordings(tmp_path_factory.mktemp("preparation") / "audio", np.random.default_rng(11))


@pytest.fixture(scope="module")
def straight(audio_dir):
    """What a run that nothing disturbed leaves; beside the other outputs, for they hold a relative path."""
    started = time.monotonic()
    code, said = run(command(audio_dir, audio_dir.parent / "straight"))
    assert code == 0, said
    found = outputs(audio_dir.parent / "straight")
    assert sum("_aug" in name for name in found) > 80 and {"dataset.json", "overview.png", "files.csv"} < set(found)
    files = pd.read_csv(audio_dir.parent / "straight" / "files.csv").set_index("path")["status"]
    assert (files["broken.wav"], files["copy.wav"], (files == "ok").sum()) == ("corrupt", "duplicate", len(files) - 2)
    return found, time.monotonic() - started


@pytest.fixture
def output_dir(audio_dir, request):
    """A folder beside the straight one."""
    folder = audio_dir.parent / request.node.name.replace("/", "_")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run_killed(arguments, event, pattern, *, nth=1):
    code, said = run(killed(arguments, event, pattern, nth=nth))
    assert code == -signal.SIGKILL, said


def run_killed_after(arguments, seconds):
    """Kill a command after a while; return its exit code and what it said, or None where it was killed.

    Its workers may outlive it by half a second, and hold what they have inherited of its lock.
    """
    process = start(arguments)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    if process.poll() is not None:
        return finish(process)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    return None


MOMENTS = {
    "the first spectrogram": ("os.rename", SPECTROGRAM, 1),
    "the middle of a recording": ("os.rename", LONG, LONG_SECONDS // 2),
    "the first copy": ("os.rename", COPY, 1),
    "more copies": ("os.rename", COPY, 17),
    "no manifest yet": ("os.rename", "train.csv", 1),
    "no picture yet": ("os.rename", "overview.png", 1),
    "all but what tells of it": ("os.rename", "dataset.json", 1),
}


def test_a_run_that_is_killed_at_every_stage_has_the_outputs_of_one_that_was_not(audio_dir, straight, output_dir):
    for moment in MOMENTS.values():
        run_killed(command(audio_dir, output_dir), *moment[:2], nth=moment[2])
        assert not (output_dir / "dataset.json").exists()
    assert 0 < len(entries(output_dir, "recording")) and entries(output_dir, "augmentation")
    code, said = run(command(audio_dir, output_dir))
    assert code == 0 and "continuing: " in said, said
    assert differing(outputs(output_dir), straight[0]) == []


def kill_at_random(audio_dir, straight, output_dir, n_kills):
    """Kill runs after random times; whatever was finished in between must be the same."""
    expected, straight_seconds = straight
    rng = np.random.default_rng()
    n_killed = 0
    while n_killed < n_kills:
        afresh = rng.random() < 0.2 and output_dir.exists()
        arguments = command(audio_dir, output_dir, *(["--overwrite"] if afresh else []))
        ended = run_killed_after(arguments, rng.uniform(SHORTEST_KILLED_SECONDS, straight_seconds))
        if ended is None:
            n_killed += 1
        else:
            assert ended[0] == 0, ended[1]
            assert differing(outputs(output_dir), expected) == []
            shutil.rmtree(output_dir)
    code, said = run(command(audio_dir, output_dir))
    assert code == 0, said
    assert differing(outputs(output_dir), expected) == []


def test_a_run_that_is_killed_a_few_times_at_random_has_the_same_outputs(audio_dir, straight, output_dir):
    kill_at_random(audio_dir, straight, output_dir, 3)


@pytest.mark.slow
def test_a_run_that_is_killed_fifty_times_at_random_has_the_same_outputs(audio_dir, straight, output_dir):
    kill_at_random(audio_dir, straight, output_dir, N_KILLS_AT_RANDOM)


OTHER_SETTINGS = {
    "n_mels": ("--n_mels", 24), "segment_selection": ("--segment_selection", "active"),
    "random_state": ("--random_state", 7), "min_overlap_seconds": ("--min_overlap_seconds", 0.9),
}


@pytest.mark.parametrize("names", [
    ["n_mels", "random_state"],
    pytest.param([*OTHER_SETTINGS, *reversed(OTHER_SETTINGS)], marks=pytest.mark.slow)], ids=len)
def test_other_settings_that_were_tried_in_between_leave_no_trace(audio_dir, straight, output_dir, names):
    expected, finished = straight[0], [straight[0]]
    run_killed(command(audio_dir, output_dir), "os.rename", COPY, nth=5)
    for number, name in enumerate(names):
        other = command(audio_dir, output_dir, *OTHER_SETTINGS[name])
        run_killed(other, "os.rename", SPECTROGRAM if number % 3 == 0 else COPY, nth=3)
        check_whole(output_dir, finished)
        if number % 2:
            assert run(other)[0] == 0
            finished.append(outputs(output_dir))
            assert run(command(audio_dir, output_dir, augmented=()))[0] == 0
    code, said = run(command(audio_dir, output_dir))
    assert code == 0, said
    assert differing(outputs(output_dir), expected) == []


@pytest.mark.parametrize(("flags", "augmented", "moment"), [
    (("--random_state", 7), AUGMENTED, ("os.rename", COPY, 3)),
    (("--n_mels", 24), AUGMENTED, ("os.rename", SPECTROGRAM, 3)),
    ((), (), ("os.remove", COPY, 3)),
    (("--random_state", 7), AUGMENTED, ("os.remove", "train.csv", 1)),
], ids=["copies written over", "spectrograms written over", "copies removed", "tables removed"])
def test_no_data_set_stands_beside_the_files_of_another(audio_dir, straight, output_dir, flags, augmented, moment):
    shutil.copytree(audio_dir.parent / "straight", output_dir)
    run_killed(command(audio_dir, output_dir, *flags, augmented=augmented), *moment[:2], nth=moment[2])
    check_whole(output_dir, [straight[0]])


def test_sides_do_not_remember_settings_under_which_a_recording_had_no_window(audio_dir, tmp_path):
    """A region that reaches far beyond the end gives a window only where little of it is enough."""
    folder = shutil.copytree(audio_dir, tmp_path / "audio")
    rows = labels_of(folder)
    for number in range(4):
        rng = np.random.default_rng(50 + number)
        write_audio(folder / f"a_end{number}.wav", tiny_sound("mammal_call", seconds=1, rng=rng))
        rows.append(f"a_end{number}.wav,mammal_call,0.6,30")
    write_labels(folder, rows)
    asked = command(folder, tmp_path / "straight", "--min_overlap_seconds", 0.2, augmented=())
    assert run(asked)[0] == 0
    output_dir = tmp_path / "tried"
    code, said = run(command(folder, output_dir, "--min_overlap_seconds", 0.5, augmented=()))
    assert code == 0, said
    files = pd.read_csv(output_dir / "files.csv").set_index("path")
    assert files.loc[[f"a_end{number}.wav" for number in range(4)], "n_segments"].tolist() == [0] * 4
    assert run(command(folder, output_dir, "--min_overlap_seconds", 0.2, augmented=()))[0] == 0
    assert differing(outputs(output_dir), outputs(tmp_path / "straight")) == []


def test_a_worker_that_is_killed_costs_the_file_it_read_and_nothing_else(audio_dir, tmp_path):
    """As if that file had been broken from the start, but for the reason; the next run mends it."""
    folder = shutil.copytree(audio_dir, tmp_path / "audio")
    output_dir, broken_dir = tmp_path / "out", tmp_path / "expected"
    code, said = run(killed(command(folder, output_dir, augmented=()), "os.rename", LONG, nth=9, victim="worker"))
    assert code == 0 and "the process that read it died (exit code -9)" in said, said
    check_whole(output_dir)
    (folder / "long.wav").write_bytes(b"no sound" * 100)
    assert run(command(folder, broken_dir, augmented=()))[0] == 0
    found, expected = outputs(output_dir), outputs(broken_dir)
    assert {name for name in differing(found, expected) if not name.endswith(".tmp")} <= {"files.csv", "dataset.json"}
    rows = [pd.read_csv(place / "files.csv", keep_default_na=False).set_index("path")
            for place in (output_dir, broken_dir)]
    assert rows[0].loc["long.wav", "status"] == rows[1].loc["long.wav", "status"] == "corrupt"
    assert rows[0].drop(index="long.wav").equals(rows[1].drop(index="long.wav"))


def test_the_run_after_one_that_lost_a_worker_has_the_outputs_of_one_that_did_not(audio_dir, output_dir):
    arguments = command(audio_dir, output_dir, augmented=())
    assert run(killed(arguments, "os.rename", LONG, nth=3, victim="worker"))[0] == 0
    assert run(arguments)[0] == 0
    straight_dir = audio_dir.parent / "straight_without_copies"
    assert run(command(audio_dir, straight_dir, augmented=()))[0] == 0
    assert differing(outputs(output_dir), outputs(straight_dir)) == []


def test_a_worker_that_is_killed_leaves_no_temporary_file(audio_dir, output_dir):
    arguments = command(audio_dir, output_dir, augmented=())
    assert run(killed(arguments, "os.rename", LONG, nth=3, victim="worker"))[0] == 0
    assert [name for name in outputs(output_dir) if name.endswith(".tmp")] == []


def test_a_worker_that_is_killed_while_it_makes_copies_costs_copies_until_the_next_run(audio_dir, straight,
                                                                                       output_dir):
    code, said = run(killed(command(audio_dir, output_dir), "os.rename", "long-.*_aug01.npy", nth=3, victim="worker"))
    assert code == 0 and "long.wav has no augmented copies: the process that read it died" in said, said
    check_whole(output_dir)
    missing = differing(outputs(output_dir), straight[0])
    assert {name for name in missing if name.endswith(".npy")} == {
        name for name in straight[0] if "long-" in name and "_aug" in name} & set(missing)
    assert run(command(audio_dir, output_dir))[0] == 0
    assert differing(outputs(output_dir), straight[0]) == []


def test_a_run_does_what_is_new_and_tells_why_it_does_all_again(audio_dir, straight, tmp_path):
    folder = shutil.copytree(audio_dir, tmp_path / "audio")
    output_dir = tmp_path / "out"
    assert run(command(folder, output_dir))[0] == 0
    before = {name: (output_dir / name).stat().st_mtime_ns for name in outputs(output_dir)}
    n_recordings = len(entries(output_dir, "recording"))
    # nothing is new, but what could not be decoded is tried again
    code, said = run(command(folder, output_dir))
    assert code == 0 and f"continuing: {n_recordings - 1} of {n_recordings} " in said
    assert {name: (output_dir / name).stat().st_mtime_ns for name in outputs(output_dir)} == before
    assert entries(output_dir, "recording")[n_recordings:] == []  # it is as it was
    # ten files more
    rng, n_before = np.random.default_rng(99), len(entries(output_dir, "recording"))
    new = [write_audio(folder / f"new{number}.wav", tiny_sound("insect_sound", seconds=2, rng=rng)).name
           for number in range(10)]
    write_labels(folder, [*labels_of(folder), *(f"{name},insect_sound,," for name in new)])
    assert run(command(folder, output_dir))[0] == 0
    done = [entry["name"] for entry in entries(output_dir, "recording")[n_before:] if entry["result"]]
    assert sorted(done) == sorted(new)
    kept = [name for name in before if name.endswith(".npy") and "_aug" not in name]
    assert {name: (output_dir / name).stat().st_mtime_ns for name in kept} == {name: before[name] for name in kept}
    # another front end
    n_before = len(entries(output_dir, "recording"))
    code, said = run(command(folder, output_dir, "--n_mels", 24))
    assert code == 0 and "every recording is done again: n_mels was 32, is 24" in said, said
    done = [entry["name"] for entry in entries(output_dir, "recording")[n_before:] if entry["result"]]
    assert len(done) == n_recordings + 10
    check_whole(output_dir)
