"""What recorders write into their files and file names: when and where a recording began, and which recorder it was.

Read are AudioMoth's comment, GUANO (specification 1.0), and the file names of AudioMoth, Wildlife Acoustics and
Frontier Labs.
"""

import os
import re
import zoneinfo
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from pathlib import Path

from models.errors import ConfigError

RECORDER_COLUMNS = ("recorded_at", "recorder_id", "site", "latitude", "longitude", "temperature_c", "gain")
_GUANO_LINE = re.compile(r"^([\w .|/-]{1,60}):[ \t]*(.*?)[\s\0]*$", re.MULTILINE)
_GUANO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:?\d\d)?")
_MOST_BYTES = 1 << 13  # of what a recorder writes
_AUDIOMOTH_COMMENT = re.compile(
    r"Recorded at (\d\d:\d\d:\d\d)(?:\.\d+)? (\d\d/\d\d/\d{4}) \(UTC([+-]\d{1,2})?(?::(\d\d))?\)"
    r"(?: (?:by AudioMoth|during deployment) (\w+))?(?:.{0,40}? at (?:(\S+) gain|gain setting (\d)))?"
    r"(?:.{0,80}?temperature was (-?\d+\.\d)C)?")
# SMM09889_20230625_211402, 20240501_040000T, site3_20210510_180000Z, 20210510T180000+1000_REC_[-27.38+153.02]
_NAME = re.compile(r"(?:(.+?)[_-])?(?<!\d)((?:19|20)\d{6})[_T](\d{6})(Z|[+-]\d{4})?(?!\d)")
_NAME_PLACE = re.compile(r"\[([+-]\d+(?:\.\d+)?)([+-]\d+(?:\.\d+)?)\]")
_HEADER_BYTES = 1 << 16  # GUANO may also stand at the end of the file
_YEARS = range(1900, 2200)  # of a recording; a clock that says another is damaged
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
_HALF_DAY = timedelta(hours=12)
_DEGREES_AN_HOUR = 15.0  # that the mean sun moves
_POLE, _DATE_LINE = 90.0, 180.0  # degrees


@dataclass(frozen=True, kw_only=True)
class RecorderFacts:
    """What is known of how a recording was made; None and empty where nothing tells.

    Parameters
    ----------
    started : datetime or None
        When it began; without an offset from UTC where only a clock is known.
    recorder_id, site : str
        Serial number or name of the recorder, and name of the place.
    latitude, longitude : float or None
        Degrees, WGS 84; both or neither.
    temperature_c : float or None
        Degrees Celsius.
    gain : str
        As the recorder words it.
    """

    started: datetime | None = None
    recorder_id: str = ""
    site: str = ""
    latitude: float | None = None
    longitude: float | None = None
    temperature_c: float | None = None
    gain: str = ""

    @property
    def night(self) -> date | None:
        """Date on which the night of the recording began, from noon to noon; None where nobody knows the time.

        The recorder's clock says when it is noon. A clock in UTC is no clock of the place: where the place is known,
        its mean solar noon counts, which is 12 h UTC less an hour for every 15 degrees of longitude.
        """
        if self.started is None:
            return None
        clock = self.started
        if self.longitude is not None and clock.utcoffset() == timedelta(0):
            clock += timedelta(hours=self.longitude / _DEGREES_AN_HOUR)
        return (clock - _HALF_DAY).date()

    def in_zone(self, zone: tzinfo | None) -> "RecorderFacts":
        """Return the facts in a time zone: a bare clock is taken to show its time; None changes nothing."""
        if zone is None or self.started is None:
            return self
        aware = self.started.replace(tzinfo=zone) if self.started.tzinfo is None else self.started.astimezone(zone)
        return replace(self, started=aware)

    def to_dict(self) -> dict:
        """Return plain types for the journal."""
        return {**{name: value for name, value in vars(self).items() if name != "started" and value not in ("", None)},
                **({"started": self.started.isoformat()} if self.started else {})}

    @classmethod
    def from_dict(cls, values: dict) -> "RecorderFacts":
        """Rebuild what ``to_dict`` gave."""
        started = values.get("started")
        return cls(**{**values, "started": datetime.fromisoformat(started) if started else None})


def read_recorder(path: str | os.PathLike) -> RecorderFacts:
    """Return what a recording tells of its recorder: what stands in the file counts before the file's name."""
    facts = _of_name(Path(path).stem)
    try:
        data = _metadata_bytes(path)
    except OSError:  # the sound was read; a clock that cannot be read costs the time, not the recording
        return facts
    for found in (_of_audiomoth(_text_from(data, b"Recorded at ")), _of_guano(_text_from(data, b"GUANO|Version"))):
        facts = replace(facts, **{name: value for name, value in vars(found).items()
                                  # a clock without an offset does not take the place of one with it
                                  if value not in ("", None) and not (
                                      name == "started" and value.tzinfo is None and facts.started is not None
                                      and facts.started.tzinfo is not None)})
    return facts


