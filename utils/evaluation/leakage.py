"""Which test recordings a model has met before."""

from collections.abc import Mapping

from models.description import ModelDescription
from utils.storage.names import recording_hash


def recordings_learnt(model: ModelDescription, contents: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """Return the test recordings that a model learnt from.

    Parameters
    ----------
    model : ModelDescription
        Its metadata tell what it learnt from.
    contents : mapping of str to frozenset of str
        Test recordings, and what each is recognised by: ``manifest.recording_contents``.

    Returns
    -------
    frozenset of str or None
        Recording ids; None when the model's file has no list.
    """
    if "recording_contents" in model.metadata:
        return _known(contents, set(model.metadata["recording_contents"]))
    if "recordings" in model.metadata:  # NightScan 2.0 knew recordings by their name only
        names = set(model.metadata["recordings"])
        return frozenset(recording_id for recording_id in contents if recording_hash(recording_id) in names)
    return None


def recordings_heard(model: ModelDescription, contents: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return the test recordings that the network a model began with has heard, without their labels."""
    return _known(contents, set(model.metadata.get("heard_contents", ())))


def _known(contents: Mapping[str, frozenset[str]], known: set[str]) -> frozenset[str]:
    return frozenset(recording_id for recording_id, found in contents.items() if not known.isdisjoint(found))
