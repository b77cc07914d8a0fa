"""Which kernel is booted: the recipe's, whatever others there are, else the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.errors import ImageError
from vmrunner.image.build import kernel
from vmrunner.image.recipe import recipe


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As Debian has it: packages that are empty and depend on what has the kernel, one of them on
    the newer one of another kind.
    """
    info, boot = tmp_path / "tree/var/lib/dpkg/info", tmp_path / "tree/boot"
    info.mkdir(parents=True)
    boot.mkdir()
    status = ""
    for name, version in (
        ("linux-image-amd64", "6.1.0-9-amd64"),
        ("linux-image-cloud-amd64", "6.1.0-10-cloud-amd64"),
    ):
        package = f"linux-image-{version}"
        status += f"Package: {name}\nStatus: install ok installed\nDepends: {package} (= 6.1)\n\n"
        status += f"Package: {package}\nStatus: install ok installed\n"
        status += "Depends: kmod, linux-base (>= 4.3~), initramfs-tools | dracut\n\n"
        (info / f"{name}.list").write_text("/.\n/usr\n")
        (info / f"{package}.list").write_text(
            f"/.\n/boot\n/boot/System.map-{version}\n/boot/vmlinuz-{version}\n"
        )
        (boot / f"vmlinuz-{version}").write_text(version)
        (boot / f"initrd.img-{version}").write_text("")
    status += "Package: linux-image-rt-amd64\nStatus: deinstall ok config-files\n"
    status += "Depends: linux-image-6.1.0-10-cloud-amd64\n\n"
    (tmp_path / "tree/var/lib/dpkg/status").write_text(status)
    (tmp_path / "out").mkdir()
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("package", "booted"),
    [
        ("linux-image-amd64", "6.1.0-9-amd64"),
        ("linux-image-cloud-amd64", "6.1.0-10-cloud-amd64"),
        ("linux-image-6.1.0-9-amd64", "6.1.0-9-amd64"),
        (None, "6.1.0-10-cloud-amd64"),
    ],
)
def test_the_recipes_kernel_is_taken_whichever_is_newer(
    tree: Path, tmp_path: Path, package: str | None, booted: str
) -> None:
    assert kernel.take(tree, tmp_path / "out", package) == booted
    assert (tmp_path / "out" / "vmlinuz").read_text() == booted


@pytest.mark.parametrize("package", ["linux-image-rt-amd64", "linux-base", "nothing"])
def test_a_package_that_brings_no_kernel(tree: Path, tmp_path: Path, package: str) -> None:
    with pytest.raises(
        ImageError, match=f"The package {package}, which is the recipe's `kernel`, brings none"
    ) as caught:
        kernel.take(tree, tmp_path / "out", package)
    assert "Name a linux-image package" in caught.value.hint


def test_a_kernel_needs_its_initrd_and_neither_is_a_file_of_this_host(tmp_path: Path) -> None:
    boot, out = tmp_path / "tree/boot", tmp_path / "out"
    boot.mkdir(parents=True)
    out.mkdir()
    with pytest.raises(ImageError, match="The image has no kernel"):
        kernel.take(tmp_path / "tree", out, None)
    for version in ("6.1.0-9-amd64", "6.1.0-10-amd64"):
        (boot / f"vmlinuz-{version}").write_text(version)
    (boot / "initrd.img-6.1.0-9-amd64").touch()
    with pytest.raises(
        ImageError,
        match=r"has the kernel 6\.1\.0-10-amd64, and no /boot/initrd\.img-6\.1\.0-10-amd64",
    ):
        kernel.take(tmp_path / "tree", out, None)
    (tmp_path / "secret").write_text("of this host")
    (boot / "initrd.img-6.1.0-10-amd64").symlink_to(tmp_path / "secret")
    with pytest.raises(ImageError, match="leads out of the image"):
        kernel.take(tmp_path / "tree", out, None)
    (boot / "initrd.img-6.1.0-10-amd64").unlink()
    (boot / "initrd.img-6.1.0-10-amd64").symlink_to("initrd.img-6.1.0-9-amd64")
    assert kernel.take(tmp_path / "tree", out, None) == "6.1.0-10-amd64"
    assert (out / "vmlinuz").read_text() == "6.1.0-10-amd64"


def test_an_inheriting_recipe_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "debian-12"\nkernel = "linux-image-amd64"\n')
    base, mine = recipe.load("debian-12"), recipe.load("mine", tmp_path)
    assert set(base.all_packages) - set(mine.all_packages) == {"linux-image-cloud-amd64"}
    assert set(mine.all_packages) - set(base.all_packages) == {"linux-image-amd64"}
    assert mine.digest() != base.digest()


def test_one_beside_it_is_a_sentence(tmp_path: Path) -> None:
    """It would be installed, and not booted."""
    (tmp_path / "mine.toml").write_text('extends = "debian-12"\npackages = ["linux-image-amd64"]\n')
    with pytest.raises(
        ImageError,
        match="it has linux-image-amd64 beside the kernel linux-image-cloud-amd64, and one is "
        "booted",
    ):
        recipe.load("mine", tmp_path)
    (tmp_path / "mine.toml").write_text(
        'extends = "debian-12"\npackages = ["linux-image-extra-virtual", '
        '"linux-image-cloud-amd64"]\n'
    )
    assert recipe.load("mine", tmp_path).all_packages.count("linux-image-cloud-amd64") == 1
