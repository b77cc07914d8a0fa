"""Who gives way when the cache is full. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping


class Shares:
    """Who has how much. The one that lets something go is the repository with the most, of the
    owner with the most. So nobody loses anything below an equal share, and an owner with many
    repositories has no more than one with a single one.
    """

    def __init__(self, taken: Mapping[str, int]) -> None:
        by_owner: dict[str, dict[str, int]] = defaultdict(dict)
        for repository, much in taken.items():
            by_owner[_owner(repository)][repository] = much
        self._of = {owner: _Most(its.items()) for owner, its in by_owner.items()}
        self._owners = _Most((owner, sum(its.values())) for owner, its in by_owner.items())

    def giver(self) -> str:
        """The repository that lets something go; empty where there is none."""
        owner = self._owners.first()
        return self._of[owner].first() if owner else ""

    def gave(self, repository: str, much: int) -> None:
        """It has so much less."""
        owner = _owner(repository)
        if owner in self._of:
            self._owners.less(owner, much)
            self._of[owner].less(repository, much)


class _Most:
    """Who has the most, of many, each of whom only gets less."""

    def __init__(self, taken: Iterable[tuple[str, int]]) -> None:
        self._has = dict(taken)
        # In what was true once: whoever comes out first is put back with what it has now.
        self._heap = [(-much, name) for name, much in self._has.items()]
        heapq.heapify(self._heap)

    def first(self) -> str:
        while self._heap:
            much, name = self._heap[0]
            if -much == self._has[name]:
                return name
            heapq.heapreplace(self._heap, (-self._has[name], name))
        return ""

    def less(self, name: str, much: int) -> None:
        if name in self._has:
            self._has[name] -= much


def _owner(repository: str) -> str:
    return repository.partition("/")[0]
