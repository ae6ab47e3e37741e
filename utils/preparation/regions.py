"""A recording to preprocess and what is marked in it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import ManifestError
from utils.storage.names import LONGEST_NAME_BYTES, holds_control, short_stem, text_to_name

_LONGEST_ENDING = 40  # bytes of a window's time, a copy's number, the extension and a temporary file's ending


@dataclass(frozen=True)
class Region:
    """A labelled part of a recording.

    Parameters
    ----------
    class_name : str
        What is heard in it.
    start_seconds, end_seconds : float, float or None
        In the recording; None is its end.
    low_hertz, high_hertz : float or None
        Frequencies it lies between; None where nobody said.

    Raises
    ------
    ManifestError
        If the label holds a control character.
    """

    class_name: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    low_hertz: float | None = None
    high_hertz: float | None = None

    def __post_init__(self) -> None:
        if holds_control(self.class_name):
            raise ManifestError(f"the label {self.class_name!r} holds a control character, at which a table may break:"
                                f" rename it")

    @property
    def is_whole(self) -> bool:
        """Whether the label is that of the recording, not of a part of it."""
        return self.start_seconds == 0 and self.end_seconds is None


@dataclass(frozen=True)
class Source:
    """One recording to preprocess.

    Parameters
    ----------
    source_path : str
        Relative to the input folder, with forward slashes, as ``names.name_to_text`` writes it.
    recording_id : str
        What must stay on one side of every split.
    regions : tuple of Region
        Its labels; none where somebody listened and found nothing.
    fold : str
        Value of the fold column, or empty.
    clip_id : str
        Name that no other source has, from ``distinct_clip_ids``.
    is_annotated : bool
        Whether nothing is there where nothing is marked: only then may the rest of the recording be called background.
    """

    source_path: str
    recording_id: str
    regions: tuple[Region, ...]
    fold: str
    clip_id: str
    is_annotated: bool = True

    @property
    def file_stem(self) -> str:
        """Start of the names of this source's spectrograms, unique among sources."""
        if self.recording_id == self.clip_id:
            return self.clip_id
        room = LONGEST_NAME_BYTES - _LONGEST_ENDING - len(self.clip_id.encode())
        return f"{short_stem(self.recording_id, most_bytes=room)}_{self.clip_id}"

    def audio_path(self, input_dir: Path) -> Path:
        """Return the recording's file."""
        return input_dir / text_to_name(self.source_path)

    def key(self) -> dict:
        """Return what the windows of this source depend on; its fold only decides where they go."""
        return {"source_path": self.source_path, "recording_id": self.recording_id,
                "regions": [asdict(region) for region in self.regions], "is_annotated": self.is_annotated}


def unique_regions(regions: Iterable[Region], *, where: str) -> tuple[Region, ...]:
    """Return regions without repetitions, in their order.

    Raises
    ------
    ManifestError
        If the recording as a whole has two labels: no window of it could have one.
    """
    unique = tuple(dict.fromkeys(regions))
    whole = sorted({region.class_name for region in unique if region.is_whole})
    if len(whole) > 1:
        raise ManifestError(f"{where} has several labels for the whole recording ({', '.join(whole)}): NightScan learns"
                            f" one label per window; leave one, or say when each is heard")
    return unique
