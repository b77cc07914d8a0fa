"""What a recipe fetches by URL: once, whole, and as the recipe says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vmrunner.errors import ImageError
from vmrunner.image import downloads
from vmrunner.image.programs import Log

CONTENT = b"what is there"
SHA512 = hashlib.sha512(CONTENT).hexdigest()


class Site(ThreadingHTTPServer):
    asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class _Answer(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(("127.0.0.1", 0), _Answer) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def fetched(site: Site, images: Path, wanted: str = SHA512) -> bytes:
    log = Log(images / "log", lambda _: None)
    return downloads.fetched("It", site.url, "sha512", wanted, images, log).read_bytes()


def test_it_is_fetched_once(site: Site, tmp_path: Path) -> None:
    assert [fetched(site, tmp_path), fetched(site, tmp_path), site.asked] == [CONTENT, CONTENT, 1]


def test_one_that_is_damaged_is_fetched_again(site: Site, tmp_path: Path) -> None:
    fetched(site, tmp_path)
    (tmp_path / downloads.FOLDER / SHA512).write_bytes(b"damaged")
    assert (fetched(site, tmp_path), site.asked) == (CONTENT, 2)


def test_another_content_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"It has the sha512 {SHA512}, the recipe wants 00"):
        fetched(site, tmp_path, "0" * 128)
    assert not list((tmp_path / downloads.FOLDER).iterdir())


def test_a_site_that_is_gone_is_a_sentence(site: Site, tmp_path: Path) -> None:
    gone = site.url.replace(str(site.server_port), "9")
    with pytest.raises(ImageError, match="It can't be fetched from") as caught:
        downloads.fetched("It", gone, "sha512", SHA512, tmp_path, Log(tmp_path / "log", lambda _: None))
    assert "by hand" in caught.value.hint


def test_what_killed_builds_began_goes(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / downloads.FOLDER
    folder.mkdir(parents=True)
    (folder / ".part-999999999").write_bytes(b"half")
    fetched(site, tmp_path)
    assert [path.name for path in folder.iterdir()] == [SHA512]
