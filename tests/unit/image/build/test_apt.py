"""Where packages come from, for a build and for jobs; and that what a build borrows of this host is
given back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmrunner.errors import ImageError
from vmrunner.image.build import apt, apt_source
from vmrunner.image.build.apt import Mirrors
from vmrunner.image.build.apt_source import Source
from vmrunner.image.recipe import recipe

DEBIANS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PASSWORD = "hunter2"
LAN = "http://ci:hunter2@mirror.lan"
VENDOR = "deb http://vendor.example/debian bookworm main\n"
OFFICIAL = Mirrors()


def deb822(uri: str, suites: str, keys: str = DEBIANS, *more: str) -> str:
    return "\n".join(
        [
            f"Types: deb deb-src\nURIs: {uri}\nSuites: {suites}\nComponents: main "
            f"non-free-firmware\nSigned-By: {keys}",
            *more,
            "",
        ]
    )


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, OFFICIAL),
        # What other vendors have is never taken, whatever its address looks like and wherever it
        # stands.
        (
            {"a.list": VENDOR, "debian.sources": deb822(LAN, "bookworm bookworm-updates")},
            Mirrors(main=LAN),
        ),
        ({"a.list": "deb https://docker.example/linux/debian bookworm stable\n"}, OFFICIAL),
        (
            {
                "a.list": "deb [signed-by=/usr/share/keyrings/vendor.gpg] http://v.example/debian "
                "bookworm main\n"
            },
            OFFICIAL,
        ),
        (
            {
                "a.list": f"deb [ arch=amd64 signed-by={DEBIANS} ] {LAN}/debian bookworm main # "
                "ours\n"
            },
            Mirrors(main=f"{LAN}/debian"),
        ),
        (
            {
                "a.sources": deb822(
                    "http://v.example/debian",
                    "bookworm bookworm-updates",
                    "/etc/apt/keyrings/vendor.asc",
                )
            },
            OFFICIAL,
        ),
        (
            {
                "a.sources": deb822(
                    "http://v.example", "bookworm", f"{DEBIANS} /etc/apt/keyrings/vendor.asc"
                )
            },
            OFFICIAL,
        ),
        (
            {
                "a.sources": deb822(
                    "http://v.example/debian",
                    "bookworm",
                    "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc",
                )
            },
            OFFICIAL,
        ),
        # One without a keyring is Debian's where it has what only Debian has beside a release.
        (
            {
                "../sources.list": f"{VENDOR}deb {LAN} bookworm main\ndeb {LAN}/ bookworm-updates "
                f"main\ndeb {LAN}/s bookworm-security main\n"
            },
            Mirrors(LAN, f"{LAN}/s"),
        ),
        (
            {"../sources.list": f"deb {LAN} bullseye main\ndeb {LAN}/s bullseye/updates main\n"},
            OFFICIAL,
        ),
        ({"../sources.list": f"deb {LAN}/s bookworm/updates main\n"}, Mirrors(security=f"{LAN}/s")),
        # Debian's, but not this, or not in use.
        ({"a.sources": deb822("http://deb.debian.org/debian-debug", "bookworm-debug")}, OFFICIAL),
        ({"a.sources": deb822(LAN, "bookworm", DEBIANS, "Enabled: no")}, OFFICIAL),
        ({"a.sources": deb822(LAN, "bookworm", DEBIANS, "Architectures: riscv64")}, OFFICIAL),
        ({"a.sources": deb822(LAN, "bookworm").replace("deb deb-src", "deb-src")}, OFFICIAL),
        ({"a.sources": "# " + deb822(LAN, "bookworm").replace("\n", "\n# ")}, OFFICIAL),
        ({"a.list.disabled": f"deb [signed-by={DEBIANS}] {LAN} bookworm main\n"}, OFFICIAL),
        ({"a.sources": deb822("cdrom:[Debian]/", "bookworm")}, OFFICIAL),
        # A field that goes on, other words for the suite, a release that the recipe does not have,
        # several in a file.
        (
            {"a.sources": deb822(f"\n http://deb.example/\n {LAN}", "\n stable\n stable-updates")},
            Mirrors(main="http://deb.example/"),
        ),
        (
            {
                "a.sources": deb822(f"{LAN}/s", "bookworm-security")
                + "\n\n"
                + deb822(LAN, "bookworm")
            },
            Mirrors(LAN, f"{LAN}/s"),
        ),
    ],
)
def test_only_debians_own_entries_of_the_host_are_a_mirror_of_it(
    tmp_path: Path, files: dict[str, str], found: Mirrors
) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    for name, text in files.items():
        (tmp_path / "apt/sources.list.d" / name).write_text(text)
    assert apt.of_host("trixie", tmp_path) == found


def test_a_host_that_is_no_debian(tmp_path: Path) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    lines = "".join(
        f"deb http://archive.example/ubuntu {suite} main\n"
        for suite in ("noble", "noble-updates", "noble-security")
    )
    (tmp_path / "apt/sources.list").write_text(lines)
    assert apt.of_host("bookworm", tmp_path) == OFFICIAL


def wanted(tmp_path: Path, *lines: str) -> recipe.Recipe:
    (tmp_path / "mine.toml").write_text('extends = "debian-12"\n' + "\n".join(lines))
    return recipe.load("mine", tmp_path)


def stanza(uri: str, suites: str, *more: str) -> str:
    return "\n".join([f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main", *more, ""])


DEBIAN = [
    stanza(OFFICIAL.main, "bookworm bookworm-updates"),
    stanza(OFFICIAL.security, "bookworm-security"),
]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host that reaches nothing but by a mirror and a proxy with passwords."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/99proxy").write_text(
        f'Acquire::http::Proxy "http://ci:{PASSWORD}@proxy.lan:3128";\n'
    )
    monkeypatch.setattr(apt, "HOST_SETTINGS", tmp_path / "host")
    monkeypatch.setattr(apt, "of_host", lambda _: Mirrors(f"{LAN}/debian", f"{LAN}/security"))
    return LAN


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], DEBIAN),
        (['mirror = "http://m.example/d"'], [stanza("http://m.example/d", "bookworm")]),
        (
            ['mirror = "http://m.example/d"', 'updates = ["a", "b"]'],
            [stanza("http://m.example/d", "bookworm a b")],
        ),
        (
            ['jobs_mirror = "http://m.example/debian"'],
            [
                stanza("http://m.example/debian", "bookworm bookworm-updates"),
                stanza("http://m.example/debian-security", "bookworm-security"),
            ],
        ),
        (
            ['jobs_mirror = "http://m.example/d/"'],
            [stanza("http://m.example/d/", "bookworm bookworm-updates"), DEBIAN[1]],
        ),
        (
            ['mirror = "http://a:b@m.example/d"', 'jobs_mirror = "http://m.example/j"'],
            [stanza("http://m.example/j", "bookworm")],
        ),
        (
            ['snapshot = "20200101T000000Z"'],
            [
                stanza(
                    f"https://snapshot.debian.org/archive/{folder}/20200101T000000Z",
                    suites,
                    "Check-Valid-Until: no",
                )
                for folder, suites in (
                    ("debian", "bookworm bookworm-updates"),
                    ("debian-security", "bookworm-security"),
                )
            ],
        ),
        (['snapshot = "20200101T000000Z"', 'jobs_mirror = "http://deb.debian.org/debian"'], DEBIAN),
    ],
)
def test_jobs_have_the_recipes_mirror_and_never_the_hosts(
    tmp_path: Path, host: str, lines: list[str], found: list[str]
) -> None:
    mine, tree = wanted(tmp_path, *lines), tmp_path / "tree"
    apt.lay(mine, tree)
    (file,) = (tree / "etc/apt/sources.list.d").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("debian.sources", 0o644)
    head, _, text = file.read_text().partition("\n")
    assert (head[0], text) == ("#", "\n".join(found))
    assert (host in apt_source.lines(apt.build_sources(mine))) == (
        not any("mirror =" in line or "snapshot" in line for line in lines if "jobs" not in line)
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            'mirror = "http://a:b@m.example/"',
            "every job could read the password in mirror: say with jobs_mirror what jobs use",
        ),
        ('jobs_mirror = "http://a@m.example/"', "every job can read the password in jobs_mirror"),
    ],
)
def test_a_password_that_jobs_could_read_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        wanted(tmp_path, line)


def contents(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


def test_what_is_lent_is_given_back_whatever_happens(tmp_path: Path, host: str) -> None:
    mine, tree = wanted(tmp_path), tmp_path / "tree"
    (tree / "usr/share/keyrings").mkdir(parents=True)
    (tree / DEBIANS[1:]).touch()
    (tree / "usr/lib").mkdir()
    (tree / "usr/lib/os-release").write_text("ID=debian\n")

    def fails() -> None:
        with apt.lent(mine, tree):
            there = b"".join(contents(tree).values())
            assert there.count(PASSWORD.encode()) == 3, "the proxy, and two archives"
            assert Path("/etc/resolv.conf").read_bytes() in there
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    there = contents(tree)
    assert set(there) == {
        DEBIANS[1:],
        "usr/lib/os-release",
        "etc/apt/sources.list.d/debian.sources",
    }
    assert PASSWORD not in (text := there["etc/apt/sources.list.d/debian.sources"].decode())
    assert text.count(f"Signed-By: {DEBIANS}\n") == 2
    assert host not in text


def test_what_a_script_has_done_to_the_sources_stays(tmp_path: Path, host: str) -> None:
    mine, tree = wanted(tmp_path), tmp_path / "tree"
    file, vendors = (
        tree / "etc/apt/sources.list.d/debian.sources",
        tree / "etc/apt/sources.list.d/vendor.list",
    )
    with apt.lent(mine, tree):
        assert f"URIs: {host}/debian\n" in file.read_text()
        file.write_text(file.read_text().replace("Components: main", "Components: main contrib"))
        vendors.write_text(VENDOR)
    assert file.read_text().partition("\n")[2] == "\n".join(DEBIAN).replace("main", "main contrib")
    assert vendors.read_text() == VENDOR
    with apt.lent(mine, tree):
        file.unlink()
    assert not file.exists()


def test_the_keyring_of_the_recipe_is_there_for_jobs(tmp_path: Path) -> None:
    (tmp_path / "key.asc").write_bytes(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    mine, tree = (
        wanted(tmp_path, 'mirror = "http://m.example/d"', 'keyring = "key.asc"'),
        tmp_path / "tree",
    )
    apt.lay(mine, tree)
    assert (tree / "etc/apt/keyrings/vmrunner-archive.asc").read_bytes() == (
        tmp_path / "key.asc"
    ).read_bytes()
    assert (
        "Signed-By: /etc/apt/keyrings/vmrunner-archive.asc\n"
        in (tree / "etc/apt/sources.list.d/debian.sources").read_text()
    )
    (tree / "usr/share/keyrings").mkdir(parents=True)
    (tree / "usr/share/keyrings/key.asc").touch()  # a package of the image has brought it
    apt.lay(mine, tree)
    assert (
        "Signed-By: /usr/share/keyrings/key.asc\n"
        in (tree / "etc/apt/sources.list.d/debian.sources").read_text()
    )


def test_a_tree_says_whose_packages_it_consists_of(tmp_path: Path) -> None:
    assert apt.distribution(tmp_path) == "debian"
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text('NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n')
    assert apt.distribution(tmp_path) == "ubuntu"


@pytest.mark.parametrize("name", ["sources.list", "sources.list.d/all.sources"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    main = Source("http://m.example/ubuntu", "noble", ("main", "universe"), DEBIANS)
    sources = [
        main,
        replace(main, suite="noble-updates"),
        replace(main, may_be_expired=True, architectures=("amd64", "arm64")),
        Source("http://n.example/", "sid", ("main",)),
    ]
    write = apt_source.lines if name == "sources.list" else apt_source.stanzas
    (tmp_path / "apt" / name).write_text(write(sources))
    assert list(apt_source.read(tmp_path)) == sources
