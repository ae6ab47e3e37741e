"""Manifests: which spectrogram has which label, from which recording, on which side of the split."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from models.audio_frontend import frontend_fingerprint
from models.classes import ClassList
from models.efficientnet_config import FrontendConfig
from models.errors import ManifestError
from utils.storage.files import file_sha256, read_json
from utils.storage.names import check_inside, text_to_name
from utils.storage.tables import read_table, write_table

FORMAT_VERSION = 1
MANIFEST_COLUMNS = ("path", "label", "class_name", "recording_id", "source_path", "start_seconds", "end_seconds",
                    "split", "augmentation")
SPLITS = ("train", "val", "test")
NOT_AUGMENTED = "none"
_MOST_INDEX_DIGITS = 9
CONTENT_DIGITS = 16  # hexadecimal digits of a content id


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and checked.

    Parameters
    ----------
    path : Path
        The CSV file.
    rows : pandas.DataFrame
        All of ``MANIFEST_COLUMNS``; ``label`` is int.
    classes : ClassList
        Class order.
    frontend : FrontendConfig or None
        What made the spectrograms; None when no ``dataset.json`` lies beside the manifest.
    dataset : dict
        Content of ``dataset.json``, or empty.
    """

    path: Path
    rows: pd.DataFrame
    classes: ClassList
    frontend: FrontendConfig | None
    dataset: dict = field(default_factory=dict)

    @property
    def input_dir(self) -> Path | None:
        """Where preprocessing found the recordings; None where ``dataset.json`` does not tell."""
        recorded = self.dataset.get("input_dir")
        return self.path.parent / text_to_name(str(recorded)) if recorded else None

    def spectrogram_path(self, index: int) -> Path:
        """Return where the spectrogram of row ``index`` lies."""
        return self.path.parent / text_to_name(self.rows["path"].iloc[index])

    def labels(self) -> np.ndarray:
        """Return int64 ``(n_rows,)``."""
        return self.rows["label"].to_numpy(dtype=np.int64)

    def recording_ids(self) -> np.ndarray:
        """Return the recording of each row, str ``(n_rows,)``."""
        return self.rows["recording_id"].to_numpy(dtype=str)


def write_manifest(path: str | os.PathLike, rows: pd.DataFrame) -> None:
    """Write rows with the columns of ``MANIFEST_COLUMNS``, atomically."""
    write_table(path, rows.loc[:, list(MANIFEST_COLUMNS)])


def read_manifest(path: str | os.PathLike, *, class_names: Sequence[str] | None = None) -> Manifest:
    """Read a manifest and the ``dataset.json`` beside it.

    Parameters
    ----------
    path : path-like
        CSV with at least ``path,label``; label is an index or a class name.
    class_names : sequence of str, optional
        Class order to use where no ``dataset.json`` tells it.

    Returns
    -------
    Manifest
        Checked rows.

    Raises
    ------
    ManifestError
        For missing columns, no rows, unknown labels, or a path outside the manifest's folder.
    """
    manifest_path = Path(path)
    rows = read_table(manifest_path)
    missing = [name for name in ("path", "label") if name not in rows]
    if missing:
        raise ManifestError(f"{manifest_path} lacks the column {missing[0]!r}; it has {', '.join(rows.columns)}")
    if rows.empty:
        raise ManifestError(f"{manifest_path} holds no rows: nothing to read")
    for line, entry in enumerate(rows["path"], start=2):
        check_inside(manifest_path.parent, entry, where=f"{manifest_path} line {line}")
    dataset, frontend = read_dataset_info(manifest_path.parent)
    classes = _manifest_classes(rows, class_names, dataset)
    rows = rows.assign(label=_label_indices(rows["label"], classes, manifest_path))
    if dataset:
        _check_class_names(rows, classes, manifest_path)
    rows = _with_all_columns(rows, classes)
    return Manifest(manifest_path, rows, classes, frontend, dataset)


def read_dataset_info(folder: Path) -> tuple[dict, FrontendConfig | None]:
    """Return ``dataset.json`` of a folder and its front end; an empty dict and None without the file."""
    path = folder / "dataset.json"
    if not path.exists():
        return {}, None
    dataset = read_json(path)
    if dataset.get("format_version") != FORMAT_VERSION:
        raise ManifestError(f"{path} has format_version {dataset.get('format_version')!r}, this NightScan reads"
                            f" {FORMAT_VERSION}: run preprocess_enhanced.py again")
    frontend = FrontendConfig.from_dict(dataset.get("frontend", {}))
    if dataset.get("fingerprint") != frontend_fingerprint(frontend):
        raise ManifestError(f"{path}: the front end does not match its fingerprint"
                            f" {str(dataset.get('fingerprint'))[:12]}: it was edited or made by another version;"
                            f" run preprocess_enhanced.py again")
    return dataset, frontend


