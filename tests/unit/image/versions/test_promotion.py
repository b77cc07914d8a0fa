"""Which version is current: promoted, rolled back, written down, and whole after every kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.goldens import publish
from vmrunner.errors import ImageError
from vmrunner.image.versions import promotion, proof, store, workshop
from vmrunner.image.versions.promotion import HISTORY, Why
from vmrunner.image.versions.store import CURRENT, MANIFEST
from vmrunner.model.image import DISK


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The image `web` in three versions, made one after the other."""
    for version in ("20260101-aa", "20260102-bb", "20260103-cc"):
        publish(tmp_path / "images", version)
    return tmp_path / "images"


def current(images: Path) -> str:
    return store.find(images, "web").version


def test_promotions_are_written_down(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    said: list[str] = []
    assert (
        promotion.promote(images, "web", "20260101", said.append).version
        == current(images)
        == "20260101-aa"
    )
    assert said == []
    promotion.promote(images, "web", "20260101-aa", said.append)
    assert said == ["web 20260101-aa is the current version already"]
    assert (
        promotion.rollback(images, "web", said.append).version == current(images) == "20260103-cc"
    )
    told = [(each.before, each.to, each.why) for each in promotion.history(images, "web")]
    assert told == [
        ("", "20260101-aa", Why.BUILT),
        ("20260101-aa", "20260102-bb", Why.BUILT),
        ("20260102-bb", "20260103-cc", Why.BUILT),
        ("20260103-cc", "20260101-aa", Why.PROMOTED),
        ("20260101-aa", "20260103-cc", Why.ROLLED_BACK),
    ]
    last = json.loads((images / "web" / HISTORY).read_text().splitlines()[-1])
    assert (last["why"], last["from"], last["at"].endswith("+00:00")) == (
        "rolled back",
        "20260101-aa",
        True,
    )
    assert last["by"] == ("alice" if os.geteuid() == 0 else last["by"])


def test_rolling_back_again_goes_further_and_ends_with_a_sentence(images: Path) -> None:
    assert [promotion.rollback(images, "web", print).version for _ in range(2)] == [
        "20260102-bb",
        "20260101-aa",
    ]
    with pytest.raises(
        ImageError, match="There is no version that the image 'web' could go back to"
    ) as caught:
        promotion.rollback(images, "web", print)
    assert caught.value.hint
    assert current(images) == "20260101-aa"
    publish(images, "20260104-dd")
    assert promotion.rollback(images, "web", print).version == "20260101-aa", (
        "what was rolled back is not gone back to"
    )


def test_rolling_back_skips_versions_that_are_gone(images: Path) -> None:
    (images / "web" / "20260102-bb").rename(images / "elsewhere")
    assert promotion.rollback(images, "web", print).version == "20260101-aa"


def test_an_image_from_before_there_was_a_history_can_be_gone_back_to(images: Path) -> None:
    (images / "web" / HISTORY).unlink()
    with pytest.raises(ImageError, match="could go back to"):
        promotion.rollback(images, "web", print)
    publish(images, "20260104-dd")
    assert promotion.rollback(images, "web", print).version == "20260103-cc"


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("web", "2026010", "'2026010' is the beginning of 3 versions of the image 'web'."),
        ("web", "1999", "The image 'web' has no version '1999'."),
        ("web", CURRENT, "The image 'web' has no version 'current'."),
        ("web", "../web/20260101-aa", "has no version"),
        ("wed", "1", "There is no image 'wed'. There are: web."),
        (".", "web", "There is no image '.'"),
    ],
)
def test_a_version_that_is_not_clear_is_one_sentence_with_a_hint(
    images: Path, name: str, version: str, said: str
) -> None:
    with pytest.raises(ImageError) as caught:
        promotion.promote(images, name, version, print)
    assert said in caught.value.sentence
    assert caught.value.hint
    assert current(images) == "20260103-cc"


def test_the_whole_name_of_a_version_wins_over_beginnings(images: Path) -> None:
    publish(images, "20260101-aab")
    assert promotion.promote(images, "web", "20260101-aa", print).version == "20260101-aa"


def test_a_damaged_version_does_not_become_current(images: Path) -> None:
    before = (images / "web" / HISTORY).read_bytes()
    (images / "web" / "20260102-bb" / DISK).write_bytes(b"other")
    for change in (
        lambda: promotion.promote(images, "web", "20260102-bb", print),
        lambda: promotion.rollback(images, "web", print),
    ):
        with pytest.raises(ImageError, match=r"20260102-bb is damaged: disk\.qcow2"):
            change()
    assert (current(images), (images / "web" / HISTORY).read_bytes()) == ("20260103-cc", before)


@pytest.mark.parametrize("promoted", [True, False])
def test_a_build_is_recorded_and_made_current_unless_it_is_told_not_to(
    images: Path, tmp_path: Path, promoted: bool
) -> None:
    manifest = store.find(images, "web").manifest.model_copy(update={"version": "20260104-dd"})
    out = tmp_path / "out"
    shutil.copytree(images / "web" / "20260103-cc", out)
    (out / MANIFEST).write_text(manifest.model_dump_json())
    workshop.publish(out, images, manifest, print, promote=promoted)
    assert store.versions(images, "web")[-1] == "20260104-dd"
    assert (current(images) == "20260104-dd", len(promotion.history(images, "web")) == 4) == (
        promoted,
        promoted,
    )


def test_an_image_that_nobody_promoted_says_so(tmp_path: Path) -> None:
    publish(tmp_path, "1", promote=False)
    with pytest.raises(
        ImageError, match="No version of the image 'web' is the current one"
    ) as caught:
        store.find(tmp_path, "web")
    assert "vmrunner image promote web" in caught.value.hint
    promotion.promote(tmp_path, "web", "1", print)
    assert current(tmp_path) == "1"


