"""What is wrong with labels: contradictions, copies, misspelt and meagre classes."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from utils.preparation.findings import USABLE, Finding, Severity, counted, listed, one_line
from utils.preparation.similarity import SimilarPair

_FEWEST_GROUPS = 3  # train, val and test need one each
_FEW_GROUPS = 20  # of which the test side has three: one of them moves a score by a third
_GREATEST_IMBALANCE = 10.0  # as far as --balance_classes goes
_RARE_SHARE = 0.1  # of the name that it resembles
_SHORTEST_TYPED = 4  # letters; owl and fowl are words of their own
_OVERLAP_SECONDS = 0.05  # labels drawn by hand side by side overlap by less


def label_findings(files: pd.DataFrame, labels: pd.DataFrame, *, similar: Sequence[SimilarPair],
                   class_names: Sequence[str]) -> list[Finding]:
    """Return what is wrong with the labels of recordings.

    Parameters
    ----------
    files : pandas.DataFrame
        From ``findings.tidy_files``.
    labels : pandas.DataFrame
        From ``findings.tidy_labels``.
    similar : sequence of SimilarPair
        Recordings that sound alike.
    class_names : sequence of str
        All that occur, even where none of the recordings could be read.

    Returns
    -------
    list of Finding
        ``duplicate_across``, ``duplicate_within``, ``near_duplicate_across``, ``near_duplicate_within``,
        ``contradicting_labels``, ``label_typo``, ``few_recordings``, ``class_imbalance``; in this order.
    """
    usable = files.loc[files["status"].isin(USABLE), "path"]
    classes_of = {**dict.fromkeys(usable, frozenset()),  # what has no label may be a copy all the same
                  **labels.groupby("path")["class_name"].agg(frozenset).to_dict()}
    copies = _exact_copies(files, classes_of)
    n_recordings = labels.drop_duplicates(["class_name", "path"])["class_name"].value_counts().to_dict()
    n_groups = labels.groupby("class_name")["group"].nunique().to_dict()
    return [*_copies("duplicate", copies, classes_of, "the same sound"),
            *_copies("near_duplicate", _near_copies(files, classes_of, similar), classes_of,
                     "almost the same sound"),
            *_contradicting(labels),
            *_typos({name: n_recordings.get(name, 0) for name in class_names}, labels),
            *_few({name: n_groups.get(name, 0) for name in class_names}),
            *_imbalance(n_recordings)]


def _exact_copies(files: pd.DataFrame, classes_of: Mapping[str, frozenset]) -> list[tuple[str, ...]]:
    known = files[(files["content"] != "") & files["path"].isin(classes_of)]
    return sorted(tuple(paths) for _, paths in known.groupby("content")["path"] if len(paths) > 1)


def _near_copies(files: pd.DataFrame, classes_of: Mapping[str, frozenset],
                 similar: Sequence[SimilarPair]) -> list[tuple[str, ...]]:
    content_of = files[files["content"] != ""].set_index("path")["content"].to_dict()
    pairs = [pair for pair in similar if pair.first in classes_of and pair.second in classes_of
             and (pair.first not in content_of or content_of[pair.first] != content_of.get(pair.second))]
    return [(pair.first, pair.second)
            for pair in sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))]


def _copies(code: str, sets: Sequence[tuple[str, ...]], classes_of: Mapping[str, frozenset],
            what: str) -> Iterator[Finding]:
    across = [paths for paths in sets if _n_labels(paths, classes_of) > 1]
    if across:
        one = across[0]
        told = " and ".join(f"{one_line(path)} ({one_line('+'.join(sorted(classes_of[path])))})"
                            for path in _of_different_classes(one, classes_of))
        severity: Severity = "error" if code == "duplicate" else "warning"
        yield _about(f"{code}_across", severity, across, (
            f"{what} in {counted(len(across), 'set')} of recordings with different classes, such as {told}:"
            f" {'none of them is used; ' if code == 'duplicate' else ''}listen, and keep the right label"))
    within = [paths for paths in sets if _n_labels(paths, classes_of) < 2]
    if within:
        what_is_done = ("the first by path is used, the others are left out" if code == "duplicate"
                        else "preparing keeps each set on one side of the split")
        yield _about(f"{code}_within", "note", within, (
            f"{what} in {counted(len(within), 'set')} of recordings of one class, such as {listed(within[0])};"
            f" {what_is_done}"))


def _n_labels(paths: Sequence[str], classes_of: Mapping[str, frozenset]) -> int:
    return len({classes_of[path] for path in paths if classes_of[path]})


def _of_different_classes(paths: Sequence[str], classes_of: Mapping[str, frozenset]) -> tuple[str, str]:
    first, *others = (path for path in paths if classes_of[path])
    return first, next(path for path in others if classes_of[path] != classes_of[first])


def _about(code: str, severity: Severity, sets: Sequence[tuple[str, ...]], message: str) -> Finding:
    return Finding(code=code, severity=severity, message=message, value=float(len(sets)),
                   paths=tuple(dict.fromkeys(path for paths in sets for path in paths)))


def _contradicting(labels: pd.DataFrame) -> Iterator[Finding]:
    several = labels[labels.groupby("path")["class_name"].transform("nunique") > 1]
    found: dict[str, tuple[str, str, float]] = {}
    for path, rows in several.groupby("path"):
        clash = _first_clash(zip(rows["class_name"], rows["start_seconds"], rows["end_seconds"], strict=True))
        if clash:
            found[path] = clash
    if found:
        path, (first, second, seconds) = next(iter(found.items()))
        yield Finding(code="contradicting_labels", severity="warning", paths=tuple(found), value=float(len(found)),
                      message=f"labels of different classes over the same time in {counted(len(found), 'recording')},"
                              f" such as {one_line(path)} at {seconds:.1f} s ({listed([first, second])}): a window is"
                              f" learnt with one class only, so keep the louder sound's label")


def _first_clash(regions: Iterable[tuple[str, float, float]]) -> tuple[str, str, float] | None:
    """Return the classes and the start of the first overlap of two classes among regions sorted by start."""
    ends: dict[str, float] = {}
    for name, start, end in regions:
        for other, other_end in ends.items():
            if other != name and min(end, other_end) - start > _OVERLAP_SECONDS:
                return other, name, start
        ends[name] = max(end, ends.get(name, end))
    return None


def _typos(n_recordings: Mapping[str, int], labels: pd.DataFrame) -> Iterator[Finding]:
    pairs = sorted({*_spelt_alike(n_recordings), *_one_edit_apart(n_recordings)},
                   key=lambda pair: (n_recordings[pair[0]], pair))
    if pairs:
        rare = {name for name, _ in pairs}
        told = listed(f"{name} ({n_recordings[name]:,}) and {other} ({n_recordings[other]:,})"
                      for name, other in pairs)
        paths = labels.loc[labels["class_name"].isin(rare), "path"].drop_duplicates()
        yield Finding(code="label_typo", severity="warning", value=float(len(pairs)), paths=tuple(paths),
                      message=f"class names that may be one class spelt in two ways: {told}; if so, join them with"
                              f" --label_map")


def _spelt_alike(n_recordings: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield names, the rarer first, that differ in letter case, spaces, hyphens or underscores alone."""
    spelt = defaultdict(list)
    for name in n_recordings:
        spelt[_bare(name)].append(name)
    for names in spelt.values():
        *rare, common = sorted(names, key=lambda name: (n_recordings[name], name))
        yield from ((name, common) for name in rare)