def check_no_shared_recording(train: Manifest, val: Manifest) -> list[str]:
    """Return the recordings that two manifests share, sorted; an empty list means no leakage."""
    # plain text, not NumPy's: the list goes into checkpoints, which hold plain types only
    return sorted(set(train.recording_ids().tolist()) & set(val.recording_ids().tolist()))


def recording_contents(manifest: Manifest) -> dict[str, frozenset[str]]:
    """Return what each recording is recognised by wherever it lies and whatever it is called: its content.

    Parameters
    ----------
    manifest : Manifest
        Augmented copies are passed over.

    Returns
    -------
    dict of str to frozenset of str
        Recording id to content ids: ``audio:`` and the start of the file's SHA-256 where ``files.csv`` beside the
        manifest tells it, and ``log_mel:`` and that of the recording's first spectrogram.
    """
    original = np.flatnonzero(manifest.rows["augmentation"] == NOT_AUGMENTED)
    rows = manifest.rows.iloc[original].assign(row=original).sort_values("path", kind="stable")
    hashes = _audio_hashes(manifest.path.parent)
    contents = {}
    for recording_id, group in rows.groupby("recording_id", sort=False):
        sources = set(group["source_path"]) & hashes.keys()
        found = {f"audio:{hashes[source][:CONTENT_DIGITS]}" for source in sources}
        first = manifest.spectrogram_path(int(group["row"].iloc[0]))
        if first.is_file():
            found.add(f"log_mel:{file_sha256(first)[:CONTENT_DIGITS]}")
        contents[str(recording_id)] = frozenset(found)
    return contents


def _audio_hashes(folder: Path) -> dict[str, str]:
    path = folder / "files.csv"
    if not path.is_file():
        return {}
    table = read_table(path)
    if not {"path", "sha256"} <= set(table):
        return {}
    return {source: sha256 for source, sha256 in zip(table["path"], table["sha256"], strict=True) if sha256}


def _manifest_classes(rows: pd.DataFrame, class_names: Sequence[str] | None, dataset: dict) -> ClassList:
    if dataset.get("class_names"):
        return ClassList(tuple(map(str, dataset["class_names"])))
    if class_names:
        return ClassList(tuple(class_names))
    if not rows["label"].map(_is_index).all():
        return ClassList.from_labels(rows["label"])
    # NightScan 1 wrote integer labels and kept one folder per class
    named = rows["class_name"] if "class_name" in rows else rows["path"].map(lambda entry: Path(entry).parent.name)
    pairs = sorted({(int(label), name) for label, name in zip(rows["label"], named, strict=True)})
    if [label for label, _ in pairs] == list(range(len(pairs))) and all(name for _, name in pairs):
        return ClassList(tuple(name for _, name in pairs))
    return ClassList(tuple(f"class_{label}" for label in range(1 + max(int(label) for label in rows["label"]))))


def _label_indices(labels: pd.Series, classes: ClassList, path: Path) -> list[int]:
    """Return the index each label means: a whole number is an index, whatever the classes are called."""
    indices = []
    for line, label in enumerate(labels, start=2):
        index = int(label) if _is_index(label) else classes.names.index(label) if label in classes.names else -1
        if not 0 <= index < len(classes):
            raise ManifestError(f"{path} line {line}: label {label!r} is neither an index below {len(classes)}"
                                f" nor one of {', '.join(classes.names)}")
        indices.append(index)
    return indices


def _is_index(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) <= _MOST_INDEX_DIGITS


def _check_class_names(rows: pd.DataFrame, classes: ClassList, path: Path) -> None:
    """Refuse a row whose class name is not that of its label: one of the two is wrong, and nobody knows which."""
    if "class_name" not in rows:
        return
    for line, (label, name) in enumerate(zip(rows["label"], rows["class_name"], strict=True), start=2):
        if name and name != classes.names[label]:
            raise ManifestError(f"{path} line {line}: label {label} is {classes.names[label]!r}, but class_name says"
                                f" {name!r}: run preprocess_enhanced.py again or correct the line")


def _with_all_columns(rows: pd.DataFrame, classes: ClassList) -> pd.DataFrame:
    defaults = {
        "class_name": [classes.names[label] for label in rows["label"]],
        "recording_id": rows["path"], "source_path": "", "start_seconds": "", "end_seconds": "", "split": "",
        "augmentation": NOT_AUGMENTED,
    }
    return rows.assign(**{name: value for name, value in defaults.items() if name not in rows})
