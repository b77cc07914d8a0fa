"""The reference of a large repository that docs/howto/caches.md has in an image: real Gitea, and
git as actions/checkout calls it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import Checkout, git, reference_script, template
from tests.forge.gitea import Repository, Site

OWNER, NAME = "checkouts", "referenced"
FILES = 40


@pytest.fixture(scope="module")
def repository(site: Site) -> Iterator[Repository]:
    site.organisation(OWNER)
    made = site.repository(OWNER, NAME, "on: workflow_dispatch\njobs: {}\n")
    made.commit({f"d{number % 4}/{number}": f"{number}\n" for number in range(FILES)})
    yield made
    made.delete()


def objects(folder: Path) -> int:
    """How many this repository has of its own."""
    lines = git(folder, "count-objects", "-v").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("count:", "in-pack:")))


def test_a_checkout_takes_from_a_reference_what_is_there(
    site: Site, repository: Repository, tmp_path: Path
) -> None:
    url = f"{site.url}/{repository.name}"
    subprocess.run(["sh", "-eu", "-c", reference_script(url, tmp_path)], check=True)
    repository.commit({"new": "new\n"})
    commit = git(tmp_path, "ls-remote", url, "main").split()[0]
    workspaces = {}
    for name, environment in (("plain", {}), ("beside", {"GIT_TEMPLATE_DIR": template(tmp_path)})):
        workspaces[name] = tmp_path / name
        workspaces[name].mkdir()
        Checkout(0, environment=environment).run(url, commit, site.token, workspaces[name])
    seen = {name: set(git(folder, "ls-files").split()) for name, folder in workspaces.items()}
    assert seen["beside"] == seen["plain"] > {"new", "d0/0"}
    assert git(workspaces["beside"], "status", "--porcelain") == ""
    assert (workspaces["beside"] / ".git/info/exclude").is_file(), "git's own template is lost"
    assert objects(workspaces["plain"]) > FILES
    assert objects(workspaces["beside"]) == 3, "more than a commit, its tree and the new file"


@pytest.mark.long
def test_git_is_broken_where_the_reference_is_not(
    site: Site, repository: Repository, tmp_path: Path
) -> None:
    """As in a container that has the workspace alone."""
    url, workspace, place = f"{site.url}/{repository.name}", tmp_path / "w", tmp_path / "here"
    subprocess.run(["sh", "-eu", "-c", reference_script(url, place)], check=True)
    commit = git(tmp_path, "ls-remote", url, "main").split()[0]
    workspace.mkdir()
    beside = {"GIT_TEMPLATE_DIR": template(place)}
    Checkout(0, environment=beside).run(url, commit, site.token, workspace)
    assert git(workspace, "log", "-1", "--format=%H") == commit
    place.rename(tmp_path / "gone")
    with pytest.raises(AssertionError, match="unable to normalize alternate object path"):
        git(workspace, "log", "-1")


@pytest.mark.long
def test_a_runner_without_the_reference_fetches_all(
    site: Site, repository: Repository, tmp_path: Path
) -> None:
    url = f"{site.url}/{repository.name}"
    commit = git(tmp_path, "ls-remote", url, "main").split()[0]
    workspace = tmp_path / "w"
    workspace.mkdir()
    beside = {"GIT_TEMPLATE_DIR": str(tmp_path / "nowhere")}
    Checkout(0, environment=beside).run(url, commit, site.token, workspace)
    assert objects(workspace) > FILES
