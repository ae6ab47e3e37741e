import csv

import pytest

from models.errors import ConfigError, ManifestError
from utils.audio.annotations import DECISION_COLUMNS
from utils.prediction.reviewed import Reviewed


def decisions(path, *rows):
    """Write a table of decisions: recording, start, end, decision."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(DECISION_COLUMNS)
        writer.writerows((name, start, end, "bird_song", 0.5, decision, "", "2026-01-01T00:00:00Z")
                         for name, start, end, decision in rows)
    return path


@pytest.mark.parametrize("start, end, covered", [
    (10, 15, True), (7.5, 12.5, True), (7.4, 12.4, False), (15, 20, False), (11, 12, True), (0, 5, False),
    (13.9, 16.1, True)])  # half of it but for the last bit of the numbers
def test_a_segment_is_decided_where_half_of_it_was(tmp_path, start, end, covered):
    table = decisions(tmp_path / "d.csv", ("a.wav", 10, 15, "confirmed"))
    reviewed = Reviewed.read([table], ["a.wav", "b.wav"])
    assert reviewed.covers("a.wav", start_seconds=start, end_seconds=end) is covered
    assert not reviewed.covers("b.wav", start_seconds=start, end_seconds=end)


def test_stretches_of_several_tables_count_together(tmp_path):
    tables = [decisions(tmp_path / "1.csv", ("a.wav", 0, 2, "confirmed")),
              decisions(tmp_path / "2.csv", ("a.wav", 2, 3, "rejected"))]
    assert not Reviewed.read(tables[:1], ["a.wav"]).covers("a.wav", start_seconds=0, end_seconds=6)
    assert Reviewed.read(tables, ["a.wav"]).covers("a.wav", start_seconds=0, end_seconds=6)


def test_paths_of_another_machine_and_recordings_that_are_not_here(tmp_path, caplog):
    table = decisions(tmp_path / "d.csv", (r"D:\survey\june\a.wav", 0, 3, "confirmed"),
                      ("july/c.wav", 0, 3, "rejected"))
    with caplog.at_level("INFO"):
        reviewed = Reviewed.read([table], ["/data/june/a.wav", "/data/june/b.wav"])
    assert reviewed.covers("/data/june/a.wav", start_seconds=0, end_seconds=3)
    assert "1 decisions of 1 recordings are not suggested again; 1 are about" in caplog.text


def test_a_name_that_may_be_two_recordings_is_told(tmp_path):
    table = decisions(tmp_path / "d.csv", ("a.wav", 0, 3, "confirmed"))
    with pytest.raises(ConfigError, match="--reviewed .*d.csv.* may be any of 2 recordings"):
        Reviewed.read([table], ["one/a.wav", "two/a.wav"])


def test_a_table_that_holds_no_decisions_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("file_path,predicted_class\na.wav,bird_song\n")
    with pytest.raises(ManifestError, match="has no column"):
        Reviewed.read([tmp_path / "results.csv"], ["a.wav"])
