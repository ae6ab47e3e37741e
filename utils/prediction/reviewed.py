"""What a person has decided already, which need not be suggested again."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from models.errors import ConfigError
from utils.audio.annotations import read_decisions
from utils.audio.matching import RecordingIndex
from utils.storage.names import name_to_text

logger = logging.getLogger(__name__)

_LEAST_SHARE = 0.5  # of a segment: less of it than this was heard when its neighbour was decided
_ROUNDING_SECONDS = 1e-3  # of times in a table


class Reviewed:
    """Stretches of recordings that were decided.

    Parameters
    ----------
    stretches : mapping of str to sequence of tuple of float
        Start and end in seconds, by the path of the recording.
    """

    def __init__(self, stretches: Mapping[str, Sequence[tuple[float, float]]] | None = None) -> None:
        self._stretches = stretches or {}

    @classmethod
    def read(cls, tables: Iterable[Path], recordings: Iterable[str]) -> "Reviewed":
        """Read what the review page handed back.

        Parameters
        ----------
        tables : iterable of Path
            Decisions; which recordings they are about is found as for annotations, also from another machine.
        recordings : iterable of str
            Paths of the recordings that are predicted; decisions about others are passed over, and counted in a line.

        Raises
        ------
        ManifestError
            If a table holds no decisions or is damaged.
        ConfigError
            If it cannot be told which recording a decision is about.
        """
        sounds = [(table, sound) for table in tables for sound in read_decisions(table)]
        names = {name_to_text(name): name for name in recordings}
        found = RecordingIndex(names, place="in --input").locate(sound.file_path for _, sound in sounds)
        stretches: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for table, sound in sounds:
            match = found[sound.file_path]
            if match.problem:
                raise ConfigError(f"--reviewed {table}: {match.problem}")
            if match.is_found:
                stretches[names[match.source_path]].append((sound.start_seconds, sound.end_seconds))
        n_decided = sum(map(len, stretches.values()))
        logger.info("%d decisions of %d recordings are not suggested again; %d are about recordings that are not"
                    " predicted here", n_decided, len(stretches), len(sounds) - n_decided)
        return cls(stretches)

    def covers(self, name: str, *, start_seconds: float, end_seconds: float) -> bool:
        """Whether at least half of a segment was decided."""
        heard = sum(max(0.0, min(end, end_seconds) - max(start, start_seconds))
                    for start, end in self._stretches.get(name, ()))
        return heard >= _LEAST_SHARE * (end_seconds - start_seconds) - _ROUNDING_SECONDS
