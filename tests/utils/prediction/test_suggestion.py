import csv
import weakref
from collections import Counter, defaultdict
from datetime import datetime

import numpy as np
import pytest

from models.errors import ManifestError
from scripts import predict_efficientnet
from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from tests.scripts.processes import killed, predict_command
from tests.scripts.processes import run as run_command
from tests.utils.prediction.conftest import predictor_of
from tests.utils.prediction.test_run import ALL, count_scored, files, interrupted, predict, run
from utils.audio.recorders import RecorderFacts
from utils.preparation.label_tables import TableColumns, sources_from_table
from utils.prediction.suggestion import Candidate, foremost, suggest
from utils.storage.journal import Journal

COPY = 1e-3  # of an embedding's spread: what another background changes
N_DRAWS = 300

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def folder(tmp_path, rng):
    for name, class_name in zip(ALL, TINY_CLASSES):
        write_audio(tmp_path / "audio" / name, tiny_sound(class_name, seconds=1.5, rng=rng))
    (tmp_path / "audio" / "broken.wav").write_bytes(b"no recording at all" * 10)
    return tmp_path / "audio"


def pool(n_segments, rng, *, n_classes=4, n_features=12):
    """Return float32 embeddings and probabilities of segments that are all of their own kind."""
    return (rng.normal(size=(n_segments, n_features)).astype(np.float32),
            rng.dirichlet(np.ones(n_classes), size=n_segments))


def choose(embeddings, probabilities, n, *, sites=None, hours=None, seed=0):
    n_segments = len(embeddings)
    return suggest(embeddings, probabilities, sites=sites or ["here"] * n_segments, hours=hours or [None] * n_segments,
                   n=n, rng=np.random.default_rng(seed))


# the choice

@pytest.mark.parametrize("n", [1, 7, 40, 100])
def test_as_many_different_segments_as_asked_for_or_as_there_are(rng, n):
    chosen = choose(*pool(40, rng), n)
    assert len(chosen) == len(set(chosen)) == min(n, 40)
    assert set(chosen) <= set(range(40))


def test_nothing_to_choose_from_gives_nothing(rng):
    assert choose(*pool(0, rng), 5).tolist() == []


def test_a_choice_depends_on_the_draws_alone_and_begins_as_a_shorter_one(rng):
    embeddings, probabilities = pool(40, rng)
    chosen = choose(embeddings, probabilities, 10)
    np.testing.assert_array_equal(choose(embeddings.copy(), probabilities.copy(), 10), chosen)
    np.testing.assert_array_equal(choose(embeddings, probabilities, 4), chosen[:4])
    assert choose(embeddings, probabilities, 10, seed=1).tolist() != chosen.tolist()


def test_what_is_given_stays_as_it_is(rng):
    embeddings, probabilities = pool(10, rng)
    before = embeddings.copy(), probabilities.copy()
    choose(embeddings, probabilities, 5)
    np.testing.assert_array_equal(embeddings, before[0])
    np.testing.assert_array_equal(probabilities, before[1])


def test_it_is_k_means_plus_plus_on_whole_gradients(rng):
    """As the paper has it: an outer product for each segment, and a first centre where nothing is to be learnt."""
    embeddings, probabilities = pool(60, rng)
    errors = probabilities - np.eye(4)[probabilities.argmax(axis=1)]
    gradients = np.einsum("ic,if->icf", errors, embeddings).reshape(60, -1)
    draws, centres, expected = np.random.default_rng(0), [np.zeros(4 * 12)], []
    for _ in range(20):
        squared = np.min([((gradients - centre) ** 2).sum(axis=1) for centre in centres], axis=0)
        squared[expected] = 0
        expected.append(int(draws.choice(60, p=squared / squared.sum())))
        centres.append(gradients[expected[-1]])
    assert choose(embeddings, probabilities, 20).tolist() == expected


def test_what_the_model_is_certain_of_comes_last(rng):
    embeddings, probabilities = pool(40, rng)
    probabilities[::2] = np.eye(4)[rng.integers(4, size=20)]
    chosen = choose(embeddings, probabilities, 40)
    assert set(chosen[:20]) == set(range(1, 40, 2))


def test_of_two_sounds_as_far_apart_the_uncertain_one_comes_first():
    embeddings = np.eye(2, dtype=np.float32)
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5]])  # squared gradients: 0.02 and 0.5
    first = Counter(int(choose(embeddings, probabilities, 1, seed=seed)[0]) for seed in range(N_DRAWS))
    assert first[1] / N_DRAWS == pytest.approx(0.5 / 0.52, abs=0.04)  # three standard deviations of the draws


