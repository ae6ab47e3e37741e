"""The split of a data set: what stays together, what was decided before, what given folds say, what is left out."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from models.errors import ConfigError, ManifestError
from utils.preparation.assignment import assign_sides
from utils.preparation.duplicates import PROTECTED, content_of, groups_of, unprotected, without_windows
from utils.preparation.extraction import ExtractedRecording, PreprocessSettings
from utils.preparation.similarity import SimilarPair
from utils.preparation.regions import Source
from utils.storage.journal import Journal, settings_key
from utils.storage.manifest import SPLITS, read_dataset_info
from utils.storage.tables import read_table

logger = logging.getLogger(__name__)

# how tables call the sides of a split
_NAMED_SIDES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                "test": "test"}


def give_sides(settings: PreprocessSettings, sources: Sequence[Source], results: Sequence[ExtractedRecording],
               similar: Sequence[SimilarPair], journal: Journal, *,
               is_complete: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """Return the side of each recording id that can be used, and which recordings would leak: path to reason.

    Parameters
    ----------
    settings : PreprocessSettings
        Ratios and seed.
    sources, results : sequences
        In one order; copies among them are not settled yet.
    similar : sequence of SimilarPair
        Source paths that sound the same.
    journal : Journal
        Sides that were given once stand in it, so that recordings that are added move no other.
    is_complete : bool
        Whether every recording had its turn; else the sides are not noted, for those that are missing count too.

    Raises
    ------
    ManifestError
        If given folds make no three sides, or tear a group apart.
    """
    usable = [(source, result) for source, result in zip(sources, results, strict=True)
              if result.outcome.status == "ok"]
    if any(source.fold for source, _ in usable):
        sides = _given_sides([source for source, _ in usable])
        return sides, unprotected({source.source_path: sides[source.recording_id] for source, _ in usable}, similar)
    return _made_sides(settings, usable, similar, journal, is_complete=is_complete)


def leave_out(results: Sequence[ExtractedRecording], reasons: Mapping[str, str]) -> list[ExtractedRecording]:
    """Return results of which those named have no window, and say so."""
    for result in results:
        if result.windows and result.source_path in reasons:
            logger.warning("%s is left out: %s", result.source_path, reasons[result.source_path])
    return [without_windows(result, reasons[result.source_path])
            if result.windows and result.source_path in reasons else result for result in results]


def keepers(settings: PreprocessSettings, sources: Sequence[Source], journal: Journal) -> dict[str, int]:
    """Return by source path how much it should keep a sound that others hold too: the lower the more.

    Of given folds test keeps its own, then validation; else what has a side already does.
    """
    if any(source.fold for source in sources):
        of_folds = {**_sides_of_folds({source.fold for source in sources if source.fold}), "": "train"}
        return {source.source_path: PROTECTED.index(of_folds[source.fold]) for source in sources}
    earlier = earlier_sides(settings, journal)
    return {source.source_path: int(source.recording_id not in earlier) for source in sources}


def adopt_sides(settings: PreprocessSettings, journal: Journal) -> None:
    """Note the sides of a data set that a version without stable sides prepared: its recordings keep theirs too."""
    try:
        info, _ = read_dataset_info(settings.output_dir)
        made_with = info.get("settings", {})
        if (made_with.get("ratios"), made_with.get("random_state")) != (list(settings.ratios), settings.random_state):
            return
        tables = [read_table(settings.output_dir / f"{side}.csv") for side in SPLITS]
    except (ConfigError, ManifestError):  # it was damaged, or another program's: there is nothing to keep
        return
    sides = {name: side for side, table in zip(SPLITS, tables, strict=True) for name in table.get("recording_id", ())}
    journal.add("sides", _sides_key(settings), _sides_key(settings), {"sides": dict(sorted(sides.items()))})


def _sides_key(settings: PreprocessSettings) -> str:
    return settings_key("sides", settings.ratios, settings.random_state, settings.group_by, settings.labels_from)


def _made_sides(settings: PreprocessSettings, used: Sequence[tuple[Source, ExtractedRecording]],
                similar: Sequence[SimilarPair], journal: Journal, *,
                is_complete: bool) -> tuple[dict[str, str], dict[str, str]]:
    ids = {source.source_path: source.recording_id for source, _ in used}
    earlier = earlier_sides(settings, journal)
    between = _between_sides(ids, similar, earlier)
    ids = {path: name for path, name in ids.items() if name not in between}
    together = groups_of(ids, similar)
    seconds = {name: own for name, own in _seconds(settings, used).items() if name not in between}
    sides = assign_sides(seconds, together, ratios=settings.ratios, random_state=settings.random_state,
                         earlier=earlier)
    if is_complete and any(earlier.get(name) != side for name, side in sides.items()):
        key = _sides_key(settings)
        journal.add("sides", key, key, {"sides": dict(sorted({**earlier, **sides}.items()))})
    # recordings whose sound was changed after they had a side
    left_out = unprotected({path: sides[name] for path, name in ids.items() if name in sides}, similar)
    for source, _ in used:
        name = source.recording_id
        if name not in sides:
            torn = between.get(name) or {sides[other]: other for other in sorted(sides, reverse=True)
                                         if together[other] == together[name]}
            places = " and ".join(f"{other} ({side})" for side, other in sorted(torn.items()))
            left_out[source.source_path] = f"sounds like {places}: on either side it would leak"
    return sides, left_out


def earlier_sides(settings: PreprocessSettings, journal: Journal) -> dict[str, str]:
    """Return the sides that recording ids were given before, under the same ratios, seed and labels."""
    key = _sides_key(settings)
    return (journal.find("sides", key, key) or {"sides": {}})["sides"]


def _between_sides(ids: Mapping[str, str], similar: Sequence[SimilarPair],
                   earlier: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the newcomers that themselves sound like recordings of several sides: side to a recording of it."""
    beside: dict[str, dict[str, str]] = defaultdict(dict)
    for pair in similar:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if one in ids and other in ids and ids[one] not in earlier and ids[other] in earlier:
                beside[ids[one]].setdefault(earlier[ids[other]], ids[other])
    return {name: sides for name, sides in beside.items() if len(sides) > 1}


