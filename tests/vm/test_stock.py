"""A stock cloud image, as a distribution makes one (tests.stock): it becomes an image by a recipe,
and a job of the real Gitea runs on it.

What the recipe adds comes from an archive of the test's own: here no other one can be reached.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pysequoia import Tsk

from tests import archive, stock
from tests.forge.gitea import Site
from tests.ground import Ground
from tests.vm.test_jobs import up_until_done
from vmrunner.files import digest
from vmrunner.image.versions import store, workshop
from vmrunner.resources import folder

pytestmark = pytest.mark.vm

RECIPE = """\
suite = "{suite}"
mirror = "{mirror}"
keyring = "{key}"
size = "3GiB"
packages = ["extra"]
kernel_arguments = "root=/dev/vda rw rootfstype=ext4 console=ttyS0 quiet net.ifnames=0 systemd.show_status=false"
[stock]
path = "{image}"
sha256 = "{sha256}"
[files."/usr/lib/vmrunner/guest"]
source = "{guest}/vmrunner-guest"
mode = "0755"
[files."/etc/systemd/system/vmrunner-guest.service"]
source = "{guest}/vmrunner-guest.service"
[runner]
kind = "gitea-runner"
path = "{runner}"
"""  # noqa: E501 — a text of another format keeps its lines
WORKFLOW = """\
on: [push]
jobs:
  build:
    runs-on: [stock]
    steps:
      - run: |
          echo "root is $(stat -f -c %T /) on $(findmnt -no SOURCE /)"
          echo "extra $(dpkg-query -W -f '${Version}' extra), cloud-init $(systemctl is-active cloud-init.service)"
          ls /home /etc/ssh | grep -E 'debian|host_' || echo nobody and no keys
"""  # noqa: E501 — a text of another format keeps its lines


@pytest.fixture
def mirror() -> Iterator[tuple[str, Path]]:
    """The archive's URL, and the key that signs it."""
    # Not below pytest's own folder, which apt's user may not enter.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        owner = Tsk.generate("archive@example")
        (home / "key.gpg").write_bytes(bytes(owner.extract_certificate()))
        archive.publish(
            home / "site", owner, {"main": [archive.Package("extra", "2")]}, suite=stock.SUITE
        )
        with archive.served(home / "site") as site:
            yield site.url, home / "key.gpg"


@pytest.mark.long
def test_a_stock_image_becomes_one_that_jobs_run_on(
    site: Site, lay_ground: Callable[..., Ground], mirror: tuple[str, Path], tmp_path: Path
) -> None:
    ground = lay_ground(image="ci", labels="stock")
    images = ground.folder / "state" / "images"
    images.unlink()
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    image = stock.cached(stock.SUITE)
    words = {
        "mirror": mirror[0],
        "key": mirror[1],
        "guest": folder("images") / "guest",
        "suite": stock.SUITE,
    }
    runner = Path(__file__).parents[1] / "runner" / "gitea-runner"
    (recipes / "ci.toml").write_text(
        RECIPE.format(**words, image=image, sha256=digest(image), runner=runner)
    )
    # `make images` verifies one.
    done = ground.run("image", "build", "ci", "--recipes", str(recipes), "--no-verify", timeout=900)
    assert "booting the stock image once" in done.stderr, done.stderr
    assert not [
        path.name
        for path in (Path("/var/lib/libvirt/vmrunner") / ground.manager).glob("*ci-stock-*")
    ], "it has gone from the host"
    manifest = store.find(images, "ci").manifest
    assert (manifest.packages["extra"].version, manifest.suite) == ("2", stock.SUITE)
    repository = site.repository("rig", "stock", WORKFLOW)
    (job,) = up_until_done(ground, repository, 1)
    said = repository.said(job["id"])
    for wanted in (
        "root is ext2/ext3 on /dev/vda",
        "extra 2, cloud-init inactive",
        "nobody and no keys",
    ):
        assert wanted in said, said
    assert job["conclusion"] == "success"
    assert len(list((images / workshop.CACHE).glob("*.tar"))) == 1, (
        "the next build takes its packages, and boots nothing"
    )
