"""Which side of the split each recording is on: stratified, grouped, and stable when recordings are added.

Groups that must stay together are joined first: one recording's parts, what the user groups by, and copies of one
sound. Those that a side was given to before keep it. The others are gone through in an order that a hash of their name
gives, and each goes where its classes are missing most.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from utils.storage.manifest import SPLITS

_HELD_OUT_ORDER = ("train", "test", "val")  # who gets a recording first where a class has too few for all


@dataclass
class _Group:
    """Recordings that stay together: seconds of each class, and the sides that some of them have already."""

    name: str
    members: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    sides: set[str] = field(default_factory=set)


def assign_sides(seconds: Mapping[str, Mapping[str, float]], together: Mapping[str, str], *,
                 ratios: Sequence[float], random_state: int, earlier: Mapping[str, str]) -> dict[str, str]:
    """Give every recording id a side.

    Parameters
    ----------
    seconds : mapping of str to mapping of str to float
        Recording id to class name to labelled seconds.
    together : mapping of str to str
        Recording id to the name of the group that must stay on one side.
    ratios : sequence of float
        Shares of train, val and test, summing to 1.
    random_state : int
        Seed of the order.
    earlier : mapping of str to str
        Sides that recording ids had before; they keep them.

    Returns
    -------
    dict of str to str
        Recording id to side. A newcomer whose group has members on two sides is missing: on either side it would leak.

    Notes
    -----
    A greedy form of iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, ECML PKDD, section 3): a group
    goes where the largest share of its classes' seconds is missing and it fits, or else where it lowers most the
    squared distance from what the ratios ask for, relative to each side's size. A class with few groups gives the
    first to train, the next to test, then to val.
    """
    groups = _grouped(seconds, together, earlier)
    state = _State(groups, dict(zip(SPLITS, ratios, strict=True)))
    sides = {}
    for group in groups:
        for member in group.members:
            if member in earlier or len(group.sides) == 1:
                sides[member] = earlier.get(member) or next(iter(group.sides))
                state.put(seconds[member], sides[member])
        if group.sides:
            state.settle(group)
    newcomers = [group for group in groups if not group.sides]
    for group in sorted(newcomers, key=lambda group: _shuffled(group.name, random_state)):
        side = state.best_side(group)
        state.put(group.seconds, side)
        state.settle(group)
        sides.update(dict.fromkeys(group.members, side))
    return sides


def _grouped(seconds: Mapping[str, Mapping[str, float]], together: Mapping[str, str],
             earlier: Mapping[str, str]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for member in sorted(seconds):
        group = groups.setdefault(together[member], _Group(together[member]))
        group.members.append(member)
        for name, value in seconds[member].items():
            group.seconds[name] = group.seconds.get(name, 0.0) + value
        if member in earlier:
            group.sides.add(earlier[member])
    return list(groups.values())


class _State:
    """How much of each class each side has, and wants."""

    def __init__(self, groups: Sequence[_Group], ratios: Mapping[str, float]) -> None:
        self._ratios = {side: ratio for side, ratio in ratios.items() if ratio > 0}
        self._total: dict[str, float] = defaultdict(float)
        self._n_left: dict[str, int] = defaultdict(int)  # groups of a class that have no side yet
        self._held: dict[str, dict[str, float]] = {side: defaultdict(float) for side in ratios}
        for group in groups:
            for name, value in group.seconds.items():
                self._total[name] += value
                self._n_left[name] += 1

    def put(self, seconds: Mapping[str, float], side: str) -> None:
        for name, value in seconds.items():
            self._held[side][name] += value

    def settle(self, group: _Group) -> None:
        for name in group.seconds:
            self._n_left[name] -= 1

    def best_side(self, group: _Group) -> str:
        urgent = [lacking[0] for name in group.seconds if (lacking := self._lacking(name))
                  and self._n_left[name] <= len(lacking)]
        if urgent:
            return min(urgent, key=_HELD_OUT_ORDER.index)
        # where a group fits its size does not matter, or the small sides would be filled with short recordings
        fitting = [side for side in self._ratios
                   if all(value <= self._missing(name, side) for name, value in group.seconds.items())]
        if fitting:
            return max(fitting, key=lambda side: sum(self._missing(name, side) / (self._total[name] or 1.0)
                                                     for name in group.seconds) / self._ratios[side])
        return min(self._ratios, key=lambda side: self._cost(group, side))

    def _lacking(self, name: str) -> list[str]:
        return [side for side in _HELD_OUT_ORDER if side in self._ratios and not self._held[side][name]]

    def _missing(self, name: str, side: str) -> float:
        return self._ratios[side] * self._total[name] - self._held[side][name]

    def _cost(self, group: _Group, side: str) -> float:
        """Return the change of the squared, relative distance from the wish that a group makes on a side."""
        ratio, cost = self._ratios[side], 0.0
        for name, value in group.seconds.items():
            total = self._total[name] or 1.0
            cost += value * (value - 2 * self._missing(name, side)) / (ratio * total * total)
        return cost


def _shuffled(name: str, random_state: int) -> bytes:
    return hashlib.sha256(f"{random_state}:{name}".encode()).digest()
