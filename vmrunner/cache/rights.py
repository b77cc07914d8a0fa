"""What a job may read and write in the cache, by what the forge says about it: the rules of GitHub,
and stricter where something is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vmrunner.model.job import JobFacts

_BRANCH, _PULL_REQUEST = "refs/heads/", "refs/pull/"


@dataclass(frozen=True)
class Rights:
    """What one job may do in the cache. A ref is a scope there: entries of the same key in two refs
    are two entries.
    """

    repository: str  # "owner/name"
    writes: str | None  # the ref that it writes into; None: it writes nowhere
    # The refs of its repository in the order in which they are looked at: its own, its base's, the
    # default branch.
    reads: tuple[str, ...]
    group: str | None = None  # an admin's name for repositories that share; None: it is alone
    # The other repositories of that group. Of these it reads what their default branches wrote.
    shared: tuple[str, ...] = ()
    offers: bool = False  # whether the others of its group may read what it writes
    repository_id: int = 0  # by which the forge tells it from another one of that name; 0: unknown
    machine: str = ""  # where the job runs; no other one ever has this name


def rights(facts: JobFacts, groups: Mapping[str, Collection[str]]) -> Rights:
    """What the job may do; `groups` are an admin's: a name -> the repositories that share."""
    default = _branch(facts.default_branch)
    # With its base's privileges, it reads nothing that a pull request wrote, whatever it runs on.
    is_privileged = facts.event == "pull_request_target"
    own = "" if is_privileged and facts.ref.startswith(_PULL_REQUEST) else facts.ref
    refs = (own, _branch(facts.base_ref or ""), default)
    writes = None if is_privileged else _writes(facts)
    group, shared = _group(facts.repository, groups)
    return Rights(
        facts.repository,
        writes,
        tuple(dict.fromkeys(ref for ref in refs if ref.startswith("refs/"))),
        group,
        shared,
        offers=group is not None and writes is not None and writes == default,
        repository_id=facts.repository_id,
    )


def _writes(facts: JobFacts) -> str | None:
    if facts.ref.startswith(_PULL_REQUEST):
        # Nothing else reads there: a fork's pull request, too, may write for its own next run.
        return facts.ref
    # A pull request that runs on its base's ref (pull_request_target) may run anybody's code there.
    is_foreign = facts.from_fork or facts.event.startswith("pull_request")
    return None if is_foreign or not facts.ref.startswith("refs/") else facts.ref


def _branch(name: str) -> str:
    return name if not name or name.startswith("refs/") else f"{_BRANCH}{name}"


def _group(
    repository: str, groups: Mapping[str, Collection[str]]
) -> tuple[str | None, tuple[str, ...]]:
    """The group of a repository, and the others in it. Forges take names in any case."""
    own = repository.lower()
    for name, repositories in groups.items():
        if own in {each.lower() for each in repositories}:
            return name, tuple(each for each in repositories if each.lower() != own)
    return None, ()
