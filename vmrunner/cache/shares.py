"""Who gives way when the cache is full. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def giver(taken: Mapping[str, int]) -> str:
    """The repository that lets something go, by how much each has: the one with the most, of the
    owner with the most. So nobody loses anything below an equal share, and an owner with many
    repositories has no more than one with a single one. Empty where nobody has anything.
    """
    owners: Counter[str] = Counter()
    for repository, much in taken.items():
        owners[_owner(repository)] += much
    owner = max(owners, key=lambda each: (owners[each], each), default="")
    of_owner = [each for each in taken if _owner(each) == owner]
    return max(of_owner, key=lambda each: (taken[each], each), default="")


def _owner(repository: str) -> str:
    return repository.partition("/")[0]