def test_of_near_copies_one_is_chosen(rng):
    sounds, probabilities = pool(10, rng)
    copies = np.repeat(sounds, 5, axis=0) + COPY * rng.normal(size=(50, 12)).astype(np.float32)
    chosen = choose(copies, np.repeat(probabilities, 5, axis=0), 10)
    assert sorted(chosen // 5) == list(range(10))


@pytest.mark.parametrize("of", ["sites", "hours"])
def test_no_place_and_no_hour_takes_all(rng, of):
    """One of ten has all that is loud and unheard of; it gets twice its share of 20."""
    embeddings, probabilities = pool(200, rng)
    where = [f"site {number}" if of == "sites" else number for number in np.arange(200) // 20]
    embeddings[:20] *= 100
    counts = Counter(where[index] for index in choose(embeddings, probabilities, 20, **{of: where}))
    assert counts[where[0]] == 4 and max(counts.values()) == 4
    assert choose(embeddings, probabilities, 20).max() < 20  # without a word of where they are


def test_a_site_and_an_hour_that_never_meet_do_not_end_the_choice(rng):
    """After (a, 1) and (b, 2), turns alone would ask for (c, 3), which there is not."""
    sites, hours = list("abccab"), [1, 2, 1, 2, 3, 3]
    for seed in range(N_DRAWS):
        assert len(set(choose(*pool(6, rng), 3, sites=sites, hours=hours, seed=seed))) == 3


def test_however_places_and_hours_lie_there_are_as_many_as_asked_for(rng):
    """Both limits at once leave something to choose from, whatever was chosen before."""
    for _ in range(N_DRAWS):
        n_segments = int(rng.integers(1, 15))
        n = int(rng.integers(1, n_segments + 1))
        places = rng.integers(rng.integers(1, 6, size=(2, 1)), size=(2, n_segments))
        sites, hours = [f"site {place}" for place in places[0]], places[1].tolist()
        chosen = choose(*pool(n_segments, rng), n, sites=sites, hours=hours, seed=rng)
        assert len(set(chosen)) == n
        for where in (sites, hours):
            counts, of_all = Counter(where[index] for index in chosen), Counter(where)
            assert all(counts[place] < 2 * n * of_all[place] / n_segments + 1 for place in counts)


@pytest.mark.parametrize("kind", ["one class", "one sound", "silence", "certain"])
def test_where_nothing_tells_segments_apart_places_still_take_turns(rng, kind):
    embeddings, probabilities = pool(40, rng, n_classes=1 if kind == "one class" else 4)
    if kind == "one sound":
        embeddings[:], probabilities[:] = embeddings[0], probabilities[0]
    if kind == "silence":
        embeddings[:] = 0
    if kind == "certain":
        probabilities[:] = np.eye(4)[0]
    sites = [f"site {number}" for number in np.arange(40) // 10]
    chosen = choose(embeddings, probabilities, 8, sites=sites)
    assert len(set(chosen)) == 8
    assert max(Counter(sites[index] for index in chosen).values()) <= 4


# what is held of a season

def candidates(n, rng):
    places = rng.integers([[4], [3]], size=(2, n))
    return [Candidate(f"{number}.wav", RecorderFacts(site=f"site {site}", started=datetime(2024, 5, 1, hour)), 0.0, 1.0,
                      probabilities, embedding)
            for number, (embedding, probabilities, site, hour) in enumerate(zip(*pool(n, rng), *places, strict=True))]


def names(found):
    return [candidate.name for candidate in found]


def test_the_foremost_are_kept_round_by_round_of_all_places_in_whatever_order_they_come(rng):
    given = candidates(500, rng)
    of_places = defaultdict(list)
    for candidate in given:
        of_places[candidate.site, candidate.hour].append(candidate)
    ranked = [(rank, -candidate.gradient_length, candidate.name) for place in of_places.values() for rank, candidate in
              enumerate(sorted(place, key=lambda candidate: -candidate.gradient_length))]
    expected = [name for _, _, name in sorted(ranked)[:30]]
    assert len(of_places) == 12
    for _ in range(3):
        assert names(foremost(iter(given), most=30)) == expected
        rng.shuffle(given)
    assert sorted(names(foremost(given, most=1000))) == sorted(names(given))


def test_a_place_with_little_is_kept_whole(rng):
    given = candidates(500, rng)
    rare = [candidate._replace(recorder=RecorderFacts(site="rare"), embedding=candidate.embedding / 1000)
            for candidate in given[:3]]
    assert set(names(rare)) <= set(names(foremost(given[3:] + rare, most=60)))


def test_a_season_is_not_held(rng):
    alive, most_alive = weakref.WeakSet(), 0

    class Embedding(np.ndarray):
        __hash__ = object.__hash__

    def season():
        nonlocal most_alive
        for _ in range(50):
            for candidate in candidates(20, rng):
                kept = candidate._replace(embedding=candidate.embedding.copy().view(Embedding))
                alive.add(kept.embedding)
                most_alive = max(most_alive, len(alive))
                yield kept

    assert len(foremost(season(), most=25)) == 25
    assert 50 <= most_alive <= 50 + 2  # and the one that comes and the one that goes


@pytest.mark.parametrize(("recorder", "site", "hour"), [
    (RecorderFacts(site="pond", recorder_id="AM01", started=datetime(2024, 5, 1, 23, 59, 30)), "pond", 0),
    (RecorderFacts(recorder_id="AM01", started=datetime(2024, 5, 1, 22, 0)), "AM01", 22),
    (RecorderFacts(), "survey/north", None),
])
def test_where_and_when_a_segment_was_recorded(recorder, site, hour):
    candidate = Candidate("survey/north/a.wav", recorder, 45.0, 46.0, np.ones(1), np.ones(1, dtype=np.float32))
    assert (candidate.site, candidate.hour) == (site, hour)


# the table

def suggested(predictor, paths, output, n, **arguments):
    """Predict and return the rows of the table and the JSON."""
    results = predict(predictor, paths, output, n_suggested=n, **arguments)
    return read(output.with_name(f"{output.stem}.suggested.csv")), results


def read(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def suggesting(model, **settings):
    return predictor_of(model, with_embeddings=True, **{"segment_mode": True, **settings})


def test_the_table_tells_where_to_listen_and_why(folder, tiny_model, tmp_path):
    (folder / "1.wav").rename(folder / "AM01_20240501_234036.wav")
    paths = [folder / name for name in ("0.wav", "AM01_20240501_234036.wav", "2.wav", "broken.wav")]
    rows, results = suggested(suggesting(tiny_model.best, timezone="UTC"), paths, tmp_path / "results.json", 4)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    of_segments = {(record["file_path"], record["segment_start_ms"]): record for record in results["predictions"]}
    for row in rows:
        record = of_segments.pop((row["file_path"], round(1000 * float(row["start_seconds"]))))
        assert round(1000 * float(row["end_seconds"])) == record["segment_end_ms"]
        assert (row["model_class"], float(row["confidence"])) == (record["top_class"], record["top_confidence"])
        assert row["reason"].startswith(f"uncertain between {row['model_class']} and " if record["top_confidence"] < 0.7
                                        else f"probably {row['model_class']}, but unlike")
        assert row["recorded_at"] == record.get("recorded_at", "")
        assert row["recorder_id"] == record.get("recorder_id", "")
    assert len(of_segments) == 2  # six segments in three recordings
    assert len({row["file_path"] for row in rows}) > 1


def test_more_than_there_are_is_all_of_them_in_segment_mode_or_not(folder, tiny_model, tmp_path):
    paths = [folder / name for name in ALL]
    rows, _ = suggested(suggesting(tiny_model.best), paths, tmp_path / "segments.json", 100)
    of_files, _ = suggested(suggesting(tiny_model.best, segment_mode=False), paths, tmp_path / "files.json", 100)
    assert len(rows) == 6 and of_files == rows


def test_what_cannot_be_used_is_not_suggested(folder, tiny_model, tmp_path):
    silent = write_audio(folder / "silent.wav", np.zeros(TINY_RATE, dtype=np.float32))  # scored before that is known
    rows, _ = suggested(suggesting(tiny_model.best), [silent, folder / "broken.wav"], tmp_path / "results.json", 3)
    assert rows == []


def test_an_interrupted_run_goes_on_to_the_same_suggestions(folder, tiny_model, tmp_path):
    paths, output = [folder / name for name in ALL], tmp_path / "results.json"
    interrupted(suggesting(tiny_model.best), paths, output, when=files(2), n_suggested=4)
    predictor = suggesting(tiny_model.best)
    begun, _ = count_scored(predictor)
    rows, _ = suggested(predictor, paths, output, 4)
    assert begun == ["2.wav"]
    assert rows == suggested(suggesting(tiny_model.best), paths, tmp_path / "straight.json", 4)[0]


def decided(rows, path):
    """Write suggested rows as a person decided them: with the two columns of a decision, filled in by hand."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "decision", "label"])
        writer.writeheader()
        writer.writerows({**row, "decision": "confirmed", "label": ""} for row in rows)
    return path


@pytest.mark.parametrize("seconds", [2, 1.5])
def test_what_was_decided_is_not_suggested_again(seconds, tiny_model, tmp_path, rng):
    """The last segment of 1.5 s is moved to the end and shares half of itself with the first: both are decided."""
    predictor, output = suggesting(tiny_model.best), tmp_path / "results.json"
    paths = [write_audio(tmp_path / name, tiny_sound(class_name, seconds=seconds, rng=rng))
             for name, class_name in zip(ALL, TINY_CLASSES)]

    def places(n, *tables):
        rows, _ = suggested(predictor, paths, output, n, reviewed=tables)
        return [(row["file_path"], row["start_seconds"]) for row in rows], rows

    everything, _ = places(100)
    first, rows = places(2)
    table = decided(rows, tmp_path / "first.csv")
    second, rows = places(100, table)
    heard = set(first) if seconds == 2 else {place for place in everything if place[0] in dict(first)}
    assert sorted(second) == sorted(set(everything) - heard) and len(everything) == 6
    assert places(100, table, decided(rows, tmp_path / "second.csv"))[0] == []


def test_a_table_that_is_none_is_told_before_anything_is_scored(folder, tiny_model, tmp_path):
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    predictor = suggesting(tiny_model.best)
    begun, _ = count_scored(predictor)
    with pytest.raises(ManifestError, match="none.csv has no column"):
        suggested(predictor, [folder / name for name in ALL], tmp_path / "results.json", 2,
                  reviewed=(tmp_path / "none.csv",))
    assert begun == []


def test_a_decided_table_is_a_table_of_labels(folder, tiny_model, tmp_path):
    """With the two columns of a decision, filled in by hand."""
    run(suggesting(tiny_model.best), [folder / name for name in ALL], tmp_path / "results.json", n_suggested=3)
    table = tmp_path / "results.suggested.csv"
    rows = [{**row, "decision": decision, "label": label} for row, (decision, label) in zip(
        read(table), [("confirmed", ""), ("relabelled", "owl"), ("rejected", "")], strict=True)]
    with open(table, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    sources = sources_from_table(table, folder, columns=TableColumns(), group_by="recording")
    found = {(source.source_path, region.start_seconds): region.class_name for source in sources
             for region in source.regions}
    assert found == {(row["file_path"].rpartition("/")[2], float(row["start_seconds"])): label for row, label in zip(
        rows, (rows[0]["model_class"], "owl", "environmental_sound"), strict=True)}


# the command

def test_decisions_are_for_suggestions(folder, tiny_model, tmp_path, capsys):
    code = predict_efficientnet.main(["--model_path", str(tiny_model.best), "--input", str(folder), "--output",
                                      str(tmp_path / "results.json"), "--reviewed", "decisions.csv"])
    assert code == 2 and "give --suggest N with it" in capsys.readouterr().err


def test_without_an_output_there_is_no_place_for_the_table(folder, tiny_model, capsys):
    code = predict_efficientnet.main(["--model_path", str(tiny_model.best), "--input", str(folder), "--suggest", "3"])
    assert code == 2 and "--suggest" in capsys.readouterr().err


def test_a_run_that_is_killed_at_the_table_writes_it_the_next_time(tiny_model, tmp_path, rng):
    for number, class_name in enumerate(TINY_CLASSES):
        write_audio(tmp_path / "audio" / f"{number}.wav", tiny_sound(class_name, seconds=2, rng=rng))
    arguments = predict_command(tiny_model.best, tmp_path / "audio", tmp_path / "results.json", "--suggest", 3,
                                "--backend", "torch")
    code, _ = run_command(killed(arguments, "os.rename", r"results\.suggested\.csv"))
    assert code == -9 and not (tmp_path / "results.suggested.csv").exists()
    with Journal(tmp_path / "results.scores.jsonl", fresh=False) as journal:
        n_entries = len(list(journal.entries()))
    code, said = run_command(arguments)
    assert code == 0 and "continuing: " in said, said
    assert len(read(tmp_path / "results.suggested.csv")) == 3
    with Journal(tmp_path / "results.scores.jsonl", fresh=False) as journal:
        assert len(list(journal.entries())) == n_entries
    assert not list(tmp_path.glob(".*.tmp"))
