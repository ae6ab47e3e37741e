"""What stays on one side of a split: a recording, a folder, a site, or a night of a site."""

import logging
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path

from utils.audio.recorders import RecorderFacts, read_recorder
from utils.storage.names import name_to_text, text_to_name

logger = logging.getLogger(__name__)

GROUPINGS = ("recording", "folder", "site", "night", "column")
# why a recording is its own group
_UNKNOWN = {"folder": "lie in no folder of their own", "site": "tell neither site nor recorder and lie in no folder",
            "night": "tell neither their time nor their recorder"}


def group_ids(clip_ids: Mapping[str, str], input_dir: Path, *, group_by: str,
              n_class_folders: int = 0) -> dict[str, str]:
    """Return the group of each recording, as readable text.

    Parameters
    ----------
    clip_ids : mapping of str to str
        Relative path of each recording, and the name that no other has: its group where it is its own.
    input_dir : Path
        Folder the paths are relative to; of the files, only what their recorders wrote is read.
    group_by : str
        ``recording``: each is its own. ``folder``: the folder it lies in. ``site``: what the recorder calls the site,
        or else the recorder, or else the folder. ``night``: site and night, from noon to noon (see
        ``RecorderFacts.night``); of a recorder that tells no time, the site. Any other value: each is its own, for the
        table has the groups.
    n_class_folders : int
        Folders at the start of each path that are labels, not places: one night in two class folders is one group.

    Notes
    -----
    A recording of which nothing is known is its own group, and one warning says how many are.
    """
    folders = {path: "/".join(posixpath.dirname(path).split("/")[n_class_folders:]) for path in clip_ids}
    if group_by == "folder":
        found = folders
    elif group_by in ("site", "night"):
        name_of: Callable[[RecorderFacts, str], str] = _site if group_by == "site" else _night
        found = {path: name_to_text(name_of(read_recorder(input_dir / text_to_name(path)), folders[path]))
                 for path in clip_ids}
    else:
        return dict(clip_ids)
    alone = [path for path in clip_ids if not found[path]]
    if alone:
        logger.warning("--group_by %s: %d of %d recordings %s (such as %s): each is a group of its own, so that those"
                       " made together may come to two sides", group_by, len(alone), len(clip_ids), _UNKNOWN[group_by],
                       alone[0])
    return {path: found[path] or own for path, own in clip_ids.items()}


def _site(facts: RecorderFacts, folder: str) -> str:
    return facts.site or facts.recorder_id or folder


def _night(facts: RecorderFacts, folder: str) -> str:
    if facts.night is None:  # a folder alone says nothing of the time, a recorder at least that it is the same one
        return facts.site or facts.recorder_id
    return f"{_site(facts, folder)} {facts.night.isoformat()}".strip()
