"""The words of the API by which actions/cache speaks to its server, as the forges' runners have it
built in (artifact cache, version 1): what a request says, and which status a refusal has.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus

from vmrunner.cache.refused import Refused, Why

API = "/_apis/artifactcache"
STATUS = {
    Why.WRONG: HTTPStatus.BAD_REQUEST,
    Why.MAY_NOT: HTTPStatus.FORBIDDEN,
    Why.UNKNOWN: HTTPStatus.NOT_FOUND,
    Why.TAKEN: HTTPStatus.CONFLICT,
    Why.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Why.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    Why.NO_ROOM: HTTPStatus.INSUFFICIENT_STORAGE,
}
_KEYS, _LONGEST = 10, 512  # keys of one question, and characters of one; actions/cache has the same
_DIGITS = 15  # of a number of bytes
_CONTENT_RANGE = re.compile(rf"bytes ([0-9]{{1,{_DIGITS}}})-([0-9]{{1,{_DIGITS}}})/(\*|[0-9]+)")
_RANGE = re.compile(rf"bytes=([0-9]{{0,{_DIGITS}}})-([0-9]{{0,{_DIGITS}}})")


@dataclass(frozen=True)
class Wanted:
    """A new entry; `size` in bytes, where it is known."""

    key: str
    version: str
    size: int | None


def keys(text: str) -> tuple[str, ...]:
    """The keys of a question, with commas between them; raises Refused."""
    found = tuple(key for key in (each.strip() for each in text.split(",")) if key)
    if not found or len(found) > _KEYS:
        raise Refused(Why.WRONG, f"A question has 1 to {_KEYS} keys.")
    return tuple(_name(key, "key") for key in found)


def version(text: str) -> str:
    """What tells contents from each other that have the same key; raises Refused."""
    return _name(text, "version")


def number(text: str) -> int:
    """The id of an upload or an archive; raises Refused."""
    if not re.fullmatch("[0-9]{1,16}", text):
        raise Refused(Why.UNKNOWN, "There is no such upload or archive for this job.")
    return int(text)


def wanted(body: bytes) -> Wanted:
    """A new entry, as JSON; raises Refused."""
    plain = _object(body)
    key, size = plain.get("key"), plain.get("cacheSize")
    if not isinstance(key, str) or "," in key:
        raise Refused(Why.WRONG, "An entry has a key, without a comma.")
    kind = plain.get("version")
    # Older clients name no size, or 0.
    known = _whole(size) if size else None
    return Wanted(_name(key.strip(), "key"), version(kind if isinstance(kind, str) else ""), known)


def size(body: bytes) -> int:
    """How large the upload is that is complete now, as JSON; raises Refused."""
    return _whole(_object(body).get("size"))


def content_range(header: str) -> tuple[int, int]:
    """The bytes that a request brings: from the first one up to, without, the second one. Raises
    Refused.
    """
    found = _CONTENT_RANGE.fullmatch(header.strip())
    if not found or int(found[1]) > int(found[2]):
        raise Refused(Why.WRONG, 'A part comes with a Content-Range, such as "bytes 0-99/*".')
    return int(found[1]), int(found[2]) + 1


def byte_range(header: str, whole: int) -> tuple[int, int] | None:
    """The bytes that are asked for, as `content_range` has them; all of them where the header asks
    for something that we need not know (several ranges); None where they are not there.
    """
    found = _RANGE.fullmatch(header.strip())
    if not found or not (found[1] or found[2]):
        return 0, whole
    if not found[1]:
        last = min(int(found[2]), whole)
        return (whole - last, whole) if last else None
    begin, end = int(found[1]), int(found[2]) + 1 if found[2] else whole
    if begin >= end:
        return (0, whole) if begin < whole else None
    return (begin, min(end, whole)) if begin < whole else None


def archive(begin: int, end: int, whole: int) -> tuple[HTTPStatus, dict[str, str]]:
    """The status and the headers of an answer that has these bytes of an archive."""
    headers = {
        "content-type": "application/octet-stream",
        "content-length": str(end - begin),
        "accept-ranges": "bytes",
    }
    if (begin, end) == (0, whole):
        return HTTPStatus.OK, headers
    return HTTPStatus.PARTIAL_CONTENT, headers | {
        "content-range": f"bytes {begin}-{end - 1}/{whole}"
    }


def _object(body: bytes) -> dict[str, object]:
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise Refused(Why.WRONG, "A request's body is a JSON object.")
    return plain


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**_DIGITS:
        raise Refused(Why.WRONG, "A size is a whole number of bytes.")
    return value


def _name(text: str, what: str) -> str:
    """One that people can read and the index can keep."""
    if not text or len(text) > _LONGEST:
        raise Refused(Why.WRONG, f"A {what} has 1 to {_LONGEST} characters.")
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in text):
        raise Refused(Why.WRONG, f"A {what} has no control characters.")
    return text