def parse_timezone(text: str) -> tzinfo:
    """Return a time zone of the tz database (``America/Lima``), ``UTC``, or an offset (``+02:00``).

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    offset = _OFFSET.fullmatch(text)
    if offset and int(offset[2]) < 24 and int(offset[3]) < 60:
        return timezone(_offset(offset[1], offset[2], offset[3]))
    if text.upper() in ("UTC", "Z"):
        return timezone.utc
    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"--timezone {text!r} is no time zone: give a name such as America/Lima, UTC, or an offset"
                          f" such as +02:00") from error


def _of_name(stem: str) -> RecorderFacts:
    found = _NAME.search(stem)
    if not found:
        return RecorderFacts()
    started = _parse("%Y%m%d%H%M%S", found[2] + found[3])
    if started is None:  # digits that are no date: not a recorder's name
        return RecorderFacts()
    zone = found[4]
    if zone == "Z":
        started = started.replace(tzinfo=timezone.utc)
    elif zone and int(zone[1:3]) <= 14 and int(zone[3:]) % 15 == 0 and int(zone[3:]) < 60:  # else it is a counter
        started = started.replace(tzinfo=timezone(_offset(zone[0], zone[1:3], zone[3:])))
    place = _NAME_PLACE.search(stem)
    latitude, longitude = _position(list(place.groups()) if place else [])
    return RecorderFacts(started=started, recorder_id=(found[1] or "").rstrip("_-"), latitude=latitude,
                         longitude=longitude)


def _of_audiomoth(text: str) -> RecorderFacts:
    found = _AUDIOMOTH_COMMENT.search(text)
    if not found:
        return RecorderFacts()
    hours = found[3] or "+0"
    offset = _offset(hours[0], hours[1:], found[4] or "0")
    naive = _parse("%d/%m/%Y %H:%M:%S", f"{found[2]} {found[1]}")
    started = naive.replace(tzinfo=timezone(offset)) if naive and abs(offset) < timedelta(days=1) else None
    return RecorderFacts(started=started, recorder_id=found[5] or "", gain=found[6] or found[7] or "",
                         temperature_c=float(found[8]) if found[8] else None)


def _of_guano(text: str) -> RecorderFacts:
    fields = dict(reversed(_GUANO_LINE.findall(text)))
    started = None
    latitude, longitude = _position(fields.get("Loc Position", "").replace(",", " ").split())
    if found := _GUANO_TIME.match(fields.get("Timestamp", "")):
        zone = (found[3] or "").replace("Z", "+0000").replace(":", "")
        started = _parse("%Y-%m-%d %H:%M:%S" + ("%z" if zone else ""), f"{found[1]} {found[2]}{zone}")
    temperature = _number(fields.get("Temperature Ext", "")), _number(fields.get("Temperature Int", ""))
    return RecorderFacts(started=started, recorder_id=fields.get("Serial", ""), site=fields.get("Site Name", ""),
                         latitude=latitude, longitude=longitude, gain=fields.get("Gain", ""),
                         temperature_c=next((value for value in temperature if value is not None), None))


def _text_from(data: bytes, beginning: bytes) -> str:
    """Return the text that begins so, to the end of its chunk."""
    place = data.find(beginning)
    if place < 0:
        return ""
    size = int.from_bytes(data[place - 4:place], "little") if data[place - 8:place - 4] == b"guan" else _MOST_BYTES
    return data[place:place + min(size, _MOST_BYTES)].decode("utf-8", errors="replace")


def _metadata_bytes(path: str | os.PathLike) -> bytes:
    """Return the parts of a RIFF file where recorders write; nothing of another file."""
    with open(path, "rb") as stream:
        head = stream.read(_HEADER_BYTES)
        if not head.startswith((b"RIFF", b"RF64")):
            return b""
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(_HEADER_BYTES, size - _HEADER_BYTES))
        return head + b"\n" + stream.read()


def _offset(sign: str, hours: str, minutes: str) -> timedelta:
    size = timedelta(hours=int(hours), minutes=int(minutes))
    return -size if sign == "-" else size


def _position(texts: list[str]) -> tuple[float, float] | tuple[None, None]:
    """Return latitude and longitude; a place with one of them damaged is no place."""
    if len(texts) == 2:
        latitude, longitude = _number(texts[0], most=_POLE), _number(texts[1], most=_DATE_LINE)
        if latitude is not None and longitude is not None:
            return latitude, longitude
    return None, None


def _number(text: str, *, most: float = 1000.0) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= most else None  # NaN and infinity neither


def _parse(pattern: str, text: str) -> datetime | None:
    try:
        moment = datetime.strptime(text, pattern)
    except ValueError:  # a damaged date is the same as none
        return None
    return moment if moment.year in _YEARS else None
