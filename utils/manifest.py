"""Manifests: which spectrogram has which label, from which recording, on which side of the split."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from models.audio_frontend import frontend_fingerprint
from models.efficientnet_config import DEFAULT_CLASS_NAMES, FrontendConfig
from models.errors import ConfigError, ManifestError
from utils.files import atomic_path, read_json

FORMAT_VERSION = 1
MANIFEST_COLUMNS = ("path", "label", "class_name", "recording_id", "source_path", "start_seconds", "end_seconds",
                    "split", "augmentation")
SPLITS = ("train", "val", "test")
NOT_AUGMENTED = "none"
_SPLIT_CANDIDATES = 10  # shufflings tried; the one nearest to the wished ratios is taken
_LARGEST_DENOMINATOR = 10  # ratios become m of at most this many folds
_CLASS_MISSING = 0.5  # cost of a held-out part without a class: as much as missing its ratio by half


@dataclass(frozen=True)
class ClassList:
    """The classes in the order of the network's outputs.

    Parameters
    ----------
    names : tuple of str
        Class names; index is label.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"class names must differ, got {', '.join(self.names)}")
        if any(not name.strip() for name in self.names):
            raise ConfigError("class names must not be empty")

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> "ClassList":
        """Order the classes found: README order when all are default classes, else sorted."""
        found = set(labels)
        if found <= set(DEFAULT_CLASS_NAMES):
            return cls(tuple(name for name in DEFAULT_CLASS_NAMES if name in found))
        return cls(tuple(sorted(found)))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the label of a class name; ManifestError when unknown."""
        if name not in self.names:
            raise ManifestError(f"unknown class {name!r}: the classes are {', '.join(self.names)}")
        return self.names.index(name)


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

    def spectrogram_path(self, index: int) -> Path:
        """Return where the spectrogram of row ``index`` lies."""
        return self.path.parent / self.rows["path"].iloc[index]

    def labels(self) -> np.ndarray:
        """Return int64 ``(n_rows,)``."""
        return self.rows["label"].to_numpy(dtype=np.int64)

    def recording_ids(self) -> np.ndarray:
        """Return the recording of each row, str ``(n_rows,)``."""
        return self.rows["recording_id"].to_numpy(dtype=str)


def write_manifest(path: str | os.PathLike, rows: pd.DataFrame) -> None:
    """Write rows with the columns of ``MANIFEST_COLUMNS``, atomically."""
    with atomic_path(path) as temporary:
        rows.loc[:, list(MANIFEST_COLUMNS)].to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Read a CSV or TAB table as text columns; ManifestError names what is wrong with it."""
    table = Path(path)
    try:
        with open(table, encoding="utf-8-sig") as stream:
            separator = "\t" if "\t" in stream.readline() else ","
        return pd.read_csv(table, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"{table} does not exist") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"{table} is not a readable table: {error}") from error


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


def check_inside(folder: Path, entry: str, *, where: str) -> Path:
    """Return ``folder / entry`` resolved; ManifestError when it lies outside ``folder``."""
    root = folder.resolve()
    target = (root / entry).resolve()
    if not entry or not target.is_relative_to(root):
        raise ManifestError(f"{where}: path {entry!r} is outside {folder}; only files below it are read")
    return target


def check_no_shared_recording(train: Manifest, val: Manifest) -> list[str]:
    """Return the recordings that two manifests share, sorted; an empty list means no leakage."""
    # plain text, not NumPy's: the list goes into checkpoints, which hold plain types only
    return sorted(set(train.recording_ids().tolist()) & set(val.recording_ids().tolist()))


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


def grouped_folds(labels: Sequence[int] | np.ndarray, groups: Sequence[str] | np.ndarray, *, n_folds: int,
                  random_state: int) -> list[np.ndarray]:
    """Split rows into folds stratified by label, each group whole on one side.

    Parameters
    ----------
    labels : array of int, (n_rows,)
        Class of each row.
    groups : array of str, (n_rows,)
        Recording of each row.
    n_folds : int
        At least 2.
    random_state : int
        Seed of the shuffle.

    Returns
    -------
    list of numpy.ndarray
        Row indices of each fold, ascending, disjoint, together all rows.

    Raises
    ------
    ManifestError
        If there are fewer recordings than folds.
    """
    n_groups = len(set(groups))
    if n_groups < n_folds:
        raise ManifestError(f"{n_folds} folds need at least {n_folds} recordings, got {n_groups}: lower --k_folds"
                            f" or add recordings")
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=random_state)
    with warnings.catch_warnings():
        # scikit-learn warns of classes with fewer rows than folds; preprocessing tells which class is missing where
        warnings.simplefilter("ignore", UserWarning)
        try:
            return [held_out for _, held_out in splitter.split(np.zeros(len(labels)), labels, groups)]
        except ValueError as error:
            raise ManifestError(f"{n_folds} folds need a class with at least {n_folds} segments ({error}):"
                                f" lower --k_folds or add recordings") from error


