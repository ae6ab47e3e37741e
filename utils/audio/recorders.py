"""What recorders write into their files: when a recording began."""

import os
import re
from datetime import datetime, timedelta, timezone

_GUANO_TIMESTAMP = re.compile(rb"Timestamp:\s*(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?)(Z|[+-]\d\d:?\d\d)")
_AUDIOMOTH_COMMENT = re.compile(
    rb"Recorded at (\d\d:\d\d:\d\d)(?:\.\d+)? (\d\d/\d\d/\d{4}) \(UTC([+-]\d{1,2})?(?::(\d\d))?\)")
_HEADER_BYTES = 1 << 16  # GUANO may also stand at the end of the file


def read_recorded_at(path: str | os.PathLike) -> datetime | None:
    """Return when a recorder says it began, or None when it does not tell, or not with the offset from UTC.

    Reads GUANO's ``Timestamp`` (GUANO specification 1.0) and AudioMoth's comment ("Recorded at 03:13:00
    03/05/2025 (UTC+2)"); a time in the file name alone has no offset and is not used.
    """
    try:
        text = _metadata_bytes(path)
    except OSError:  # the sound was read; a clock that cannot be read costs the time, not the recording
        return None
    if guano := _GUANO_TIMESTAMP.search(text):
        moment = guano[1].decode().replace(" ", "T")
        return _parse("%Y-%m-%dT%H:%M:%S%z", moment[:19] + guano[2].decode())
    if comment := _AUDIOMOTH_COMMENT.search(text):
        hours, minutes = int(comment[3] or 0), int(comment[4] or 0)
        naive = _parse("%d/%m/%Y %H:%M:%S", f"{comment[2].decode()} {comment[1].decode()}")
        offset = timedelta(hours=hours, minutes=minutes if hours >= 0 else -minutes)
        return naive.replace(tzinfo=timezone(offset)) if naive and abs(offset) < timedelta(days=1) else None
    return None


def _metadata_bytes(path: str | os.PathLike) -> bytes:
    """Return the parts of a RIFF file where recorders write; nothing of another file."""
    with open(path, "rb") as stream:
        head = stream.read(_HEADER_BYTES)
        if not head.startswith((b"RIFF", b"RF64")):
            return b""
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _HEADER_BYTES))
        return head + stream.read()


def _parse(pattern: str, text: str) -> datetime | None:
    try:
        return datetime.strptime(text, pattern)
    except ValueError:  # a damaged date is the same as none
        return None
