"""The actions that the cases use, in repositories of the same forge: there is no other forge to
fetch any from.
"""

from __future__ import annotations

from pathlib import Path

from tests.forge.gitea import Repository, Site

OWNER = "mirror"
FOLDER = Path(__file__).parent / "actions"


def publish(site: Site) -> None:
    """Each folder of `actions/` as a repository with the tag v1."""
    site.organisation(OWNER)
    for folder in sorted(FOLDER.iterdir()):
        site.call("DELETE", f"/repos/{OWNER}/{folder.name}", fine=(404,))
        site.call(
            "POST",
            f"/orgs/{OWNER}/repos",
            {"name": folder.name, "auto_init": False, "default_branch": "main"},
        )
        files: dict[str, str | bytes] = {
            str(path.relative_to(folder)): path.read_text().replace("FORGE", site.url)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        Repository(site, f"{OWNER}/{folder.name}").commit(files)
        site.call("POST", f"/repos/{OWNER}/{folder.name}/tags", {"tag_name": "v1"})