def test_a_torn_last_line_costs_nothing_but_itself(images: Path) -> None:
    path = images / "web" / HISTORY
    whole = path.read_bytes()
    promotion.switch(images, "web", "20260101-aa", Why.PROMOTED)
    last = path.read_bytes()[len(whole) :]
    for length in range(len(last)):  # killed while it wrote: the link is not renamed then
        path.write_bytes(whole + last[:length])
        (images / "web" / CURRENT).unlink()
        (images / "web" / CURRENT).symlink_to("20260103-cc")
        assert [each.to for each in promotion.history(images, "web")][-1] == "20260103-cc"
        promotion.switch(images, "web", "20260102-bb", Why.PROMOTED)
        told = [(each.before, each.to) for each in promotion.history(images, "web")]
        assert told[-2:] == [("20260102-bb", "20260103-cc"), ("20260103-cc", "20260102-bb")]
        assert len(told) == 4


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from vmrunner import files
from vmrunner.image.versions import promotion, store

images, step, how = Path(sys.argv[1]), 0, sys.argv[2]

def die(left):
    def trace(frame, event, _):
        global step
        if frame.f_code.co_filename not in (promotion.__file__, store.__file__, files.__file__):
            return None
        if event == "line":
            step += 1
            if step == left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

for left in range(1, 1000):
    copy = images.parent / f"copy{left}"
    shutil.copytree(images, copy, symlinks=True)
    if (child := os.fork()) == 0:
        die(left)
        if how == "rollback":
            promotion.rollback(copy, "web", print)
        else:
            promotion.promote(copy, "web", "20260101", print, force=how == "force")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(left)
"""


@pytest.mark.parametrize(
    ("how", "new"),
    [("promote", "20260101-aa"), ("force", "20260101-aa"), ("rollback", "20260102-bb")],
)
def test_killed_at_any_line_it_is_the_old_state_or_the_new_one(
    images: Path, how: str, new: str
) -> None:
    if how == "force":
        (images / "web" / new / proof.RECORD).unlink()
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(images), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    count = int(ran.stdout.split()[-1])
    assert count > 30, "every line was a place to die"
    old = promotion.history(images, "web")
    seen = set()
    for left in range(1, count + 1):
        copy = images.parent / f"copy{left}"
        told = promotion.history(copy, "web")
        assert told[:3] == old
        assert [each.to for each in told[3:]] == ([] if current(copy) == "20260103-cc" else [new])
        seen.add(current(copy))
        # It can be read, whatever happened.
        notes = len(store.version(copy, "web", new).manifest.forced)
        assert notes == (how == "force") or (notes == 0 and current(copy) != new), (
            "not current by force without a note"
        )
        # Nothing is in the way, and nothing of the dead one stays.
        promotion.promote(copy, "web", "20260102", print)
        assert current(copy) == "20260102-bb"
        assert promotion.history(copy, "web")[-1].to == "20260102-bb"
        assert list((copy / "web").glob(f".{CURRENT}*")) == []
    assert seen == {"20260103-cc", new}


def test_force_is_written_into_the_manifest_and_nothing_else_of_it_changes(images: Path) -> None:
    for version, verified in (("20260104-dd", None), ("20260105-ee", False)):
        before = publish(images, version, promote=False, verified=verified)
        identity, known = store.identity(before.directory), proof.read(before)
        with pytest.raises(ImageError):
            promotion.promote(images, "web", version, print)
        assert store.version(images, "web", version).manifest == before.manifest
        promotion.promote(images, "web", version, print, force=True)
        after = store.version(images, "web", version)
        assert after.manifest.model_copy(update={"forced": ()}) == before.manifest
        assert (store.identity(after.directory), proof.read(after)) == (identity, known), (
            "what was found is about this manifest still"
        )
        (note,) = after.manifest.forced
        assert (note.found, note.at) == (
            "" if verified is None else "boot: 1.0 s",
            promotion.history(images, "web")[-1].at,
        )
        store.verify(after)
    promotion.promote(images, "web", "20260104-dd", print, force=True)
    assert len(store.version(images, "web", "20260104-dd").manifest.forced) == 2
    promotion.promote(images, "web", "20260101-aa", print, force=True)
    assert store.version(images, "web", "20260101-aa").manifest.forced == (), (
        "it was found good: nothing had to be forced"
    )


NOBODY = 2**22 + 1  # no process has this number (proc_sys_kernel(5), pid_max)


def test_what_a_killed_one_left_of_a_manifest_goes(images: Path) -> None:
    half = images / "web" / "20260101-aa" / f".{MANIFEST}.{NOBODY}"
    half.write_text("{")
    (images / "web" / "20260101-aa" / proof.RECORD).unlink()
    promotion.promote(images, "web", "20260101-aa", print, force=True)
    assert (half.exists(), len(store.find(images, "web").manifest.forced)) == (False, 1)


def test_two_at_once_do_not_interleave(images: Path) -> None:
    program = """
import sys
from pathlib import Path
from vmrunner.image.versions import promotion
for _ in range(20):
    for version in ("20260101", "20260102", "20260103"):
        promotion.promote(Path(sys.argv[1]), "web", version, lambda _: None)
"""
    both = [subprocess.Popen([sys.executable, "-c", program, str(images)]) for _ in range(2)]
    assert [each.wait(120) for each in both] == [0, 0]
    lines = (images / "web" / HISTORY).read_bytes().splitlines()
    told = promotion.history(images, "web")
    assert len(told) == len(lines), "each begins where the one before ended"


def test_a_store_that_may_not_be_written(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ImageError, match="can't be changed") as caught:
        promotion.promote(images, "web", "20260101", print)
    assert "sudo" in caught.value.hint