def _seconds(settings: PreprocessSettings,
             used: Sequence[tuple[Source, ExtractedRecording]]) -> dict[str, dict[str, float]]:
    """Return the labelled seconds of each class by recording id; they depend on labels and lengths, not on windows."""
    seconds: dict[str, dict[str, float]] = {}
    counted = set()
    for source, result in used:
        own = seconds.setdefault(source.recording_id, {})
        sound = (content_of(result) or source.source_path, source.regions)
        if sound in counted:  # a copy adds nothing
            continue
        counted.add(sound)
        length = result.outcome.duration_seconds or 0.0
        free = length
        for region in source.regions:
            end = length if region.end_seconds is None else min(region.end_seconds, length)
            lasts = max(0.0, end - region.start_seconds)
            own[region.class_name] = own.get(region.class_name, 0.0) + lasts
            free -= lasts
        if settings.background_label and source.is_annotated and free > 0:
            own[settings.background_label] = own.get(settings.background_label, 0.0) + free
    return seconds


def _given_sides(sources: Sequence[Source]) -> dict[str, str]:
    of_folds = _sides_of_folds({source.fold for source in sources if source.fold})
    sides: dict[str, str] = {}
    torn = set()
    for source in sources:
        if source.fold and sides.setdefault(source.recording_id, of_folds[source.fold]) != of_folds[source.fold]:
            torn.add(source.recording_id)
    if torn:
        raise ManifestError(f"--fold_column puts {len(torn)} recordings or groups on two sides"
                            f" ({', '.join(sorted(torn)[:3])}): give all their rows one fold")
    for source in sources:  # what only annotations name has no fold: it goes with its group, or where it can be learnt
        sides.setdefault(source.recording_id, "train")
    return sides


def _sides_of_folds(folds: set[str]) -> Mapping[str, str]:
    """Return the side each fold stands for: what it is called, or of other folds the last is test, then val."""
    named = {fold: _NAMED_SIDES.get(fold.lower(), "") for fold in folds}
    if all(named.values()):
        missing = [side for side in SPLITS if side not in named.values()]
        if missing:
            raise ManifestError(f"--fold_column names the sides {', '.join(sorted(folds))} but no"
                                f" {' and no '.join(missing)}: add rows of it, or leave --fold_column out")
        return named
    if any(named.values()):
        raise ManifestError(f"--fold_column mixes sides and other values ({', '.join(sorted(folds))}): name train, val"
                            f" and test, or number the folds")
    if len(folds) < 3:
        raise ManifestError(f"--fold_column needs at least 3 folds for train, val and test, got"
                            f" {', '.join(sorted(folds))}")
    *others, val, test = sorted(folds, key=lambda fold: (len(fold), fold))
    return {**dict.fromkeys(others, "train"), val: "val", test: "test"}