def grouped_split(labels: np.ndarray, groups: np.ndarray, *, ratios: Sequence[float],
                  random_state: int) -> np.ndarray:
    """Assign rows to train, val and test: stratified by label, each group whole on one side, every class in train.

    Parameters
    ----------
    labels : numpy.ndarray
        int ``(n_rows,)``.
    groups : numpy.ndarray
        str ``(n_rows,)``.
    ratios : sequence of float
        Shares of train, val and test, summing to 1.
    random_state : int
        Seed.

    Returns
    -------
    numpy.ndarray
        ``(n_rows,)`` of ``"train"``, ``"val"`` or ``"test"``.
    """
    sides = np.full(len(labels), "train", dtype="<U5")
    remaining = np.arange(len(labels))
    share_left = 1.0
    for side, ratio in (("test", ratios[2]), ("val", ratios[1])):
        if ratio <= 0:
            continue
        movable = remaining[_movable(labels[remaining], groups[remaining])]
        held_out = movable[_held_out(labels[movable], groups[movable], ratio / share_left, random_state)]
        sides[held_out] = side
        remaining = np.setdiff1d(remaining, held_out)
        share_left -= ratio
    return sides


def _movable(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return which rows may leave train: those of recordings that are not the only one of a class."""
    rows = pd.DataFrame({"label": labels, "group": groups})
    n_recordings = rows.groupby("label")["group"].transform("nunique")
    return ~rows["group"].isin(rows.loc[n_recordings == 1, "group"]).to_numpy()


def _held_out(labels: np.ndarray, groups: np.ndarray, ratio: float, random_state: int) -> np.ndarray:
    """Return the rows of a stratified, grouped part of about ``ratio``, the best of several shufflings.

    A class of fewer recordings than folds is missing from some folds; where many classes are that small, fewer
    and larger folds are tried, so that every class is on every side.
    """
    most_folds = min(Fraction(ratio).limit_denominator(_LARGEST_DENOMINATOR).denominator, len(set(groups)),
                     int(np.bincount(labels, minlength=1).max()))
    best_cost = np.inf
    best: np.ndarray = np.empty(0, dtype=int)
    for n_folds in range(most_folds, 1, -1):
        n_taken = max(1, round(ratio * n_folds))
        if n_taken >= n_folds:
            break
        for candidate in range(_SPLIT_CANDIDATES):
            # neighbouring random states share no shuffling
            seed = (random_state * _SPLIT_CANDIDATES + candidate) % 2**32
            folds = grouped_folds(labels, groups, n_folds=n_folds, random_state=seed)
            for first in range(0, n_folds - n_taken + 1, n_taken):
                rows = np.sort(np.concatenate(folds[first:first + n_taken]))
                cost = _split_cost(labels, rows, ratio)
                if cost < best_cost:
                    best, best_cost = rows, cost
        if best_cost < _CLASS_MISSING:
            break
    return best


def _split_cost(labels: np.ndarray, held_out: np.ndarray, ratio: float) -> float:
    """Return how far a held-out part is from the wish; infinite when it leaves nothing of a class to learn from."""
    counts = np.bincount(labels)
    shares = np.bincount(labels[held_out], minlength=len(counts))[counts > 0] / counts[counts > 0]
    if (shares == 1.0).any():
        return np.inf
    return float(np.abs(shares - ratio).sum() + _CLASS_MISSING * (shares == 0.0).sum())


def _manifest_classes(rows: pd.DataFrame, class_names: Sequence[str] | None, dataset: dict) -> ClassList:
    if dataset.get("class_names"):
        return ClassList(tuple(map(str, dataset["class_names"])))
    if class_names:
        return ClassList(tuple(class_names))
    if not rows["label"].str.fullmatch(r"\d+").all():
        return ClassList.from_labels(rows["label"])
    # NightScan 1 wrote integer labels and kept one folder per class
    named = rows["class_name"] if "class_name" in rows else rows["path"].map(lambda entry: Path(entry).parent.name)
    pairs = sorted({(int(label), name) for label, name in zip(rows["label"], named, strict=True)})
    if [label for label, _ in pairs] == list(range(len(pairs))) and all(name for _, name in pairs):
        return ClassList(tuple(name for _, name in pairs))
    return ClassList(tuple(f"class_{label}" for label in range(1 + max(int(label) for label in rows["label"]))))


def _label_indices(labels: pd.Series, classes: ClassList, path: Path) -> list[int]:
    indices = []
    for line, label in enumerate(labels, start=2):
        index = classes.names.index(label) if label in classes.names else int(label) if label.isdecimal() else -1
        if not 0 <= index < len(classes):
            raise ManifestError(f"{path} line {line}: label {label!r} is neither an index below {len(classes)}"
                                f" nor one of {', '.join(classes.names)}")
        indices.append(index)
    return indices


def _with_all_columns(rows: pd.DataFrame, classes: ClassList) -> pd.DataFrame:
    defaults = {
        "class_name": [classes.names[label] for label in rows["label"]],
        "recording_id": rows["path"], "source_path": "", "start_seconds": "", "end_seconds": "", "split": "",
        "augmentation": NOT_AUGMENTED,
    }
    return rows.assign(**{name: value for name, value in defaults.items() if name not in rows})
