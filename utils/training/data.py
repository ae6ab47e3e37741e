"""What a run learns from: manifests that fit each other and their front end."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.classes import ClassList
from models.efficientnet_config import EfficientNetConfig
from models.errors import ManifestError
from utils.storage.manifest import Manifest, check_no_shared_recording, read_manifest, recording_contents
from utils.storage.names import recording_hash
from utils.storage.spectrograms import SpectrogramDataset

logger = logging.getLogger(__name__)

_LISTED_RECORDINGS = 3  # how many shared recordings an error names


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Checked manifests of one run.

    Parameters
    ----------
    train, val : Manifest
        Same front end and classes.
    shared_recordings : list of str
        Recordings on both sides; not empty only when leakage was allowed.
    """

    train: Manifest
    val: Manifest
    shared_recordings: list[str]

    @property
    def classes(self) -> ClassList:
        """Class order."""
        return self.train.classes

    def learnt_from(self) -> dict[str, list[str]]:
        """Return what the run's checkpoints tell of its recordings."""
        sides = (self.train, self.val)
        return describe_recordings([name for side in sides for name in side.recording_ids()],
                                   contents_of_recordings(sides))


def read_training_data(train_csv: Path, val_csv: Path, *, allow_leakage: bool) -> TrainingData:
    """Read and check the manifests of a training run.

    Raises
    ------
    ManifestError
        If front ends or classes differ, a recording is on both sides, or there is only one class.
    """
    train = read_manifest(train_csv)
    val = read_manifest(val_csv, class_names=train.classes.names)
    if train.frontend != val.frontend:
        raise ManifestError(f"{train_csv} and {val_csv} were made by different front ends: {_difference(train, val)};"
                            f" preprocess both with the same settings")
    if train.classes != val.classes:
        raise ManifestError(f"{train_csv} has the classes {', '.join(train.classes.names)}, {val_csv} has"
                            f" {', '.join(val.classes.names)}: preprocess both together")
    n_present = len(set(train.labels()))
    if n_present < 2:
        raise ManifestError(f"{train_csv} holds only one class: a classifier needs at least two")
    shared = check_no_shared_recording(train, val)
    if shared and not allow_leakage:
        listed = ", ".join(shared[:_LISTED_RECORDINGS])
        raise ManifestError(f"{train_csv} and {val_csv} share {len(shared)} recordings ({listed}): validation would"
                            f" be on what was learnt; split by recording, or pass --allow_leakage")
    _tell_leakage_check(train, shared)
    return TrainingData(train=train, val=val, shared_recordings=shared)


def _tell_leakage_check(train: Manifest, shared: Sequence[str]) -> None:
    """Say what the sides of the split share, as far as it is known: every count should be 0."""
    told = [f"train and val share {len(shared)} recordings"]
    counts = train.dataset.get("leakage_check", {}).get("shared", {})
    told += [f"{sides.replace('-', ' and ')} {found['recordings']} recordings, {found['contents']} contents and"
             f" {found['near_duplicates']} near-duplicates" for sides, found in sorted(counts.items())]
    leaks = bool(shared) or any(n for found in counts.values() for n in found.values())
    logger.log(logging.WARNING if leaks else logging.INFO, "leakage check: %s", "; as prepared, ".join(
        [told[0], ", ".join(told[1:])]) if counts else told[0])


def _difference(train: Manifest, val: Manifest) -> str:
    first = train.frontend.to_dict() if train.frontend else {}
    second = val.frontend.to_dict() if val.frontend else {}
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} {first.get(name)} and {second.get(name)}" for name in names)


def contents_of_recordings(manifests: Iterable[Manifest]) -> dict[str, frozenset[str]]:
    """Return the content ids of every recording of some manifests; of a recording in several, all its ids."""
    contents: dict[str, frozenset[str]] = {}
    for manifest in manifests:
        for recording_id, found in recording_contents(manifest).items():
            contents[recording_id] = contents.get(recording_id, frozenset()) | found
    return contents


def describe_recordings(recording_ids: Iterable[str], contents: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Return what a checkpoint tells of the recordings it learnt from, by which evaluation knows them again.

    Parameters
    ----------
    recording_ids : iterable of str
        Each may occur several times.
    contents : mapping of str to frozenset of str
        From ``contents_of_recordings``.

    Returns
    -------
    dict
        ``recordings``, hashes of the ids, and ``recording_contents``, content ids; both sorted.
    """
    names = set(map(str, recording_ids))  # NumPy's text is no plain type, and checkpoints hold nothing else
    return {"recordings": sorted(set(map(recording_hash, names))),
            "recording_contents": sorted(set().union(*(contents.get(name, ()) for name in names)))}


def join_recordings(*known: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return what several mappings as ``describe_recordings`` gives tell together, sorted."""
    names = sorted({name for mapping in known for name in mapping})
    return {name: sorted(set().union(*(mapping.get(name, ()) for mapping in known))) for name in names}


def with_frontend(config: EfficientNetConfig, manifest: Manifest) -> EfficientNetConfig:
    """Return the config with the front end that made the spectrograms."""
    if manifest.frontend is None:
        logger.warning("%s has no dataset.json beside it: its spectrograms are taken to be made by the front end of"
                       " the config", manifest.path)
        return config
    return config.replace(frontend=manifest.frontend)


def check_shape(dataset: SpectrogramDataset, config: EfficientNetConfig, path: Path) -> None:
    """Raise ManifestError when the spectrograms are not what the front end makes."""
    expected = (config.frontend.n_mels, config.frontend.n_frames)
    if dataset.shape != expected:
        raise ManifestError(f"the spectrograms of {path} have shape {dataset.shape}, the front end makes {expected}:"
                            f" run preprocess_enhanced.py again or correct the config's frontend")