def _one_edit_apart(n_recordings: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield a rare and a common name that one edit turns into each other.

    Two such names are the same once a letter is left out of one or both, so that not every pair need be compared
    (Garbe 2012, symmetric delete spelling correction).
    """
    alike = defaultdict(set)
    for name in n_recordings:
        bare = _bare(name)
        for variant in {bare, *(bare[:place] + bare[place + 1:] for place in range(len(bare)))}:
            alike[variant].add(name)
    for names in alike.values():
        for name in names:
            yield from ((name, other) for other in names
                        if n_recordings[name] <= _RARE_SHARE * n_recordings[other]
                        and _is_one_edit(_bare(name), _bare(other)))


def _is_one_edit(first: str, second: str) -> bool:
    """Whether a letter more, less or changed, or two swapped, makes the names one; a number is part of a name."""
    if min(len(first), len(second)) < _SHORTEST_TYPED or re.findall(r"\d+", first) != re.findall(r"\d+", second):
        return False
    start = len(os.path.commonprefix([first, second]))
    first, second = first[start:], second[start:]
    same = len(os.path.commonprefix([first[::-1], second[::-1]]))
    first, second = first[:len(first) - same], second[:len(second) - same]
    return 0 < max(len(first), len(second)) == 1 or (len(first) == 2 and first == second[::-1])


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _few(n_groups: Mapping[str, int]) -> Iterator[Finding]:
    by_number = sorted(n_groups, key=lambda name: (n_groups[name], name))
    told = {name: f"{name} ({n_groups[name]})" for name in by_number}
    fewest = [name for name in by_number if n_groups[name] < _FEWEST_GROUPS]
    if fewest:
        yield Finding(code="few_recordings", severity="warning", value=float(n_groups[fewest[0]]), message=(
            f"{counted(len(fewest), 'class', 'classes')} with fewer than {_FEWEST_GROUPS} groups of recordings, too few"
            f" for train, val and test: {listed(told[name] for name in fewest)}; add recordings, or join or drop"
            f" classes with --label_map"))
    few = [name for name in by_number if _FEWEST_GROUPS <= n_groups[name] < _FEW_GROUPS]
    if few:
        yield Finding(code="few_recordings", severity="note", value=float(n_groups[few[0]]), message=(
            f"{counted(len(few), 'class', 'classes')} with fewer than {_FEW_GROUPS} groups of recordings, whose scores"
            f" will be uncertain: {listed(told[name] for name in few)}; add recordings, or train with"
            f" --cross_validation"))


def _imbalance(n_recordings: Mapping[str, int]) -> Iterator[Finding]:
    if not n_recordings:
        return
    by_number = sorted(n_recordings, key=lambda name: (n_recordings[name], name))
    least, most = by_number[0], by_number[-1]
    ratio = n_recordings[most] / n_recordings[least]
    if ratio >= _GREATEST_IMBALANCE:
        yield Finding(code="class_imbalance", severity="note", value=ratio, message=(
            f"the largest class has {ratio:.0f} times as many recordings as the smallest: {one_line(most)}"
            f" ({n_recordings[most]:,}) and {one_line(least)} ({n_recordings[least]:,}); add recordings of rare"
            f" classes, or use --balance_classes"))
