"""The reference that docs/howto/caches.md has in an image: real Gitea, its real runner, a real
machine, and a JavaScript action that calls git as actions/checkout does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import pytest

from tests.checkout import reference_script, template
from tests.forge.gitea import URL, Site
from tests.ground import Ground
from tests.prepare import JOBS
from tests.vm.test_jobs import up_until_done

pytestmark = [pytest.mark.vm, pytest.mark.long]
ACTION = Path(__file__).parents[1] / "way_in" / "checkout"
FILES = 40
WORKFLOW = """\
on: workflow_dispatch
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          cat >/tmp/script <<'END'
{script}
          END
          sudo sh -eu /tmp/script
      - uses: {url}/rig/checkout@main
        env:
          GIT_TEMPLATE_DIR: {template}
      - run: |
          git count-objects -v
          echo "$(ls | wc -l) files for $(id -un), from $(stat -c %U {template})"
"""


def test_the_checkout_of_a_job_takes_from_a_reference(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    empty = "on: []\njobs: {it: {runs-on: nothing, steps: [{run: 'true'}]}}\n"
    site.repository("rig", "checkout", empty).commit(
        {path.name: path.read_bytes() for path in ACTION.iterdir()}
    )
    script = indent(reference_script(f"{URL}/rig/large"), " " * 10).rstrip()
    text = WORKFLOW.format(script=script, url=URL, template=template())
    large = site.repository("rig", "large", text)
    large.commit({f"{number}.txt": f"{number}\n" for number in range(FILES)})
    ground = lay_ground(cloned=True, most=1, image=JOBS, more='job_user = "runner"\n')
    large.dispatch()
    (job,) = up_until_done(ground, large)
    said = large.said(job["id"]).splitlines()
    assert job["conclusion"] == "success", said
    assert f"{FILES} files for runner, from root" in said
    assert {"count: 0", "in-pack: 0"} < set(said), "it has fetched what is in the reference"
