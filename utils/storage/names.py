"""Names of files and recordings: safe on every system, told apart, never outside their folder."""

import hashlib
import re
from pathlib import Path

from models.errors import ManifestError


def check_inside(folder: Path, entry: str, *, where: str) -> Path:
    """Return ``folder / entry`` resolved; ManifestError when it lies outside ``folder``."""
    root = folder.resolve()
    target = (root / entry).resolve()
    if not entry or not target.is_relative_to(root):
        raise ManifestError(f"{where}: path {entry!r} is outside {folder}; only files below it are read")
    return target


def clip_id(source_path: str) -> str:
    """Return a name for a source file: its stem made safe, and a hash that keeps equal stems apart."""
    digest = hashlib.sha256(source_path.encode()).hexdigest()[:8]
    return f"{safe_name(Path(source_path).stem)[:60]}-{digest}"


def recording_hash(recording_id: str) -> str:
    """Return a short hash of a recording id: enough to find it in a list without telling its name."""
    return hashlib.sha256(recording_id.encode()).hexdigest()[:12]


def safe_name(text: str) -> str:
    """Return text usable as a file or folder name on every system."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "unnamed"
